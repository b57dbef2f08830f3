"""Describes a model's outputs, and checks whether student and teacher can be compared."""

import inspect
from dataclasses import dataclass
from inspect import Parameter

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.embedding import EmbeddingModel
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.heads import Distribution, EmbeddingHead
from hf_distill.training.scoring.widths import hidden_width, vocab_size

logger = logging.get_logger(__name__)

UNNAMED = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class HeadSpec:
    """Describes a model's outputs, so that two models can be compared. It can be stored without the model.

    Attributes:
        model: name of the model's class.
        auto_class: the Auto class of transformers that loads models with this kind of head.
        logits_per_token: logits per token; None if the logits belong to the whole example.
        distribution: what the logits of a position describe: one class, a yes or no per class, or numbers.
        num_labels: `num_labels` of the config.
        problem_type: `problem_type` of the config.
        labels: names of the classes in order; None if the classes are tokens or positions.
        vocab_size: size of the input vocabulary; None if the model does not read tokens.
        decoder_start_token_id: the first token that a sequence-to-sequence decoder reads.
        hidden_width: width of the last hidden states; None if unknown.
        embedding_width: width of the vectors of an embedding model; None for other models.
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
    embedding_width: int | None = None


def head_spec(model: PreTrainedModel) -> HeadSpec:
    """Describes the outputs of `model`.

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
        embedding_width=model.embedding_width if isinstance(model, EmbeddingModel) else None,
    )


def embedding_spec(model: str, width: int | None) -> HeadSpec:
    """Describes the outputs of an embedding model of which only the vectors are known.

    Args:
        model: what it is called.
        width: width of its vectors.
    """
    return HeadSpec(
        model=model,
        auto_class=EmbeddingHead.auto_class,
        logits_per_token=None,
        distribution=EmbeddingHead.distribution,
        num_labels=None,
        problem_type=None,
        labels=None,
        vocab_size=None,
        decoder_start_token_id=None,
        hidden_width=None,
        embedding_width=width,
    )


def check_alignment(student: HeadSpec, teacher: HeadSpec, tokenizer: object = None) -> list[int] | slice | None:
    """Checks that student and teacher can be compared class by class.

    Args:
        student: the student's outputs.
        teacher: the teacher's outputs.
        tokenizer: the student's tokenizer. Its length is the number of vocabulary entries in use.

    Returns:
        The columns of the teacher's logits to use, in the student's order; None to use all unchanged.

    Raises:
        ValueError: if student and teacher differ in head, vocabulary or labels.
    """
    if student.auto_class != teacher.auto_class:
        raise ValueError(
            f"The student is a {student.model} and the teacher a {teacher.model}, which have different kinds of heads: "
            f"load both with {student.auto_class}."
        )
    # A single number can be a relevance, whose sigmoid is a probability, or a plain number. Many rerankers do not say.
    is_undecided = teacher.num_labels == student.num_labels == 1 and teacher.problem_type is None
    if student.distribution != teacher.distribution and not is_undecided:
        raise ValueError(
            f"The student has num_labels={student.num_labels} and problem_type={student.problem_type!r}, the teacher "
            f"num_labels={teacher.num_labels} and problem_type={teacher.problem_type!r}: set the same values in both "
            f"configs."
        )
    if student.decoder_start_token_id != teacher.decoder_start_token_id:
        raise ValueError(
            f"The student's decoder starts with token {student.decoder_start_token_id} and the teacher's with "
            f"{teacher.decoder_start_token_id}, but both read the same decoder_input_ids: set the same "
            f"decoder_start_token_id in both configs."
        )
    columns = _shared_vocabulary(student, teacher, tokenizer)
    if student.labels is None:
        return columns
    assert teacher.labels is not None  # both have the same kind of head
    return _label_order(student.labels, teacher.labels)


def has_default_names(labels: list[str]) -> bool:
    """Whether the labels are called LABEL_0, LABEL_1, ..., as transformers does without `id2label`."""
    return labels == [f"LABEL_{index}" for index in range(len(labels))]


def named_inputs(model: PreTrainedModel) -> set[str]:
    """The names of the inputs that `model` accepts.

    For a forward of transformers these are its named parameters, without `**kwargs`. If your own forward takes
    `**kwargs`, the parameters of the base class's forward or of the inner model's forward are included.
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
    """The entries that both vocabularies share, if one is padded to a round number."""
    own, other = student.vocab_size, teacher.vocab_size
    if own == other:
        return None
    in_use = len(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    if own is None or other is None or in_use is None or in_use > min(own, other):
        raise ValueError(
            f"The student's vocabulary has {own} entries and the teacher's {other}, but both read the same "
            f"input_ids, so both need the same tokenizer. "
            + (
                f"The tokenizer given as processing_class has {in_use} entries: cut the student with "
                f"make_student(teacher)."
                if in_use is not None
                else "If the additional entries are padding, pass the tokenizer as processing_class; otherwise cut the "
                "student with make_student(teacher)."
            )
        )
    return slice(min(own, other))


def _label_order(student: list[str], teacher: list[str]) -> list[int] | None:
    if student == teacher or len(student) == len(teacher) == 1:  # a single output needs no name
        return None
    if sorted(student) == sorted(teacher):
        return [teacher.index(label) for label in student]
    if (has_default_names(student) or has_default_names(teacher)) and len(student) == len(teacher):
        logger.warning(
            f"The student's labels {student} and the teacher's {teacher} are matched by index, because one side has "
            f"default names. Set id2label and label2id to match them by name."
        )
        return None
    raise ValueError(
        f"The student's labels are {student} and the teacher's {teacher}, but they must be the same: load both "
        f"with the same num_labels, id2label and label2id, or cut the student with make_student(teacher)."
    )
