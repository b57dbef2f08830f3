"""Pushes folders to the Hub, and writes model cards."""

from hf_distill.hub.push import push_folder

__all__ = ["push_folder"]
