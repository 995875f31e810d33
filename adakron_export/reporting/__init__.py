"""Reports: plain data with a schema, and the page that is drawn from it."""
