"""From a trained adapter to what other programs read, with proof that it computes the same; and what an adapter is."""
