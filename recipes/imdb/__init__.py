"""Fine-tunes a teacher on movie reviews, and distils students from it."""
