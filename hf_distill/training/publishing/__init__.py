"""Publishing: the student's model card, and pushes to the Hub."""
