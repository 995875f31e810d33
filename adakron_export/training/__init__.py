"""From a backbone and labelled text to a checkpoint: reading, features, training, metrics."""
