"""Trimmed tokenizers of all kinds."""

import json
import random

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from hf_distill import trim_vocabulary
from hf_distill.student.vocabulary.kinds import Unigram
from tests.student.tiny_models import tiny_model
from tests.student.vocabulary.tiny_tokenizers import ANY_SCRIPT, TOKENIZERS, corpus

KEEP_SINGLE_BYTES = ("gpt2", "roberta", "llama", "clip_like")


def trim(tokenizer, **options):
    return trim_vocabulary(tiny_model("bert", vocab_size=len(tokenizer), pad_token_id=0), tokenizer, **options)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("seed", range(2))
def test_text_of_kept_tokens_is_tokenized_as_before(name, seed):
    tokenizer = TOKENIZERS[name]()
    draw = random.Random(seed)
    few = draw.sample(corpus(), 15)
    keep = [None, 2 * len(tokenizer) // 3][seed % 2]
    trimmed = trim(tokenizer, texts=few, keep=keep)
    assert len(trimmed.tokenizer) == len(trimmed.kept) == trimmed.model.config.vocab_size < len(tokenizer)
    new_ids = {old: new for new, old in enumerate(trimmed.kept)}
    unknown = None if name == "gpt2" else tokenizer.unk_token_id  # GPT-2's is also its end of text
    same = 0
    for text in corpus():
        ids = tokenizer(text)["input_ids"]
        is_kept = new_ids.keys() >= set(ids) and unknown not in ids
        if is_kept:
            assert tokens(trimmed.tokenizer, text) == tokens(tokenizer, text)
            assert trimmed.tokenizer(text)["input_ids"] == [new_ids[old] for old in ids]
            assert trimmed.tokenizer.decode(trimmed.tokenizer(text)["input_ids"]) == tokenizer.decode(ids)
            same += 1
        elif text in few and keep is None:
            assert unknown in ids
        elif not new_ids.keys() >= set(ids):
            assert tokens(trimmed.tokenizer, text) != tokens(tokenizer, text)
    assert same >= 5
    if keep is None:
        assert trimmed.coverage == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_script(name):
    """Text of removed characters does not fail. With single bytes, it can be decoded."""
    tokenizer = TOKENIZERS[name]()
    trimmed = trim(tokenizer, texts=corpus()[:5]).tokenizer
    for text in ANY_SCRIPT:
        ids = trimmed(text)["input_ids"]
        assert all(0 <= token < len(trimmed) for token in ids)
        if name in KEEP_SINGLE_BYTES:
            expected = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
            assert trimmed.decode(ids, skip_special_tokens=True) == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_always_stays(name):
    tokenizer = TOKENIZERS[name]()
    trimmed = trim(tokenizer, texts=corpus()[:1])
    kept = set(trimmed.tokenizer.get_vocab())
    assert kept >= set(tokenizer.all_special_tokens)
    assert kept >= set(tokenizer.get_added_vocab())
    assert trimmed.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    if name in KEEP_SINGLE_BYTES:
        assert len(trimmed.kept) > 256
        assert trimmed.coverage == 1
    assert trimmed.kept == sorted(trimmed.kept)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_saves_and_loads(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.truncation_side = "left"
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 48
    before = tokenizer.backend_tokenizer.to_str()
    trimmed = trim(tokenizer, texts=corpus()[:30])
    assert tokenizer.backend_tokenizer.to_str() == before
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(trimmed.tokenizer) is type(tokenizer)
    for own in (loaded, trimmed.tokenizer):
        assert own.get_vocab() == trimmed.tokenizer.get_vocab()
        assert (own.padding_side, own.truncation_side, own.model_max_length) == ("left", "left", 48)
        assert own.chat_template == tokenizer.chat_template
        assert own.name_or_path in (tokenizer.name_or_path, str(tmp_path))
        for text in corpus()[:30]:
            assert tokens(own, text) == tokens(tokenizer, text)
            pair = own(text, corpus()[1], truncation=True, max_length=12, padding="max_length")
            expected = tokenizer(text, corpus()[1], truncation=True, max_length=12, padding="max_length")
            assert own.convert_ids_to_tokens(pair["input_ids"]) == tokenizer.convert_ids_to_tokens(
                expected["input_ids"]
            )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_keep_alone(name):
    """The tokenizer's own order decides. The identity is exact."""
    tokenizer = TOKENIZERS[name]()
    whole = trim(tokenizer, keep=len(tokenizer))
    assert whole.kept == list(range(len(tokenizer)))
    assert whole.coverage is None
    whole, expected = (json.loads(own.backend_tokenizer.to_str()) for own in (whole.tokenizer, tokenizer))
    if name == "xlm_roberta":  # the library reads scores with an error in the last bit
        scores = [[score for _, score in own["model"].pop("vocab")] for own in (whole, expected)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-14)
    assert whole == expected
    half = trim(tokenizer, keep=3 * len(tokenizer) // 4)
    assert len(half.kept) == 3 * len(tokenizer) // 4


def test_orders():
    bert = TOKENIZERS["bert"]()
    kept = set(trim(bert, keep=350).tokenizer.get_vocab())
    assert not {"[unused0]", "[unused1]"} & kept  # they occur in no text

    llama = TOKENIZERS["llama"]()
    first = trim(llama, keep=700)
    (lost,) = [set(range(len(llama))) - set(first.kept)]
    assert min(lost) > 690  # the order of the merges is almost the order of the ids


def test_counts():
    """Counts of tokens and of ids give the same as the texts that were counted."""
    tokenizer = TOKENIZERS["roberta"]()
    texts = corpus()[:20]
    by_id, by_token = {}, {}
    for text in texts:
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            by_id[token] = by_id.get(token, 0) + 1
    by_token = {tokenizer.convert_ids_to_tokens(token): count for token, count in by_id.items()}
    for options in ({}, {"keep": 400}):
        expected = trim(tokenizer, texts=texts, **options)
        for counts in (by_id, by_token):
            trimmed = trim(tokenizer, counts=counts, **options)
            assert trimmed.kept == expected.kept
            assert trimmed.coverage == expected.coverage
    assert 0.5 < expected.coverage < 1
    share = sum(by_id[token] for token in expected.kept if token in by_id) / sum(by_id.values())
    assert expected.coverage == share


def test_a_generator_of_many_texts():
    tokenizer = TOKENIZERS["bert"]()
    texts = corpus() * 4  # more than are tokenized at once
    assert trim(tokenizer, texts=iter(texts)).kept == trim(tokenizer, texts=corpus()).kept


def test_splits_with_the_same_score():
    """Loading a Unigram tokenizer may choose another one, trimmed or not. Another score is another result."""
    kind = Unigram({"vocab": [["<unk>", 0.0], ["ab", -1.1], ["c", -2.2], ["a", -2.2], ["bc", -1.1]], "unk_id": 0})
    assert kind.are_as_good(["ab", "c"], ["a", "bc"])
    assert not kind.are_as_good(["ab", "c"], ["ab", "a"])
    assert not kind.are_as_good(["ab"], ["a", "<unk>"])


def test_unigram_is_exact():
    """With the same scores, bit by bit, all splits stay the best, and so do ties."""
    draw = random.Random(0)
    for _ in range(20):
        scores = [-draw.uniform(5, 12) for _ in range(4)]
        pieces = sorted({"".join(draw.choices("abc", k=draw.randint(1, 3))) for _ in range(30)} | set("abc"))
        vocab = [("<unk>", 0.0), *((piece, draw.choice(scores)) for piece in pieces)]
        kind = Unigram({"vocab": vocab, "unk_id": 0})
        whole = Tokenizer(models.Unigram(vocab, unk_id=0))
        for _ in range(20):
            text = "".join(draw.choices("abcd", k=12))
            tokens = whole.encode(text).tokens
            kept = {*tokens, *kind.required()} & kind.ids.keys()
            small = Tokenizer(models.Unigram([entry for entry in vocab if entry[0] in kept], unk_id=0))
            assert small.encode(text).tokens == tokens
