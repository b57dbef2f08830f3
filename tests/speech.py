"""A tiny Whisper, the processor that it reads with, and recordings with transcripts, for tests."""

import json

import numpy as np
import soundfile
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

RATE = 4000
SECONDS = 2
"""Length that the model reads."""

END = "<|endoftext|>"
SPECIAL_TOKENS = ["<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


def make_speech_processor() -> WhisperProcessor:
    """A processor whose tokens are bytes."""
    characters = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab={**characters, END: len(characters)}, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.set_prefix_tokens(predict_timestamps=False)
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, chunk_length=SECONDS, hop_length=40)
    return WhisperProcessor(extractor, tokenizer)


def make_whisper(seed: int = 0, is_multilingual: bool = False, **overrides) -> WhisperForConditionalGeneration:
    """A model that writes at most 12 tokens, in English or in one of two languages."""
    tokenizer = make_speech_processor().tokenizer
    start, end, plain = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", END, "<|notimestamps|>"])
    special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    positions = {"max_source_positions": 100, "max_target_positions": 24, "init_std": 1.2}
    options = {**special, **sizes, **heads, **positions, **overrides}
    config = WhisperConfig(
        vocab_size=len(tokenizer), suppress_tokens=None, begin_suppress_tokens=None, dropout=0.0, **options
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    languages = {}
    if is_multilingual:
        ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
        languages["lang_to_id"] = {name: ids[name] for name in ("<|en|>", "<|zh|>")}
        languages["task_to_id"] = {name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")}
    model.generation_config = GenerationConfig(
        max_length=12, is_multilingual=is_multilingual, no_timestamps_token_id=plain, **languages, **special
    )
    return model


def make_recording(text: str, seed: int = 0) -> np.ndarray:
    """A tone for each letter, and noise."""
    generator, time = np.random.default_rng(seed), np.arange(RATE // 5) / RATE
    tones = [np.sin(2 * np.pi * (200 + 150 * (ord(letter) - ord("a"))) * time) for letter in text]
    whole = np.concatenate(tones)
    return np.float32(0.5 * whole + generator.normal(0, 0.01, len(whole)))


def write_recordings(folder, texts, seed: int = 0):
    """Writes recordings, and the table `data.jsonl` of their names and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        soundfile.write(folder / f"{number}.wav", make_recording(text, seed + number), RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "text": text}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"
