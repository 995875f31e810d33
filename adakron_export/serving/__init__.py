"""Artifacts behind a port, over many files, and in Triton: Ray and Triton are the engines."""
