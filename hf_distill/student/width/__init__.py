"""Cuts feed-forward width, attention heads and hidden width."""
