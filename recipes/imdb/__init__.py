"""A teacher fine-tuned on movie reviews, and students distilled from it."""
