"""The mathematics: row norms, the scale, the layers' forward and backward passes. Imports torch and nothing else."""
