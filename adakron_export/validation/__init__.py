"""Proves that two runtimes compute the same: batches, comparison, verdict."""
