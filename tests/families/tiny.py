"""Tiny models of every family in the installed transformers, and batches for them.

No family is known by name. All default values of a config are visited, and every value whose name marks it as a size, a
number of layers or a token is replaced by a small one.
"""

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

MOST_PARAMETERS = 20_000_000
VOCAB_SIZE = 64
WIDTH, HEADS, HEAD_WIDTH, LAYERS = 32, 4, 8, 2
PAD, BOS, EOS = 0, 1, 2
NUM_LABELS = 3

DEPTH = r"(^|_)(n_|num_)?(hidden_|encoder_|decoder_)*layers?$|^depth$|_depth$"

# The first pattern that matches a name gives the new value.
SIZES: dict[str, int] = {
    r"(^|_)vocab_size(_.*)?$|^n_words$|^vocab_size_or_config_json_file$": VOCAB_SIZE,
    r"feat_extract_layers$": 10**6,  # as many as there are convolutions
    r"shared_layers$": 0,
    r"mamba.*heads$": 8,
    r"^d_head$|mamba_(d_head|head_dim|headdim)$": HEAD_WIDTH,
    r"^d_latents$": WIDTH,
    r"^num_latents$": 8,
    r"^num_groups$": 2,
    r"^coordinate_size$": 6,
    r"^shape_size$": 4,
    r"^attn_layer_period$": 2,
    r"^attn_layer_offset$": 1,
    r"key_value_heads|kv_heads|num_query_groups|n_head_kv": 2,
    r"(^|_)(n|num)_(attention_|query_)?heads?$|attention_heads$|_n_heads$|^num_attn_heads$|^num_.*_heads$": HEADS,
    r"head_dim$|^d_kv$|^kv_channels$|head_size$": HEAD_WIDTH,
    r"^rotary_dim$": 4,
    r"lora_rank$|_rank$": 8,
    r"experts_per_tok|^moe_topk$|^moe_k$|^top_k(_experts)?$|^router_top_k$|^num_selected_experts$": 2,
    r"^n_group$|^topk_group$|^num_expert_group$": 1,
    r"num_shared_experts|n_shared_experts": 1,
    r"(num|n)_(local_|routed_|dense_)?experts$|^moe_num_experts$|^num_moe_experts$|^expert_num$": 4,
    r"^num_codebooks$": 2,
    DEPTH: LAYERS,
    r"intermediate_size|(^|_)ffn_dim$|^d_ff$|^d_inner$|^n_inner$|^ffn_(hidden_)?size$|^feed_forward_size$|^dim_ff$"
    r"|^inner_dim$|mlp_dim$|^ffn_hidden_size$|^feedforward_dim$": 2 * WIDTH,
    r"max_(source|target|text)_positions$|max_position_embeddings$|^n_positions$|^max_seq_len(gth)?$|^n_ctx$"
    r"|^max_sequence_length$|^seq_length$|^model_max_length$": 64,
    r"^image_size$|^img_size$|^input_size$": 32,
    r"^patch_size$": 8,
    r"^window_size$": 2,
    r"^mamba_d_state$|^state_size$|^d_state$|^ssm_state_size$": 8,
    r"^conv_pos|num_conv_pos_embeddings$": 8,
    r"num_conv_pos_embedding_groups$": 2,
    r"(^|_)(hidden_size|hidden_dim|embedding_size|embed_dim|embed_proj_dim|proj_dim|projection_dim|projection_size"
    r"|emb_dim|n_embd|d_model|dim|model_dim|width|tdnn_dim|lru_width|embedding_dim|d_embed|bottleneck_size"
    r"|output_hidden_size|conv_channels|input_dim|xvector_output_dim|emb_size|lstm_hidden_size|hidden_width)$": WIDTH,
}
SPECIAL_TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": EOS}
LEFT_OUT = (
    *("transformers_version", "model_type", "_name_or_path", "architectures", "dtype", "torch_dtype"),
    *("out_features", "out_indices", "stage_names", "per_layer_config", "id2label", "label2id"),
)
WIDTHS = r"(hidden_sizes|embed_dims|encoder_hidden_sizes|neck_hidden_sizes|conv_dim|tdnn_dim|channels|widths|dims)$"
COUNTS = r"(depths?|num_blocks|layers_per_stage|num_layers)$"


class CannotBuildError(Exception):
    """A tiny model cannot be made, or does not run."""


def tiny_config(config_class: type[PreTrainedConfig], **overrides) -> PreTrainedConfig:
    """The config of a tiny model of a family."""
    values = _shrunk(config_class().to_dict())
    return config_class(**{**values, **overrides})


def _shrunk(values: Mapping[str, object]) -> dict[str, object]:
    """A config's values, made small. Lists with one entry per layer get the new number of entries."""
    depths = {value for name, value in values.items() if type(value) is int and _is_depth(name)}
    if "depths" in values:  # a pyramid: its lists have one entry per stage
        depths = set()
    small = {}
    for name, value in values.items():
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping) and name.endswith(("config", "encoder", "decoder", "generator")):
            small[name] = _shrunk(value) | {k: v for k, v in value.items() if k == "model_type"}
        elif name == "rope_parameters" and isinstance(value, Mapping) and "rope_theta" in value:
            small[name] = {**value, "mrope_section": [2, 1, 1]}  # half of a head; read by models of images and text
        elif isinstance(value, list | tuple) and value:
            small[name] = _shrunk_list(name, list(value), depths)
        elif type(value) is int or name in SPECIAL_TOKENS:
            small[name] = _shrunk_number(name, value)
        elif value is None and name in ("head_dim", "num_key_value_heads", "num_experts_per_tok", "vocab_size"):
            small[name] = _size_of(name)
        else:
            small[name] = value
    if "expand" in values and "num_heads" in values:  # Mamba 2
        small["num_heads"] = 8
    if values.get("languages"):
        small["default_language"] = values["languages"][0]
    if "axial_pos_embds" in values:
        small["axial_pos_embds"] = False
    if values.get("num_key_value_heads") == values.get("num_attention_heads") and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _is_depth(name: str) -> bool:
    return re.search(DEPTH, name) is not None and _size_of(name) == LAYERS


def _size_of(name: str) -> int | None:
    return next((size for pattern, size in SIZES.items() if re.search(pattern, name)), None)


def _shrunk_number(name: str, value: int) -> int:
    if name.endswith(("token_id", "token_index")) or re.search(r"_id$|_index$", name):
        return SPECIAL_TOKENS.get(name, value if value is not None and value < VOCAB_SIZE else VOCAB_SIZE - 1)
    size = _size_of(name)
    return value if size is None else min(size, value) if value > 0 else value


def _shrunk_list(name: str, value: list, depths: set[int]) -> list:
    if name.endswith("token_id") and all(type(item) is int for item in value):
        return [EOS]
    if re.search(r"heads$", name) and all(type(item) is int for item in value):
        return [min(2, item) for item in value]
    if len(value) in depths and len(value) > LAYERS and not re.search(WIDTHS, name):
        # A hybrid keeps one layer of each of its two kinds.
        kinds = list(dict.fromkeys(map(str, value)))
        if len(kinds) > 1 and isinstance(value[0], str):
            return [*kinds, *kinds][:LAYERS]
        return value[:LAYERS]
    if re.search(WIDTHS, name) and all(type(item) is int for item in value):
        return [max(8, item * 16 // max(1, min(value)) // 8 * 8) for item in value]
    if re.search(COUNTS, name) and all(type(item) is int for item in value):
        return [1] * len(value)
    return value


def model_classes() -> Iterator[tuple[str, str]]:
    """All pairs `(auto class, name of the model class)` that the auto classes load, with each model class once."""
    seen = set()
    decoders = _names("AutoModelForCausalLM")
    for auto_class in MAPPINGS:
        for name in _names(auto_class):
            listed_twice = name in decoders and auto_class in ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")
            if name not in seen and not listed_twice:
                seen.add(name)
                yield auto_class, name


def _names(auto_class: str) -> list[str]:
    names = getattr(modeling_auto, MAPPINGS[auto_class]).values()
    return list(dict.fromkeys(name for one in names for name in ([one] if isinstance(one, str) else one)))


# BART is listed for masked language modelling too, and XLM for causal: a model is tried under the first.
MAPPINGS = {
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForAudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(signal_number, frame):
        raise TimeoutError(f"took more than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def build(class_name: str, seed: int | None) -> PreTrainedModel:
    """A tiny model with random weights, in evaluation mode. Without a seed, its weights are not initialised.

    Raises:
        CannotBuildError: if it is not tiny.
    """
    model_class = getattr(transformers, class_name)
    config = tiny_config(model_class.config_class)
    if hasattr(config, "num_labels"):
        config.num_labels = 2 if "ForQuestionAnswering" in class_name else NUM_LABELS
    for name, token in SPECIAL_TOKENS.items():
        setattr(config, name, token)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise CannotBuildError(f"has {size / 1e6:.0f} million parameters")
    if seed is None:
        return model_class(config)
    torch.manual_seed(seed)
    model = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # outputs far from uniform, and biases that are not 0
        if parameter.is_floating_point():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
    return model.float().eval()


def text(width: int = 12) -> dict[str, torch.Tensor]:
    """Three rows of different lengths, each with one end token, which is its last."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, VOCAB_SIZE - 8, (3, width), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row, length in enumerate((12, 9, 5)):
        input_ids[row, length - 1] = EOS
        input_ids[row, length:] = PAD
        attention_mask[row, length:] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def images(config: PreTrainedConfig) -> Iterator[dict[str, torch.Tensor]]:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or 32
    height, width = size if isinstance(size, list | tuple) else (size, size)
    yield {"pixel_values": _noise(3, getattr(config, "num_channels", 3), height, width)}
    yield {"pixel_values": _noise(3, getattr(config, "num_channels", 3), 64, 64)}


def recordings(config: PreTrainedConfig, name: str) -> Iterator[dict[str, torch.Tensor]]:
    for sub in ("audio_config", "encoder_config", "encoder"):
        config = getattr(config, sub, config)
    if name == "input_values":
        yield {name: _noise(3, 4000)}
    features = [
        getattr(config, field)
        for field in ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "input_dim")
        if getattr(config, field, None)
    ] or [WIDTH]
    lengths = [getattr(config, "max_length", None), 2 * getattr(config, "max_source_positions", 32), 64]
    for feature in features:
        for length in lengths:
            if length:
                yield {name: _noise(3, feature, length)}
                yield {name: _noise(3, length, feature)}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def kind_of(auto_class: str, model: PreTrainedModel) -> str:
    """The kind of head of a model. A language model with audio or images among its tokens counts as causal."""
    kind = auto_class.removeprefix("AutoModelFor")
    if kind in ("Seq2SeqLM", "SpeechSeq2Seq", "ImageTextToText"):
        return "Seq2SeqLM" if model.config.is_encoder_decoder else "CausalLM"
    return kind


def batches(kind: str, model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs that the model may need, most likely first, with labels."""
    labels = torch.tensor([0, 2, -100])
    if kind == "ImageClassification":
        yield from ({**inputs, "labels": labels} for inputs in images(model.config))
    elif kind == "AudioClassification":
        yield from ({**inputs, "labels": labels} for inputs in recordings(model.config, model.main_input_name))
    elif kind == "Seq2SeqLM":
        targets = torch.randint(5, VOCAB_SIZE - 8, (3, 7), generator=torch.Generator().manual_seed(2))
        targets = targets.masked_fill(torch.ones(3, 7).tril(4).eq(0), -100)
        readers = {"pixel_values": images(model.config), "input_ids": iter([text()])}
        yield from (
            {**inputs, "labels": targets}
            for inputs in readers.get(model.main_input_name) or recordings(model.config, model.main_input_name)
        )
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            made = model.prepare_decoder_input_ids_from_labels(targets)
            yield {**text(), "labels": targets, "decoder_input_ids": made}
    else:
        for width in (12, 64):  # some models always give as many tokens as they have positions
            inputs = text(width)
            if kind == "QuestionAnswering":
                inputs |= {"start_positions": torch.tensor([3, 50, 0]), "end_positions": torch.tensor([4, 2, -100])}
            elif kind == "SequenceClassification":
                inputs["labels"] = labels
            else:
                of_tokens = torch.randint(0, NUM_LABELS, (3, width), generator=torch.Generator().manual_seed(1))
                of_tokens = of_tokens if kind == "TokenClassification" else inputs["input_ids"]
                without = inputs["attention_mask"].eq(0) | (_noise(3, width) > 0.5)
                inputs["labels"] = of_tokens.masked_fill(without, -100)
            yield inputs
