"""What the design of the trainer is worth, in figures: `python -m recipes.benchmarks.NAME`."""
