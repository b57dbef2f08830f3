"""What long work shows: how much of it is done, and the time left. Imports neither transformers nor PyTorch."""

from hf_distill.progress.lines import Progress, track

__all__ = ["Progress", "track"]
