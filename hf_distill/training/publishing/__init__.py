"""What the trainer makes public: a model card beside the student, and pushes to the Hub."""
