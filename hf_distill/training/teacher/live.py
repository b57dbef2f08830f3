"""The live teacher: a frozen model, checked against the student and run on every batch."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.adapters import adapters_off, transformers_model
from hf_distill.fingerprints import fingerprint
from hf_distill.training.losses.base import Loss
from hf_distill.training.scoring.alignment import check_alignment, head_spec, named_inputs
from hf_distill.training.scoring.capture import LayerCapture
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from hf_distill.training.scoring.scored import Scored


class Teacher:
    """A frozen model, run in evaluation mode, without gradients and without labels.

    `StoredTeacher` replaces it if the dataset has stored targets.

    Args:
        model: the teacher. Its parameters are set to `requires_grad=False`. If it is the student itself, with PEFT
            adapters, the teacher is the student with its adapters switched off.
        student: the student.
        tokenizer: the student's tokenizer. Its length is the number of vocabulary entries in use.

    Raises:
        TypeError: if `model` is not a transformers model.
        ValueError: if teacher and student share parameters, or differ in head, labels or vocabulary.
    """

    top_k = num_samples = None  # all logits are known

    def __init__(
        self, model: PreTrainedModel | PeftModel, student: PreTrainedModel | PeftModel, tokenizer: object = None
    ):
        if not isinstance(model, PreTrainedModel | PeftModel):
            raise TypeError(
                f"teacher_model should be a transformers model or its name, but is a {type(model).__name__}: load it "
                f"with AutoModelForSequenceClassification.from_pretrained(...) or a similar class."
            )
        self.model = transformers_model(model)
        self._capture: LayerCapture | None = None
        self.is_sharded = False
        self.wrapped: nn.Module | None = None  # the sharded or compiled model, which is called instead
        self._reading: Callable[[], AbstractContextManager] = torch.inference_mode
        if model is student and isinstance(student, PeftModel):
            # No inference mode: autocast may cache copies of shared weights, which the student then trains with.
            self._reading = lambda: adapters_off(student)
        else:
            check_no_shared_parameters(student, model)
        self.head_spec = head_spec(self.model)
        self._columns = check_alignment(head_spec(transformers_model(student)), self.head_spec, tokenizer)
        if model is not student:
            model.requires_grad_(False)
        self.head = find_head(self.model)
        self.inputs = named_inputs(self.model)
        # Nothing is generated, so no key-value cache is needed.
        self._constants: dict[str, Any] = {"use_cache": False} if "use_cache" in self.inputs else {}
        self.name = self.model.config._name_or_path
        # If the teacher is the student, only its base is frozen, not its adapters.
        self.fingerprint = fingerprint((name, p) for name, p in self.model.named_parameters() if not p.requires_grad)

    def run_by_engine(self, wrapped: nn.Module) -> None:
        """Runs the teacher through the wrapper of an engine that shards parameters."""
        self.wrapped, self.is_sharded = wrapped, True
        self._reading = nullcontext  # the engine reuses the tensors that it gathers parameters into

    def state(self) -> dict[str, str]:
        """The record of the teacher in a checkpoint."""
        return {
            "teacher": os.path.basename(self.name),
            "teacher_dtype": str(self.model.dtype),
            "teacher_fingerprint": self.fingerprint,
        }

    def prepare_for(self, losses: Mapping[str, Loss], capture: LayerCapture | None = None) -> None:
        """Sets what is captured in the teacher's layers. A live teacher provides every signal."""
        self._capture = capture

    def collator(self, collator: Callable[[Sequence], dict]) -> Callable[[Sequence], dict]:
        """Returns the collator unchanged: a live teacher reads the student's batches."""
        return collator

    def can_read(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """True: a live teacher can read any batch."""
        return True

    def __call__(
        self,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> ScoredOutput:
        """Runs the teacher on a batch without labels.

        Args:
            inputs: the teacher's inputs.
            scored: the scored positions of the batch.
            autocast: creates the context to run in.

        Returns:
            The outputs. The logits have the student's classes only, in the student's order.
        """
        inputs = {**inputs, **self._constants}
        wrapped = self.model if self.wrapped is None else self.wrapped
        with torch.no_grad(), self._reading(), autocast():
            self.model.eval()
            output, _ = scored_forward(wrapped, self.model, self.head, inputs, scored, capture=self._capture)

        def logits(head_inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), self._reading(), autocast():
                logits = output.head(head_inputs)
                logits = logits.to(scored.positions.device)
            return logits if self._columns is None else logits[:, self._columns]

        # `device_map` may place layers elsewhere
        device, hidden = scored.positions.device, output.last_hidden_state
        hidden = None if hidden is None else hidden.to(device)
        layers = {layer: captured.to(device) for layer, captured in output.layers.items()}
        return replace(output, last_hidden_state=hidden, head=logits, layers=layers)


def check_no_shared_parameters(student: nn.Module, teacher: nn.Module) -> None:
    """Checks that training the student cannot change the teacher.

    Raises:
        ValueError: if they share parameters.
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
            f"Student and teacher share {len(shared)} parameters, such as {shared[0]}, so training the student would "
            f"change the teacher. Cut the student with make_student(teacher) or pass copy.deepcopy(teacher). If the "
            f"student has PEFT adapters and its base is the teacher, pass the student itself as teacher_model."
        )


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, teacher_name: str) -> None:
    """Checks that student and teacher map the same `input_ids` to the same tokens.

    Raises:
        ValueError: if the vocabularies differ.
    """
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    if student_vocab == teacher_vocab:
        return
    differing = {word for word, _ in student_vocab.items() ^ teacher_vocab.items()}
    word = min(differing)
    raise ValueError(
        f"The tokenizer given as processing_class and the tokenizer of the teacher {teacher_name!r} differ in "
        f"{len(differing)} tokens, such as {word!r} (id {student_vocab.get(word)} and {teacher_vocab.get(word)}): "
        f"student and teacher read the same input_ids, so both need the same tokenizer."
    )
