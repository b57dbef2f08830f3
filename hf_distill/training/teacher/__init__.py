"""The teacher: a live model, or targets stored in the columns of a dataset."""
