"""Stored targets of packed rows: the teacher keeps documents apart exactly if the training does."""

import datasets
import pytest
from datasets import Dataset

from hf_distill import DataCollatorForCausalLM, SeparateDocuments, add_teacher_targets, encode_chats, pack_chats
from hf_distill.training.teacher.columns import source_of
from tests.conftest import make_model, make_texts
from tests.data.test_chats import chat, make_tokenizer

OPTIONS = {"alpha_task": 0.0, "alpha_cos": 0.0, "alpha_kl": 1.0, "temperature": 1.0, "max_steps": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_pair(family="llama"):
    return make_model(family, "causal", initializer_range=0.3), make_model(family, "causal", seed=1, num_layers=2)


def packed_rows():
    texts = make_texts(16, seed=3, longest=4)
    chats = Dataset.from_list([{"messages": chat(*texts[2 * row : 2 * row + 2])} for row in range(8)])
    rows = pack_chats(encode_chats(chats, make_tokenizer(), 36), 36)
    assert max(map(max, rows["attention_mask"])) > 1
    return rows


def loss_of(make_trainer, student, teacher, rows, attention):
    tokenizer = make_tokenizer()
    collator = DataCollatorForCausalLM(tokenizer, attention=attention)
    options = {"processing_class": tokenizer}
    trainer = make_trainer(student, teacher, rows, data_collator=collator, trainer_options=options, **OPTIONS)
    trainer.train()
    return trainer.state.log_history[0]["loss_kl"]


@pytest.mark.parametrize("apart", [True, False])
def test_as_with_a_live_teacher(make_trainer, apart):
    teacher, student = make_pair()
    rows = packed_rows()
    attention = SeparateDocuments(teacher, student) if apart else None
    stored = add_teacher_targets(rows, teacher, make_tokenizer(), top_k=99, temperature=1.0, attention=attention)
    assert source_of(stored).separate_documents == apart
    live = loss_of(make_trainer, make_pair()[1], teacher, rows, attention)
    assert loss_of(make_trainer, student, None, stored, attention) == pytest.approx(live, rel=2e-3)


def test_other_documents_than_the_teacher(make_trainer):
    teacher, student = make_pair()
    apart = SeparateDocuments(teacher, student)
    rows, tokenizer = packed_rows(), make_tokenizer()
    as_one = add_teacher_targets(rows, teacher, tokenizer, temperature=1.0)
    with pytest.raises(ValueError, match=r"the teacher read each row as one text: store .*attention=SeparateDocuments"):
        loss_of(make_trainer, student, None, as_one, apart)
    separate = add_teacher_targets(rows, teacher, tokenizer, temperature=1.0, attention=apart)
    with pytest.raises(ValueError, match="but the collator does not keep them apart: pass attention="):
        loss_of(make_trainer, student, None, separate, None)
    alone = encode_chats(Dataset.from_list([{"messages": chat("w5", "w6")}] * 4), tokenizer, 36).remove_columns(
        "length"
    )
    stored = add_teacher_targets(alone, teacher, tokenizer, temperature=1.0)
    loss_of(make_trainer, student, None, stored, apart)  # one chat in a row: both read the same


def test_rows_without_padding(make_trainer):
    teacher, _ = make_pair()
    apart = SeparateDocuments(teacher)
    apart.is_padding_free = True
    with pytest.raises(ValueError, match="attention joins all rows of a batch into one"):
        add_teacher_targets(packed_rows(), teacher, make_tokenizer(), attention=apart)
