"""The console script `hf-distill`: one file per command."""

from hf_distill.cli.main import main

__all__ = ["main"]
