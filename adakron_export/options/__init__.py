"""Options as fields of records: each with its default, unit and help, said once."""
