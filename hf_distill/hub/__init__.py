"""The Hub: what is pushed, and model cards on disk."""

from hf_distill.hub.push import push_folder

__all__ = ["push_folder"]
