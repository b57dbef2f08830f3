"""Finds the head of a model, by the task that transformers lists its class for or by the name of the class."""

import inspect
import typing
from dataclasses import fields, is_dataclass

import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_distill.embedding import EmbeddingModel
from hf_distill.training.scoring.heads import (
    BinaryHead,
    EmbeddingHead,
    Head,
    MultipleChoiceHead,
    NoHead,
    QuestionAnsweringHead,
    RegressionHead,
)
from hf_distill.training.scoring.token_heads import (
    CausalLMHead,
    MaskedLMHead,
    PermutedLMHead,
    Seq2SeqLMHead,
    TokenHead,
)

MAPPINGS = {
    name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES"): frozenset(
        model for models in names.values() for model in ([models] if isinstance(models, str) else models)
    )
    for name, names in vars(modeling_auto).items()
    if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")
}
"""For each task, such as `MASKED_LM`, the names of the model classes that transformers lists."""

OTHER_AUTO_CLASSES = {
    "IMAGE_CLASSIFICATION": ("AutoModelForImageClassification", "image-classification"),
    "AUDIO_CLASSIFICATION": ("AutoModelForAudioClassification", "audio-classification"),
    "VIDEO_CLASSIFICATION": ("AutoModelForVideoClassification", "video-classification"),
    "NEXT_SENTENCE_PREDICTION": ("AutoModelForNextSentencePrediction", None),
    "DOCUMENT_QUESTION_ANSWERING": ("AutoModelForDocumentQuestionAnswering", None),
    "SEQ_TO_SEQ_CAUSAL_LM": ("AutoModelForSeq2SeqLM", None),
    "SPEECH_SEQ_2_SEQ": ("AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"),
    "IMAGE_TEXT_TO_TEXT": ("AutoModelForImageTextToText", None),
}
"""The Auto class and the Hub's name of a task, for tasks that differ from the default of their head."""

HEADLESS = ("MODEL", "BACKBONE", "TEXT_ENCODING", "IMAGE")
"""Tasks of models without a head."""

OF_MANY_KINDS = ("PRETRAINING", "MULTIMODAL_LM")
"""Tasks that list models with any kind of head once more."""

# To add a head: one class, one row here, one row in the parametrised tests. The order matters, because a model that is
# listed for two tasks gets the first head: BART is also listed for masked language modelling, XLM also for causal.
HEADS = (
    *(PermutedLMHead, Seq2SeqLMHead, MaskedLMHead, CausalLMHead),
    *(MultipleChoiceHead, QuestionAnsweringHead, TokenHead, Head),
)

OF_PROBLEM_TYPE = {head.problem_type: head for head in (Head, BinaryHead, RegressionHead)}
"""Heads for whole examples, by the config's `problem_type`."""


def find_head(model: PreTrainedModel) -> Head:
    """Finds the head of `model`.

    The head follows from the task that transformers lists the model's class, or a base class, for. If no class is
    listed, it follows from the name of the class.

    Returns:
        The head; a `NoHead` for a model without a head, such as `BertModel`.

    Raises:
        ValueError: if the model has a head that cannot be distilled, or if it is an encoder-decoder without a head.
    """
    if isinstance(model, EmbeddingModel):
        return EmbeddingHead(model)
    for cls in type(model).__mro__:
        name = cls.__name__
        heads = [head for head in HEADS if name in head.class_names or _lists(head, name)]
        tasks = [task for task, models in MAPPINGS.items() if name in models and task not in HEADLESS]
        if not heads and all(task in OF_MANY_KINDS for task in tasks):
            heads = [head for head in HEADS if name.endswith(head.class_names)]
        if Seq2SeqLMHead in heads and not model.config.is_encoder_decoder:
            # Language models that read images or audio among their tokens are listed with encoder-decoders.
            among_tokens = _lists(Seq2SeqLMHead, name) and name.endswith(("ForConditionalGeneration", "ForCausalLM"))
            if not among_tokens and CausalLMHead not in heads:
                raise ValueError(
                    f"{type(model).__name__} is not an encoder-decoder, so the meaning of its logits is unknown: load "
                    f"its language model with AutoModelForCausalLM."
                )
            heads = [CausalLMHead]
        if heads:
            return _checked(model, _of_problem_type(model) if heads[0] is Head else heads[0](model))
        if tasks or name.endswith("ForPreTraining"):
            task = (tasks or ["PRETRAINING"])[0].lower().replace("_", " ")
            raise ValueError(
                f"{type(model).__name__} is made for {task}, whose outputs cannot be distilled: docs/heads.md lists "
                f"the supported heads."
            )
    if is_base(model) and model.base_model is model:
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder without a head, so it is unknown which tokens its "
                f"decoder reads: load it with AutoModelForSeq2SeqLM."
            )
        return _checked(model, NoHead(model))
    return _checked(model, _of_problem_type(model))


def is_base(model: PreTrainedModel) -> bool:
    """Whether transformers lists the model's class, or a base class, as a model without a head."""
    return any(is_base_class(cls.__name__) for cls in type(model).__mro__)


def is_base_class(name: str) -> bool:
    """Whether transformers lists a class of this name as a model without a head."""
    return name in MAPPINGS["MODEL"]


def _checked(model: PreTrainedModel, head: Head) -> Head:
    """Returns the head after checking that the declared outputs of the model match it."""
    declared = inspect.signature(model.forward).return_annotation
    classes = [cls for cls in typing.get_args(declared) or [declared] if is_dataclass(cls)]
    names = {field.name for cls in classes for field in fields(cls)}
    # Some models declare the output of another head. Only outputs with neither logits nor a loss are trusted.
    nothing_known = names and not head.per_token and not names.intersection(("loss", *head.prediction_names))
    if nothing_known or "start_top_log_probs" in names:  # question answering by beam search
        raise ValueError(
            f"{type(model).__name__} returns {', '.join(sorted(names))} and no "
            f"{' and no '.join(head.prediction_names)}, so it cannot be distilled: docs/heads.md lists the supported "
            f"heads."
        )
    return head


def _of_problem_type(model: PreTrainedModel) -> Head:
    default = "regression" if getattr(model.config, "num_labels", None) == 1 else "single_label_classification"
    return OF_PROBLEM_TYPE[getattr(model.config, "problem_type", None) or default](model)


def _lists(head: type[Head], class_name: str) -> bool:
    """Whether transformers lists a class for one of the tasks of this head."""
    return any(class_name in MAPPINGS.get(task, ()) for task in head.tasks)


def auto_class_of(model: PreTrainedModel) -> type:
    """The Auto class, or `EmbeddingModel`, that loads models of any family with the head of `model`."""
    if isinstance(model, EmbeddingModel):
        return EmbeddingModel
    return getattr(transformers, _names(model)[0])


def pipeline_tag_of(model: PreTrainedModel) -> str | None:
    """The Hub's name of the model's task; None if the Hub has several, as for text to text."""
    return _names(model)[1]


def is_exported(model: PreTrainedModel) -> bool:
    """Whether `hf-distill export` accepts models with the head and the Auto class of `model`."""
    head = find_head(model)
    return head.is_exported and _names(model)[0] == head.auto_class


def _names(model: PreTrainedModel) -> tuple[str, str | None]:
    """The names of the Auto class that loads the model, and of its task on the Hub."""
    head = find_head(model)
    known = (*head.tasks, *OTHER_AUTO_CLASSES)
    tasks = (task for cls in type(model).__mro__ for task in known if cls.__name__ in MAPPINGS.get(task, ()))
    return OTHER_AUTO_CLASSES.get(next(tasks, ""), (head.auto_class, head.pipeline_tag))
