"""Chats from a file to a trained, evaluated model: only what the assistant writes is learned and measured."""

import json
import math

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distill import (
    TASKS,
    CausalLMArguments,
    DistillationTrainingArguments,
    encode_chats,
    evaluate_model,
    export_model,
    load_chats,
    load_predictor,
    train_model,
)
from hf_distill.training.teacher import targets
from tests.conftest import make_model, make_texts
from tests.data.test_chats import chat, make_tokenizer

OPTIONS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "learning_rate": 3e-3}


def write_chats(file, number, seed):
    texts = make_texts(4 * number, seed=seed, longest=4)
    rows = [{"messages": chat(*texts[4 * row : 4 * row + 4])} for row in range(number)]
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_chats(tmp_path / "train.jsonl", 48, seed=1)
    write_chats(tmp_path / "test.jsonl", 8, seed=2)
    make_model("llama", "causal", num_layers=2).save_pretrained("teacher")
    make_tokenizer().save_pretrained("teacher")
    return tmp_path


def distil(output="student", max_steps=4, training=None, **options):
    args = CausalLMArguments(**{"train_file": "train.jsonl", "test_file": "test.jsonl", "max_length": 38} | options)
    training = {"max_steps": max_steps, "teacher_model_name_or_path": "teacher", **OPTIONS, **(training or {})}
    return train_model(args, DistillationTrainingArguments(output, **training))


def losses_of_answers(folder, file, max_length=38):
    """The losses of the assistant's tokens, one chat at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    losses = []
    for row in encode_chats(load_chats(file), tokenizer, max_length):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none")[labels != -100])
    return torch.cat(losses)


@pytest.mark.parametrize("packing", ["documents", pytest.param("none", marks=pytest.mark.long)])
def test_the_whole_way(folder, packing):
    trainer = distil(packing=packing, training={"alpha_task": 0.5})
    losses = losses_of_answers("student", "test.jsonl")
    tested = json.loads((folder / "student" / "test_results.json").read_text())
    assert tested["test_loss_task"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert (max(map(max, trainer.train_dataset["attention_mask"])) > 1) == (packing == "documents")

    found = evaluate_model("student", "test.jsonl", teacher="teacher")
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    teachers = losses_of_answers("teacher", "test.jsonl")
    assert found["perplexity_ratio"] == pytest.approx(math.exp(losses.mean() - teachers.mean()), rel=1e-4)
    export_model("student", "onnx", "onnx", texts=make_texts(4))
    assert evaluate_model("onnx", "test.jsonl")["perplexity"] == pytest.approx(found["perplexity"], rel=1e-4)


def test_preset(folder):
    args = distil(max_steps=1).args
    assert (args.temperature, args.alpha_kl, args.alpha_task, args.alpha_cos) == (1, 1, 1, 0)
    args = distil("other", max_steps=1, training={"alpha_cos": 0.5}).args
    assert (args.temperature, args.alpha_kl, args.alpha_task, args.alpha_cos) == (2, 5, 2, 0.5)
    alone = distil("alone", max_steps=1, model_name_or_path="teacher", training={"teacher_model_name_or_path": None})
    assert (alone.args.alpha_kl, alone.args.alpha_task) == (0, 1)


def test_on_policy(folder):
    trainer = distil(packing="none", training={"on_policy_fraction": 1.0, "on_policy_max_new_tokens": 4})
    assert trainer.args.alpha_task == 0
    assert trainer.state.log_history[0]["loss_kl"] > 0
    with pytest.raises(ValueError, match=r"on_policy_fraction=1.0 needs one chat in a row, but packing=documents"):
        distil("other", training={"on_policy_fraction": 1.0})
    with pytest.raises(ValueError, match=r"on_policy_fraction=1.0 needs the teacher in every step"):
        distil("other", packing="none", store_teacher_targets=True, training={"on_policy_fraction": 1.0})


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_stored_targets(folder, packing, monkeypatch):
    """Of chats too, a training with stored targets is one with its teacher."""
    monkeypatch.setattr(targets, "default_top_k", lambda vocab_size: vocab_size)
    options = {"packing": packing, "max_steps": 2, "training": {"logging_steps": 1}}
    live, stored = distil(**options), distil("stored", store_teacher_targets=True, **options)
    assert (live.teacher.model is None, stored.teacher.model is None) == (False, True)
    of_live, of_stored = ([step["loss_kl"] for step in own.state.log_history[:2]] for own in (live, stored))
    assert of_stored == pytest.approx(of_live, rel=2e-3)
    assert of_stored != of_live


def test_every_token(folder):
    """With `assistant_only_loss=False`, the words of the user count too."""
    distil(assistant_only_loss=False, packing="none", training={"alpha_task": 0.5})
    tested = json.loads((folder / "student" / "test_results.json").read_text())
    assert tested["test_loss_task"] != pytest.approx(losses_of_answers("student", "test.jsonl").mean().item(), rel=1e-3)


def test_a_chat_that_is_left_out_has_a_prediction_without_tokens(folder):
    """So that each prediction stands at the row of its chat."""
    distil(max_steps=1)
    chats = [chat("w5", "w6"), chat(" ".join(["w7"] * 40), "w8"), chat("w9 w5", "w10 w11")]
    (folder / "three.jsonl").write_text("\n".join(json.dumps({"messages": own}) for own in chats))
    reading = {"max_length": 38, "assistant_only_loss": True, "too_long": "leave_out"}
    rows, _ = TASKS["causal-lm"].load("three.jsonl", reading, None)
    predicted = TASKS["causal-lm"].predict(load_predictor("student"), rows, reading, None)
    assert [len(own.losses) for own in predicted] == [2, 0, 3]  # with the token that ends a turn
    words = [TASKS["causal-lm"].words_of_prediction(own, rows, row, reading, None) for row, own in enumerate(predicted)]
    assert [own.split()[0] for own in words] == ["perplexity", "left", "perplexity"]
    found = evaluate_model("student", "three.jsonl", too_long="leave_out", max_length=38)
    assert found["perplexity"] == pytest.approx(math.exp(np.concatenate([own.losses for own in predicted]).mean()))


def test_errors(folder):
    with pytest.raises(ValueError, match="packing=full_sentences would let the answers of a chat see"):
        distil(packing="full_sentences")
    with pytest.raises(ValueError, match=r"more than max_length=10, in \d+ rows"):
        distil(max_length=10)
    (folder / "more.txt").write_text("w5 w6")
    with pytest.raises(ValueError, match="train has the columns messages, but unlabelled has text"):
        distil(unlabelled_file="more.txt")
    tokenizer = make_tokenizer(None)
    tokenizer.save_pretrained("teacher")
    (folder / "teacher" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        distil()
