"""The limits of a service, as options and as values."""

import argparse
import dataclasses

import pytest

from hf_distill.serving import Limits


def test_each_bound_is_an_option():
    parser = argparse.ArgumentParser()
    Limits.add_options(parser)
    assert Limits.from_options(parser.parse_args([])) == Limits()
    options = parser.parse_args(["--max-texts", "3", "--timeout", "2.5"])
    assert Limits.from_options(options) == Limits(max_texts=3, timeout=2.5)
    described = parser.format_help()
    for bound in dataclasses.fields(Limits):
        assert f"--{bound.name.replace('_', '-')} {bound.metadata['unit']}" in described


def test_bad_bounds():
    for bound in dataclasses.fields(Limits):
        with pytest.raises(ValueError, match=rf"{bound.name} is -1: it must be"):
            Limits(**{bound.name: -1})
    with pytest.raises(ValueError, match="timeout is 0: it must be above 0"):
        Limits(timeout=0)
    assert Limits(max_delay=0).max_delay == 0
    with pytest.raises(ValueError, match="max_queue is 10: it must be at least max_texts=64"):
        Limits(max_queue=10)
