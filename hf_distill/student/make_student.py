"""Makes a student: a smaller model cut from the teacher."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_distill.adapters import merged, transformers_model
from hf_distill.copies import plain_copy
from hf_distill.embedding import EmbeddingModel, as_embedding_model
from hf_distill.hub.push import public_name, revision_on_hub
from hf_distill.student.architectures import LayerStack, find_layer_stacks
from hf_distill.student.architectures import example_inputs as made_up_inputs
from hf_distill.student.axes import Axis
from hf_distill.student.calibration import calibrate, inputs_of
from hf_distill.student.cutting import cut
from hf_distill.student.distilbert import to_distilbert
from hf_distill.student.embedding import with_narrower_head
from hf_distill.student.influence import most_influential
from hf_distill.student.layer_selection import (
    CALIBRATED,
    INFLUENCE,
    ON_DATA,
    Layers,
    check_num_layers,
    requests_of_stacks,
    select_layers,
)
from hf_distill.student.proof import prove
from hf_distill.student.vocabulary.weights import cut_vocabulary, prove_vocabulary
from hf_distill.student.width.importance import WITHOUT_DATA
from hf_distill.student.width.narrowing import check_width, narrowed
from hf_distill.student.width.sizes import Size
from hf_distill.version import __version__

FAMILIES = {"distilbert": to_distilbert}
"""Model families other than the teacher's own that a student can have."""


def make_student(
    teacher: PreTrainedModel | PeftModel,
    num_layers: int | Mapping[str, int] | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    *,
    intermediate_size: Size | None = None,
    num_attention_heads: Size | None = None,
    num_key_value_heads: Size | None = None,
    hidden_size: Size | None = None,
    width: str = WITHOUT_DATA,
    vocabulary: Sequence[int] | None = None,
    family: str | None = None,
    calibration_data: Iterable[Mapping[str, torch.Tensor]] | None = None,
    example_inputs: Mapping[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """Makes a smaller student of the teacher's class, and copies all its weights from the teacher.

    By default the student has half of the layers, every other one from layer 0, as in DistilBERT (Sanh et al., 2019,
    https://arxiv.org/abs/1910.01108). Embeddings, pooler and head are kept complete. With a size such as
    `intermediate_size` or a `vocabulary`, the student is smaller in this direction instead, or as well if layers are
    given too. The teacher does not change, and the student shares no memory with it.

    Both models are run, and an error is raised unless the student computes the same as the teacher without the removed
    layers and with the removed units silenced. The student's config records its origin under `distilled_from`.

    Args:
        teacher: any `AutoModelFor...` with one stack of layers, or several as in encoder-decoders. PEFT adapters are
            merged into the student, not into the teacher. Of an `EmbeddingModel` or a `SentenceTransformer`, the
            transformer is cut; pooling, dense and normalise modules, prompts and maximum length are kept, and the
            student is an `EmbeddingModel`.
        num_layers: number of layers in the student. Default: half of the teacher's, rounded down, at least 1. For a
            model with several stacks, one number for every stack, or a mapping such as `{"decoder": 2}`. Stacks named
            neither here nor in `layers` keep all their layers. `hf-distill inspect` lists the stacks.
        layers: a strategy, `"alternate"` (the default), `"spread"`, `"first"`, `"last"`, `"calibrated"` or
            `"influence"`; or the indices of the teacher's layers to keep; or, for a model with several stacks, a
            mapping of either.
        intermediate_size: width of the feed-forward layers, whatever the config calls it. This and the following sizes
            are at most the teacher's; for a model with several stacks, a size for all, or a mapping by stack.
            `hf-distill inspect` lists what can be cut.
        num_attention_heads: number of attention heads. Where heads share keys and values, whole groups are removed.
            In models such as BERT the width of a head is the hidden width divided by the number of heads: there, give
            `hidden_size` too, so that a head keeps its width.
        num_key_value_heads: number of key-value heads, for models whose heads share keys and values. Default: such that
            as many heads share each one as in the teacher.
        hidden_size: width of the hidden states.
        width: how the units that stay are chosen: `"magnitude"` by their weights; `"activation"` by what they add to
            the module that reads them, on `calibration_data`; `"taylor"` by the first-order change of the loss without
            them, on `calibration_data` with labels. Layers choose on their own. `"pca"` keeps the principal components
            of the hidden states on `calibration_data`, as in SliceGPT, for models with RMSNorm and untied embeddings
            such as Llama and Mistral, and chooses other units as `"activation"`.
        vocabulary: the ids of the tokens that stay, `trim_vocabulary(...).kept`, which also gives their tokenizer.
        family: `"distilbert"` makes a DistilBERT from a BERT: no token types, no pooler. Default: the teacher's family.
        calibration_data: batches of the teacher's inputs, for `width="activation"` and `"taylor"` and for two
            strategies. `layers="calibrated"`
            keeps the layers whose untrained student has the outputs closest to the teacher's. `layers="influence"`
            keeps the layers that change the direction of their hidden states most, as in ShortGPT (Men et al., 2024,
            https://arxiv.org/abs/2403.03853).
        example_inputs: a batch on which both models are run, for models that need other inputs than tokens, an image
            or audio.

    Returns:
        The student, in evaluation mode, on the teacher's device and in its dtype.

    Raises:
        TypeError: if `teacher` is not a transformers model.
        ValueError: if the teacher has no stack that can be cut, is quantized or has no loaded weights; if an argument
            does not match the teacher; if the student does not compute the same as the cut teacher; or if DeepSpeed
            ZeRO-3 is already on.

    Example:
        >>> teacher = AutoModelForSequenceClassification.from_pretrained("textattack/bert-base-uncased-imdb")
        >>> student = make_student(teacher)                      # layers 0, 2, 4, 6, 8, 10
        >>> student = make_student(teacher, layers=[0, 5, 11])
        >>> student = make_student(teacher, intermediate_size=1536)  # all layers, half of the feed-forward width
        >>> student = make_student(teacher, 6, hidden_size=384, num_attention_heads=6)
        >>> student = make_student(teacher, family="distilbert")
        >>> whisper = AutoModelForSpeechSeq2Seq.from_pretrained("openai/whisper-large-v3")
        >>> student = make_student(whisper, {"decoder": 2}, "spread")  # as Distil-Whisper: layers 0 and 31
        >>> student = make_student(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"), num_layers=3)
    """
    sizes = {
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "hidden_size": hidden_size,
    }
    rest = (num_layers, layers, sizes, width, vocabulary, family, calibration_data, example_inputs)
    teacher = as_embedding_model(teacher)
    if isinstance(teacher, EmbeddingModel):
        student, hidden_units = _make(teacher.transformer, *rest)
        return with_narrower_head(teacher, student, hidden_units).eval()
    return _make(teacher, *rest)[0]


def _make(
    teacher: PreTrainedModel | PeftModel,
    num_layers: int | Mapping[str, int] | None,
    layers: Layers | Mapping[str, Layers] | None,
    sizes: Mapping[str, Size | None],
    width: str,
    vocabulary: Sequence[int] | None,
    family: str | None,
    calibration_data: Iterable[Mapping[str, torch.Tensor]] | None,
    example_inputs: Mapping[str, torch.Tensor] | None,
) -> tuple[PreTrainedModel, list[int] | None]:
    """As `make_student`. Also returns the hidden units that the student kept; None if it kept all."""
    base = _plain_model(teacher)
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown: use {' or '.join(map(repr, FAMILIES))}, or leave it out.")
    is_narrower = any(size is not None for size in sizes.values())
    check_width(width, calibration_data, is_narrower)
    batches = None if calibration_data is None else list(calibration_data)
    keeps_layers = (is_narrower or vocabulary is not None) and num_layers is None and layers is None
    stacks = _stacks(base, may_be_none=keeps_layers)
    depths = {name: stack.num_layers for name, stack in stacks.items()}
    num_layers = depths if keeps_layers else num_layers
    requests = requests_of_stacks(depths, num_layers, layers)
    kept = _choose(base, stacks, requests, batches, is_for_width=width != WITHOUT_DATA)

    whole = base if family is None else FAMILIES[family](base)
    numbers: dict[Axis, int] = {}
    hidden_units = None
    if is_narrower:
        if family is not None:
            prove(whole, base, stacks, {name: range(depth) for name, depth in depths.items()}, example_inputs)
        whole, numbers, hidden_units = narrowed(whole, sizes, width, batches, example_inputs or made_up_inputs(base))
    if stacks:
        own_stacks = stacks if whole is base else find_layer_stacks(whole)
        student = cut(whole, own_stacks, kept)
        prove(student, *((whole, own_stacks) if is_narrower else (base, stacks)), kept, example_inputs)
    else:
        student = plain_copy(whole)
    if base.can_generate():
        student.generation_config = copy.deepcopy(base.generation_config)
    student.config.distilled_from = _provenance(teacher, stacks, kept, requests)
    if numbers:
        student.config.distilled_from |= {
            "width": width,
            "sizes": {axis.name: {"student": size, "teacher": axis.size} for axis, size in numbers.items()},
        }
    if vocabulary is not None:
        narrow, student = student, cut_vocabulary(student, vocabulary)
        prove_vocabulary(student, narrow, vocabulary)
    return student.eval(), hidden_units


def _stacks(base: PreTrainedModel, may_be_none: bool) -> dict[str, LayerStack]:
    """The stacks of layers. A model without one, such as ALBERT, can only be made narrower."""
    try:
        return find_layer_stacks(base)
    except ValueError:
        if may_be_none:
            return {}
        raise


def _plain_model(teacher: object) -> PreTrainedModel:
    """Checks the teacher, merges its PEFT adapters, and returns the transformers model to cut."""
    if not isinstance(teacher, PreTrainedModel | PeftModel):
        what = "a config, which has no weights" if isinstance(teacher, PreTrainedConfig) else type(teacher).__name__
        raise TypeError(
            f"teacher must be a transformers model, but is {what}: load it first, for example with "
            f"AutoModelForSequenceClassification.from_pretrained(...)."
        )
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "DeepSpeed ZeRO-3 is on and shards the weights of every new model, so there is nothing to cut: call "
            "make_student before DistillationTrainingArguments(deepspeed=...)."
        )
    base = transformers_model(teacher)
    if not isinstance(teacher, PeftModel) and any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError(
            f"This {type(base).__name__} has adapters from add_adapter, which cannot be merged: load them with "
            f"PeftModel.from_pretrained(model, adapter) instead."
        )
    if getattr(base, "is_quantized", False):
        raise ValueError(
            f"This {type(base).__name__} is quantized, and a student needs the full-precision weights: load the "
            f"teacher without quantization_config, on the CPU if memory is short."
        )
    if on_meta := [name for name, weight in base.named_parameters() if weight.is_meta]:
        raise ValueError(
            f"{len(on_meta)} weights of this {type(base).__name__}, such as {on_meta[0]}, are on the meta device: they "
            f"were never loaded, or are offloaded. Load the teacher with from_pretrained(...), without device_map."
        )
    return merged(teacher) if isinstance(teacher, PeftModel) else base


def _choose(
    base: PreTrainedModel,
    stacks: Mapping[str, LayerStack],
    requests: Mapping[str, tuple[int | None, Layers]],
    calibration_data: Sequence[Mapping[str, torch.Tensor]] | None,
    is_for_width: bool,
) -> dict[str, list[int]]:
    """The indices of the layers that the student keeps, by stack."""
    kept: dict[str, list[int]] = {}
    on_data: dict[str, dict[str, int]] = {strategy: {} for strategy in ON_DATA}
    for name, (number, which) in requests.items():
        if isinstance(which, str) and which in ON_DATA:
            on_data[which][name] = check_num_layers(stacks[name].num_layers, number)
        else:
            kept[name] = select_layers(stacks[name].num_layers, number, which)
    if is_for_width and not any(on_data.values()):
        return kept
    if any(on_data.values()) != (calibration_data is not None):
        raise ValueError(
            f"calibration_data is {'missing' if calibration_data is None else 'given'}, but layers="
            f"{[which for _, which in requests.values()]}: use both together, make_student(teacher, "
            f"layers='calibrated', calibration_data=batches) or layers='influence', or neither."
        )
    if calibration_data is None:
        return kept
    batches = inputs_of(base, calibration_data)
    if on_data[INFLUENCE]:
        kept = most_influential(base, stacks, kept, on_data[INFLUENCE], batches)
    return calibrate(base, stacks, kept, on_data[CALIBRATED], batches) if on_data[CALIBRATED] else kept


def _provenance(
    teacher: PreTrainedModel | PeftModel,
    stacks: Mapping[str, LayerStack],
    kept: Mapping[str, Sequence[int]],
    requests: Mapping[str, tuple[int | None, Layers]],
) -> dict[str, object]:
    base = transformers_model(teacher)
    methods = {name: which if isinstance(which, str) else "explicit" for name, (_, which) in requests.items()}
    methods |= {name: "all" for name, stack in stacks.items() if len(kept[name]) == stack.num_layers}
    depths = {name: stack.num_layers for name, stack in stacks.items()}
    provenance: dict[str, object] = {
        "teacher": public_name(base.name_or_path),
        "revision": revision_on_hub(base),
        "layers": kept if len(kept) != 1 else next(iter(kept.values())),
        "num_teacher_layers": depths if len(depths) != 1 else next(iter(depths.values())),
        "method": methods if len(methods) != 1 else next(iter(methods.values())),
        "hf_distill_version": __version__,
    }
    if isinstance(teacher, PeftModel):
        provenance["merged_adapters"] = teacher.active_adapters
    return provenance
