"""An encoder that teacher and student share: it is frozen, and runs once per batch for both decoders."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hf_distill.adapters import transformers_model
from hf_distill.training.scoring.alignment import named_inputs
from hf_distill.training.teacher.live import Teacher

ENCODER_OUTPUTS = "encoder_outputs"


class SharedEncoder:
    """Runs the teacher's encoder for teacher and student, and freezes the student's.

    The student's encoder, with its embeddings, must equal the teacher's. It then stays equal, and both have the same
    outputs: as a frozen part, it has no dropout.

    Reference: Gandhi et al., 2023, Distil-Whisper, https://arxiv.org/abs/2311.00430

    Args:
        student: the student. Its encoder is frozen.
        teacher: the teacher.

    Raises:
        ValueError: if there is no single live teacher, if one of the models has no encoder, if the encoders differ, or
            if nothing but the encoder can be trained.
    """

    def __init__(self, student: PreTrainedModel | PeftModel, teacher: object):
        if isinstance(student, PeftModel):
            raise ValueError("share_encoder=True does not work with adapters, which may change the encoder.")
        if not isinstance(teacher, Teacher):
            raise ValueError(
                "share_encoder=True needs one teacher that runs in every step, because stored targets and several "
                "teachers have no encoder to share: leave it out."
            )
        if teacher.is_sharded or getattr(teacher.model, "hf_device_map", None) is not None:
            raise ValueError("share_encoder=True does not work with a teacher that is spread over several devices.")
        models = {"student": transformers_model(student), "teacher": teacher.model}
        for role, model in models.items():
            if not model.config.is_encoder_decoder:
                raise ValueError(
                    f"share_encoder=True needs encoder-decoders, but the {role} is a {type(model).__name__}: leave it "
                    f"out."
                )
        own, other = (model.get_encoder() for model in models.values())
        if (difference := _difference(own, other)) is not None:
            raise ValueError(
                f"share_encoder=True needs a student whose encoder equals the teacher's, but {difference}: cut only "
                f"the decoder, with make_student(teacher, num_layers={{'decoder': 3}}), or leave it out."
            )
        own.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in student.parameters()):
            raise ValueError("share_encoder=True freezes all parameters of the student, so nothing can be trained.")
        self.encoder = other
        self.inputs = named_inputs(other)

    def with_outputs(
        self, inputs: Mapping[str, torch.Tensor], autocast: Callable[[], AbstractContextManager]
    ) -> dict[str, Any]:
        """The inputs of both models, with the outputs of the encoder."""
        own = {name: value for name, value in inputs.items() if name in self.inputs}
        with torch.no_grad(), autocast():  # no inference mode: the student's decoder keeps the outputs for its backward
            hidden = self.encoder.eval()(**own, return_dict=True).last_hidden_state
        return {**inputs, ENCODER_OUTPUTS: (hidden,)}


def _difference(own: torch.nn.Module, other: torch.nn.Module) -> str | None:
    """The first difference of two encoders in words; None if there is none."""
    if type(own) is not type(other):
        return f"they are a {type(own).__name__} and a {type(other).__name__}"
    ours, theirs = own.state_dict(), other.state_dict()
    for name in (*ours, *theirs):
        if name not in ours or name not in theirs:
            return f"only one of them has {name}"
        one, another = ours[name], theirs[name]
        if one.shape != another.shape or one.dtype != another.dtype:
            return f"{name} is {list(one.shape)} {one.dtype} and {list(another.shape)} {another.dtype}"
        if not torch.equal(one, another.to(one.device)):
            return f"the values of {name} differ"
    return None
