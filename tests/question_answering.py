"""A tokenizer and small data for question answering."""
