"""TensorRT engines, of both flavors: how they are built, and the folder they stand in."""
