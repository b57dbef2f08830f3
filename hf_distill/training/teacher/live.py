"""The frozen teacher: what it must share with the student, and what it is given to read."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.adapters import adapters_off, transformers_model
from hf_distill.training.losses.base import Loss
from hf_distill.training.scoring.alignment import check_alignment, head_spec, named_inputs
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from hf_distill.training.scoring.scored import Scored


class Teacher:
    """A model that is only ever read: in evaluation mode, without gradients, without labels.

    `StoredTeacher` takes its place where it has read everything already.

    Args:
        model: the teacher; its parameters are set to `requires_grad=False`. Where it is the student itself, with PEFT
            adapters, the teacher is the student with its adapters switched off.
        student: the model that will be compared with it.
        tokenizer: the student's, which tells how many of the vocabulary's entries are in use.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if teacher and student share parameters, or differ in head, labels or vocabulary.
    """

    top_k = None  # all logits are there

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
        self.head_spec = head_spec(self.model)
        self._columns = check_alignment(head_spec(transformers_model(student)), self.head_spec, tokenizer)
        if model is not student:
            model.requires_grad_(False)
        self.head = find_head(self.model)
        self.inputs = named_inputs(self.model)
        # Nothing is generated, so the keys and values of the tokens need not be kept.
        self._constants: dict[str, Any] = {"use_cache": False} if "use_cache" in self.inputs else {}
        self.name = self.model.config._name_or_path
        # Beside its own adapters, the student's base is what is frozen.
        self.fingerprint = fingerprint((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)

    def run_by_engine(self, wrapped: nn.Module) -> None:
        """Makes the teacher run as what an engine that shards parameters has made of it."""
        self.wrapped = wrapped
        self._reading = nullcontext  # the engine goes on using the tensors that it gathers parameters in

    def state(self) -> dict[str, str]:
        """What a checkpoint says of the teacher."""
        return {
            "teacher": os.path.basename(self.name),
            "teacher_dtype": str(self.model.dtype),
            "teacher_fingerprint": self.fingerprint,
        }

    def prepare_for(self, losses: Mapping[str, Loss]) -> None:
        """Whatever the losses read: it is at hand."""

    def collator(self, collator: Callable[[Sequence], dict]) -> Callable[[Sequence], dict]:
        """What is a batch for the student is one for the teacher."""
        return collator

    def can_read(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Any batch: it is at hand."""
        return True

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

        def logits(head_inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), self._reading(), autocast():
                logits = output.head(head_inputs)
                logits = logits.to(scored.positions.device)
            return logits if self._columns is None else logits[:, self._columns]

        hidden = output.last_hidden_state
        hidden = None if hidden is None else hidden.to(scored.positions.device)  # from wherever `device_map` put it
        return replace(output, last_hidden_state=hidden, head=logits)


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


def fingerprint(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """Tells one model's weights from another's: a hash of names, shapes and some numbers out of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(f"{name} {list(parameter.shape)}".encode())
        if not parameter.is_meta and type(parameter) is nn.Parameter and parameter.numel():
            step = max(1, parameter.numel() // 16)
            digest.update(parameter.detach().flatten()[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
