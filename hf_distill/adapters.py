"""Helpers for PEFT adapters: unwrap them, switch them off, merge them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Returns the transformers model inside a PEFT wrapper, or `model` itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def adapters_off(student: PeftModel) -> Iterator[None]:
    """Inside this context, the student is its base model in evaluation mode. Its state is restored afterwards."""
    # `disable_adapter` makes every adapter trainable at its end, even those that the caller had frozen.
    trainable = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    training = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with student.disable_adapter():
            yield
    finally:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        for module, mode in training:
            module.training = mode


def merged(model: PeftModel) -> PreTrainedModel:
    """Returns a plain transformers model with the adapters merged. `model` does not change.

    Raises:
        ValueError: if the adapters change embeddings that are tied to the head, which would need different weights.
    """
    base = transformers_model(model)
    head = base.get_output_embeddings()
    tied = [None if head is None else base.get_input_embeddings(), head]  # a model of audio has no input embeddings
    changed = [type(module).__name__ for module in tied if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    if None not in tied and base.config.tie_word_embeddings and changed:
        raise ValueError(
            f"Cannot merge the adapters: they change embeddings that are tied to the head ({', '.join(changed)}), and "
            f"both would need different weights. Keep the adapters unmerged, or adapt other modules."
        )
    return copy.deepcopy(model).merge_and_unload(safe_merge=True)
