"""Tiny models of many types, built from configs with the same sizes, plus the extra options of each type."""

from collections.abc import Mapping

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from tests.conftest import VOCAB_SIZE

NUM_LAYERS = 4

SIZES = {
    # depths and widths, under the names that configs have for them
    **dict.fromkeys(["num_hidden_layers", "encoder_layers", "decoder_layers"], NUM_LAYERS),
    **dict.fromkeys(["num_layers", "num_encoder_layers", "num_decoder_layers"], NUM_LAYERS),
    **dict.fromkeys(["hidden_size", "d_model", "embedding_size", "word_embed_proj_dim", "projection_dim"], 16),
    **dict.fromkeys(["intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner"], 32),
    **dict.fromkeys(["num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"], 2),
    **dict.fromkeys(["num_encoder_attention_heads", "num_decoder_attention_heads"], 2),
    **dict.fromkeys(["head_dim", "d_kv"], 8),
    "num_key_value_heads": 1,
    # texts, images and sounds
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCAB_SIZE),
    **dict.fromkeys(["max_position_embeddings", "max_source_positions", "max_target_positions"], 64),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "image_size": 8,
    "patch_size": 4,
    # each layer should matter
    **dict.fromkeys(["initializer_range", "init_std"], 0.2),
}
WAV2VEC2 = {
    "conv_dim": [8, 8],
    "conv_stride": [10, 8],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
CLIP = {
    part: {**{name: SIZES[name] for name in names}, "projection_dim": 16, "hidden_size": 16, "intermediate_size": 32}
    for part, names in {
        "text_config": ["vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads"],
        "vision_config": ["image_size", "patch_size", "num_hidden_layers", "num_attention_heads"],
    }.items()
}
# In values given per layer, the first half differs from that of the kept layers.
MIXED_ATTENTION = {"layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2, "sliding_window": 4}

TYPES = {
    "MaskedLM": {
        "bert": {},
        "big_bird": {"max_position_embeddings": 128, "block_size": 4, "num_random_blocks": 1},
        "camembert": {},
        "convbert": {},
        "data2vec-text": {},
        "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
        "distilbert": {"hidden_dim": 32},
        "electra": {},
        "ernie": {},
        "esm": {},
        "fnet": {},
        "longformer": {"attention_window": [4, 4, 8, 8]},
        "megatron-bert": {},
        "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 16},
        "modernbert": {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2, "local_attention": 4},
        "mpnet": {},
        "nystromformer": {},
        "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
        "roberta": {},
        "roberta-prelayernorm": {},
        "roformer": {},
        "squeezebert": {},
        "xlm-roberta": {},
    },
    "CausalLM": {
        "bloom": {},
        "deepseek_v3": {
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"], 8),
            "num_key_value_heads": 2,
        },
        "falcon": {},
        "gemma": {},
        "gemma2": MIXED_ATTENTION,
        "gemma3_text": MIXED_ATTENTION,
        "gemma3n_text": {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0],
            "intermediate_size": [32, 32, 32, 32],
            "hidden_size_per_layer_input": 4,
            "altup_num_inputs": 2,
            "laurel_rank": 4,
        },
        "gemma4_text": {
            **MIXED_ATTENTION,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 4,
            "num_kv_shared_layers": 0,
        },
        "gpt2": {},
        "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
        "gpt_neox": {},
        "gpt_oss": {**MIXED_ATTENTION, "num_local_experts": 4, "num_experts_per_tok": 2},
        "llama": {},
        "mamba": {},
        "mistral": {},
        "mixtral": {"num_local_experts": 4},
        "olmo2": {},
        "opt": {},
        "phi": {},
        "phi3": {},
        "qwen2": {"use_sliding_window": True, **MIXED_ATTENTION},
        "qwen2_moe": {
            "mlp_only_layers": [0, 3],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        "qwen3": {},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
        "stablelm": {},
        "starcoder2": {},
    },
    "Seq2SeqLM": {
        "bart": {},
        "led": {"attention_window": [4, 4, 8, 8], "max_encoder_position_embeddings": 64},
        "m2m_100": {},
        "marian": {},
        "mbart": {},
        "mt5": {},
        "pegasus": {},
        "prophetnet": {},
        "t5": {},
    },
    "SpeechSeq2Seq": {
        "speech_to_text": {"input_feat_per_channel": 8, "conv_channels": 16},
        "whisper": {"num_mel_bins": 8},
    },
    "ImageClassification": {
        "beit": {},
        "deit": {"architectures": ["DeiTForImageClassification"]},
        "dinov2": {"out_indices": [1, 4]},
        "vit": {},
    },
    "AudioClassification": {"hubert": WAV2VEC2, "wav2vec2": WAV2VEC2, "wavlm": WAV2VEC2},
    "": {"clip": CLIP, "siglip": CLIP},
}
AUTO_CLASS_OF_TYPE = {
    model_type: f"AutoModelFor{head}" if head else "AutoModel" for head, types in TYPES.items() for model_type in types
}


def tiny_config(model_type: str, sizes: Mapping[str, object] = SIZES, **options) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    known = {name for name in sizes if name in vars(default) or name in config_class.attribute_map}
    # If two names stand for one number, use the config's own name.
    known -= {name for name in known if config_class.attribute_map.get(name) in known}
    return config_class(**{name: sizes[name] for name in known} | options)


def tiny_model(model_type: str, sizes: Mapping[str, object] = SIZES, **overrides) -> PreTrainedModel:
    """With random weights, in evaluation mode."""
    (options,) = [types[model_type] for types in TYPES.values() if model_type in types]
    config = tiny_config(model_type, sizes, **options | overrides)
    torch.manual_seed(0)
    return getattr(transformers, AUTO_CLASS_OF_TYPE[model_type]).from_config(config).eval()
