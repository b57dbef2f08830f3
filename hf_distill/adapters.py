"""PEFT adapters: the model inside, the base without them, and the plain model that they amount to."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside of PEFT's wrapper, or `model` itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def adapters_off(student: PeftModel) -> Iterator[None]:
    """While open, the student is its own base in evaluation mode; afterwards all is as it was."""
    # `disable_adapter` ends by making every adapter trainable, those that the caller froze too.
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
    """A plain transformers model that computes what this one does with its adapters, which is left as it is.

    Raises:
        ValueError: if the adapters change embeddings that are tied to the head: each of the two would need its own.
    """
    base = transformers_model(model)
    tied = [base.get_input_embeddings(), base.get_output_embeddings()]
    changed = [type(module).__name__ for module in tied if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    if None not in tied and base.config.tie_word_embeddings and changed:
        raise ValueError(
            f"The adapters change embeddings that are tied to the head ({', '.join(changed)}), so the two would have "
            f"to differ in a merged model: keep the adapter as it is, or adapt other modules."
        )
    return copy.deepcopy(model).merge_and_unload(safe_merge=True)
