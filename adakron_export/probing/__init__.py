"""Watches the values inside a graph: to find where it goes wrong, and to find scales."""
