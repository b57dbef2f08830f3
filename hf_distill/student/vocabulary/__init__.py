"""Makes the vocabulary of a model and its tokenizer smaller."""

from hf_distill.student.vocabulary.trimming import TrimmedVocabulary, trim_vocabulary
from hf_distill.student.vocabulary.weights import cut_vocabulary, prove_vocabulary

__all__ = ["TrimmedVocabulary", "cut_vocabulary", "prove_vocabulary", "trim_vocabulary"]
