"""Finds checkpoints and loads them: PEFT folders, files of the reference implementation, hub ids."""
