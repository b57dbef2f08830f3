"""The frozen teacher: what it must share with the student, and what it is given to read."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.adapters import adapters_off, transformers_model
from hf_distill.training.heads import Head, Scored, Seq2SeqLMHead, find_head
from hf_distill.training.scoring import ScoredOutput, scored_forward

logger = logging.get_logger(__name__)


class Teacher:
    """A model that is only ever read: in evaluation mode, without gradients, without labels.

    Args:
        model: the teacher; its parameters are set to `requires_grad=False`. Where it is the student itself, with PEFT
            adapters, the teacher is the student with its adapters switched off.
        student: the model that will be compared with it.
        tokenizer: the student's, which tells how many of the vocabulary's entries are in use.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if teacher and student share parameters, or differ in head, labels or vocabulary.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, student: PreTrainedModel | PeftModel, tokenizer: object = None
    ):
        if not isinstance(model, PreTrainedModel | PeftModel):
            raise TypeError(
                f"teacher_model should be a transformers model or its name, but is a {type(model).__name__}: pass what "
                f"AutoModelForSequenceClassification.from_pretrained(...) or the like returns."
            )
        self.model = transformers_model(model)
        self.wrapped: nn.Module | None = None  # what is called in its place: sharded or compiled
        self._reading: Callable[[], AbstractContextManager] = torch.inference_mode
        if model is student and isinstance(student, PeftModel):
            # Of weights that are trained too, autocast may keep a copy for the student's turn.
            self._reading = lambda: adapters_off(student)
        else:
            check_no_shared_parameters(student, model)
        self._columns = check_alignment(transformers_model(student), self.model, tokenizer)
        if model is not student:
            model.requires_grad_(False)
        self.head = find_head(self.model)
        # Nothing is generated, so the keys and values of the tokens need not be kept.
        self._constants = {"use_cache": False} if "use_cache" in named_inputs(self.model) else {}
        self.name = self.model.config._name_or_path
        # Beside its own adapters, the student's base is what is frozen.
        self.fingerprint = fingerprint((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)

    def run_by_engine(self, wrapped: nn.Module) -> None:
        """Makes the teacher run as what an engine that shards parameters has made of it."""
        self.wrapped = wrapped
        self._reading = nullcontext  # the engine goes on using the tensors that it gathers parameters in

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> ScoredOutput:
        """Reads a batch without labels.

        The logits that come back are in the student's order of labels, without entries that the student does not have.
        """
        inputs = {**inputs, **self._constants}
        wrapped = self.model if self.wrapped is None else self.wrapped
        with torch.no_grad(), self._reading(), autocast():
            self.model.eval()
            output, _ = scored_forward(wrapped, self.model, self.head, inputs, scored)

        def logits(rows: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), self._reading(), autocast():
                logits = output.head(rows).to(scored.positions.device)
            return logits if self._columns is None else logits[:, self._columns]

        hidden = output.last_hidden_state.to(scored.positions.device)  # from wherever `device_map` put it
        return replace(output, last_hidden_state=hidden, head=logits)


def check_alignment(
    student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: object = None
) -> list[int] | slice | None:
    """Checks that outputs of student and teacher can be compared class by class.

    Returns:
        Which columns of the teacher's logits to take, and in which order, or None for all as they are.

    Raises:
        ValueError: if they differ in head, vocabulary or labels.
    """
    student_head, teacher_head = find_head(student), find_head(teacher)
    if _kind(student_head) != _kind(teacher_head):
        raise ValueError(
            f"The student is a {type(student).__name__} and the teacher a {type(teacher).__name__}: "
            f"load both with {student_head.auto_class}."
        )
    if student_head.distribution != teacher_head.distribution:
        raise ValueError(
            f"The student has num_labels={student.config.num_labels} and problem_type={student.config.problem_type!r}, "
            f"the teacher num_labels={teacher.config.num_labels} and problem_type={teacher.config.problem_type!r}: "
            f"set the same in both configs."
        )
    if isinstance(student_head, Seq2SeqLMHead):
        starts = [model.config.decoder_start_token_id for model in (student, teacher)]
        if starts[0] != starts[1]:
            raise ValueError(
                f"The student's decoder starts with token {starts[0]} and the teacher's with {starts[1]}: both read "
                f"the same decoder_input_ids, so set the same decoder_start_token_id in both configs."
            )
    columns = _shared_vocabulary(student, teacher, tokenizer)
    return _label_order(student, teacher) if student_head.named_classes else columns


def check_no_shared_parameters(student: nn.Module, teacher: nn.Module) -> None:
    """Checks that training the student leaves the teacher alone.

    Raises:
        ValueError: if they have parameters in common.
    """
    identities = {id(parameter) for parameter in teacher.parameters()}
    # Quantised and offloaded parameters, and empty ones, have no address.
    addresses = {parameter.data_ptr() for parameter in teacher.parameters() if parameter.numel()} - {0}
    shared = [
        name
        for name, parameter in student.named_parameters()
        if id(parameter) in identities or parameter.data_ptr() in addresses
    ]
    if shared:
        raise ValueError(
            f"Student and teacher share {len(shared)} parameters, {shared[0]} among them: training the one would "
            f"change the other. Cut the student with make_student(teacher), pass copy.deepcopy(teacher), or, for a "
            f"student with PEFT adapters beside its own base, pass the student itself as teacher_model."
        )


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


def named_inputs(model: PreTrainedModel) -> set[str]:
    """The inputs that `model.forward` names; what it takes as `**kwargs` is not among them."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}


def fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Tells one model's weights from another's: a hash of names, shapes and some numbers out of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {list(parameter.shape)}".encode())
        if not parameter.is_meta and type(parameter) is nn.Parameter and parameter.numel():
            step = max(1, parameter.numel() // 16)
            digest.update(parameter.detach().flatten()[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kind(head: Head) -> type:
    """The class of head; those that differ by problem type only count as one."""
    return Head if head.auto_class == Head.auto_class else type(head)


def _shared_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: object) -> slice | None:
    """The entries that both vocabularies have, where one is padded to a round number."""
    sizes = [getattr(model.config, "vocab_size", None) for model in (student, teacher)]
    if sizes[0] == sizes[1] or "input_ids" not in named_inputs(student):
        return None
    in_use = len(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    if None in sizes or in_use is None or in_use > min(sizes):
        raise ValueError(
            f"The student's vocabulary has {sizes[0]} entries and the teacher's {sizes[1]}: both read the same "
            f"input_ids, so they need one tokenizer. "
            + (
                f"That given as processing_class has {in_use} entries. Cut the student with make_student(teacher)."
                if in_use is not None
                else "If the rest is padding, pass the tokenizer as processing_class; else cut the student with "
                "make_student(teacher)."
            )
        )
    return slice(min(sizes))


def _label_order(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int] | None:
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
