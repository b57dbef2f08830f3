"""A tiny Whisper, and the processor that it reads with, for tests."""

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
SPECIAL_TOKENS = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


def make_speech_processor() -> WhisperProcessor:
    """A processor whose tokens are bytes."""
    characters = {character: number for number, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab={**characters, END: len(characters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=RATE, chunk_length=SECONDS, hop_length=40)
    return WhisperProcessor(extractor, tokenizer)


def make_whisper(seed: int = 0, **overrides) -> WhisperForConditionalGeneration:
    """An English model that writes at most 12 tokens."""
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
    model.generation_config = GenerationConfig(
        max_length=12, is_multilingual=False, no_timestamps_token_id=plain, **special
    )
    return model
