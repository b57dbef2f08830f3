"""Fixtures for collators that are also tested in a training."""

from tests.training.conftest import make_trainer

__all__ = ["make_trainer"]
