"""Opens whatever can run: an artifact, an engine, a checkpoint."""
