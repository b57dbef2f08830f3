"""A model on the nine GLUE tasks, beside what was published."""
