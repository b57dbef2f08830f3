"""Which head a model has: by the task that transformers lists its class for, or by the name of its class."""

import inspect
import typing
from dataclasses import fields, is_dataclass

import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_distill.training.scoring.heads import (
    BinaryHead,
    Head,
    MultipleChoiceHead,
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
"""The names of the models that transformers lists for each task, such as `MASKED_LM`."""

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
"""What loads the models of a task, and the Hub's name for it, where these are not those of their head."""

HEADLESS = ("MODEL", "BACKBONE", "TEXT_ENCODING", "IMAGE")
"""Those of models without a head."""

OF_MANY_KINDS = ("PRETRAINING", "MULTIMODAL_LM")
"""Those in which models with heads of all kinds are listed once more."""

# A head that is missing here is one class beside those, one row here and one in the parametrised tests. A model that
# transformers lists for two has the first: BART is listed for masked language modelling too, and XLM for causal.
HEADS = (
    *(PermutedLMHead, Seq2SeqLMHead, MaskedLMHead, CausalLMHead),
    *(MultipleChoiceHead, QuestionAnsweringHead, TokenHead, Head),
)

OF_PROBLEM_TYPE = {head.problem_type: head for head in (Head, BinaryHead, RegressionHead)}
"""The kinds of `Head`, by the config's `problem_type`."""


def find_head(model: PreTrainedModel) -> Head:
    """The head of `model`: by the task that transformers lists its class for, or a class it derives from; by its name
    where it is not listed.

    Raises:
        ValueError: if the model has no head, or one of a kind that cannot be distilled.
    """
    for cls in type(model).__mro__:
        name = cls.__name__
        heads = [head for head in HEADS if name in head.class_names or _lists(head, name)]
        tasks = [task for task, models in MAPPINGS.items() if name in models and task not in HEADLESS]
        if not heads and all(task in OF_MANY_KINDS for task in tasks):
            heads = [head for head in HEADS if name.endswith(head.class_names)]
        if Seq2SeqLMHead in heads and not model.config.is_encoder_decoder:
            # A language model that reads images or recordings among its tokens, listed beside encoder-decoders.
            among_tokens = _lists(Seq2SeqLMHead, name) and name.endswith(("ForConditionalGeneration", "ForCausalLM"))
            if not among_tokens and CausalLMHead not in heads:
                raise ValueError(
                    f"{type(model).__name__} is not an encoder-decoder, so it is not clear what its logits mean: load "
                    f"its language model with AutoModelForCausalLM."
                )
            heads = [CausalLMHead]
        if heads:
            return _checked(model, _of_problem_type(model) if heads[0] is Head else heads[0](model))
        if tasks or name.endswith("ForPreTraining"):
            task = (tasks or ["PRETRAINING"])[0].lower().replace("_", " ")
            raise ValueError(
                f"{type(model).__name__} is made for {task}, and what it gives cannot be distilled: docs/heads.md "
                f"lists the heads that can be."
            )
    if is_base(model) and model.base_model is model:
        raise ValueError(
            f"{type(model).__name__} has no head, so there are no logits to distil: load it with "
            f"AutoModelForSequenceClassification, AutoModelForMaskedLM or the like."
        )
    return _checked(model, _of_problem_type(model))


def is_base(model: PreTrainedModel) -> bool:
    """Whether transformers lists its class, or one that it derives from, as a model without a head."""
    return any(cls.__name__ in MAPPINGS["MODEL"] for cls in type(model).__mro__)


def _checked(model: PreTrainedModel, head: Head) -> Head:
    """The head, unless the model declares to return something else."""
    declared = inspect.signature(model.forward).return_annotation
    classes = [cls for cls in typing.get_args(declared) or [declared] if is_dataclass(cls)]
    names = {field.name for cls in classes for field in fields(cls)}
    # Some declare the output of another head, so that only what has neither logits nor a loss is believed.
    nothing_known = names and not head.per_token and not names.intersection(("loss", *head.prediction_names))
    if nothing_known or "start_top_log_probs" in names:  # of an answer that is searched for
        raise ValueError(
            f"{type(model).__name__} returns {', '.join(sorted(names))} and no "
            f"{' and no '.join(head.prediction_names)}, so it cannot be distilled: docs/heads.md lists the heads that "
            f"can be."
        )
    return head


def _of_problem_type(model: PreTrainedModel) -> Head:
    default = "regression" if getattr(model.config, "num_labels", None) == 1 else "single_label_classification"
    return OF_PROBLEM_TYPE[getattr(model.config, "problem_type", None) or default](model)


def _lists(head: type[Head], class_name: str) -> bool:
    """Whether transformers lists a model under one of the tasks of this head."""
    return any(class_name in MAPPINGS.get(task, ()) for task in head.tasks)


def auto_class_of(model: PreTrainedModel) -> type:
    """The class that loads a model with the head of `model`, of whatever family, from a name."""
    return getattr(transformers, _names(model)[0])


def pipeline_tag_of(model: PreTrainedModel) -> str | None:
    """The Hub's name for what the model does. Of text to text it has several, and which it is cannot be told."""
    return _names(model)[1]


def is_exported(model: PreTrainedModel) -> bool:
    """Whether `hf-distill export` takes models with the head of `model` that are loaded as it is."""
    head = find_head(model)
    return head.is_exported and _names(model)[0] == head.auto_class


def _names(model: PreTrainedModel) -> tuple[str, str | None]:
    """Of the class that loads the model, and of what it does."""
    head = find_head(model)
    known = (*head.tasks, *OTHER_AUTO_CLASSES)
    tasks = (task for cls in type(model).__mro__ for task in known if cls.__name__ in MAPPINGS.get(task, ()))
    return OTHER_AUTO_CLASSES.get(next(tasks, ""), (head.auto_class, head.pipeline_tag))
