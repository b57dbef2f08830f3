"""The heads that can be exported: the outputs of each, and how predictions are made from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tokenizers import Encoding

from hf_distill.answers import MAX_ANSWER_TOKENS, ContextWindow, best_answers, split_context
from hf_distill.deployment.embeddings import EMBEDDING, Prompts
from hf_distill.deployment.entities import find_entities_of_words
from hf_distill.deployment.text_encoder import Encoded, Windows
from hf_distill.words import WordRule, split_words


@dataclass(frozen=True)
class OutputReader:
    """Everything, apart from the model's outputs, that a prediction is made from."""

    tokenizer: Any
    """A `Tokenizer`; None for a model that does not read text."""
    labels: Sequence[str] = ()
    problem_type: str | None = None
    mask_token_id: int | None = None
    words: WordRule | None = None
    """How a text is split into words, if a class is predicted for each word instead of for each token."""
    max_answer_tokens: int = MAX_ANSWER_TOKENS
    no_answer_threshold: float | None = None
    """How much more likely it must be that a question has no answer. None if every question has an answer."""
    prompts: Prompts = field(default_factory=Prompts)
    """The prompts of an embedding model."""
    width: int | None = None
    """Number of values in a vector of an embedding model. If the model computes more, the first ones are kept."""


TextOutputs = dict[str, np.ndarray]
"""Outputs for one text by name, without padding."""


@dataclass(frozen=True)
class PredictionHead:
    """One kind of head.

    Attributes:
        auto_class: auto class that loads models with this head, or `"EmbeddingModel"`.
        mapping: name of the transformers mapping that lists the classes of such models; None if `auto_class` is the
            only one.
        outputs: names of the exported outputs.
        predict: `(outputs, encoding, text, reader, top_k)` returns the prediction for one text.
        per_token: True if outputs are `[texts, tokens, ...]`, False if they are `[texts, ...]`.
        reads_pairs: True if every model with this head reads pairs: of question and context. Sequence classifiers read
            texts or pairs; `Predictor.reads_pairs` says which.
        generates: True if the model generates a text, token by token.
        reads: what the model reads: `"text"`, `"image"` or `"audio"`.
    """

    auto_class: str
    mapping: str | None
    outputs: list[str]
    predict: Callable[[TextOutputs, Any, Any, OutputReader, int | None], Any]
    per_token: bool = False
    reads_pairs: bool = False
    generates: bool = False
    reads: str = "text"


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
        assert reader.mask_token_id is not None  # every fill-mask model has one
        mask = reader.tokenizer.id_to_token(reader.mask_token_id)
        raise ValueError(f"Expected exactly one {mask} within max_length tokens; found {len(masks)} in {text[:40]!r}.")
    return _best(_softmax(outputs["logits"][masks[0]]), lambda token: reader.tokenizer.decode([token]).strip(), top_k)


def next_token(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> Any:
    return _best(_softmax(outputs["logits"][-1]), lambda token: reader.tokenizer.decode([token]), top_k)


def find_entities(
    outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None
) -> list[dict]:
    """Joins neighbouring tokens of one kind into an entity with their mean score. `B-` starts one, `O` is outside.

    A model that was trained on words decides per word, as in `find_entities_of_words`.
    """
    if reader.words is not None:
        words = split_words(text, reader.words)
        return find_entities_of_words(outputs["logits"], encoding, text, words, reader.labels)
    assert not isinstance(encoding, Windows)  # only models that decide per word read windows
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
    outputs: TextOutputs, encoding: Encoded, text: tuple[str, str], reader: OutputReader, top_k: int | None
) -> Any:
    """Finds the most likely answers in all windows of the context, as `hf_distill.answers.best_answers`."""
    if isinstance(encoding, Windows):
        windows = [window for window in encoding.windows if isinstance(window, ContextWindow)]
    else:  # exports of earlier versions truncate long contexts
        assert isinstance(encoding, Encoding)
        windows = split_context(encoding, len(encoding), 0)
    logits = outputs["start_logits"], outputs["end_logits"]
    limits = reader.max_answer_tokens, reader.no_answer_threshold
    answers = best_answers(windows, *logits, text[1], *limits, top_k)
    return answers[0] if top_k == 1 else answers


def read_text(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> dict:
    """Decodes a generated text. There is one for each input, whatever `top_k` is."""
    return {"text": reader.tokenizer.decode(outputs["sequences"].tolist(), skip_special_tokens=True).strip()}


def read_vector(outputs: TextOutputs, encoding: Encoded, text: str, reader: OutputReader, top_k: int | None) -> Any:
    """The vector of a text, `[width]` in fp32. There is one for each text, whatever `top_k` is."""
    return outputs["embeddings"][: reader.width]


PREDICTION_HEADS = {
    "audio classification": PredictionHead(  # before sequence classification, as the class of wav2vec 2.0 is called
        auto_class="AutoModelForAudioClassification",
        mapping="MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        predict=classify,
        reads="audio",
    ),
    "sequence classification": PredictionHead(
        auto_class="AutoModelForSequenceClassification",
        mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        predict=classify,
    ),
    "image classification": PredictionHead(
        auto_class="AutoModelForImageClassification",
        mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        predict=classify,
        reads="image",
    ),
    "token classification": PredictionHead(
        auto_class="AutoModelForTokenClassification",
        mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
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
    "sequence-to-sequence": PredictionHead(  # before masked language modelling, which has BART's class too
        auto_class="AutoModelForSeq2SeqLM",
        mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        outputs=["sequences"],
        predict=read_text,
        generates=True,
    ),
    "speech recognition": PredictionHead(
        auto_class="AutoModelForSpeechSeq2Seq",
        mapping="MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
        outputs=["sequences"],
        predict=read_text,
        generates=True,
        reads="audio",
    ),
    "masked language modelling": PredictionHead(
        auto_class="AutoModelForMaskedLM",
        mapping="MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
        predict=fill_mask,
    ),
    "causal language modelling": PredictionHead(
        auto_class="AutoModelForCausalLM",
        mapping="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        outputs=["logits"],
        per_token=True,
        predict=next_token,
    ),
    EMBEDDING: PredictionHead(auto_class="EmbeddingModel", mapping=None, outputs=["embeddings"], predict=read_vector),
}


CLASSIFIERS = ("sequence classification", "image classification", "audio classification")
"""The heads that give logits over classes for each input."""


def head_of_class(model_class: str) -> str:
    """Returns the name of the head of a model class, such as `BertForSequenceClassification`.

    Raises:
        ValueError: if the class has no head that can be exported.
    """
    from transformers.models.auto import modeling_auto

    for name, head in PREDICTION_HEADS.items():
        listed = [head.auto_class] if head.mapping is None else getattr(modeling_auto, head.mapping).values()
        if any(model_class in ([own] if isinstance(own, str) else own) for own in listed):  # DeiT has two classes
            return name
    raise ValueError(f"{model_class} cannot be exported: it needs a head for one of {', '.join(PREDICTION_HEADS)}.")


def _best(scores: np.ndarray, name: Callable[[int], str], top_k: int | None) -> dict | list[dict]:
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    best = [{"label": name(index), "score": float(scores[index])} for index in order]
    return best[0] if top_k == 1 else best


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
