"""Finds a model's stacks of layers, and adapts its config to fewer layers.

All names that depend on an architecture are in this file.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations import deepspeed

DEPTHS = (
    "encoder_layers",
    "num_encoder_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_hidden_layers",
)
"""Config names for the depth of a stack. Other names, such as GPT-2's `n_layer`, are mapped to the last one."""

PER_LAYER = (
    "activation_sparsity_pattern",
    "attention_layers",
    "attention_window",
    "indexer_types",
    "intermediate_size",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "no_rope_layers",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "sliding_windows",
)
"""Config lists with one entry per layer."""

LAYER_INDICES = (
    "cross_attention_layers",
    "deepstack_visual_indexes",
    "full_attn_idxs",
    "fullatt_block_indexes",
    "global_attn_indexes",
    "hybrid_layer_ids",
    "mlp_only_layers",
    "moe_layers",
    "rope_scaling_layers",
    "window_block_indices",
)
"""Config lists with the indices of the layers of one kind."""

FIRST_LAYERS = ("first_k_dense_replace", "max_window_layers", "num_dense_layers")
LAST_LAYERS = ("num_kv_shared_layers",)
"""Config numbers that count the layers of one kind at the beginning, or at the end, of a stack."""


@dataclass(frozen=True)
class LayerStack:
    """A list of layers whose length is a number in the config."""

    path: str
    """Dotted name of its `nn.ModuleList` in the model."""
    config_path: tuple[str, ...]
    """Path of its config within the model's config: `()`, or for example `("text_config",)`."""
    depth: str
    """Name of the number of layers in that config."""
    num_layers: int


def find_layer_stacks(model: PreTrainedModel) -> dict[str, LayerStack]:
    """Finds the stacks of layers of a model, in the order of its config.

    A stack is a list of modules that gets shorter when one number of the config, such as `num_hidden_layers`, is
    reduced. This works without knowledge of the architecture, and no weights are allocated.

    Returns:
        The stacks by name. The name is `"layers"` for a single stack, else `"encoder"`, `"decoder"`, `"text"`,
        `"vision"` and so on.

    Raises:
        ValueError: if there is no stack; the message gives the reason.
    """
    lengths = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    stacks: list[LayerStack] = []
    why = "its config has no number of layers"
    for config_path, depth, num_layers in _depths(model.config):
        where = f"`{'.'.join((*config_path, depth))}` ({num_layers})"
        following = _following(model, lengths, config_path, depth, num_layers)
        if len(following) == 1 and following[0] not in {stack.path for stack in stacks}:
            stacks.append(LayerStack(following[0], config_path, depth, num_layers))
        elif following:
            why = f"{where} in its config is the length of several lists of modules: {', '.join(following)}"
        else:
            why = (
                f"no list of modules has the length {where} of its config. Either all layers share one set of weights, "
                f"as in ALBERT, or the layers are in stages of different widths, as in Swin"
            )
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no stack of layers that can be cut: {why}.")
    return dict(zip(_names(stacks), stacks, strict=True))


def _following(
    model: PreTrainedModel, lengths: Mapping[str, int], config_path: tuple[str, ...], depth: str, num_layers: int
) -> list[str]:
    """Names of the module lists whose length changes with this number of the config."""
    if num_layers not in lengths.values():
        return []
    kept = list(range(num_layers - 1)) or [0, 0]  # one layer fewer; a single layer becomes two
    config = with_layers(model.config, {LayerStack("", config_path, depth, num_layers): kept})
    resized = dict(skeleton(type(model), config).named_modules())
    return [
        name
        for name, length in lengths.items()
        if length == num_layers and name in resized and len(resized[name]) == len(kept)
    ]


def skeleton(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A model with tied but empty weights: the weights are on the meta device, the buffers on `device`."""
    empty = init_empty_weights(include_buffers=False)
    with _unsharded(), no_init_weights(), torch.random.fork_rng(), torch.device(device), empty:
        model = model_class._from_config(copy.deepcopy(config), dtype=dtype or torch.get_default_dtype())
    model.tie_weights()
    return model.eval()


@contextmanager
def _unsharded() -> Iterator[None]:
    """While open, DeepSpeed ZeRO-3 does not shard new models."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def with_layers(config: PreTrainedConfig, kept: Mapping[LayerStack, Sequence[int]]) -> PreTrainedConfig:
    """Returns a copy of `config` for a model that keeps only these layers of each stack."""
    config = copy.deepcopy(config)
    for stack, layers in kept.items():
        part = reduce(getattr, stack.config_path, config)
        num_layers = stack.num_layers
        overrides = part.to_dict().get("per_layer_config") if getattr(part, "is_heterogeneous", False) else None
        if overrides is not None:
            part.per_layer_config = None
        # If encoder and decoder share one config, these entries describe the encoder.
        if "decoder" not in stack.depth:
            for name in PER_LAYER:
                values = vars(part).get(name)
                if isinstance(values, list | tuple) and len(values) == num_layers:
                    setattr(part, name, [values[old] for old in layers])
            for name in LAYER_INDICES:
                indices = vars(part).get(name)
                if isinstance(indices, list | tuple):
                    setattr(part, name, [new for new, old in enumerate(layers) if old in indices])
            for name in FIRST_LAYERS:
                if isinstance(number := vars(part).get(name), int):
                    setattr(part, name, sum(old < number for old in layers))
            for name in LAST_LAYERS:
                if isinstance(number := vars(part).get(name), int):
                    setattr(part, name, sum(old >= num_layers - number for old in layers))
            if hasattr(part, "attention_types"):  # GPT-Neo derives `attention_layers` from it again
                part.attention_types = [[part.attention_layers, 1]]
        # Backbones name the outputs of their layers `stem`, `stage1` and so on, and list those that they return.
        if len(getattr(part, "stage_names", None) or ()) == num_layers + 1:
            outputs = sorted({sum(old < index % (num_layers + 1) for old in layers) for index in part.out_indices})
            part.stage_names = part.stage_names[: len(layers) + 1]
            part.set_output_features_output_indices(out_features=None, out_indices=outputs)
        setattr(part, stack.depth, len(layers))
        if overrides is not None:
            overrides = {int(old): own for old, own in overrides.items()}
            part.per_layer_config = {new: overrides[old] for new, old in enumerate(layers) if old in overrides}
    return config


def example_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Makes a small batch for the model below its head: a few tokens, an image or one second of audio.

    Raises:
        ValueError: if the inputs of the model are unknown.
    """
    config, name = model.config, model.main_input_name
    inner_first = reversed([part for _, part in config_parts(config)])
    size_of: Callable[..., Any] = {key: value for part in inner_first for key, value in vars(part).items()}.get
    image_size = size_of("image_size", 224)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image: tuple[int, ...] = (1, size_of("num_channels", 3), height, width)
    if size_of("num_frames"):
        image = (1, size_of("num_frames"), *image[1:])
    if size_of("max_source_positions") and size_of("num_mel_bins"):  # Whisper
        spectrum = (1, size_of("num_mel_bins"), 2 * size_of("max_source_positions"))
    else:
        spectrum = (1, 64, size_of("input_feat_per_channel") or size_of("feature_projection_input_dim") or 80)
    sound = (1, size_of("max_length"), size_of("num_mel_bins")) if size_of("num_mel_bins") else (1, 16_000)
    shapes = {"pixel_values": image, "input_features": spectrum, "input_values": sound}

    # Tokens from the middle of the vocabulary, because special tokens are at its ends.
    vocab_size = getattr(config.get_text_config(), "vocab_size", 64)
    # BigBird switches to full attention for good when it receives fewer tokens than this.
    length = 16 * size_of("block_size", 1) if size_of("attention_type") == "block_sparse" else 8
    tokens = torch.arange(2 * length).reshape(2, length) % min(16, vocab_size // 2) + vocab_size // 2
    if name != "input_ids" and name not in shapes:
        raise ValueError(
            f"Cannot create {name} for {type(model).__name__}: pass example_inputs=, a batch of its inputs, so that "
            f"the student can be checked against the teacher."
        )
    inputs = {name: tokens if name == "input_ids" else torch.randn(shapes[name], dtype=model.dtype)}
    if hasattr(config, "vision_config") and not model.can_generate():  # CLIP needs both; generators need only tokens
        inputs["pixel_values"] = torch.randn(image, dtype=model.dtype)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens[: len(inputs[name])]
    return {name: values.to(model.device) for name, values in inputs.items()}


def config_parts(
    config: PreTrainedConfig, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], PreTrainedConfig]]:
    """The config and all nested configs, each with its path."""
    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from config_parts(value, (*path, name))


def _depths(config: PreTrainedConfig) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """Every number of layers in the config and its nested configs, as path, name and number."""
    for path, part in config_parts(config):
        for name in DEPTHS:
            # A name may be an alias of another one, or a property that cannot be set.
            stored = part.attribute_map.get(name, name)
            number = vars(part).get(stored) if stored == name or stored not in DEPTHS else None
            if isinstance(number, int) and number > 0:
                yield path, name, number


def _names(stacks: list[LayerStack]) -> list[str]:
    if len(stacks) == 1:
        return ["layers"]
    names = []
    for stack in stacks:
        if stack.config_path:
            names.append(stack.config_path[-1].removesuffix("_config"))
        else:
            names.append("decoder" if "decoder" in stack.path.split(".") else "encoder")
    return names if len(set(names)) == len(names) else [stack.path for stack in stacks]
