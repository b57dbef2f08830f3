"""Inspects a teacher, and makes a smaller student from its layers."""

from hf_distill.student.describe import describe
from hf_distill.student.make_student import make_student

__all__ = ["describe", "make_student"]
