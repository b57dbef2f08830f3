"""Batches for causal language models: every token except padding has a label, including the end of a document."""

from itertools import chain

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorForLanguageModeling, default_data_collator

from hf_distill import (
    DataCollatorForCausalLM,
    DataCollatorForMaskedLM,
    SeparateDocuments,
    pack_documents,
    truncate_documents,
)
from hf_distill.training import checks
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.training.test_split_invariance import LOSS_NAMES, KeepGradient


def make_tokenizer():
    """A tokenizer like GPT-2's: it adds no special tokens, and pads with its eos_token, 2."""
    tokenizer = make_text_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.eos_token = tokenizer.pad_token = "[SEP]"
    return tokenizer


TOKENIZER = make_tokenizer()
ROWS = [
    {"input_ids": [5, 2, 6, 7, 2], "attention_mask": [1, 1, 2, 2, 2]},
    {"input_ids": [8, 9, 2], "attention_mask": [1, 1, 1]},
]


def make_pair():
    return make_model("llama", "causal"), make_model("llama", "causal", seed=1, num_layers=2)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_labels_are_the_tokens(side):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    batch = DataCollatorForCausalLM(tokenizer)(ROWS)
    padding, ids = [-100] * 2, [8, 9, 2]
    assert batch["input_ids"].tolist() == [[5, 2, 6, 7, 2], [*ids, 2, 2] if side == "right" else [2, 2, *ids]]
    assert batch["labels"].tolist() == [[5, 2, 6, 7, 2], [*ids, *padding] if side == "right" else [*padding, *ids]]
    mask = [1, 1, 1, 0, 0] if side == "right" else [0, 0, 1, 1, 1]
    assert batch["attention_mask"].tolist() == [[1] * 5, mask]
    # The collator of transformers, for comparison: no label at the end of a document.
    usual = DataCollatorForLanguageModeling(tokenizer, mlm=False)(ROWS)
    assert not (usual["labels"] == 2).any()


def test_a_document_does_not_predict_the_next_one():
    collator = DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(*make_pair()), pad_to_multiple_of=4)
    batch = collator(ROWS)
    assert batch["labels"].tolist() == [
        [-100, 2, -100, 7, 2, -100, -100, -100],
        [-100, 9, 2, -100, -100, -100, -100, -100],
    ]
    assert batch["attention_mask"].shape == (2, 1, 8, 8)
    assert batch["position_ids"][0, :5].tolist() == [0, 1, 0, 1, 2]


def one_step(make_trainer, rows, collator, batch_size, num_batches):
    teacher, student = make_pair()
    keeper = KeepGradient()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        data_collator=collator(student, teacher),
        trainer_options={"callbacks": [keeper]},
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=num_batches,
    )
    keeper.trainer = trainer
    trainer.train()
    return [trainer.state.log_history[0][name] for name in LOSS_NAMES], keeper.gradient


def test_a_step_on_packed_rows_is_that_on_their_documents(make_trainer):
    """Packing gives the same losses and gradient. The rows are long enough, so no document is split."""
    corpus = Dataset.from_dict({"text": make_texts(9, longest=12)})
    documents = list(truncate_documents(corpus, TOKENIZER, max_length=38).remove_columns("length"))
    rows = []
    for part in (documents[:2], documents[2:6], documents[6:]):
        ids = [document["input_ids"] for document in part]
        numbers = [[number] * len(own) for number, own in enumerate(ids, start=1)]
        rows.append({"input_ids": [*chain(*ids)], "attention_mask": [*chain(*numbers)]})
    losses, gradient = one_step(make_trainer, documents, lambda *models: DataCollatorForCausalLM(TOKENIZER), 9, 1)

    def separate(*models):
        return DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(*models))

    for split in ((3, 1), (1, 3)):
        packed_losses, packed_gradient = one_step(make_trainer, rows, separate, *split)
        assert packed_losses == pytest.approx(losses, rel=1e-5)
        assert (packed_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_a_student_that_learns_to_stop(make_trainer):
    """The student ends documents as in its training data. With the collator of transformers it never stops."""
    corpus = Dataset.from_dict({"text": ["w5 w6 w7"] * 64})
    rows = pack_documents(corpus, TOKENIZER, block_size=16)
    probabilities = []
    for make in (DataCollatorForCausalLM, lambda tokenizer: DataCollatorForLanguageModeling(tokenizer, mlm=False)):
        student = make_model("llama", "causal", seed=1, num_layers=2)
        options = {"alpha_kl": 0.0, "alpha_cos": 0.0, "max_steps": 60, "learning_rate": 1e-2}
        make_trainer(student, None, rows, data_collator=make(TOKENIZER), **options).train()
        with torch.no_grad():
            logits = student.eval()(torch.tensor([[5, 6, 7]])).logits[0, -1]
        probabilities.append(logits.softmax(-1)[2].item())
    assert probabilities[0] > 0.9
    assert probabilities[1] < 0.1


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    monkeypatch.setattr(checks.logger, "warning", seen.append)
    return seen


def test_a_collator_that_labels_no_end(make_trainer, warnings):
    teacher, student = make_pair()
    rows = pack_documents(Dataset.from_dict({"text": make_texts(8)}), TOKENIZER, block_size=16)
    make_trainer(student, teacher, rows, data_collator=DataCollatorForLanguageModeling(TOKENIZER, mlm=False))
    (warning,) = warnings
    assert "pad_token equals its eos_token '[SEP]', and DataCollatorForLanguageModeling does not label it" in warning
    assert "use DataCollatorForCausalLM(tokenizer)" in warning


def test_collators_that_label_the_end(make_trainer, warnings):
    teacher, student = make_pair()
    rows = pack_documents(Dataset.from_dict({"text": make_texts(8)}), TOKENIZER, block_size=16)
    other = make_tokenizer()
    other.pad_token = "[PAD]"
    usual = DataCollatorForLanguageModeling(other, mlm=False)
    for collator in (DataCollatorForCausalLM(TOKENIZER), usual, default_data_collator):
        make_trainer(student, teacher, rows, data_collator=collator)
    assert warnings == []


def test_collators_that_do_not_fit():
    causal = SeparateDocuments(make_model("llama", "causal"))
    both_sides = SeparateDocuments(make_model("bert", "mlm"))
    with pytest.raises(ValueError, match=r"also attend to later tokens.*use DataCollatorForMaskedLM"):
        DataCollatorForCausalLM(TOKENIZER, attention=both_sides)
    with pytest.raises(ValueError, match="attend only to earlier tokens: use DataCollatorForCausalLM"):
        DataCollatorForMaskedLM(make_text_tokenizer(), attention=causal)
    with pytest.raises(ValueError, match="mlm=False would mask nothing: use DataCollatorForCausalLM"):
        DataCollatorForMaskedLM(make_text_tokenizer(), mlm=False)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"no padding token: set tokenizer.pad_token = tokenizer.eos_token"):
        DataCollatorForCausalLM(tokenizer)
