"""A model's tokenizer: its files, and texts to token ids."""
