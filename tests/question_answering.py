"""A tokenizer, a tiny model and small data for question answering."""

import json
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_distill.lengths import READING
from tests.conftest import make_text_tokenizer, make_texts
from tests.deployment.conftest import tiny_student


def make_question_tokenizer(max_length: int = 20) -> PreTrainedTokenizerFast:
    """Turns the question `w5` and the context `w6 w7` into the tokens 1, 5, 2, 6, 7, 2, the last three of type 1."""
    own = make_text_tokenizer()
    backend = own.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=max_length,
        **{name: getattr(own, name) for name in names},
    )


def answering_student(num_layers: int = 1, **reading) -> PreTrainedModel:
    """A model with large random logits; `reading` is what its config records of its training."""
    student = tiny_student("bert", "question answering", num_hidden_layers=num_layers)
    with torch.no_grad():
        student.qa_outputs.weight.mul_(2)
    if reading:
        setattr(student.config, READING, {"task": "question-answering", **reading})
    return student


def make_question_rows(num_rows: int, longest: int = 60, seed: int = 0) -> list[dict]:
    """Rows as in `load_questions`. The answer is one word of the context; every fourth question has none."""
    questions, contexts = make_texts(num_rows, seed, 4), make_texts(num_rows, seed + 1, longest)
    rows = []
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        words = context.split()
        place = number % len(words)
        start = len(" ".join(words[:place])) + (place > 0)
        answers, starts = ([], []) if number % 4 == 3 else ([words[place]], [start])
        rows.append({"question": question, "context": context, "answers": answers, "starts": starts})
    return rows


def write_squad(file: Path, rows: list[dict]) -> Path:
    """Writes the rows in the format of SQuAD 2.0."""
    paragraphs = []
    for number, row in enumerate(rows):
        pairs = zip(row["answers"], row["starts"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        question = {"id": f"q{number}", "question": row["question"], "is_impossible": not answers, "answers": answers}
        paragraphs.append({"context": row["context"], "qas": [question]})
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return file
