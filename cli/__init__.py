"""The command line: parses, calls one library verb, renders."""
