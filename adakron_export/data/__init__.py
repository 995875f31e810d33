"""Labelled text and images: settings, reading, columns, labels, features, metrics, answers."""
