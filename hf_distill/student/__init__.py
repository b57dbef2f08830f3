"""Inspects a teacher, makes a smaller student from its weights, and trims vocabularies."""

from hf_distill.student.axes import Axis, find_axes
from hf_distill.student.describe import describe
from hf_distill.student.latency import product_seconds
from hf_distill.student.make_student import make_student
from hf_distill.student.vocabulary import TrimmedVocabulary, trim_vocabulary

__all__ = [
    "Axis",
    "TrimmedVocabulary",
    "describe",
    "find_axes",
    "make_student",
    "product_seconds",
    "trim_vocabulary",
]
