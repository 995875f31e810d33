"""What is known of each architecture, in one table. Needs no torch."""
