"""Measures latency: one process per runtime, interleaved rounds, load, baselines."""
