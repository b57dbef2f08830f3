"""The label that marks a missing label."""

IGNORE_INDEX = -100
"""Label of a token or an example without a label, as in PyTorch and transformers."""
