"""The frozen teacher: how it is loaded, what it must share with the student, what it is given to read."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.training.scoring import ScoredOutput, find_head, scored_forward

logger = logging.get_logger(__name__)


class Teacher:
    """A model that is only ever read: in evaluation mode, without gradients, without labels.

    Args:
        model: the teacher; its parameters are set to `requires_grad=False`.
        student: the model that will be compared with it.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if teacher and student share parameters, or differ in head, labels or vocabulary.
    """

    def __init__(self, model: PreTrainedModel, student: PreTrainedModel):
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"teacher_model should be a transformers model or its name, but is a {type(model).__name__}: pass what "
                f"AutoModelFor....from_pretrained(...) returns."
            )
        self.label_order = check_alignment(student, model)
        self.model = model.requires_grad_(False)

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        positions: torch.Tensor,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> ScoredOutput:
        """Reads a batch without labels; `positions` as in `scored_forward`.

        The logits that come back are in the student's order of labels.
        """
        self.model.eval()
        with torch.no_grad(), autocast():
            output, _ = scored_forward(self.model, self.model, inputs, positions)

        def logits(chunk: slice) -> torch.Tensor:
            with torch.no_grad(), autocast():
                rows = output.logits(chunk)
            return rows if self.label_order is None else rows[:, self.label_order]

        return ScoredOutput(output.last_hidden_state, output.num_rows, logits)


def load_teacher(
    name_or_path: str, student: PreTrainedModel, tokenizer: object, dtype: torch.dtype | str = "auto"
) -> PreTrainedModel:
    """Loads a teacher with the student's kind of head, from safetensors.

    Args:
        name_or_path: a name on the Hub or a folder.
        student: the model that says which head to load.
        tokenizer: the student's; the teacher's must map the same words to the same ids. Not checked if it is something
            else, or None.
        dtype: by default the one that the weights are stored in.

    Raises:
        ValueError: if weights are missing, as for a teacher whose head was never trained, or if the tokenizers differ.
    """
    teacher, loading_info = find_head(student).auto_class.from_pretrained(
        name_or_path, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if missing := sorted(loading_info["missing_keys"]):
        raise ValueError(
            f"The teacher {name_or_path!r} has no weights for {', '.join(missing)}: they would be random numbers, and "
            f"the student would learn those. Use a teacher that was trained for this task, or fine-tune it first."
        )
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(name_or_path), name_or_path)
    return teacher


def check_alignment(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    """Checks that outputs of student and teacher can be compared class by class.

    Returns:
        The order that puts the teacher's labels into the student's, or None where it is the same already.

    Raises:
        ValueError: if they share parameters, or differ in head, vocabulary or labels.
    """
    if shared := _shared_parameters(student, teacher):
        raise ValueError(
            f"Student and teacher share {len(shared)} parameters, {shared[0]} among them: training the one would "
            f"change the other. Cut the student with make_student(teacher), or pass copy.deepcopy(teacher)."
        )
    student_head, teacher_head = find_head(student), find_head(teacher)
    if student_head != teacher_head:
        raise ValueError(
            f"The student is a {type(student).__name__} and the teacher a {type(teacher).__name__}: "
            f"load both with {student_head.auto_class.__name__}."
        )
    student_vocab, teacher_vocab = student.config.vocab_size, teacher.config.vocab_size
    if student_vocab != teacher_vocab:
        raise ValueError(
            f"The student's vocabulary has {student_vocab} entries and the teacher's {teacher_vocab}: both read the "
            f"same input_ids, so they need one tokenizer. Cut the student with make_student(teacher)."
        )
    return None if student_head.per_token else _label_order(student, teacher)


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, teacher_name: str) -> None:
    """Checks that the same `input_ids` mean the same words.

    Raises:
        ValueError: if the two vocabularies differ.
    """
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    if student_vocab == teacher_vocab:
        return
    differing = {word for word, _ in student_vocab.items() ^ teacher_vocab.items()}
    word = min(differing)
    raise ValueError(
        f"The tokenizer given as processing_class and that of the teacher {teacher_name!r} differ in {len(differing)} "
        f"words, such as {word!r} (id {student_vocab.get(word)} and {teacher_vocab.get(word)}): student and teacher "
        f"read the same input_ids, so they need one tokenizer."
    )


def _shared_parameters(student: PreTrainedModel, teacher: PreTrainedModel) -> list[str]:
    teachers = {parameter.data_ptr() for parameter in teacher.parameters() if parameter.numel()}
    return [name for name, parameter in student.named_parameters() if parameter.data_ptr() in teachers]


def _label_order(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
    for role, model in (("student", student), ("teacher", teacher)):
        if model.config.num_labels < 2 or model.config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"The {role} has num_labels={model.config.num_labels} and problem_type={model.config.problem_type!r}: "
                f"sequence classification is distilled with one label per sequence, out of two or more."
            )
    student_labels = [student.config.id2label[i] for i in range(student.config.num_labels)]
    teacher_labels = [teacher.config.id2label[i] for i in range(teacher.config.num_labels)]
    if student_labels == teacher_labels:
        return None
    if sorted(student_labels) == sorted(teacher_labels):
        return [teacher_labels.index(label) for label in student_labels]
    named_by_default = any(
        labels == [f"LABEL_{i}" for i in range(len(labels))] for labels in (student_labels, teacher_labels)
    )
    if named_by_default and len(student_labels) == len(teacher_labels):
        logger.warning(
            f"The student's labels {student_labels} and the teacher's {teacher_labels} are matched by index, since one "
            f"side has only the default names. Set id2label and label2id to have them matched by name."
        )
        return None
    raise ValueError(
        f"The student's labels are {student_labels} and the teacher's {teacher_labels}: they have to be the same. Load "
        f"both with the same num_labels, id2label and label2id, or cut the student with make_student(teacher)."
    )


def named_inputs(model: PreTrainedModel) -> set[str]:
    """The inputs that `model.forward` names; what it takes as `**kwargs` is not among them."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
