"""What a label means that is none."""

IGNORE_INDEX = -100
"""The label of a token or an example that has none, as in PyTorch and transformers."""
