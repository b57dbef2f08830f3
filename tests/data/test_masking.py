"""Which tokens are masked, how often and with what, compared with the requested rates, with a fixed seed."""

import pickle

import pytest
import torch
from datasets import Dataset

from hf_distill import DataCollatorForMaskedLM, SeparateDocuments, count_tokens, pack_documents, truncate_documents
from tests.conftest import MASK, PAD, VOCAB_SIZE, make_model, make_text_tokenizer, make_texts

TOKENIZER = make_text_tokenizer()
SPECIAL = torch.arange(5)


@pytest.fixture
def rows():
    corpus = Dataset.from_dict({"text": make_texts(60)})
    return list(pack_documents(corpus, TOKENIZER, block_size=32))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mask_often(collator, rows, times=200):
    """The tokens `[rows, length]`; and, for several draws, the masked tokens and the labels `[times, rows, length]`."""
    batches = [collator(rows) for _ in range(times)]
    tokens = TOKENIZER.pad(rows, return_tensors="pt")["input_ids"]
    masked, labels = (torch.stack([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
    return tokens, masked, labels


def counts_like_zipf(rows):
    return torch.tensor([10_000 // (1 + token) for token in range(VOCAB_SIZE)])


@pytest.mark.parametrize("counts", [None, counts_like_zipf])
def test_rates(rows, counts):
    collator = DataCollatorForMaskedLM(TOKENIZER, token_counts=None if counts is None else counts(rows))
    tokens, masked, labels = mask_often(collator, rows)
    special = torch.isin(tokens, SPECIAL)
    chosen = labels != -100
    assert not chosen[:, special].any()
    assert torch.equal(labels[chosen], tokens.expand_as(labels)[chosen])
    assert torch.equal(masked[~chosen], tokens.expand_as(labels)[~chosen])

    number = chosen.sum().item()
    assert number > 15_000
    assert number / (200 * (~special).sum().item()) == pytest.approx(0.15, abs=0.004)
    became_mask = masked[chosen] == MASK
    stayed = masked[chosen] == labels[chosen]
    # A random token comes from the whole vocabulary: one in 61 is the mask, and one is the token itself.
    assert became_mask.float().mean().item() == pytest.approx(0.8 + 0.1 / VOCAB_SIZE, abs=0.01)
    assert stayed.float().mean().item() == pytest.approx(0.1 + 0.1 / VOCAB_SIZE, abs=0.01)
    assert (~became_mask & ~stayed).float().mean().item() == pytest.approx(0.1 * (1 - 2 / VOCAB_SIZE), abs=0.01)


def test_rare_tokens_are_masked_the_rather(rows):
    """Rates follow `count ** -0.7`. Few tokens are drawn, because without replacement the rarest would run out."""
    counts = counts_like_zipf(rows)
    collator = DataCollatorForMaskedLM(TOKENIZER, token_counts=counts, mlm_probability=0.01)
    tokens, _, labels = mask_often(collator, rows, times=3_000)
    ordinary = ~torch.isin(tokens, SPECIAL)
    rates = (labels != -100).float().mean(0)[ordinary]
    expected = counts.double()[tokens[ordinary]] ** -0.7
    expected = expected / expected.sum() * rates.sum()
    for part in expected.sort().indices.tensor_split(4):
        assert rates[part].mean().item() == pytest.approx(expected[part].mean().item(), rel=0.06)
    assert expected.max() > 3 * expected.min()


def test_the_same_share_of_every_batch(rows):
    collator = DataCollatorForMaskedLM(TOKENIZER, token_counts=counts_like_zipf(rows))
    for batch in (rows[:1], rows[:7], rows):
        tokens = torch.tensor([token for row in batch for token in row["input_ids"]])
        ordinary = (~torch.isin(tokens, SPECIAL)).sum().item()
        assert (collator(batch)["labels"] != -100).sum().item() == -(-15 * ordinary // 100)


def test_a_batch_with_nothing_to_mask():
    row = {"input_ids": [1, 2, 1, 2], "attention_mask": [1, 1, 2, 2]}
    for counts in (None, torch.ones(VOCAB_SIZE)):
        batch = DataCollatorForMaskedLM(TOKENIZER, token_counts=counts)([row])
        assert (batch["labels"] == -100).all()


def test_tokens_that_are_not_in_the_counts_count_as_one(rows):
    collator = DataCollatorForMaskedLM(TOKENIZER, token_counts=[0] * VOCAB_SIZE)
    assert (collator(rows)["labels"] != -100).any()


def test_counts_of_another_vocabulary():
    with pytest.raises(
        ValueError, match=r"token_counts has 60 entries, but the tokenizer has 61 tokens.*count_tokens\(rows"
    ):
        DataCollatorForMaskedLM(TOKENIZER, token_counts=[1] * 60)


def test_count_tokens(rows):
    expected = torch.zeros(VOCAB_SIZE, dtype=torch.int64)
    for row in rows:
        for token in row["input_ids"]:
            expected[token] += 1
    dataset = Dataset.from_list(rows)
    for counted in (dataset, dataset.to_iterable_dataset()):
        assert torch.equal(count_tokens(counted, VOCAB_SIZE), expected)
    with pytest.raises(ValueError, match="The rows contain token 60, but vocab_size=10"):
        count_tokens(dataset, 10)


def test_what_a_batch_is_made_of(rows):
    """There is an attention mask only if there is padding."""
    full, short = rows[:2], [rows[0], {name: values[:20] for name, values in rows[1].items()}]
    collator = DataCollatorForMaskedLM(TOKENIZER)
    assert collator(full).keys() == {"input_ids", "labels"}
    batch = collator(short)
    assert batch["attention_mask"].tolist() == [[1] * 32, [1] * 20 + [0] * 12]
    assert (batch["input_ids"][1, 20:] == PAD).all()
    assert (batch["labels"][1, 20:] == -100).all()

    collator = DataCollatorForMaskedLM(TOKENIZER, attention=SeparateDocuments(make_model("roberta", "mlm")))
    for batch in (collator(full), collator(short)):
        assert batch["attention_mask"].shape == (2, 1, 32, 32)
        assert batch["position_ids"].shape == (2, 32)


def test_truncated_documents_are_padded_to_the_longest():
    rows = truncate_documents(Dataset.from_dict({"text": make_texts(4)}), TOKENIZER, max_length=10)
    batch = DataCollatorForMaskedLM(TOKENIZER)(list(rows.remove_columns("length")))
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor(rows["length"][:]))


def test_the_collator_can_be_sent_to_a_process_without_its_models(rows):
    attention = SeparateDocuments(make_model("roberta", "mlm"))
    sent = pickle.dumps(DataCollatorForMaskedLM(TOKENIZER, token_counts=counts_like_zipf(rows), attention=attention))
    assert len(sent) < 20_000
    assert pickle.loads(sent)(rows)["attention_mask"].ndim == 4
