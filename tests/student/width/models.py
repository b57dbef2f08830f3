"""Tiny models with enough heads and units to remove some."""

from transformers import PreTrainedModel

from tests.student import tiny_models

HIDDEN, HEADS, FEED_FORWARD = 32, 4, 48

SIZES = tiny_models.SIZES | {
    **{name: HIDDEN for name, size in tiny_models.SIZES.items() if size == 16},
    **{name: FEED_FORWARD for name, size in tiny_models.SIZES.items() if size == 32},
    **{name: HEADS for name in tiny_models.SIZES if name.endswith("heads")},
    "num_key_value_heads": 2,
}

CLIP = {
    part: {**sizes, "hidden_size": HIDDEN, "intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS}
    for part, sizes in tiny_models.CLIP.items()
}
OVERRIDES = {
    "clip": CLIP,
    "siglip": CLIP,
    "deepseek_v3": {"num_key_value_heads": HEADS},
    "gemma3n_text": {"intermediate_size": [FEED_FORWARD] * tiny_models.NUM_LAYERS},
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": HIDDEN},
    "distilbert": {"hidden_dim": FEED_FORWARD},
}


def wide_model(model_type: str, **overrides) -> PreTrainedModel:
    """With 4 heads of width 8, in groups of 2 if keys are shared, and 48 units in a feed-forward layer."""
    return tiny_models.tiny_model(model_type, SIZES, **OVERRIDES.get(model_type, {}) | overrides)
