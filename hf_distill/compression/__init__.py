"""Finds the fastest student of a teacher that keeps a share of its quality."""

from hf_distill.compression.answer import Compressed
from hf_distill.compression.compress import compress, join

__all__ = ["Compressed", "compress", "join"]
