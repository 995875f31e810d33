"""The exported folder, the engine beside it, and every file in them."""
