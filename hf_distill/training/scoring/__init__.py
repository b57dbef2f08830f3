"""Which positions of a batch are scored, and the forward that computes no others."""
