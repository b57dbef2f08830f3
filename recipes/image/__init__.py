"""Image classification: Food-101, and small data for a first try."""
