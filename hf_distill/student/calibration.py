"""Chooses the layers to keep by comparing untrained students with the teacher on data."""

import inspect
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, find_labels

from hf_distill.progress import Progress
from hf_distill.student.architectures import LayerStack
from hf_distill.student.cutting import cut
from hf_distill.student.proof import evaluating

logger = logging.getLogger(__name__)

MOST_CHOICES = 100
"""All choices are tried up to this number. 6 layers to 3 are 20 choices, 8 to 4 are 70, 12 to 6 would be 924."""

Layers = dict[str, list[int]]


def inputs_of(teacher: PreTrainedModel, data: Iterable[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The teacher's inputs in `calibration_data`, on its device.

    Labels are left out, except that encoder-decoders make their decoder inputs from them.

    Raises:
        ValueError: if there are no batches, or if a batch lacks the teacher's main input.
        TypeError: if a batch is not a mapping of tensors.
    """
    batches = [_inputs(batch, teacher) for batch in data]
    if not batches:
        raise ValueError(
            "calibration_data is empty: pass batches of the teacher's inputs, as a DataLoader or a list. A few hundred "
            "examples are enough."
        )
    return batches


def calibrate(
    teacher: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    num_layers: Mapping[str, int],
    batches: Sequence[Mapping[str, torch.Tensor]],
) -> Layers:
    """Chooses the layers whose untrained student has the outputs closest to the teacher's.

    If there are at most 100 choices, all are tried. Otherwise layers are removed one by one, each time the layer whose
    removal changes the outputs least. The distance is the mean KL divergence of the logits over rows, or over tokens
    that are not padding. Multi-label heads use the KL divergence of the sigmoids, regression heads the squared
    difference, and models without a head the mean of 1 - cosine of the last hidden states.

    Args:
        teacher: the model to cut.
        stacks: its stacks, by name.
        kept: layer indices of the stacks that are already decided.
        num_layers: number of layers to keep of each other stack.
        batches: the teacher's inputs. Each batch is run once per choice.

    Returns:
        The kept layer indices of every stack.

    Raises:
        ValueError: if no choice of layers is possible, or if outputs are not finite.
    """
    whole = {name: list(kept.get(name, range(stack.num_layers))) for name, stack in stacks.items()}
    if math.prod(math.comb(stacks[name].num_layers, number) for name, number in num_layers.items()) <= MOST_CHOICES:
        return _nearest(teacher, stacks, list(_all_choices(whole, num_layers)), batches)
    while any(len(whole[name]) > number for name, number in num_layers.items()):
        whole = _nearest(teacher, stacks, list(_one_fewer(whole, num_layers)), batches)
    return whole


def _all_choices(whole: Layers, num_layers: Mapping[str, int]) -> Iterator[Layers]:
    subsets = [map(list, itertools.combinations(whole[name], number)) for name, number in num_layers.items()]
    for chosen in itertools.product(*subsets):
        yield {**whole, **dict(zip(num_layers, chosen, strict=True))}


def _one_fewer(kept: Layers, num_layers: Mapping[str, int]) -> Iterator[Layers]:
    for name, number in num_layers.items():
        if len(kept[name]) > number:
            for index in kept[name]:
                yield {**kept, name: [other for other in kept[name] if other != index]}


def _nearest(
    teacher: PreTrainedModel, stacks: Mapping[str, LayerStack], choices: list[Layers], batches: Sequence[Mapping]
) -> Layers:
    """The choice whose student is closest to the teacher."""
    students = []
    for choice in choices:
        try:
            students.append((choice, cut(teacher, stacks, choice, copy=False)))
        except ValueError as error:  # a layer that cannot move to another index, such as ModernBERT's first
            misfit = error
    if not students:
        raise misfit
    totals, num_items = [0.0] * len(students), 0
    trials = Progress("Trying layers", len(batches) * len(students), "forwards", only_if_long=True)
    with evaluating(teacher), trials:
        for batch in batches:
            teacher_outputs = teacher(**batch)
            for number, (_, student) in enumerate(students):
                distances = _distances(student(**batch), teacher_outputs, _mask(batch), teacher.config)
                totals[number] += distances.sum().item()
                trials.update()
            num_items += len(distances)
    if not all(map(math.isfinite, totals)):
        raise ValueError(
            f"{type(teacher).__name__} or a student has NaN or infinite outputs on calibration_data, so students "
            f"cannot be compared: load the teacher in float32 or bfloat16, and check its outputs."
        )
    best = min(range(len(students)), key=totals.__getitem__)
    logger.info("Kept layers %s: distance %.4f to the teacher", students[best][0], totals[best] / num_items)
    return students[best][0]


def _inputs(batch: Mapping[str, torch.Tensor], teacher: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The teacher's inputs from a batch, without labels, on its device."""
    if not isinstance(batch, Mapping) or not all(isinstance(value, torch.Tensor) for value in batch.values()):
        given = {name: type(value).__name__ for name, value in batch.items()} if isinstance(batch, Mapping) else batch
        raise TypeError(
            f"calibration_data must contain batches, mappings from names to tensors as a DataLoader yields, but "
            f"contains {given!r}."
        )
    batch = dict(batch)
    if teacher.config.is_encoder_decoder and "labels" in batch and "decoder_input_ids" not in batch:
        batch["decoder_input_ids"] = teacher.prepare_decoder_input_ids_from_labels(batch["labels"])
        batch["decoder_attention_mask"] = (batch["labels"] != -100).long()
    taken = set(inspect.signature(teacher.forward).parameters) - set(find_labels(type(teacher)))
    inputs = {name: value.to(teacher.device) for name, value in batch.items() if name in taken}
    if teacher.main_input_name not in inputs:
        raise ValueError(
            f"A batch of calibration_data has {', '.join(batch) or 'no entries'}, but {type(teacher).__name__} needs "
            f"{teacher.main_input_name}: tokenize the texts, or preprocess the images or audio, first."
        )
    return inputs


def _mask(batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Mask of the output positions that are not padding, `[batch, length]`."""
    if "decoder_input_ids" in batch:
        return batch.get("decoder_attention_mask")
    return batch.get("attention_mask")


def _distances(
    student_outputs: ModelOutput, teacher_outputs: ModelOutput, mask: torch.Tensor | None, config: PreTrainedConfig
) -> torch.Tensor:
    """Distance of the outputs per row, or per position that is not padding, `[items]` in fp32."""
    names = [name for name in teacher_outputs if "logits" in name] or ["last_hidden_state"]
    distances = []
    for name in names:
        student, teacher = student_outputs[name], teacher_outputs[name]
        if mask is not None and teacher.ndim == 3 and mask.shape == teacher.shape[:2]:
            student, teacher = student[mask.bool()], teacher[mask.bool()]
        elif mask is not None and name in ("start_logits", "end_logits"):  # a distribution over the positions
            lowest = torch.finfo(teacher.dtype).min
            student, teacher = (logits.masked_fill(mask == 0, lowest) for logits in (student, teacher))
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        # A few positions at a time keep fp32 logits over a large vocabulary small.
        for student_part, teacher_part in zip(student.split(256), teacher.split(256), strict=True):
            distances.append(_distance(name, student_part.float(), teacher_part.float(), config))
    return torch.cat(distances)


def _distance(name: str, student: torch.Tensor, teacher: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Distance `[items]` of two tensors `[items, classes or width]`."""
    if name == "last_hidden_state":
        return 1 - F.cosine_similarity(student, teacher, dim=-1)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        cross_entropy = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
        entropy = F.binary_cross_entropy_with_logits(teacher, teacher.sigmoid(), reduction="none")
        return (cross_entropy - entropy).mean(-1)
    if teacher.shape[-1] == 1:
        return (student - teacher).square().sum(-1)
    student_log_probs, teacher_log_probs = student.log_softmax(-1), teacher.log_softmax(-1)
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(-1)
