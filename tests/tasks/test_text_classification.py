"""Training and evaluation of classifiers on tiny models and texts."""

import csv
import json
import random
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    TextClassificationArguments,
    classification_metrics,
    classify_texts,
    evaluate_model,
    export_model,
    load_predictor,
    make_student,
    train_model,
)
from hf_distill.cli import main
from hf_distill.hub.push import check_nothing_private, files_to_push
from hf_distill.tasks import evaluation
from tests.conftest import make_model, make_text_tokenizer

WORDS = {"neg": range(5, 33), "pos": range(33, 61)}


def make_reviews(num_rows, seed, names=("neg", "pos")):
    """Reviews in which each class has its own words."""
    generator = random.Random(seed)
    rows = []
    for index in range(num_rows):
        words = generator.choices(WORDS["neg" if index % 2 else "pos"], k=generator.randint(1, 50))
        rows.append((" ".join(f"w{word}" for word in words), names[0 if index % 2 else 1]))
    return rows


def write_reviews(file, rows, header=("text", "label")):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return str(file)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder with `pretrained`, `train.csv` and `test.csv`."""
    make_model("bert", "mlm").save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    write_reviews(tmp_path / "train.csv", make_reviews(96, seed=0))
    write_reviews(tmp_path / "test.csv", make_reviews(32, seed=1))
    return tmp_path


@pytest.fixture
def teacher(folder):
    """A fine-tuned teacher, in `teacher`."""
    model = make_model("bert", "classification", id2label={0: "neg", 1: "pos"}, label2id={"neg": 0, "pos": 1})
    model.save_pretrained(folder / "teacher")
    make_text_tokenizer().save_pretrained(folder / "teacher")
    return folder / "teacher"


def train(folder, task=None, **training):
    """Trains a model; with `task=None`, fine-tunes the pretrained one. By default replaces an earlier training."""
    task = {"model_name_or_path": str(folder / "pretrained")} if task is None else task
    task = {"train_file": str(folder / "train.csv"), "overwrite": True, **task}
    options = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-3,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "logging_steps": 4,
    }
    training = DistillationTrainingArguments(str(folder / "out"), **{**options, **training})
    return train_model(TextClassificationArguments(**task), training)


def distil(folder, task=None, **training):
    return train(folder, task or {}, teacher_model_name_or_path=str(folder / "teacher"), **training)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def results(folder, part):
    return json.loads((folder / "out" / f"{part}_results.json").read_text())


def test_fine_tuning(folder):
    task = {"model_name_or_path": str(folder / "pretrained"), "test_file": str(folder / "test.csv")}
    trainer = train(folder, task, num_train_epochs=3)
    assert (trainer.teacher, {name: weight for name, weight in trainer.loss_weights.items() if weight}) == (
        None,
        {"task": 1},
    )
    assert results(folder, "test")["test_accuracy"] > 0.9
    assert results(folder, "train")["train_loss"] > 0
    assert not (folder / "out" / "eval_results.json").exists()

    model = AutoModelForSequenceClassification.from_pretrained(folder / "out")
    assert (model.config.id2label, model.config.label2id) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    assert classify_texts(model, tokenizer, ["w6 w7 w8", "w40 w41"]).argmax(-1).tolist() == [0, 1]
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 38  # the tokenizer's maximum length
    assert min(len(row["input_ids"]) for row in trainer.train_dataset) < 10  # rows are not padded; batches are


def test_distillation_cuts_the_student_from_the_teacher(folder, teacher):
    trainer = distil(folder, {"validation_file": str(folder / "test.csv")}, eval_strategy="epoch", learning_rate=0.0)
    whole = AutoModelForSequenceClassification.from_pretrained(teacher)
    assert_equal_weights(trainer.model.state_dict(), make_student(whole).state_dict())
    assert {name: weight for name, weight in trainer.loss_weights.items() if weight} == {"kl": 5, "task": 2, "cos": 1}
    assert {"eval_loss_kl", "eval_loss_cos", "eval_accuracy", "eval_f1"} <= results(folder, "eval").keys()
    assert AutoModelForSequenceClassification.from_pretrained(folder / "out").config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("task", "layers"),
    [({"num_layers": 1}, [0]), ({"layers": "last"}, [2, 3]), ({"layers": ["1", "3"]}, [1, 3]), ({"layers": [2]}, [2])],
)
def test_layers(folder, teacher, task, layers):
    trainer = distil(folder, task, max_steps=1)
    assert trainer.model.config.distilled_from["layers"] == layers


def test_two_steps(folder, teacher):
    """A general student is distilled with the fine-tuned teacher."""
    make_student(make_model("bert", "mlm", seed=1)).save_pretrained(folder / "general")
    make_text_tokenizer().save_pretrained(folder / "general")
    trainer = distil(folder, {"model_name_or_path": str(folder / "general")}, max_steps=1, learning_rate=0.0)
    general = weights(folder / "general")
    own = trainer.model.state_dict()
    shared = [name for name in own if name in general]
    assert len(shared) > 20
    assert all(torch.equal(own[name], general[name]) for name in shared)
    assert trainer.model.config.label2id == {"neg": 0, "pos": 1}


def test_unlabelled_texts(folder, teacher):
    (folder / "more.txt").write_text("\n".join(text for text, _ in make_reviews(40, seed=2)))
    trainer = distil(folder, {"unlabelled_file": str(folder / "more.txt")}, max_steps=2)
    labels = list(trainer.train_dataset["labels"])
    assert len(labels) == 136
    assert labels[96:] == [-100] * 40
    assert set(labels[:96]) == {0, 1}

    task = {"train_file": None, "unlabelled_file": str(folder / "more.txt")}
    trainer = distil(folder, task, max_steps=2, alpha_task=0.0)
    assert len(trainer.train_dataset) == 40
    assert trainer.model.config.label2id == {"neg": 0, "pos": 1}


@pytest.mark.parametrize("alpha_cos", [0.0, 1.0])
def test_stored_targets_and_a_live_teacher_train_the_same(folder, teacher, alpha_cos):
    """Works with unlabelled texts, and with truncated rows."""
    (folder / "more.txt").write_text("\n".join(text for text, _ in make_reviews(8, seed=2)))
    task = {"unlabelled_file": str(folder / "more.txt"), "validation_share": 0.2, "truncation": "tail"}
    losses = []
    for stores in (True, False):
        trainer = distil(folder, {**task, "store_teacher_targets": stores}, max_steps=3, alpha_cos=alpha_cos)
        assert ("teacher_logits" in trainer.train_dataset.column_names) == stores
        losses.append([trainer.state.log_history[-1]["eval_loss"], trainer.state.log_history[-1]["eval_loss_kl"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if alpha_cos else 1e-5, abs=2e-7)


def test_the_callers_arguments_stay_as_they_are(folder, teacher):
    training = DistillationTrainingArguments(
        str(folder / "out"),
        teacher_model_name_or_path=str(teacher),
        alpha_cos=0.0,
        max_steps=1,
        use_cpu=True,
        report_to="none",
    )
    before = training.to_dict()
    trainer = train_model(TextClassificationArguments(train_file=str(folder / "train.csv")), training)
    assert trainer.args.teacher_model_name_or_path is None
    assert training.to_dict() == before


def test_without_hidden_states_the_teacher_reads_each_text_once(folder, teacher):
    assert "teacher_logits" in distil(folder, max_steps=1, alpha_cos=0.0).train_dataset.column_names
    assert "teacher_logits" not in distil(folder, max_steps=1).train_dataset.column_names
    with pytest.raises(ValueError, match="store_teacher_targets has no effect without a teacher"):
        train(folder, {"model_name_or_path": str(folder / "pretrained"), "store_teacher_targets": True})


def test_losses_over_layers_read_a_live_teacher(folder, teacher):
    trainer = distil(folder, max_steps=1, alpha_cos=0.0, alpha_hidden=1.0)
    assert "teacher_logits" not in trainer.train_dataset.column_names
    assert "hidden" in trainer.losses
    with pytest.raises(ValueError, match="store_teacher_targets=True does not work with losses over layers"):
        distil(folder, {"store_teacher_targets": True}, alpha_hidden=1.0)


@pytest.mark.parametrize("truncation", ["head", "head_tail"])
def test_a_teacher_of_another_family(folder, teacher, truncation):
    """The teacher has its own tokenizer, and its classes in another order."""
    tokenizer = make_other_tokenizer()
    other = make_model("gpt2", "classification", pad_token_id=2, id2label={0: "pos", 1: "neg"})
    other.save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    task = {"model_name_or_path": str(folder / "pretrained"), "truncation": truncation}
    options = {"teacher_model_name_or_path": str(folder / "other"), "max_steps": 1}
    trainer = train(folder, task, alpha_cos=0.0, **options)
    assert list(trainer.model.config.id2label.values()) == ["pos", "neg"]
    texts = [text for text, _ in make_reviews(96, seed=0)]
    cut = {"head": "head", "head_tail": "tail"}[truncation]
    expected = classify_texts(other, tokenizer, texts, max_length=38, truncation=cut)
    found = torch.tensor(trainer.train_dataset["teacher_logits"][:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"differ in \d+ tokens"):
        train(folder, task, **options)
    with pytest.raises(
        ValueError,
        match="other has a different tokenizer than the student, so their hidden states belong to different tokens",
    ):
        train(folder, {**task, "store_teacher_targets": True}, **options)


def make_other_tokenizer():
    """A tokenizer without special tokens, and with other numbers for its words."""
    words = {"[UNK]": 0, "[PAD]": 1, "[SEP]": 2} | {f"w{index}": 63 - index for index in range(5, 61)}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=38, unk_token="[UNK]", eos_token="[SEP]"
    )


def test_the_classes_are_those_of_the_teacher(folder, teacher):
    """Numbers in the data and the order of names are the teacher's."""
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    model.config.id2label, model.config.label2id = {0: "pos", 1: "neg"}, {"pos": 0, "neg": 1}
    model.save_pretrained(teacher)
    trainer = distil(folder, max_steps=1)
    assert trainer.model.config.id2label == {0: "pos", 1: "neg"}
    assert trainer.train_dataset["labels"][:4] == [0, 1, 0, 1]
    write_reviews(folder / "numbers.csv", make_reviews(16, seed=0, names=("1", "0")))
    trainer = distil(folder, {"train_file": str(folder / "numbers.csv")}, max_steps=1)
    assert trainer.train_dataset["labels"][:4] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("own", "names", "expected", "labels"),
    [
        (["pos", "neg"], ("neg", "pos"), ["pos", "neg"], [0, 1]),  # the same classes: the head is kept as it is
        (["pos", "neg"], ("0", "1"), ["pos", "neg"], [1, 0]),  # numbers are the model's
        (["a", "b", "c"], ("neg", "pos"), ["neg", "pos"], [1, 0]),  # other classes: another head
        (["LABEL_0", "LABEL_1"], ("neg", "pos"), ["neg", "pos"], [1, 0]),
    ],
)
def test_the_classes_of_a_model_that_has_a_head(folder, own, names, expected, labels):
    model = make_model("bert", "classification", id2label=dict(enumerate(own)))
    model.save_pretrained(folder / "pretrained")
    write_reviews(folder / "train.csv", make_reviews(16, seed=0, names=names))
    trainer = train(folder, max_steps=1, learning_rate=0.0)
    assert list(trainer.model.config.id2label.values()) == expected
    assert trainer.train_dataset["labels"][:2] == labels
    if own == expected:
        assert torch.equal(trainer.model.classifier.weight, model.classifier.weight)


def test_a_share_is_held_out(folder):
    task = {"model_name_or_path": str(folder / "pretrained"), "validation_share": 0.25}
    first, second = (train(folder, task, max_steps=1, seed=seed) for seed in (1, 2))
    assert (len(first.train_dataset), len(first.eval_dataset)) == (72, 24)
    assert first.eval_dataset[:] == second.eval_dataset[:]


@pytest.mark.parametrize("truncation", ["tail", "head_tail"])
def test_truncation(folder, truncation):
    rows = [("w5 " * 30 + "w40 " * 30, "pos"), ("w5 " * 60, "neg")] * 4
    write_reviews(folder / "train.csv", rows)
    task = {"model_name_or_path": str(folder / "pretrained"), "truncation": truncation, "max_length": 10}
    trainer = train(folder, task, max_steps=1)
    kept = {"tail": [40] * 8, "head_tail": [5, 5, *[40] * 6]}[truncation]
    assert trainer.train_dataset[0]["input_ids"] == [1, *kept, 2]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2"])
def test_lora(folder, family):
    """The best checkpoint, which holds adapters, is saved as a plain model."""
    make_model(family, "causal" if family == "gpt2" else "mlm").save_pretrained(folder / "pretrained")
    tokenizer = make_text_tokenizer()
    if family == "gpt2":
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(folder / "pretrained")
    task = {"model_name_or_path": str(folder / "pretrained"), "validation_share": 0.2, "lora_rank": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "save_strategy": "epoch"}
    trainer = train(folder, task, learning_rate=1e-2, num_train_epochs=3, eval_strategy="epoch", **best)
    trainable = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    adapters = [name for name in trainable if "lora_" in name]
    assert len(adapters) == 4 * (4 if family == "gpt2" else 6) * 2  # layers, linear ones in each, A and B
    assert all(re.search("classifier|score|pooler", name) for name in {*trainable} - {*adapters})
    assert (folder / "out" / "checkpoint-10" / "adapter_model.safetensors").exists()
    assert not (folder / "out" / "adapter_config.json").exists()

    model, info = AutoModelForSequenceClassification.from_pretrained(folder / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    texts = [text for text, _ in make_reviews(8, seed=3)]
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    torch.testing.assert_close(
        classify_texts(model, tokenizer, texts), classify_texts(trainer.model, tokenizer, texts), rtol=0, atol=1e-5
    )
    assert results(folder, "eval")["eval_accuracy"] > 0.8


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_it_resumes_by_itself(folder, lora_rank):
    task = {"model_name_or_path": str(folder / "pretrained"), "lora_rank": lora_rank, "overwrite": False}
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    train(folder, task, **options)
    expected = weights(folder / "out")
    (folder / "out").rename(folder / "whole")
    shutil.copytree(folder / "whole" / "checkpoint-4", folder / "out" / "checkpoint-4")
    trainer = train(folder, task, **options)
    assert not (folder / "out" / "checkpoint-2").exists()
    assert trainer.state.global_step == 6
    assert_equal_weights(weights(folder / "out"), expected)
    shutil.rmtree(folder / "out")
    train(folder, task, resume_from_checkpoint=str(folder / "whole" / "checkpoint-4"), **options)
    assert_equal_weights(weights(folder / "out"), expected)


def test_a_second_training_into_a_finished_folder(folder, teacher, caplog):
    """A finished training is not repeated, even if its files are renamed. A different one needs resume or overwrite."""
    task = {"validation_share": 0.25, "test_file": str(folder / "test.csv"), "overwrite": False}
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "alpha_cos": 0.0}
    assert distil(folder, task, **options).steps_made == 2
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}

    shutil.copytree(teacher, folder / "copy")
    shutil.copy(folder / "train.csv", folder / "copy.csv")
    copied = {"train_file": str(folder / "copy.csv")}
    assert distil(folder, task, logging_steps=1, **options) is None
    assert train(folder, task | copied, teacher_model_name_or_path=str(folder / "copy"), **options) is None
    assert "out already has a model trained with the same settings" in caplog.text

    write_reviews(folder / "train.csv", make_reviews(96, seed=4))
    for other, training, message in (
        (
            {},
            {},
            r"train_data, .*train.csv \(72 rows\), has changed; validation_data, .*, has changed\. It cannot",
        ),
        (
            {**copied, "test_file": None},
            {},
            r"test_data was .*test.csv \(32 rows\) and is None. Continue from the last",
        ),
        ({**copied, "truncation": "tail"}, {}, "truncation was 'head' and is 'tail'"),
        ({**copied, "num_layers": 1}, {}, "num_layers was None and is 1"),
        (copied, {"temperature": 3.0}, "temperature was 2.0 and is 3.0"),
        (copied, {"learning_rate": 1.0}, "out has a finished training with other settings: learning_rate was 0.002"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(folder, task | other, **(options | training))
    assert {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before

    trained = results(folder, "train")
    trainer = distil(folder, task | copied | {"resume": True, "test_file": str(folder / "copy.csv")}, **options)
    assert trainer.steps_made == 0  # the model is only measured on other texts
    assert results(folder, "train") == trained
    assert results(folder, "test")["test_accuracy"] == trainer.evaluate(trainer.train_dataset)["eval_accuracy"]
    assert_equal_weights(weights(folder / "out"), trainer.model.state_dict())

    assert distil(folder, task | copied | {"resume": True}, **(options | {"max_steps": 3})).steps_made == 1
    assert results(folder, "train")["epoch"] == pytest.approx(3 / 9)
    assert distil(folder, task | {"overwrite": True, "test_file": None}, **options).steps_made == 2
    assert not (folder / "out" / "test_results.json").exists()


def test_a_training_does_not_write_where_it_reads(folder, teacher):
    with pytest.raises(
        ValueError, match=r"output_dir=.*out is also the folder of the model or teacher: choose another"
    ):
        train(folder, {"model_name_or_path": str(folder / "pretrained" / ".." / "out")})
    teacher.rename(folder / "out")
    with pytest.raises(ValueError, match="is also the folder of the model or teacher"):
        train(folder, {}, teacher_model_name_or_path=str(folder / "out"))


def test_push_to_hub(folder, monkeypatch):
    pushed = []
    monkeypatch.setattr(DistillationTrainer, "init_hf_repo", lambda trainer: None)
    monkeypatch.setattr(DistillationTrainer, "push_to_hub", lambda trainer: pushed.append(trainer.state.global_step))
    monkeypatch.setattr(DistillationTrainer, "save_model", lambda *args, **options: None)
    train(folder, max_steps=2, push_to_hub=True)
    assert pushed == [2]
    with pytest.raises(ValueError, match="push_to_hub with lora_rank would push the adapters"):
        train(folder, {"model_name_or_path": str(folder / "pretrained"), "lora_rank": 4}, push_to_hub=True)


def test_push_that_fails(folder, hub, capsys):
    """A failed push is reported in one line, and everything is saved on disk."""
    hub.answers["POST", "/commit/"] = 403
    options = {"model_name_or_path": folder / "pretrained", "train_file": folder / "train.csv", "max_steps": 1}
    options |= {"output_dir": folder / "out", "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["train", *words, "--push_to_hub"]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("hf-distill: Pushing to tester/out failed: the token has no write access (403)")
    assert f"push it later with: hf-distill push {folder}/out tester/out" in error
    assert json.loads((folder / "out" / "train_results.json").read_text())["epoch"] > 0
    hub.answers.clear()
    assert main(["push", str(folder / "out"), "tester/out"]) == 0
    assert AutoModelForSequenceClassification.from_pretrained("tester/out").num_labels == 2


@pytest.mark.parametrize(
    ("task", "training", "message"),
    [
        ({"model_name_or_path": None}, {}, "No model is given"),
        ({"train_file": None}, {}, "No training data"),
        ({"unlabelled_file": "more.txt"}, {}, "Unlabelled texts need a teacher"),
        ({}, {"eval_strategy": "epoch"}, "eval_strategy='epoch' needs validation data"),
        ({}, {"alpha_kl": 1.0}, "alpha_kl=1.0 and alpha_cos=1.0 need a teacher"),
        ({}, {"temperature": 4.0}, "temperature=4.0 would have no effect"),
        ({"max_length": 41}, {}, "max_length=41 exceeds the model's 40 tokens"),
        ({"text_column": "review"}, {}, "train.csv has no column 'review', only 'text', 'label'"),
        ({"test_file": "mixed.csv"}, {}, "'label' has labels that the training data or the model does not have: mixed"),
        (
            {"validation_file": "mixed.csv"},
            {},
            "'label' has labels that the training data or the model does not have: mixed",
        ),
    ],
)
def test_errors_before_the_first_step(folder, monkeypatch, task, training, message):
    monkeypatch.chdir(folder)
    write_reviews(folder / "mixed.csv", [*make_reviews(4, seed=0), ("w5", "mixed")])
    with pytest.raises(ValueError, match=message):
        train(folder, {"model_name_or_path": "pretrained", **task}, **training)
    assert not (folder / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("task", "training", "message"),
    [
        (
            {"train_file": None, "unlabelled_file": "test.csv"},
            {},
            "There are no labels without train_file or train_split, but alpha_task=2.0",
        ),
        (
            {"train_file": None, "unlabelled_file": "test.csv"},
            {"divergence": "dkd", "alpha_task": 0.0},
            "There are no labels without train_file or train_split, but divergence='dkd' needs them",
        ),
        ({"layers": ["0", "last"]}, {}, r"layers=\['0', 'last'\] must be layer indices, such as 0 2 4"),
        (
            {"train_file": "mixed.csv"},
            {},
            "labels that the training data or the model does not have: mixed. The classes are 0: neg",
        ),
        ({"model_name_or_path": "wide"}, {}, "the student's are 32 wide"),
    ],
)
def test_errors_with_a_teacher(folder, teacher, monkeypatch, task, training, message):
    monkeypatch.chdir(folder)
    write_reviews(folder / "mixed.csv", [*make_reviews(4, seed=0), ("w5", "mixed")])
    make_model("bert", "mlm", width=32).save_pretrained("wide")
    make_text_tokenizer().save_pretrained("wide")
    with pytest.raises(ValueError, match=message):
        distil(folder, task, **training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": "a", "train_split": "b", "dataset_name": "c"}, "train_file and train_split are both given"),
        ({"test_split": "test"}, "test_split needs dataset_name"),
        ({"dataset_name": "stanfordnlp/imdb"}, "dataset_name has no effect without a split"),
        ({"validation_share": 1.0}, r"validation_share=1\.0 must be between 0 and 1"),
        ({"validation_share": 0.1, "validation_file": "a"}, "A validation set and validation_share are both given"),
        ({"model_name_or_path": "a", "num_layers": 2}, "num_layers and layers have no effect"),
        ({"max_length": 0}, "max_length=0 must be 1 or more"),
        ({"lora_rank": 0}, "lora_rank=0 must be 1 or more"),
        ({"truncation": "middle"}, "truncation='middle' must be one of head, tail, head_tail"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        TextClassificationArguments(**options)


def test_a_data_set_on_the_hub(folder, monkeypatch):
    """Each split of the dataset is loaded where its option names it."""
    from hf_distill.data import reading

    asked = []

    def load_dataset(name, config_name, split):
        asked.append((name, config_name, split))
        rows = make_reviews(16, seed=len(asked))
        return Dataset.from_dict({"review": [text for text, _ in rows], "mood": [label for _, label in rows]})

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    task = {"train_file": None, "model_name_or_path": str(folder / "pretrained"), "dataset_name": "some/reviews"}
    task |= {"dataset_config_name": "en", "train_split": "train", "validation_split": "dev", "test_split": "test"}
    trainer = train(folder, task | {"text_column": "review", "label_column": "mood"}, max_steps=1)
    assert asked == [("some/reviews", "en", split) for split in ("train", "dev", "test")]
    assert len(trainer.eval_dataset) == 16


def test_classify_texts(folder):
    """Logits are in the order of the texts, whatever the batches. The model does not change."""
    model, tokenizer = make_model("bert", "classification", dropout=0.5).train(), make_text_tokenizer()
    texts = [text for text, _ in make_reviews(11, seed=0)]
    logits = classify_texts(model, tokenizer, texts, batch_size=4)
    assert model.training
    model.eval()
    for text, row in zip(texts, logits, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=38, return_tensors="pt")
        torch.testing.assert_close(model(**inputs).logits[0], row, rtol=0, atol=1e-5)
    turned = classify_texts(model, tokenizer, texts, label_names=["LABEL_1", "LABEL_0"])
    torch.testing.assert_close(turned, logits[:, [1, 0]], rtol=0, atol=1e-5)
    tail = classify_texts(model, tokenizer, texts, max_length=5, truncation="tail")
    words = " ".join(texts[0].split()[-3:])
    torch.testing.assert_close(tail[0], classify_texts(model, tokenizer, [words])[0], rtol=0, atol=1e-5)


def test_evaluation(folder, teacher):
    """A teacher of another family, with its own tokenizer and its classes in another order."""
    other = make_model("gpt2", "classification", id2label={0: "pos", 1: "neg"}, label2id={"pos": 0, "neg": 1})
    tokenizer = make_other_tokenizer()
    other.save_pretrained(folder / "other")
    tokenizer.save_pretrained(folder / "other")
    found = evaluate_model(
        str(teacher), str(folder / "test.csv"), teacher=str(folder / "other"), output=folder / "report"
    )
    texts, labels = zip(*make_reviews(32, seed=1), strict=True)
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    logits = classify_texts(model, make_text_tokenizer(), texts)
    other_logits = classify_texts(other, tokenizer, texts)[:, [1, 0]]
    expected = classification_metrics(logits, [["neg", "pos"].index(label) for label in labels], other_logits)
    assert found == pytest.approx({"rows": 32, **expected}, rel=1e-6)
    report = json.loads((folder / "report" / "evaluation.json").read_text())
    assert report["metrics"] == found
    assert (folder / "report" / "calibration.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("model", "teacher_name", "data", "message"),
    [
        (
            "pretrained",
            None,
            "test.csv",
            "pretrained is a model for fill-mask, not for text-classification: set task=fill-mask",
        ),
        ("headless", None, "test.csv", "headless has no weights for .*classifier.bias, classifier.weight, so they"),
        ("teacher", "three", "test.csv", "three has the classes LABEL_0, LABEL_1, LABEL_2, but neg, pos are needed"),
        ("three", None, "test.csv", "does not have: neg, pos. The classes are 0: LABEL_0, 1: LABEL_1, 2: LABEL_2"),
        ("teacher", None, "nothing.csv", "File or folder not found: nothing.csv"),
    ],
)
def test_evaluation_of_what_does_not_fit(folder, teacher, monkeypatch, model, teacher_name, data, message):
    monkeypatch.chdir(folder)
    make_model("bert", "mlm", id2label={0: "neg", 1: "pos"}).save_pretrained("headless")
    config = json.loads(Path("headless/config.json").read_text())
    Path("headless/config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    make_model("bert", "classification", num_labels=3).save_pretrained("three")
    make_text_tokenizer().save_pretrained("three")
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, data, task="text-classification", teacher=teacher_name, output="report")
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text_column": "review"}, r"test.csv has no column 'review', only 'text', 'label'"),
        ({"data": "mixed.csv"}, "labels that the training data or the model does not have: mixed"),
        ({"data": "data/test.csv"}, "File or folder not found: data/test.csv"),
    ],
)
def test_data_is_checked_before_a_model_is_loaded(folder, teacher, monkeypatch, data, message):
    monkeypatch.chdir(folder)
    write_reviews(folder / "mixed.csv", [*make_reviews(4, seed=0), ("w5", "mixed")])
    monkeypatch.setattr(evaluation, "load_predictor", lambda *given: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=message):
        evaluate_model("teacher", **({"data": "test.csv", "teacher": "teacher"} | data))


@pytest.mark.parametrize(
    "truncation", ["head_tail", *(pytest.param(own, marks=pytest.mark.long) for own in ("head", "tail"))]
)
def test_a_model_is_read_as_it_was_trained(folder, truncation):
    """Evaluation, export and serving read texts as in training by default, also from a checkpoint."""
    for name in ("train", "test"):
        write_reviews(folder / f"{name}.csv", make_reviews(64, seed=3), header=("review", "mood"))
    columns = {"text_column": "review", "label_column": "mood"}
    task = {"model_name_or_path": str(folder / "pretrained"), "test_file": str(folder / "test.csv"), **columns}
    train(folder, task | {"max_length": 9, "truncation": truncation}, save_strategy="epoch")
    tested = results(folder, "test")
    for model in (folder / "out", folder / "out" / "checkpoint-8"):
        found = evaluate_model(str(model), str(folder / "test.csv"), output=folder / "report")
        assert found["accuracy"] == tested["test_accuracy"]
        assert found["expected_calibration_error"] == pytest.approx(tested["test_expected_calibration_error"], abs=1e-5)
    said = json.loads((folder / "report" / "evaluation.json").read_text())
    assert said["read"] == {"model": {"max_length": 9, "truncation": truncation}}
    assert (said["text_column"], said["label_column"]) == ("review", "mood")
    other = evaluate_model(str(folder / "out"), str(folder / "test.csv"), max_length=38, truncation="head")
    assert other["expected_calibration_error"] != pytest.approx(found["expected_calibration_error"], abs=1e-3)

    texts = [text for text, _ in make_reviews(16, seed=3)] + ["w5 [SEP] w6 w7", "w5"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out")
    expected = classify_texts(model, make_text_tokenizer(), texts, max_length=9, truncation=truncation)
    if truncation == "tail":
        export_model(folder / "out", folder / "onnx", "onnx", texts=texts)
    for exported in (own for own in (folder / "out", folder / "onnx") if own.exists()):
        predictor = load_predictor(exported)
        logits = torch.from_numpy(predictor.logits(texts))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        cut = [bool(encoding.overflowing) for encoding in predictor.encoder.encode(texts)]
        assert cut == [len(text.split()) > 7 for text in texts]
    check_nothing_private(folder / "out", files_to_push(folder / "out"))


@pytest.mark.parametrize("own_model", [False, True])
@pytest.mark.parametrize("alpha_cos", [0.0, 1.0])
def test_a_student_reads_as_its_teacher_did(folder, own_model, alpha_cos):
    """By default the student reads texts like its teacher, cut from it or not, with a live or stored teacher."""
    task = {"model_name_or_path": str(folder / "pretrained")}
    train(folder, task | {"max_length": 9, "truncation": "tail"}, max_steps=1)
    (folder / "out").rename(folder / "teacher")
    text = "w5 " * 30 + "w40 " * 10
    write_reviews(folder / "train.csv", [(text, "pos"), ("w6 " * 60, "neg")] * 8)
    for asked, ids in (({}, [40] * 7), ({"max_length": 20, "truncation": "head"}, [5] * 18)):
        trainer = distil(folder, (task if own_model else {}) | asked, max_steps=1, alpha_cos=alpha_cos)
        assert trainer.train_dataset[0]["input_ids"] == [1, *ids, 2]
        assert AutoTokenizer.from_pretrained(folder / "out").model_max_length == len(ids) + 2
        config = AutoModelForSequenceClassification.from_pretrained(folder / "out").config
        assert config.task_options["truncation"] == asked.get("truncation", "tail")


def test_a_teacher_that_is_an_adapter(folder, teacher):
    """An adapter as a teacher, with its own student. The classes come from the data."""
    base = AutoModelForSequenceClassification.from_pretrained(teacher)
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(folder / "adapter")
    make_text_tokenizer().save_pretrained(folder / "adapter")
    task = {"model_name_or_path": str(folder / "pretrained")}
    trainer = train(folder, task, teacher_model_name_or_path=str(folder / "adapter"), max_steps=1)
    assert trainer.teacher is not None
