"""Tokenizers of all kinds, trained on generated text in several scripts."""

import functools
import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

ALPHABETS = ["abcdefghij", "éüßñ", "абвгде", "αβγδ", "ابتثج", "अआइईउ", "กขคง", "漢字語", "한국어", "👍😀"]

ANY_SCRIPT = [
    "Съешь ещё этих мягких булок",
    "نص حكيم له سر قاطع",
    "我能吞下玻璃而不伤身体。",
    "다람쥐 헌 쳇바퀴에 타고파",
    "ऋषियों को सताने वाले",
    "เป็นมนุษย์สุดประเสริฐ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "e\u0301a\u0308\u0323o\u0302\u0301",
    "a\x00b\x07c\x1b[0m\x7f\u200b\u202e\ufeff",
    "\n\t  \r\n",
    "",
    "x" * 500,
    "ﷺ Ⅷ ½ ﬁ \U0001d54f \U0010ffff",
]


@functools.cache
def corpus(num_texts: int = 300, seed: int = 0) -> list[str]:
    """Texts of words that occur as often as in a language: the second half as often as the first, and so on."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(1, 8))) for _ in range(600)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(3, 12))) for _ in range(num_texts)]


def _trained(model: models.Model, trainer: trainers.Trainer, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


@functools.cache
def _word_piece() -> dict[str, int]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    return _trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer()).get_vocab()


def bert() -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab=dict(_word_piece()), do_lower_case=True, model_max_length=64)


@functools.cache
def _merges(special: tuple[str, ...], byte_level: bool, **options: str) -> tuple[dict, list]:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Metaspace(split=True)
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False, **options
    )
    tokenizer = _trained(models.BPE(**options), trainer, pre_tokenizer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokenizer.get_vocab(), [tuple(merge) for merge in merges]


def gpt2() -> PreTrainedTokenizerBase:
    vocab, merges = _merges(("<|endoftext|>",), True)
    tokenizer = GPT2Tokenizer(vocab=dict(vocab), merges=merges)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def roberta() -> PreTrainedTokenizerBase:
    vocab, merges = _merges(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), True)
    return RobertaTokenizer(vocab=dict(vocab), merges=merges, padding_side="left")


def llama() -> PreTrainedTokenizerBase:
    """With byte fallback and all pairs of tokens that make up another one, as in a converted sentencepiece model."""
    vocab, trained = _merges((), False)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(vocab, key=vocab.__getitem__)
    ids = {token: index for index, token in enumerate(tokens)}
    merges = {}
    for left, right in trained:
        token = left + right
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges |= dict.fromkeys(pair for pair in pairs if pair[0] in ids and pair[1] in ids)
    return LlamaTokenizer(vocab=ids, merges=list(merges), add_bos_token=True, pad_token="</s>")


def xlm_roberta() -> PreTrainedTokenizerBase:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False, max_piece_length=6
    )
    trained = _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    vocab = [tuple(entry) for entry in json.loads(trained.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])


def clip_like() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose tokens at the end of a word have a suffix, and an added token."""
    vocab, merges = _merges(("<|end|>",), True, end_of_word_suffix="</w>")
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=merges, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<image>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def prefixed() -> PreTrainedTokenizerBase:
    """BPE without bytes whose tokens inside a word have a prefix."""
    options = {"continuing_subword_prefix": "##", "unk_token": "[UNK]"}
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["[UNK]"], continuing_subword_prefix="##", show_progress=False
    )
    tokenizer = _trained(models.BPE(**options), trainer, pre_tokenizers.WhitespaceSplit())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]")


def words() -> PreTrainedTokenizerBase:
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=["<pad>", "<unk>"], show_progress=False)
    tokenizer = _trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.WhitespaceSplit())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


TOKENIZERS = {make.__name__: make for make in (bert, gpt2, roberta, llama, xlm_roberta, clip_like, prefixed, words)}
