"""Short recordings, and a tiny model that reads them, for tests."""

from pathlib import Path

import numpy as np
import soundfile
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

RATE = 2000
PITCHES = {"high": 700.0, "low": 100.0, "middle": 300.0}


def make_sound(pitch: str, seed: int = 0, seconds: float = 0.1, rate: int = RATE) -> np.ndarray:
    """A tone with some noise."""
    time = np.arange(int(seconds * rate)) / rate
    generator = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * PITCHES[pitch] * time + generator.uniform(0, 6))
    return (0.5 * tone + generator.normal(0, 0.05, len(time))).astype(np.float32)


def write_sounds(folder: Path, num_sounds: int = 12, seed: int = 0, rate: int = RATE) -> Path:
    """Writes a folder with a subfolder of recordings for each pitch."""
    for number in range(num_sounds):
        pitch = list(PITCHES)[number % len(PITCHES)]
        (folder / pitch).mkdir(parents=True, exist_ok=True)
        sound = make_sound(pitch, seed + number, 0.08 + 0.01 * (number % 5), rate)
        soundfile.write(folder / pitch / f"{number:03}.wav", sound, rate)
    return folder


def make_extractor(has_mask: bool = False) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True, return_attention_mask=has_mask)


def make_wav2vec2(num_layers: int = 2, **overrides) -> Wav2Vec2ForSequenceClassification:
    names = dict(enumerate(PITCHES))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "classifier_proj_size": 16}
    convolutions = {"conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 4]}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    config = Wav2Vec2Config(
        num_hidden_layers=num_layers,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        layerdrop=0.0,
        mask_time_prob=0.0,
        **{**sizes, **convolutions, **positions, **dict.fromkeys(dropouts, 0.0), **overrides},
    )
    return Wav2Vec2ForSequenceClassification(config)
