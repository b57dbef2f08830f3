"""Flash and flex attention read all documents of a batch in one row without padding.

Flash attention needs a GPU. Here a function in plain torch reads the same arguments in its place.
"""

import importlib.util
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.nn import functional as F
from transformers import AttentionInterface, masking_utils

from hf_distill import (
    DataCollatorForCausalLM,
    DataCollatorForMaskedLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    add_teacher_targets,
    pack_documents,
)
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.data.test_separate_documents import (
    MODELS,
    NUMBERS,
    check_a_step,
    make,
    make_batch,
    make_documents,
    packed,
    states_alone,
    states_packed,
)

FLASH = "flash_attention_2"
HEADS = {"bert": "mlm", "roberta": "mlm", "distilbert": "mlm", "llama": "causal", "gpt2": "causal", "opt": "causal"}
TOKENIZER = make_text_tokenizer()


def variable_length_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    sliding_window=None,
    is_causal=None,
    cu_seq_lens_q=None,
    cu_seq_lens_k=None,
    max_length_q=None,
    max_length_k=None,
    **options,
):
    """What flash attention computes for a row of documents that starts at `cu_seq_lens_q`, or for one document."""
    assert attention_mask is None
    length = query.shape[2]
    bounds = [0, length]
    if cu_seq_lens_q is not None:
        assert len(query) == 1
        assert cu_seq_lens_q.dtype == cu_seq_lens_k.dtype == torch.int32
        bounds = cu_seq_lens_q.tolist()
        assert cu_seq_lens_k.tolist() == bounds
        assert (bounds[0], bounds[-1]) == (0, length)
        assert max_length_q == max_length_k == max(end - start for start, end in pairwise(bounds))
    is_causal = module.is_causal if is_causal is None else is_causal
    outputs = []
    for start, end in pairwise(bounds):
        places = torch.arange(end - start)
        distance = places.unsqueeze(1) - places
        visible = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
        if sliding_window is not None:
            visible = visible & (distance.abs() < sliding_window)
        own = (states[:, :, start:end] for states in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(*own, attn_mask=visible, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, 2).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setitem(AttentionInterface._global_mapping, FLASH, variable_length_attention)


def make_any(name, attention=FLASH, **options):
    if name in MODELS:
        return make(name, attention, **options)
    model = make_model(name, HEADS[name], **options)
    model.config._attn_implementation = attention
    return model


def without_labels(rows):
    return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]


@pytest.mark.parametrize("name", [*HEADS, *MODELS])
def test_flash_attention(flash, name):
    model, batch = make_any(name), make_batch()
    given = SeparateDocuments(model)(batch)
    assert "attention_mask" not in given
    num_tokens = NUMBERS.ne(0).sum()
    assert given["input_ids"].shape == given["position_ids"].shape == (1, num_tokens)
    alone = states_alone(model, batch)
    torch.testing.assert_close(states_packed(model, batch), alone, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        rows = [tokens[own.ne(0)] for tokens, own in zip(batch["input_ids"], NUMBERS, strict=True)]
        as_one_text = torch.cat([model.base_model(row.unsqueeze(0))[0][0] for row in rows])
    assert (as_one_text - alone).norm() / alone.norm() > 0.05


def test_rows_without_padding_by_hand(flash):
    numbers = torch.tensor([[1, 1, 2, 2, 2], [0, 1, 2, 2, 0]])
    tokens = torch.arange(10).reshape(2, 5)
    batch = {"input_ids": tokens, "labels": tokens + 20, "attention_mask": numbers, "weights": torch.ones(2)}
    given = SeparateDocuments(make_any("roberta"))(batch)
    assert given["input_ids"].tolist() == [[0, 1, 2, 3, 4, 6, 7, 8]]
    assert given["labels"].tolist() == [[20, 21, 22, 23, 24, 26, 27, 28]]
    assert given["position_ids"].tolist() == [[1, 2, 1, 2, 3, 1, 1, 2]]  # from behind RoBERTa's padding index
    assert given["cu_seq_lens_q"].tolist() == given["cu_seq_lens_k"].tolist() == [0, 2, 5, 6, 8]
    assert given["max_length_q"] == given["max_length_k"] == 3
    assert given["weights"].shape == (2,)


@pytest.mark.parametrize("range_", [0.5, 0.02], ids=["large weights", "small weights"])
@pytest.mark.parametrize("name", ["bert", "llama", "ModernBertForMaskedLM", "Gemma3ForCausalLM"])
def test_documents_that_attention_does_not_separate(monkeypatch, name, range_):
    def as_one_text(*inputs, cu_seq_lens_q=None, **options):
        return variable_length_attention(*inputs, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, FLASH, as_one_text)
    with pytest.raises(
        ValueError,
        match=r"different outputs .* with attn_implementation='flash_attention_2' and positions that restart at 0: "
        r"load all models with attn_implementation='sdpa' or all with 'eager'",
    ):
        SeparateDocuments(make_any(name, initializer_range=range_))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*HEADS, *MODELS])
def test_causal_attention_is_found_out(flash, name, dtype):
    is_causal = HEADS.get(name) == "causal" or "Causal" in name
    assert SeparateDocuments(make_any(name).to(dtype)).is_causal == is_causal


def test_flash_attention_without_its_device():
    with pytest.raises(
        ValueError, match=r"BertForMaskedLM cannot read packed documents on cpu with attn_implementation='flash_atten"
    ):
        SeparateDocuments(make_any("bert"))


def test_attention_that_is_not_supported():
    with pytest.raises(
        ValueError,
        match=r"implementation paged\|sdpa\. .* load all models with the same attn_implementation='sdpa', 'eager', 'fl",
    ):
        SeparateDocuments(make_any("bert", "paged|sdpa"))


ROWS = [
    {"input_ids": [5, 2, 6, 7, 2], "attention_mask": [1, 1, 2, 2, 2]},
    {"input_ids": [8, 9, 2], "attention_mask": [1, 1, 1]},
]


def test_causal_collator(flash):
    batch = DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(make_any("llama")))(ROWS)
    assert batch["input_ids"].tolist() == [[5, 2, 6, 7, 2, 8, 9, 2]]
    assert batch["labels"].tolist() == [[-100, 2, -100, 7, 2, -100, 9, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 5, 8]


def test_masked_collator(flash):
    """The same tokens are masked as in the padded batch."""
    rows = list(pack_documents(Dataset.from_dict({"text": make_texts(20)}), TOKENIZER, block_size=32))[-3:]
    batches = []
    for attention in ("sdpa", FLASH):
        collator = DataCollatorForMaskedLM(TOKENIZER, attention=SeparateDocuments(make_any("bert", attention)))
        torch.manual_seed(0)
        batches.append(collator(rows))
    padded, free = batches
    attended = torch.arange(32) < torch.tensor([[len(row["input_ids"])] for row in rows])
    assert not attended.all()
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(free[name], padded[name][attended].unsqueeze(0)), name
    assert (free["labels"] != -100).any()


@pytest.mark.parametrize("name", ["ModernBertForMaskedLM", "Gemma3ForCausalLM"])
def test_a_step_is_that_on_the_documents(flash, make_trainer, name):
    splits = ((4, 1), (2, 2), (1, 4))
    check_a_step(make_trainer, name, FLASH, splits, 2e-5)


def test_an_evaluation_is_that_with_padding(flash, make_trainer):
    """The mean over an evaluation does not depend on the batch size."""
    student, teacher = make_any("llama", num_layers=2, seed=1), make_any("llama")
    rows = [
        {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in packed(make_documents())
    ]
    evaluated = []
    for attention, batch_size in (("sdpa", 4), (FLASH, 4), (FLASH, 1)):
        for model in (student, teacher):
            model.config._attn_implementation = attention
        collator = DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(student, teacher))
        arguments = {"data_collator": collator, "per_device_eval_batch_size": batch_size}
        evaluated.append(make_trainer(student, teacher, rows, rows, **arguments).evaluate()["eval_loss"])
    assert evaluated[1:] == pytest.approx(evaluated[:1] * 2, rel=1e-5)


def test_stored_targets_need_rows(flash, make_trainer, tmp_path):
    teacher = make_any("llama", "sdpa")
    rows = Dataset.from_list([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in ROWS])
    rows = add_teacher_targets(rows, teacher, TOKENIZER)
    student = make_any("llama", seed=1)
    collator = DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(student))
    trainer = make_trainer(student, None, rows, data_collator=collator, alpha_cos=0.0, max_steps=1)
    with pytest.raises(ValueError, match="joins 2 rows into one, so their stored targets fit no row of the batch"):
        trainer.train()


def test_a_batch_that_cannot_be_split(flash, make_trainer, monkeypatch):
    """One process would make the batches for all: the default for streams."""
    student = make_any("llama")
    rows = Dataset.from_list(without_labels(packed(make_documents()))).to_iterable_dataset()
    collator = DataCollatorForCausalLM(TOKENIZER, attention=SeparateDocuments(student))
    trainer = make_trainer(student, None, rows, data_collator=collator, alpha_kl=0.0, alpha_cos=0.0, max_steps=1)
    assert next(iter(trainer.get_train_dataloader()))["input_ids"].shape[0] == 1
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match=r"one, which cannot be split among processes: set accelerator_config=\{'disp"):
        trainer.get_train_dataloader()


FLEX = "flex_attention"
FLEX_MODELS = ["llama", "ModernBertDecoderForCausalLM", "Gemma3ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", FLEX_MODELS)
def test_flex_attention(name):
    model, batch = make_any(name, FLEX), make_batch()
    assert SeparateDocuments(model)(batch).keys() == {"input_ids", "position_ids", "use_cache"}
    with torch.compiler.set_stance("force_eager"):
        found, alone = states_packed(model, batch), states_alone(model, batch)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "ModernBertForMaskedLM"])
def test_flex_attention_to_both_sides(name):
    """transformers finds documents by their positions in causal models only."""
    with pytest.raises(ValueError, match="with attn_implementation='flex_attention' and positions that restart at 0"):
        SeparateDocuments(make_any(name, FLEX))


@pytest.mark.parametrize("name", FLEX_MODELS)
def test_flex_attention_that_does_not_find_documents(monkeypatch, name):
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(ValueError, match="different outputs for two documents in one row"):
        SeparateDocuments(make_any(name, FLEX))


HAS_FLASH = any(importlib.util.find_spec(name) for name in ("flash_attn", "kernels"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(
    ("attention", "name"),
    [
        pytest.param(FLASH, "ModernBertForMaskedLM", marks=pytest.mark.skipif(not HAS_FLASH, reason="no kernel")),
        pytest.param(FLASH, "Gemma3ForCausalLM", marks=pytest.mark.skipif(not HAS_FLASH, reason="no kernel")),
        (FLEX, "Gemma3ForCausalLM"),
    ],
)
def test_steps_on_a_gpu(tmp_path, attention, name):
    """The losses of three steps are those with sdpa."""
    sizes = {"hidden_size": 64, "initializer_range": 0.1} | ({"head_dim": 32} if name.startswith("Gemma") else {})
    losses = []
    for own in ("sdpa", attention):
        student = make(name, "sdpa", seed=1, **sizes)
        teacher = make(name, "sdpa", **sizes)
        for model in (student, teacher):
            model.cuda().set_attn_implementation(own)
        make_collator = DataCollatorForCausalLM if "Causal" in name else DataCollatorForMaskedLM
        collator = make_collator(TOKENIZER, attention=SeparateDocuments(student, teacher))
        arguments = DistillationTrainingArguments(
            str(tmp_path), max_steps=3, logging_steps=1, report_to="none", bf16=True, per_device_train_batch_size=4
        )
        rows = without_labels(packed(make_documents(36)))
        trainer = DistillationTrainer(student, arguments, collator, rows, teacher_model=teacher)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=5e-2)
