"""What is in an output folder: checkpoints that are complete, and which training they belong to."""
