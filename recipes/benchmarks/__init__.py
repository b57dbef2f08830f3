"""Benchmarks of hf_distill. Run one with `python -m recipes.benchmarks.NAME`."""
