"""The heads that can be exported: which outputs each has, and what is read from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from hf_distill.deployment.text_encoder import Encoded

MAX_ANSWER_TOKENS = 30
"""As in the question-answering pipeline of transformers 4."""


@dataclass(frozen=True)
class OutputReader:
    """What a prediction is made of, beside the model's outputs."""

    tokenizer: Tokenizer
    labels: Sequence[str] = ()
    problem_type: str | None = None
    mask_token_id: int | None = None


TextOutputs = dict[str, np.ndarray]
"""Of one text, without padding."""


@dataclass(frozen=True)
class PredictionHead:
    """One kind of head.

    Attributes:
        auto_class: what loads such a model.
        mapping: where transformers lists the classes of such models.
        outputs: the names of the outputs that are exported.
        per_token: whether the outputs are `[texts, tokens, ...]`; else `[texts, ...]`.
        reads_pairs: whether a text is a question and its context.
        predict: one text's prediction, from `(outputs, encoding, text, reader, top_k)`.
    """

    auto_class: str
    mapping: str
    outputs: list[str]
    per_token: bool
    reads_pairs: bool
    predict: Callable[[TextOutputs, Any, Any, OutputReader, int | None], Any]


def classify(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> Any:
    logits = outputs["logits"]
    if reader.problem_type == "regression":
        scores = logits
    else:
        scores = _sigmoid(logits) if reader.problem_type == "multi_label_classification" else _softmax(logits)
    return _best(scores, reader.labels.__getitem__, top_k)


def fill_mask(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> Any:
    masks = [position for position, token in enumerate(encoding.ids) if token == reader.mask_token_id]
    if len(masks) != 1:
        assert reader.mask_token_id is not None  # a fill-mask model has one
        mask = reader.tokenizer.id_to_token(reader.mask_token_id)
        raise ValueError(f"{text[:40]!r} has {len(masks)} times {mask}: it should have it once, within what is read.")
    return _best(_softmax(outputs["logits"][masks[0]]), lambda token: reader.tokenizer.decode([token]).strip(), top_k)


def next_token(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> Any:
    return _best(_softmax(outputs["logits"][-1]), lambda token: reader.tokenizer.decode([token]), top_k)


def find_entities(
    outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None
) -> list[dict]:
    """Neighbouring tokens of one kind are one entity, whose score is their mean; `B-` begins another, `O` is none."""
    entities: list[dict] = []
    probabilities = _softmax(outputs["logits"])
    previous = None
    for scores, (start, end), special in zip(
        probabilities, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        label = reader.labels[int(scores.argmax())]
        prefix, _, kind = label.rpartition("-") if label[:2] in ("B-", "I-") else ("", "", label)
        if special or label == "O":
            previous = None
            continue
        if kind != previous or prefix == "B":
            entities.append({"label": kind, "scores": [], "start": start})
        entities[-1]["end"] = end
        entities[-1]["scores"].append(float(scores.max()))
        previous = kind
    return [
        {
            "label": entity["label"],
            "score": float(np.mean(entity["scores"])),
            "text": text[entity["start"] : entity["end"]],
            "start": entity["start"],
            "end": entity["end"],
        }
        for entity in entities
    ]


def find_answer(
    outputs: TextOutputs, encoding: Encoding, text: tuple[str, str], reader: OutputReader, top_k: int | None
) -> Any:
    """The likeliest span of the context, of at most 30 tokens: P(start) * P(end)."""
    in_context = np.array([sequence == 1 for sequence in encoding.sequence_ids])
    if not in_context.any():
        raise ValueError(f"The question {text[0][:40]!r} leaves no room for its context: make it shorter.")
    starts, ends = (_softmax(np.where(in_context, outputs[name], -np.inf)) for name in ("start_logits", "end_logits"))
    spans = np.tril(np.triu(np.outer(starts, ends)), MAX_ANSWER_TOKENS - 1)
    best = np.argsort(-spans, axis=None, kind="stable")[: np.count_nonzero(spans)][:top_k]
    answers = []
    for first, last in zip(*np.unravel_index(best, spans.shape), strict=True):
        start, end = encoding.offsets[first][0], encoding.offsets[last][1]
        answers.append({"answer": text[1][start:end], "score": float(spans[first, last]), "start": start, "end": end})
    return answers[0] if top_k == 1 else answers


PREDICTION_HEADS = {
    "sequence classification": PredictionHead(
        auto_class="AutoModelForSequenceClassification",
        mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        per_token=False,
        reads_pairs=False,
        predict=classify,
    ),
    "token classification": PredictionHead(
        auto_class="AutoModelForTokenClassification",
        mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
        reads_pairs=False,
        predict=find_entities,
    ),
    "question answering": PredictionHead(
        auto_class="AutoModelForQuestionAnswering",
        mapping="MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        outputs=["start_logits", "end_logits"],
        per_token=True,
        reads_pairs=True,
        predict=find_answer,
    ),
    "masked language modelling": PredictionHead(
        auto_class="AutoModelForMaskedLM",
        mapping="MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
        reads_pairs=False,
        predict=fill_mask,
    ),
    "causal language modelling": PredictionHead(
        auto_class="AutoModelForCausalLM",
        mapping="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
        reads_pairs=False,
        predict=next_token,
    ),
}


def head_of_class(model_class: str) -> str:
    """The name of the head that a class of transformers has, such as `BertForSequenceClassification`.

    Raises:
        ValueError: if it has none that can be exported.
    """
    from transformers.models.auto import modeling_auto

    for name, head in PREDICTION_HEADS.items():
        if model_class in getattr(modeling_auto, head.mapping).values():
            return name
    raise ValueError(f"{model_class} has none of the heads that can be exported: {', '.join(PREDICTION_HEADS)}.")


def _best(scores: np.ndarray, name: Callable[[int], str], top_k: int | None) -> dict | list[dict]:
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    best = [{"label": name(index), "score": float(scores[index])} for index in order]
    return best[0] if top_k == 1 else best


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
