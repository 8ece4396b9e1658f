"""From a run configuration to a trained adapter and its record."""
