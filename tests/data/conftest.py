"""Collators are tried in a training too."""

from tests.training.conftest import make_trainer

__all__ = ["make_trainer"]
