"""Makes the vocabulary of a model and its tokenizer smaller."""

from hf_distill.student.vocabulary.trimming import TrimmedVocabulary, trim_vocabulary

__all__ = ["TrimmedVocabulary", "trim_vocabulary"]
