"""Metrics, and the model's answers they are taken from."""
