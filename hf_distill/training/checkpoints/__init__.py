"""The output folder: complete checkpoints, and the training that they belong to."""
