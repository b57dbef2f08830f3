"""Targets that another program computed, as the columns of `add_teacher_targets`."""
