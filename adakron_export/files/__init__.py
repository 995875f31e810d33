"""Reading and writing files that nobody vouches for: strict JSON, places, one-step writes."""
