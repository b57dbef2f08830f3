"""Packed rows contain every token once, and a model computes the same for a packed document as for it alone."""

from itertools import chain, pairwise

import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from hf_distill import SeparateDocuments, pack_documents, truncate_documents
from hf_distill.data import packing
from hf_distill.data.packing import _pack, end_of_document
from hf_distill.training.scoring.find_head import find_head
from tests.conftest import PAD, collate, make_model, make_text_tokenizer, make_texts
from tests.training.test_split_invariance import LOSS_NAMES, KeepGradient

TOKENIZER = make_text_tokenizer()


def make_corpus(num_texts, **options):
    return Dataset.from_dict({"text": make_texts(num_texts, **options)})


def tokens_of(text):
    """The expected tokens: 1, the numbers of the words, 2."""
    return [1, *(int(word[1:]) for word in text.split()), 2]


def joined(lists):
    return list(chain.from_iterable(lists))


def pieces(rows):
    """Splits rows into the tokens of each document."""
    for row in rows:
        tokens, numbers = row["input_ids"], row["attention_mask"]
        for number in sorted(set(numbers)):
            yield [token for token, own in zip(tokens, numbers, strict=True) if own == number]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), block_size=st.integers(1, 20))
def test_all_tokens_once(lengths, block_size):
    texts = [" ".join(f"w{5 + (7 * i + j) % 56}" for j in range(length)) for i, length in enumerate(lengths)]
    columns = _pack({"text": texts}, TOKENIZER, block_size, end=[])
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(columns["input_ids"]))]
    documents = [tokens_of(text) for text in texts]

    assert joined(row["input_ids"] for row in rows) == joined(documents)
    assert all(len(row["input_ids"]) == block_size for row in rows[:-1])
    assert 0 < len(rows[-1]["input_ids"]) <= block_size
    for row in rows:
        numbers = row["attention_mask"]
        assert numbers[0] == 1
        assert all(after - before in (0, 1) for before, after in pairwise(numbers))
    # Each piece belongs to one document: joining pieces up to each document's end gives the documents.
    rebuilt, current = [], []
    for piece in pieces(rows):
        assert 2 not in piece[:-1]
        current += piece
        if piece[-1] == 2:
            rebuilt.append(current)
            current = []
    assert (rebuilt, current) == (documents, [])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_short_row_for_each_thousand_documents(streaming):
    corpus = make_corpus(2_500)
    rows = pack_documents(corpus.to_iterable_dataset() if streaming else corpus, TOKENIZER, block_size=32)
    rows = list(rows)
    assert joined(row["input_ids"] for row in rows) == joined(map(tokens_of, corpus["text"]))
    short = [index for index, row in enumerate(rows) if len(row["input_ids"]) < 32]
    assert len(short) <= 3
    assert all(set(row) == {"input_ids", "attention_mask"} for row in rows)


def test_a_line_longer_than_the_model(caplog):
    (text,) = make_texts(1, longest=1)
    rows = pack_documents(Dataset.from_dict({"text": [" ".join([text] * 1_000)]}), TOKENIZER, block_size=38)
    assert [len(row["input_ids"]) for row in rows] == [38] * 26 + [1_002 - 26 * 38]
    assert caplog.text == ""


def test_truncated_documents():
    corpus = make_corpus(20)
    rows = list(truncate_documents(corpus, TOKENIZER, max_length=12))
    for row, text in zip(rows, corpus["text"], strict=True):
        tokens = tokens_of(text)
        expected = tokens if len(tokens) <= 12 else [*tokens[:11], 2]
        assert row == {"input_ids": expected, "attention_mask": [1] * len(expected), "length": len(expected)}


@pytest.mark.parametrize("length", [0, -1, 39])
@pytest.mark.parametrize(("function", "name"), [(pack_documents, "block_size"), (truncate_documents, "max_length")])
def test_lengths_that_the_model_does_not_take(function, name, length):
    with pytest.raises(ValueError, match=f"{name}={length} must be between 1 and 38"):
        function(make_corpus(2), TOKENIZER, length)


def make_causal_tokenizer(**options):
    """A tokenizer that adds nothing around a text, like GPT-2's. Its eos_token is 2."""
    tokenizer = make_text_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**{"single": "$A", "special_tokens": [], **options})
    tokenizer.eos_token = tokenizer.pad_token = "[SEP]"
    return tokenizer


AT_THE_BEGINNING = {"single": "[CLS] $A", "special_tokens": [("[CLS]", 1)]}


@pytest.mark.parametrize(("options", "before"), [({}, []), (AT_THE_BEGINNING, [1])], ids=["nothing", "bos"])
def test_every_document_ends(options, before):
    """A document ends with eos if the tokenizer adds nothing there."""
    tokenizer, corpus = make_causal_tokenizer(**options), make_corpus(20)
    documents = [[*before, *tokens_of(text)[1:]] for text in corpus["text"]]
    rows = pack_documents(corpus, tokenizer, block_size=16)
    assert joined(row["input_ids"] for row in rows) == joined(documents)
    for row in rows:
        ends = [place for place, token in enumerate(row["input_ids"][:-1]) if token == 2]
        assert [row["attention_mask"][place + 1] - row["attention_mask"][place] for place in ends] == [1] * len(ends)
    for row, document in zip(truncate_documents(corpus, tokenizer, max_length=12), documents, strict=True):
        expected = document[:12]
        assert row == {"input_ids": expected, "attention_mask": [1] * len(expected), "length": len(expected)}


def test_documents_that_nothing_ends(monkeypatch):
    warnings = []
    monkeypatch.setattr(packing.logger, "warning", warnings.append)
    tokenizer = make_causal_tokenizer()
    tokenizer.eos_token = None
    assert end_of_document(tokenizer) == []
    (warning,) = warnings
    assert "nothing marks the end of a document: set tokenizer.eos_token" in warning
    assert end_of_document(TOKENIZER) == []
    assert len(warnings) == 1


def make_masked_lm(family, attention, **options):
    model = make_model(family, "mlm", **options)
    model.set_attn_implementation(attention)
    return model


def make_causal_lm(family, attention, **options):
    model = make_model(family, "causal", **options)
    model.set_attn_implementation(attention)
    return model


MODELS = dict.fromkeys(("bert", "roberta", "distilbert"), make_masked_lm)
MODELS |= dict.fromkeys(("llama", "gpt2", "opt"), make_causal_lm)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", MODELS)
def test_a_packed_document_is_as_it_is_alone(family, attention, padding_side):
    model = MODELS[family](family, attention)
    rows = list(pack_documents(make_corpus(9, longest=50), TOKENIZER, block_size=38))
    TOKENIZER.padding_side = padding_side
    batch = dict(TOKENIZER.pad(rows, return_tensors="pt"))
    TOKENIZER.padding_side = "right"
    numbers = batch["attention_mask"]
    assert numbers.max() > 2
    assert (numbers == 0).any()

    separate = SeparateDocuments(model)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], **separate({"attention_mask": numbers})).logits
        as_one_text = model(input_ids=batch["input_ids"], attention_mask=numbers.ne(0).long()).logits
    assert logits.isfinite().all()
    different = 0
    for row, (tokens, own) in enumerate(zip(batch["input_ids"], numbers, strict=True)):
        for number in range(1, own.max() + 1):
            here = own == number
            with torch.no_grad():
                alone = model(input_ids=tokens[here].unsqueeze(0)).logits[0]
            torch.testing.assert_close(logits[row, here], alone, rtol=1e-4, atol=1e-4)
            different += not torch.allclose(as_one_text[row, here], alone, rtol=1e-2, atol=1e-2)
    assert different > 5  # without it, documents see each other


@pytest.mark.parametrize(("family", "first_position"), [("bert", 0), ("distilbert", 0), ("roberta", PAD + 1)])
def test_mask_and_positions_by_hand(family, first_position):
    separate = SeparateDocuments(make_masked_lm(family, "sdpa"))
    given = separate({"attention_mask": torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]])})
    x, o = True, False
    assert given["attention_mask"][:, 0].tolist() == [
        [[x, x, o, o, o], [x, x, o, o, o], [o, o, x, x, x], [o, o, x, x, x], [o, o, x, x, x]],
        [[x, x, x, o, o]] * 5,
    ]
    expected = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 1]]) + first_position
    assert torch.equal(given["position_ids"], expected)


def test_causal_mask_by_hand():
    separate = SeparateDocuments(make_causal_lm("llama", "sdpa"))
    assert separate.is_causal
    given = separate({"attention_mask": torch.tensor([[1, 1, 2, 2, 2], [0, 0, 1, 1, 1]])})
    x, o = True, False
    # Padding attends to something, be it later: nobody reads what becomes of it.
    assert given["attention_mask"][:, 0].tolist() == [
        [[x, o, o, o, o], [x, x, o, o, o], [o, o, x, o, o], [o, o, x, x, o], [o, o, x, x, x]],
        [[o, o, x, x, x], [o, o, x, x, x], [o, o, x, o, o], [o, o, x, x, o], [o, o, x, x, x]],
    ]
    assert given["position_ids"].tolist() == [[0, 1, 0, 1, 2], [0, 1, 0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2"])
def test_causal_attention_is_found_out(name, attention, dtype):
    """The check also works in half precision, and with weights so small that attention has little effect."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(vocab_size=61, num_key_value_heads=1, pad_token_id=PAD, **sizes)
    )
    model.set_attn_implementation(attention)
    assert SeparateDocuments(model.to(dtype)).is_causal


def test_a_model_that_attends_to_both_sides_beside_a_causal_one():
    with pytest.raises(ValueError, match="one attends in both directions and the other only to earlier tokens"):
        SeparateDocuments(make_masked_lm("bert", "sdpa"), make_causal_lm("llama", "sdpa"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision(attention, dtype):
    teacher = make_masked_lm("roberta", attention).to(dtype)
    student = make_masked_lm("roberta", attention, num_layers=2).train()
    assert SeparateDocuments(student, teacher).first_position == PAD + 1
    assert student.training
    assert not teacher.training


def make_other(name):
    """A tiny model of a family that no other test has."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], PAD)
    config = getattr(transformers, f"{name}Config")(vocab_size=61, **sizes, **special)
    return getattr(transformers, f"{name}ForMaskedLM")(config)


@pytest.mark.parametrize("name", ["Albert", "Camembert", "Electra", "XLMRoberta"])
def test_other_families(name):
    SeparateDocuments(make_other(name))


def test_models_that_attend_in_different_ways():
    with pytest.raises(ValueError, match="attention implementation eager and sdpa"):
        SeparateDocuments(make_masked_lm("bert", "sdpa"), make_masked_lm("bert", "eager"))


def test_models_that_count_positions_in_different_ways():
    with pytest.raises(ValueError, match=r"positions restart at 0: pack without SeparateDocuments"):
        SeparateDocuments(make_masked_lm("bert", "sdpa"), make_masked_lm("roberta", "sdpa", pad_token_id=1))


def test_a_model_without_positions_to_give():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration cannot read packed documents"):
        SeparateDocuments(make_model("t5", "seq2seq", attn_implementation="eager"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_scored_in_packed_rows(attention):
    """The head sees the 4-D mask as the 2-D mask of the same rows without documents."""
    model = make_masked_lm("roberta", attention)
    numbers = torch.tensor([[1, 1, 2, 2, 2], [1, 2, 3, 0, 0]])
    inputs = {"input_ids": torch.full((2, 5), 7), "labels": torch.tensor([[7, -100, -100, 7, 7], [-100] * 2 + [7] * 3])}
    expected = find_head(model).score({**inputs, "attention_mask": numbers.ne(0).long()})
    scored = find_head(model).score({**inputs, **SeparateDocuments(model)({"attention_mask": numbers})})
    for name in ("attended", "positions", "labelled"):
        assert torch.equal(getattr(scored, name), getattr(expected, name)), name
    assert scored.attended.sum() == 8
    assert scored.positions.sum() == 4


def make_labelled_documents(num_documents=12):
    """Documents with 3 to 14 tokens, and labels on every third token."""
    rows = []
    for text in make_texts(num_documents, longest=12):
        tokens = tokens_of(text)
        labels = [token if place % 3 == 1 else -100 for place, token in enumerate(tokens)]
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels})
    return rows


def packed(documents, per_row=3):
    """Rows of different lengths with `per_row` complete documents each."""
    rows = []
    for start in range(0, len(documents), per_row):
        row = {"input_ids": [], "attention_mask": [], "labels": []}
        for number, document in enumerate(documents[start : start + per_row], start=1):
            row["input_ids"] += document["input_ids"]
            row["attention_mask"] += [number] * len(document["input_ids"])
            row["labels"] += document["labels"]
        rows.append(row)
    return rows


def one_step(make_trainer, rows, batch_size, num_batches, attention, separate):
    teacher = make_masked_lm("roberta", attention, max_position_embeddings=64)
    student = make_masked_lm("roberta", attention, max_position_embeddings=64, num_layers=2, seed=1)
    documents = SeparateDocuments(student, teacher) if separate else None

    def collate_packed(rows):
        batch = collate(rows)
        return documents(batch) if separate else batch

    keeper = KeepGradient()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        data_collator=collate_packed,
        trainer_options={"callbacks": [keeper]},
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=num_batches,
    )
    keeper.trainer = trainer
    trainer.train()
    return [trainer.state.log_history[0][name] for name in LOSS_NAMES], keeper.gradient


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_on_packed_rows_is_that_on_their_documents(make_trainer, attention):
    """Losses and gradients are the same, over the same items, however the step is split."""
    documents = make_labelled_documents()
    losses, gradient = one_step(make_trainer, documents, len(documents), 1, attention, separate=False)
    for split in ((4, 1), (1, 4)):
        packed_losses, packed_gradient = one_step(make_trainer, packed(documents), *split, attention, separate=True)
        assert packed_losses == pytest.approx(losses, rel=1e-5)
        assert (packed_gradient - gradient).norm() / gradient.norm() < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("separate", [True, False], ids=["apart", "as one text"])
def test_tokens_seen_that_are_not_padding(make_trainer, attention, separate):
    """Rows whose masks are 4-D, or number documents, are handled."""
    student = make_masked_lm("roberta", attention, max_position_embeddings=64)
    documents = SeparateDocuments(student)

    def collate_packed(rows):
        batch = collate(rows)
        return documents(batch) if separate else batch

    rows = packed(make_labelled_documents())
    options = {"alpha_kl": 0.0, "alpha_cos": 0.0, "include_num_input_tokens_seen": "non_padding"}
    trainer = make_trainer(student, None, rows, data_collator=collate_packed, num_train_epochs=1, **options)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == sum(len(row["input_ids"]) for row in rows)
    assert len({len(row["input_ids"]) for row in rows}) > 1
