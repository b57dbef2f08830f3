"""Loads texts and images, and turns them into rows and batches."""

from hf_distill.data.candidates import DataCollatorForRankings, encode_rankings
from hf_distill.data.causal import DataCollatorForCausalLM
from hf_distill.data.chats import encode_chats, load_chats, pack_chats
from hf_distill.data.corpus import load_corpus
from hf_distill.data.images import encode_images, load_labelled_images, load_unlabelled_images
from hf_distill.data.masking import DataCollatorForMaskedLM, count_tokens
from hf_distill.data.packing import pack_documents, truncate_documents
from hf_distill.data.pairs import encode_pairs, load_labelled_pairs, load_unlabelled_pairs
from hf_distill.data.question_tokens import encode_questions
from hf_distill.data.questions import load_questions, load_unlabelled_questions
from hf_distill.data.rankings import load_rankings, load_unlabelled_rankings, retrieval_of_rankings
from hf_distill.data.separate_documents import SeparateDocuments
from hf_distill.data.sounds import encode_sounds, load_labelled_sounds, load_unlabelled_sounds
from hf_distill.data.tagged_windows import encode_tagged_words
from hf_distill.data.tagged_words import load_tagged_words, load_untagged_words
from hf_distill.data.text_pairs import encode_text_pairs, load_text_pairs
from hf_distill.data.texts import load_labelled_texts, load_unlabelled_texts
from hf_distill.data.texts_to_embed import load_texts_to_embed
from hf_distill.data.transcripts import collate_speech, encode_transcripts, load_transcribed_sounds
from hf_distill.data.truncation import encode_texts

__all__ = [
    "DataCollatorForCausalLM",
    "DataCollatorForMaskedLM",
    "DataCollatorForRankings",
    "SeparateDocuments",
    "collate_speech",
    "count_tokens",
    "encode_chats",
    "encode_images",
    "encode_pairs",
    "encode_questions",
    "encode_rankings",
    "encode_sounds",
    "encode_tagged_words",
    "encode_text_pairs",
    "encode_texts",
    "encode_transcripts",
    "load_chats",
    "load_corpus",
    "load_labelled_images",
    "load_labelled_pairs",
    "load_labelled_sounds",
    "load_labelled_texts",
    "load_questions",
    "load_rankings",
    "load_tagged_words",
    "load_text_pairs",
    "load_texts_to_embed",
    "load_transcribed_sounds",
    "load_unlabelled_images",
    "load_unlabelled_pairs",
    "load_unlabelled_questions",
    "load_unlabelled_rankings",
    "load_unlabelled_sounds",
    "load_unlabelled_texts",
    "load_untagged_words",
    "pack_chats",
    "pack_documents",
    "retrieval_of_rankings",
    "truncate_documents",
]
