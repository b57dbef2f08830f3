"""What a model's head gives, and whether student and teacher can be compared."""

import inspect
from dataclasses import dataclass
from inspect import Parameter

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.heads import Distribution
from hf_distill.training.scoring.widths import hidden_width, vocab_size

logger = logging.get_logger(__name__)

UNNAMED = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class HeadSpec:
    """What a model's head gives, as far as that of another can be compared with it. The model need not be at hand.

    Attributes:
        model: the model's class.
        auto_class: which of transformers' classes loads a model with a head of this kind.
        logits_per_token: how many logits of an example belong to each of its tokens; None where they are its own.
        distribution: what the logits of a position describe.
        num_labels: the config's.
        problem_type: the config's.
        labels: the names of the classes in their order; None where they are tokens or positions.
        vocab_size: how many tokens are told apart; None if none are read.
        decoder_start_token_id: what the decoder of a sequence-to-sequence model reads first.
        hidden_width: how wide the last hidden states are; None if the config does not say.
    """

    model: str
    auto_class: str
    logits_per_token: int | None
    distribution: Distribution
    num_labels: int | None
    problem_type: str | None
    labels: list[str] | None
    vocab_size: int | None
    decoder_start_token_id: int | None
    hidden_width: int | None


def head_spec(model: PreTrainedModel) -> HeadSpec:
    """
    Raises:
        ValueError: if the model has no head that can be distilled.
    """
    head, config = find_head(model), model.config
    reads_tokens = "input_ids" in named_inputs(model)
    return HeadSpec(
        model=type(model).__name__,
        auto_class=head.auto_class,
        logits_per_token=head.logits_per_token(config),
        distribution=head.distribution,
        num_labels=getattr(config, "num_labels", None),
        problem_type=getattr(config, "problem_type", None),
        labels=_labels(config) if head.named_classes else None,
        vocab_size=vocab_size(config) if reads_tokens else None,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None) if head.reads_labels else None,
        hidden_width=hidden_width(config),
    )


def check_alignment(student: HeadSpec, teacher: HeadSpec, tokenizer: object = None) -> list[int] | slice | None:
    """Checks that student and teacher can be compared class by class.

    Args:
        student: that of the student.
        teacher: that of the teacher.
        tokenizer: the student's, which tells how many of the vocabulary's entries are in use.

    Returns:
        Which columns of the teacher's logits to take, and in which order, or None for all as they are.

    Raises:
        ValueError: if they differ in head, vocabulary or labels.
    """
    if student.auto_class != teacher.auto_class:
        raise ValueError(
            f"The student is a {student.model} and the teacher a {teacher.model}: load both with {student.auto_class}."
        )
    if student.distribution != teacher.distribution:
        raise ValueError(
            f"The student has num_labels={student.num_labels} and problem_type={student.problem_type!r}, the teacher "
            f"num_labels={teacher.num_labels} and problem_type={teacher.problem_type!r}: set the same in both configs."
        )
    if student.decoder_start_token_id != teacher.decoder_start_token_id:
        raise ValueError(
            f"The student's decoder starts with token {student.decoder_start_token_id} and the teacher's with "
            f"{teacher.decoder_start_token_id}: both read the same decoder_input_ids, so set the same "
            f"decoder_start_token_id in both configs."
        )
    columns = _shared_vocabulary(student, teacher, tokenizer)
    if student.labels is None:
        return columns
    assert teacher.labels is not None  # their heads are of one kind
    return _label_order(student.labels, teacher.labels)


def named_inputs(model: PreTrainedModel) -> set[str]:
    """The inputs that `model.forward` names.

    What a forward of transformers takes as `**kwargs` is not among them. A forward of your own passes it on, to that of
    a class that it derives from or of a model inside: what that one names is among them.
    """
    classes = [cls for cls in type(model).__mro__ if "forward" in vars(cls) and not cls.__module__.startswith("torch.")]
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel) and module is not model]
    names = set()
    for forward in [model.forward, *(vars(cls)["forward"] for cls in classes), *(module.forward for module in inside)]:
        parameters = inspect.signature(forward).parameters.values()
        named = {parameter.name for parameter in parameters if parameter.kind not in UNNAMED}
        names |= named - {"self"}
        if len(named) == len(parameters) or inspect.unwrap(forward).__module__.startswith("transformers."):
            break
    return names


def _labels(config: PreTrainedConfig) -> list[str]:
    named = config.id2label or {}
    return [named.get(index, f"LABEL_{index}") for index in range(config.num_labels)]


def _shared_vocabulary(student: HeadSpec, teacher: HeadSpec, tokenizer: object) -> slice | None:
    """The entries that both vocabularies have, where one is padded to a round number."""
    own, other = student.vocab_size, teacher.vocab_size
    if own == other:
        return None
    in_use = len(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    if own is None or other is None or in_use is None or in_use > min(own, other):
        raise ValueError(
            f"The student's vocabulary has {own} entries and the teacher's {other}: both read the same "
            f"input_ids, so they need one tokenizer. "
            + (
                f"That given as processing_class has {in_use} entries. Cut the student with make_student(teacher)."
                if in_use is not None
                else "If the rest is padding, pass the tokenizer as processing_class; else cut the student with "
                "make_student(teacher)."
            )
        )
    return slice(min(own, other))


def _label_order(student: list[str], teacher: list[str]) -> list[int] | None:
    if student == teacher:
        return None
    if sorted(student) == sorted(teacher):
        return [teacher.index(label) for label in student]
    named_by_default = any(labels == [f"LABEL_{i}" for i in range(len(labels))] for labels in (student, teacher))
    if named_by_default and len(student) == len(teacher):
        logger.warning(
            f"The student's labels {student} and the teacher's {teacher} are matched by index, since one side has only "
            f"the default names. Set id2label and label2id to have them matched by name."
        )
        return None
    raise ValueError(
        f"The student's labels are {student} and the teacher's {teacher}: they have to be the same. Load both with the "
        f"same num_labels, id2label and label2id, or cut the student with make_student(teacher)."
    )
