"""Scoring: which positions of a batch are compared, and a forward that computes logits only for those."""
