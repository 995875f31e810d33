"""Loaded runtimes behind one protocol: named numpy arrays in, named numpy arrays out."""
