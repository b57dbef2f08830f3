"""Fine-tunes a model on the nine GLUE tasks, and compares its scores with published ones."""
