"""Recipes and the embedded demo model."""
