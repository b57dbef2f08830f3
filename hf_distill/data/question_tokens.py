"""Tokenizes questions with their contexts, long contexts in overlapping windows."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.answers import NO_ANSWER, ContextWindow, split_context, tokens_of_answer
from hf_distill.data.labels import IGNORE_INDEX

LABELS = ("start_positions", "end_positions")


def encode_questions(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> Dataset:
    """Tokenizes questions with their contexts. A context that is too long becomes several rows.

    Each row has the whole question and a part of the context, without padding. As in Devlin et al., 2018
    (https://arxiv.org/abs/1810.04805), a row that does not contain the whole answer, or whose question has none, has
    the first token as its answer: `[CLS]`, or another special token. If the tokenizer adds no special tokens, it is the
    question's first token, which is never part of the context. If there are several answers, the first one counts.

    Args:
        dataset: dataset of `load_questions` or `load_unlabelled_questions`.
        tokenizer: a fast tokenizer.
        max_length: tokens per row, including special tokens.
        stride: tokens of the context that are in both of two neighbouring rows of a question; at most half of a row's.

    Returns:
        A dataset with the tokenizer's columns, such as `input_ids` and `attention_mask`, and `start_positions` and
        `end_positions`, the first and the last token of the answer. They are -100 for a question without labels, and
        for an answer that the tokenizer gives no tokens for.

    Raises:
        ValueError: if the tokenizer is not a fast tokenizer, or if a question leaves too little room for its context.

    Example:
        >>> rows = encode_questions(load_questions("train-v2.0.json"), tokenizer, max_length=384, stride=128)
    """
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    names = {name: own for name, own in names.items() if name in tokenizer.model_input_names}
    tokenize = QuestionTokenizer(tokenizer, max_length, stride)

    def encode(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        columns: dict[str, list] = {name: [] for name in (*names, *LABELS)}
        windows = tokenize(batch["question"], batch["context"], numbers[0])
        for own, answers, starts in zip(windows, batch["answers"], batch["starts"], strict=True):
            labels = _labels(own, answers, starts)
            for window, positions in zip(own, labels, strict=True):
                for name, attribute in names.items():
                    columns[name].append(getattr(window, attribute))
                for name, position in zip(LABELS, positions, strict=True):
                    columns[name].append(position)
        return columns

    return dataset.map(encode, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenising")


class QuestionTokenizer:
    """Splits questions and contexts into windows of tokens, in training as in predictions.

    Args:
        tokenizer: a fast tokenizer. It does not change.
        max_length: tokens per window, including special tokens.
        stride: tokens of the context that are in both of two neighbouring windows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer: use a fast tokenizer, which has a tokenizer.json."
            )
        backend: Any = tokenizer.backend_tokenizer
        self.backend = type(backend).from_str(backend.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.max_length, self.stride = max_length, stride

    def __call__(self, questions: Sequence[str], contexts: Sequence[str], first: int = 0) -> list[list[ContextWindow]]:
        """Returns the windows of each question. `first` is the number of the first question, for errors."""
        windows = []
        encodings = self.backend.encode_batch(list(zip(questions, contexts, strict=True)))
        for number, encoding in enumerate(encodings, start=first + 1):
            try:
                windows.append(split_context(encoding, self.max_length, self.stride))
            except ValueError as error:
                raise ValueError(f"Row {number}, {questions[number - first - 1][:40]!r}: {error}") from None
        return windows


def _labels(windows: list[ContextWindow], answers: list[str] | None, starts: list[int] | None) -> list[tuple[int, int]]:
    unknown = [(IGNORE_INDEX, IGNORE_INDEX)] * len(windows)
    if answers is None or starts is None:
        return unknown
    if not answers:
        return [(NO_ANSWER, NO_ANSWER)] * len(windows)
    try:
        found = tokens_of_answer(windows, starts[0], starts[0] + len(answers[0]))
    except ValueError:  # for example an answer of characters that the tokenizer drops
        return unknown
    return [(NO_ANSWER, NO_ANSWER) if own is None else own for own in found]
