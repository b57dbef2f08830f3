"""`python -m recipes.benchmarks.trimmed_vocabulary`: smaller vocabularies for three kinds of tokenizers.

MiniLM's WordPiece and MiniLM with a tied head for masked language modelling; and a byte-level BPE and a Unigram
tokenizer with 30,000 tokens, trained on the spot, with small models of random weights. Each is trimmed to the tokens of
10,000 film-review sentences and tweets, and to the 8,000 most frequent of them. Then all these texts go through both
tokenizers, those whose tokens all stay through both models, and texts in ten scripts through the smaller ones.

A second table has the sizes of published models, counted from their configs.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
)

from hf_distill import TrimmedVocabulary, trim_vocabulary
from recipes.benchmarks._common import (
    BATCH_SIZE,
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.benchmarks.distil_from_scratch import TWEETS, read_tweets
from recipes.quickstart.data import read_ratings
from recipes.quickstart.fetch import download, fetch

Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]

MAX_LENGTH = 128
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]

ANY_SCRIPT = {
    "Cyrillic": "Съешь ещё этих мягких французских булок, да выпей же чаю",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم",
    "Han": "我能吞下玻璃而不伤身体。",
    "Hangul": "다람쥐 헌 쳇바퀴에 타고파",
    "Devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇺🇳",
    "combining marks": "e\u0301 a\u0308\u0323 o\u0302\u0301 Z\u0335\u0321\u0322\u0327",
    "control characters": "a\x00b\x07c\x1b[0m\x7f\u200b\u202e\ufeff\n\t",
    "empty": "",
}


def read_texts(sentences: Path, tweets: Sequence[str]) -> list[str]:
    """Every film-review sentence and tweet once, in the same random order in every run."""
    texts = {text for text, _ in read_ratings(sentences / "movieReviewSnippets_GroundTruth.txt")}
    shuffled = sorted({*texts, *tweets} - {""})
    random.Random(0).shuffle(shuffled)
    return shuffled


def word_piece(model_folder: Path) -> Pair:
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)


def byte_level_bpe(texts: Sequence[str], num_tokens: int) -> Pair:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    backend = _model_of(trained)
    tokenizer = GPT2Tokenizer(vocab=backend["vocab"], merges=[tuple(merge) for merge in backend["merges"]])
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    size = {"n_embd": 128, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)), tokenizer


def unigram(texts: Sequence[str], num_tokens: int) -> Pair:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=num_tokens, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    tokenizer = XLMRobertaTokenizer(vocab=[*map(tuple, _model_of(trained)["vocab"]), ("<mask>", 0.0)])
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=514, **ids, **size)
    return XLMRobertaForMaskedLM(config), tokenizer


def _model_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())["model"]


@torch.inference_mode()
def compare(whole: Pair, trimmed: TrimmedVocabulary, texts: Sequence[str], num_logit_texts: int) -> dict[str, float]:
    """Tokens of all texts, and logits of the first texts whose tokens all stay."""
    model, tokenizer = whole
    new_ids = {old: new for new, old in enumerate(trimmed.kept)}
    before, after = (
        own(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"] for own in (tokenizer, trimmed.tokenizer)
    )
    stay = [index for index, ids in enumerate(before) if new_ids.keys() >= set(ids)]
    same = [index for index in stay if [new_ids[old] for old in before[index]] == after[index]]
    columns = torch.tensor(trimmed.kept)
    difference = 0.0
    for batch in _batches(sorted(same[:num_logit_texts], key=lambda index: len(before[index]))):
        old = tokenizer.pad({"input_ids": [before[index] for index in batch]}, return_tensors="pt")
        new = trimmed.tokenizer.pad({"input_ids": [after[index] for index in batch]}, return_tensors="pt")
        expected = model(**old).logits.index_select(-1, columns)
        difference = max(difference, (trimmed.model(**new).logits - expected).abs().max().item())
    return {
        "all tokens stay": len(stay),
        "identical tokens": len(same),
        "compared logits": min(len(same), num_logit_texts),
        "largest difference": difference,
    }


def _batches(indices: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), BATCH_SIZE):
        yield indices[start : start + BATCH_SIZE]


@torch.inference_mode()
def failures(trimmed: TrimmedVocabulary) -> list[str]:
    """The kinds of text that the trimmed tokenizer or model cannot read."""
    failed = []
    for name, text in ANY_SCRIPT.items():
        try:
            inputs = trimmed.tokenizer([text + " a", text], padding=True, return_tensors="pt")
            assert trimmed.model(**inputs).logits.isfinite().all()
            trimmed.tokenizer.batch_decode(inputs["input_ids"])
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}")
    return failed


def megabytes(model: PreTrainedModel) -> float:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6


def published() -> list[list[str]]:
    """Rows of the second table."""
    xlm_roberta = {"vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1}
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    cases = {
        "bert-base-uncased": (BertConfig(), 8_000),
        "xlm-roberta-base": (XLMRobertaConfig(**xlm_roberta), 30_000),
        "xlm-roberta-large": (XLMRobertaConfig(**xlm_roberta, **large), 30_000),
    }
    rows = []
    for name, (config, tokens) in cases.items():
        size = config.vocab_size
        before = _parameters(config)
        config.vocab_size = tokens
        after = _parameters(config)
        counts = [f"{before / 1e6:.1f}", f"{after / 1e6:.1f}"]
        rows.append([name, f"{size:,}", f"{tokens:,}", *counts, f"{after / before:.0%}", f"{4 * after / 1e6:.0f}"])
    return rows


def _parameters(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return AutoModel.from_config(config).num_parameters()


def run(
    model_folder: Path,
    texts: Sequence[str],
    output: Path,
    num_texts: int,
    num_logit_texts: int,
    num_tokens: int,
    keep: int,
) -> dict[str, dict]:
    """Prints the tables, and writes the figures."""
    versions = print_versions([*PACKAGES, "tokenizers"])
    kinds = {
        "WordPiece (MiniLM)": word_piece(model_folder),
        "byte-level BPE": byte_level_bpe(texts, num_tokens),
        "Unigram": unigram(texts, num_tokens),
    }
    measured, rows = {}, []
    for name, (model, tokenizer) in kinds.items():
        model.eval()
        for kept in (None, keep):
            trimmed = trim_vocabulary(model, tokenizer, texts=texts[:num_texts], keep=kept)
            figures = {
                "tokens": [len(tokenizer), len(trimmed.tokenizer)],
                "parameters": [own.num_parameters() for own in (model, trimmed.model)],
                "megabytes": [megabytes(own) for own in (model, trimmed.model)],
                "coverage": trimmed.coverage,
                **compare((model, tokenizer), trimmed, texts[:num_texts], num_logit_texts),
                "failures in any script": failures(trimmed),
            }
            how = "all that occur" if kept is None else f"{kept:,} tokens"
            measured[f"{name}, {how}"] = figures
            rows.append(_row(name, how, figures))
            print(" | ".join(rows[-1]), file=sys.stderr)
    heading = ["kind", "kept", "tokens", "million parameters", "MB", "coverage", "texts whose tokens all stay"]
    heading += ["identical tokens", "largest difference of a logit", "failures in any script"]
    print(f"\n{num_texts:,} texts, logits of {num_logit_texts:,} of them\n\n{table(heading, rows)}\n")
    heading = ["model", "tokens", "kept", "million parameters", "after", "share", "MB after"]
    print(table(heading, published()))
    write_json(output, {"versions": versions, "texts": num_texts, "measured": measured})
    return measured


def _row(name: str, how: str, own: dict) -> list[str]:
    return [
        name,
        how,
        " → ".join(f"{number:,}" for number in own["tokens"]),
        " → ".join(f"{number / 1e6:.1f}" for number in own["parameters"]),
        " → ".join(f"{number:.0f}" for number in own["megabytes"]),
        f"{own['coverage']:.2%}",
        f"{own['all tokens stay']:,}",
        f"{own['identical tokens']:,}",
        f"{own['largest difference']:.1e}" if own["largest difference"] else "0",
        str(len(own["failures in any script"])),
    ]


@explains_fetch_errors
def main() -> int:
    parser = make_parser("trimmed_vocabulary", __doc__)
    add_fetched(parser)
    parser.add_argument("--texts", type=int, default=10_000, help="number of texts")
    parser.add_argument("--logit-texts", type=int, default=10_000, help="number of texts whose logits are compared")
    parser.add_argument("--tokens", type=int, default=30_000, help="size of the tokenizers that are trained")
    parser.add_argument("--keep", type=int, default=8_000, help="number of tokens to keep")
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    texts = read_texts(sentences, read_tweets(download(TWEETS, options.fetched / "downloads")))
    run(model_folder, texts, options.output, options.texts, options.logit_texts, options.tokens, options.keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
