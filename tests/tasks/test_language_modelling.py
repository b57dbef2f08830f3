"""Masked and causal language models from texts to predictions: the same perplexity at every stop."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
)

from hf_distill import (
    CausalLMArguments,
    DistillationTrainingArguments,
    FillMaskArguments,
    evaluate_model,
    export_model,
    load_predictor,
    train_model,
)
from hf_distill.tasks.language_modelling import Predicted
from hf_distill.tasks.registry import TASKS
from hf_distill.training.teacher import targets
from tests.conftest import make_model, make_text_tokenizer, make_texts

OPTIONS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 3e-3}
ROWS = {
    "causal-lm": (CausalLMArguments, "gpt2", "causal", AutoModelForCausalLM),
    "fill-mask": (FillMaskArguments, "bert", "mlm", AutoModelForMaskedLM),
}


@pytest.fixture(params=list(ROWS))
def task(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch, task):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.txt").write_text("\n".join(make_texts(96, seed=1, longest=30)))
    (tmp_path / "test.txt").write_text("\n".join(make_texts(16, seed=2, longest=60)))
    _, family, head, _ = ROWS[task]
    make_model(family, head, num_layers=2).save_pretrained("teacher")
    tokenizer = make_text_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained("teacher")
    return tmp_path


def distil(task, output="student", max_steps=4, **options):
    arguments, *_ = ROWS[task]
    training = {name: options.pop(name) for name in ("alpha_task", "alpha_cos", "logging_steps") if name in options}
    args = arguments(**{"train_file": "train.txt", "test_file": "test.txt", "max_length": 20} | options)
    return train_model(
        args,
        DistillationTrainingArguments(
            output, max_steps=max_steps, teacher_model_name_or_path="teacher", **OPTIONS, **training
        ),
    )


def expected_losses(task, folder, texts):
    """The losses of the scored tokens of each text, one part of a text at a time."""
    *_, auto_class = ROWS[task]
    model, tokenizer = auto_class.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    losses = []
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        before, after = ids[:1], ids[-1:]
        own = []
        for start in range(1, len(ids) - 1, 18):  # 20 tokens with the special ones
            part = torch.tensor([before + ids[start : min(start + 18, len(ids) - 1)] + after])
            right = part.clone()
            if task == "fill-mask":
                inside = np.arange(1, part.shape[1] - 1)
                chosen = np.random.default_rng(row).permutation(inside)[: max(1, round(0.15 * len(inside)))]
                places = np.sort(chosen)
                part[0, places] = tokenizer.mask_token_id
                targets = right[0, places]
            else:
                places = np.arange(part.shape[1] - 1)
                targets = right[0, 1:]
            with torch.no_grad():
                logits = model(input_ids=part).logits[0, places]
            own += torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
        losses.append(own)
    return losses


def test_the_whole_way(folder, task):
    trainer = distil(task, max_steps=30)
    assert type(trainer.model).__name__ == type(make_model(*ROWS[task][1:3])).__name__
    assert trainer.data_collator.attention is not None
    tested = json.loads((folder / "student" / "test_results.json").read_text())
    assert tested["test_perplexity"] == pytest.approx(math.exp(tested["test_loss_task"]))
    assert AutoTokenizer.from_pretrained("student").model_max_length == 20

    texts = (folder / "test.txt").read_text().splitlines()
    losses = np.concatenate(expected_losses(task, "student", texts))
    found = evaluate_model("student", "test.txt", teacher="teacher")
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    teachers = np.concatenate(expected_losses(task, "teacher", texts))
    assert found["perplexity_ratio"] == pytest.approx(math.exp(losses.mean() - teachers.mean()), rel=1e-4)
    assert 0 <= found["agreement"] <= 1

    export_model("student", "onnx", "onnx", texts=texts if task == "causal-lm" else None)
    assert evaluate_model("onnx", "test.txt")["perplexity"] == pytest.approx(found["perplexity"], rel=1e-4)
    if task == "fill-mask":
        text = "w5 [MASK] w7"
        assert (
            load_predictor("onnx").predict([text])[0]["label"] == load_predictor("student").predict([text])[0]["label"]
        )


@pytest.mark.parametrize("packing", ["full_sentences", "none"])
def test_other_packings(folder, task, packing):
    trainer = distil(task, packing=packing)
    assert trainer.data_collator.attention is None
    lengths = {len(row["input_ids"]) for row in trainer.train_dataset}
    assert max(lengths) == 20
    assert (len(lengths) > 2) == (packing == "none")


def test_from_the_teacher_alone(folder, task):
    trainer = distil(task, train_file=None, unlabelled_file="train.txt", test_file=None, alpha_task=0.0)
    assert trainer.state.global_step == 4


def test_adapters(folder, task):
    distil(task, lora_rank=2, test_file=None)
    *_, auto_class = ROWS[task]
    student = auto_class.from_pretrained("student")
    assert not hasattr(student, "peft_config")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "tight"}, "packing='tight' must be one of documents, full_sentences, none"),
        ({"documents": "page"}, "documents='page' must be one of line, paragraph, document"),
        ({"train_file": "nothing.txt"}, "nothing.txt"),
    ],
)
def test_what_does_not_fit(folder, task, options, message):
    with pytest.raises(ValueError, match=message):
        distil(task, **options)


@pytest.mark.parametrize("packing", ["documents", "full_sentences", "none"])
@pytest.mark.parametrize("task", ["causal-lm"], indirect=True)
def test_stored_targets_teach_as_the_teacher_does(folder, task, packing, monkeypatch):
    """With all tokens of the small vocabulary, in float16."""
    monkeypatch.setattr(targets, "default_top_k", lambda vocab_size: vocab_size)
    options = {"packing": packing, "test_file": None, "max_steps": 2, "logging_steps": 1}
    live = distil(task, **options)
    stored = distil(task, output="stored", store_teacher_targets=True, **options)
    assert (live.teacher.model is None, stored.teacher.model is None) == (False, True)
    of_live, of_stored = ([step["loss_kl"] for step in own.state.log_history[:2]] for own in (live, stored))
    assert of_stored == pytest.approx(of_live, rel=2e-3)
    assert of_stored != of_live


@pytest.mark.parametrize("task", ["fill-mask"], indirect=True)
def test_targets_of_masked_tokens_cannot_be_stored(folder, task):
    with pytest.raises(ValueError, match="store_teacher_targets=True does not work with fill-mask"):
        distil(task, store_teacher_targets=True)


@pytest.mark.parametrize("task", ["fill-mask"], indirect=True)
def test_documents_that_cannot_be_kept_apart(folder, task):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = DebertaV2Config(**sizes, **tokens, num_attention_heads=2, max_position_embeddings=40)
    DebertaV2ForMaskedLM(config).save_pretrained("teacher")
    with pytest.raises(ValueError, match=r"packing=documents does not work: .* Set packing=full_sentences"):
        distil(task)


def test_tokens_of_different_tokenizers_are_not_compared():
    task = TASKS["causal-lm"]
    one = [Predicted(np.ones(2), np.array([1, 2]), np.array([1, 2]))]
    other = [Predicted(np.ones(3), np.array([1, 2, 3]), np.array([1, 2, 3]))]
    with pytest.raises(ValueError, match="read the texts as different tokens"):
        task.metrics(one, None, {}, other)
