"""The student factory: a smaller model cut out of the teacher's own layers."""

import copy
import os
import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_distill.student.architectures import find_layer_stack
from hf_distill.student.layer_selection import select_layers
from hf_distill.version import __version__


def make_student(
    teacher: PreTrainedModel, num_layers: int | None = None, layers: str | Sequence[int] | None = None
) -> PreTrainedModel:
    """A student of the teacher's own class with fewer layers, every weight copied from the teacher.

    By default the student has half of the layers, every other one from layer 0, as in DistilBERT (Sanh et al., 2019,
    https://arxiv.org/abs/1910.01108). Embeddings, pooler and head are kept whole. The student shares no memory with
    the teacher, which is left as it was. Where the student comes from is written to its config, under `distilled_from`.

    Args:
        teacher: any `AutoModelFor...` with one stack of layers, such as BERT, RoBERTa or DistilBERT with any head.
        num_layers: layers in the student; by default half of the teacher's, rounded down, at least 1.
        layers: a strategy, one of `"alternate"` (the default), `"spread"`, `"first"`, `"last"`, or the indices of the
            teacher's layers to keep.

    Returns:
        A model in evaluation mode, on the teacher's device and in its dtype.

    Raises:
        TypeError: if `teacher` is not a transformers model.
        ValueError: if the teacher has no stack that can be cut, if `num_layers` or `layers` do not fit it, or if
            DeepSpeed ZeRO-3 is already on.

    Example:
        >>> teacher = AutoModelForSequenceClassification.from_pretrained("textattack/bert-base-uncased-imdb")
        >>> student = make_student(teacher)                      # layers 0, 2, 4, 6, 8, 10
        >>> student = make_student(teacher, layers=[0, 5, 11])
    """
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(
            f"teacher should be a transformers model, but is a {type(teacher).__name__}: load it first, as with "
            f"AutoModelForSequenceClassification.from_pretrained(...); merge a PEFT model with merge_and_unload()."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 shards every model that is made after its arguments, and a sharded one has no weights to "
            "cut: make the student before DistillationTrainingArguments(deepspeed=...)."
        )
    stack_name, stack = find_layer_stack(teacher)
    kept = select_layers(len(stack), num_layers, layers)

    with torch.random.fork_rng():  # the random weights that a new model begins with are all replaced
        student = type(teacher)._from_config(_student_config(teacher, len(stack), kept), dtype=teacher.dtype)
    student.load_state_dict(_student_weights(teacher, stack_name, kept))
    student.tie_weights()
    if teacher.can_generate():
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(teacher.device).eval()


def _student_config(teacher: PreTrainedModel, num_teacher_layers: int, kept: list[int]) -> PreTrainedConfig:
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    # Some configs say for each layer which kind it is (`layer_types: ["full_attention", ...]`).
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and len(layer_types) == num_teacher_layers:
        config.layer_types = [layer_types[i] for i in kept]
    config.distilled_from = {
        "teacher": _public_name(teacher.name_or_path),
        "layers": kept,
        "hf_distill_version": __version__,
    }
    return config


def _public_name(name_or_path: str) -> str:
    """A model's name on the Hub as it is; of a local folder only its own name, since configs get published."""
    return os.path.basename(os.path.abspath(name_or_path)) if os.path.isdir(name_or_path) else name_or_path


def _student_weights(teacher: PreTrainedModel, stack_name: str, kept: list[int]) -> dict[str, torch.Tensor]:
    """The teacher's state dict with only the kept layers, renumbered from 0."""
    in_stack = re.compile(rf"{re.escape(stack_name)}\.(\d+)\.(.*)")
    new_index = {old: new for new, old in enumerate(kept)}
    weights = {}
    for name, weight in teacher.state_dict().items():
        match = in_stack.fullmatch(name)
        if match is None:
            weights[name] = weight
        elif int(match[1]) in new_index:
            weights[f"{stack_name}.{new_index[int(match[1])]}.{match[2]}"] = weight
    return weights
