"""The main job from end to end, on a real model and real sentences: `python -m recipes.quickstart`."""
