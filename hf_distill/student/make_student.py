"""The student factory: a smaller model cut out of the teacher's own layers."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_distill.adapters import merged, transformers_model
from hf_distill.hub.push import public_name, revision_on_hub
from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.student.calibration import calibrate
from hf_distill.student.cutting import cut
from hf_distill.student.distilbert import to_distilbert
from hf_distill.student.layer_selection import (
    CALIBRATED,
    Layers,
    check_num_layers,
    requests_of_stacks,
    select_layers,
)
from hf_distill.student.proof import prove
from hf_distill.version import __version__

FAMILIES = {"distilbert": to_distilbert}
"""What else than the teacher's own family a student can be of."""


def make_student(
    teacher: PreTrainedModel | PeftModel,
    num_layers: int | Mapping[str, int] | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    *,
    family: str | None = None,
    calibration_data: Iterable[Mapping[str, torch.Tensor]] | None = None,
    example_inputs: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """A student of the teacher's own class with fewer layers, every weight copied from the teacher.

    By default the student has half of the layers, every other one from layer 0, as in DistilBERT (Sanh et al., 2019,
    https://arxiv.org/abs/1910.01108). Embeddings, pooler and head are kept whole. The student shares no memory with
    the teacher, which is left as it was. Both are run once: the student gives what the teacher gives without the
    layers that were left out, or there is an error. Where the student comes from is written to its config, under
    `distilled_from`.

    Args:
        teacher: any `AutoModelFor...` whose layers are in one stack or in several, as for encoder-decoders. PEFT
            adapters are merged into the student, not into the teacher.
        num_layers: layers in the student; by default half of the teacher's, rounded down, at least 1. For a model with
            several stacks the number for each of them, or a mapping such as `{"decoder": 2}`: stacks that neither
            mapping names are kept whole. `hf-distill inspect` names the stacks.
        layers: a strategy, one of `"alternate"` (the default), `"spread"`, `"first"`, `"last"` or `"calibrated"`; or
            the indices of the teacher's layers to keep; or a mapping of those for a model with several stacks.
        family: `"distilbert"` makes a DistilBERT of a BERT: no token types, no pooler. By default the teacher's own.
        calibration_data: batches of the teacher's inputs, without labels, for `layers="calibrated"`: the layers that
            are kept are those without whose fellows the teacher's outputs change least (see `calibrate`).
        example_inputs: a batch to run both on, for models that need more than some tokens, an image or a sound.

    Returns:
        A model in evaluation mode, on the teacher's device and in its dtype.

    Raises:
        TypeError: if `teacher` is not a transformers model.
        ValueError: if the teacher has no stack that can be cut, if it is quantised or its weights are not loaded, if
            an argument does not fit it, if the student does not compute what it should, or if DeepSpeed ZeRO-3 is
            already on.

    Example:
        >>> teacher = AutoModelForSequenceClassification.from_pretrained("textattack/bert-base-uncased-imdb")
        >>> student = make_student(teacher)                      # layers 0, 2, 4, 6, 8, 10
        >>> student = make_student(teacher, layers=[0, 5, 11])
        >>> student = make_student(teacher, family="distilbert")
        >>> whisper = AutoModelForSpeechSeq2Seq.from_pretrained("openai/whisper-large-v3")
        >>> student = make_student(whisper, {"decoder": 2}, "spread")  # as Distil-Whisper: layers 0 and 31
    """
    base = _plain_model(teacher)
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} is not known: use {' or '.join(map(repr, FAMILIES))}, or leave it out.")
    stacks = find_layer_stacks(base)
    requests = requests_of_stacks({name: stack.num_layers for name, stack in stacks.items()}, num_layers, layers)
    kept = _choose(base, stacks, requests, calibration_data)
    if family is None:
        student = cut(base, stacks, kept)
    else:
        whole = FAMILIES[family](base)
        student = cut(whole, find_layer_stacks(whole), kept)
    prove(student, base, stacks, kept, example_inputs)
    if base.can_generate():
        student.generation_config = copy.deepcopy(base.generation_config)
    student.config.distilled_from = _provenance(teacher, stacks, kept, requests)
    return student.eval()


def _plain_model(teacher: object) -> PreTrainedModel:
    """The transformers model to cut, with whatever adapters it has merged into it."""
    if not isinstance(teacher, PreTrainedModel | PeftModel):
        what = "a config, which has no weights" if isinstance(teacher, PreTrainedConfig) else type(teacher).__name__
        raise TypeError(
            f"teacher should be a transformers model, but is {what}: load it first, as with "
            f"AutoModelForSequenceClassification.from_pretrained(...)."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 shards every model that is made after its arguments, and a sharded one has no weights to "
            "cut: make the student before DistillationTrainingArguments(deepspeed=...)."
        )
    base = transformers_model(teacher)
    if not isinstance(teacher, PeftModel) and any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError(
            f"This {type(base).__name__} has adapters of its own (add_adapter): load them as a PeftModel, which can be "
            f"merged, with PeftModel.from_pretrained(model, adapter)."
        )
    if getattr(base, "is_quantized", False):
        raise ValueError(
            f"This {type(base).__name__} is quantised: a student should have the weights that were rounded, not what "
            f"is left of them. Load the teacher without quantization_config, on the CPU if need be."
        )
    if on_meta := [name for name, weight in base.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"{len(on_meta)} weights of this {type(base).__name__}, such as {on_meta[0]}, are on the meta device: they "
            f"were never loaded, or are offloaded. Load it with from_pretrained(...), without a device_map."
        )
    return merged(teacher) if isinstance(teacher, PeftModel) else base


def _choose(
    base: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    requests: Mapping[str, tuple[int | None, Layers]],
    calibration_data: Iterable[Mapping[str, torch.Tensor]] | None,
) -> dict[str, list[int]]:
    """The layers of each stack that the student keeps."""
    kept, to_calibrate = {}, {}
    for name, (number, which) in requests.items():
        if which == CALIBRATED:
            to_calibrate[name] = check_num_layers(stacks[name].num_layers, number)
        else:
            kept[name] = select_layers(stacks[name].num_layers, number, which)
    if bool(to_calibrate) != (calibration_data is not None):
        raise ValueError(
            f"There {'is no' if calibration_data is None else 'is'} calibration_data, and layers="
            f"{[which for _, which in requests.values()]}: the one needs the other, as in make_student(teacher, "
            f"layers='calibrated', calibration_data=batches)."
        )
    return kept if calibration_data is None else calibrate(base, stacks, kept, to_calibrate, calibration_data)


def _provenance(
    teacher: PreTrainedModel | PeftModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    requests: Mapping[str, tuple[int | None, Layers]],
) -> dict[str, object]:
    base = transformers_model(teacher)
    methods = {name: which if isinstance(which, str) else "explicit" for name, (_, which) in requests.items()}
    methods |= {name: "all" for name, stack in stacks.items() if len(kept[name]) == stack.num_layers}
    provenance: dict[str, object] = {
        "teacher": public_name(base.name_or_path),
        "revision": revision_on_hub(base),
        "layers": kept if len(kept) > 1 else next(iter(kept.values())),
        "method": methods if len(methods) > 1 else next(iter(methods.values())),
        "hf_distill_version": __version__,
    }
    if isinstance(teacher, PeftModel):
        provenance["merged_adapters"] = teacher.active_adapters
    return provenance
