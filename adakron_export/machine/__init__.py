"""The machine: its processor, its GPU, and the TensorRT builders that fit it."""
