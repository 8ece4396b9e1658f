"""Scores of a model on the rows of a table: metrics, and the model's answer to every row."""
