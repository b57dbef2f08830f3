"""Joined targets of several teachers give the same training as the live teachers."""

import copy
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import DataCollatorWithPadding, default_data_collator

from hf_distill import add_teacher_targets, import_teacher_targets, join_teacher_targets
from hf_distill.training.teacher.columns import JoinedSource, source_of
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer, make_texts
from tests.training.teacher.test_ensemble import losses, make_small, make_teachers, weights, with_weights

TOKENIZER = make_text_tokenizer()
STORABLE = ["classification", "multi_label", "regression", "token_classification", "question_answering"]
STORABLE += ["multiple_choice", "image"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_dataset(head, num_rows=16, number=2):
    rows = with_weights(make_rows(head, num_rows), number)
    return Dataset.from_list(
        [{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]
    )


def stored(rows, teachers, head="classification", **options):
    tokenizer = None if head == "image" else TOKENIZER
    return join_teacher_targets([add_teacher_targets(rows, teacher, tokenizer, **options) for teacher in teachers])


def train(make_trainer, head, teachers, rows, **options):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "sgd"}
    if head == "image":
        defaults["data_collator"] = default_data_collator
    trainer = make_trainer(make_small(head), teachers, rows, rows, **{**defaults, "alpha_cos": 0.0, **options})
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("head", "column", "mean"),
    [*((head, "votes", "probabilities") for head in STORABLE), ("token_classification", None, "logits")],
)
def test_the_same_weights_as_with_live_teachers(make_trainer, head, column, mean):
    """At a temperature that was not known when the targets were stored."""
    rows, teachers = make_dataset(head, number=3), make_teachers(head, 3)
    options = {"teacher_mean": mean, "teacher_weights_column": column}
    if head != "regression":
        options["temperature"] = 3.5
    if column is None:
        rows, options = rows.remove_columns("votes"), {**options, "teacher_weights": [3.0, 1.0, 2.0]}
    joined = stored(rows, teachers, head)
    live, ours = (train(make_trainer, head, given, own, **options) for given, own in ((teachers, rows), (None, joined)))
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=2e-6)
    assert losses(ours) == pytest.approx(losses(live), rel=1e-5, abs=1e-6)
    assert ours._distillation_state() == live._distillation_state()
    evaluated = [{k: v for k, v in trainer.evaluate().items() if "loss" in k} for trainer in (ours, live)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5, abs=1e-6)


def test_hidden_states_of_the_first(make_trainer):
    rows = make_dataset("classification").remove_columns("votes")
    teachers = make_teachers("classification")
    joined = stored(rows, teachers, hidden_states=True)
    live, ours = (
        train(make_trainer, "classification", given, own, alpha_cos=1.0)
        for given, own in ((teachers, rows), (None, joined))
    )
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=1e-4)


def test_rows_by_hand():
    rows, teachers = make_dataset("token_classification"), make_teachers("token_classification", 3)
    parts = [add_teacher_targets(rows, teacher, TOKENIZER) for teacher in teachers]
    joined = join_teacher_targets(parts)
    step_by_step = join_teacher_targets([join_teacher_targets(parts[:2]), parts[2]])
    assert joined.column_names == [*rows.column_names, "teacher_logits", "teacher_source"]
    assert isinstance(source_of(joined), JoinedSource)
    assert source_of(joined).sources == tuple(map(source_of, parts))
    assert source_of(step_by_step) == source_of(joined)
    assert joined[:] == step_by_step[:]
    for row, *own in zip(joined, *parts, strict=True):
        of_tokens = np.reshape(row["teacher_logits"], (len(row["input_ids"]), 3, 5))
        for index, part in enumerate(own):
            assert of_tokens[:, index].ravel().tolist() == part["teacher_logits"]


def test_targets_stay_with_their_rows(tmp_path):
    joined = stored(
        make_dataset("classification").add_column("number", list(range(16))), make_teachers("classification")
    )
    logits = joined["teacher_logits"][:]
    changed = joined.shuffle(seed=1).filter(lambda row: row["number"] % 3)
    changed.save_to_disk(tmp_path / "saved")
    changed.to_parquet(tmp_path / "saved.parquet")
    for loaded in (changed, load_from_disk(tmp_path / "saved"), Dataset.from_parquet(str(tmp_path / "saved.parquet"))):
        assert all(row["teacher_logits"] == logits[row["number"]] for row in loaded)
        assert source_of(loaded) == source_of(joined)


def test_a_repeated_call_reads_what_is_there(tmp_path):
    """For rows that are files; the fingerprint is the same, so later steps find their cache too."""
    make_dataset("classification").save_to_disk(tmp_path / "rows")
    teachers = make_teachers("classification")
    first, second = (stored(load_from_disk(tmp_path / "rows"), teachers) for _ in range(2))
    assert first._fingerprint == second._fingerprint


def test_splits_and_formats(make_trainer):
    rows, teachers = make_dataset("classification").remove_columns("votes"), make_teachers("classification")
    splits = DatasetDict(train=rows.with_format("torch"), test=rows.select(range(5)))
    parts = [add_teacher_targets(splits, teacher, TOKENIZER) for teacher in teachers]
    joined = join_teacher_targets(parts)
    assert {name: len(own) for name, own in joined.items()} == {"train": 16, "test": 5}
    assert isinstance(joined["train"][0]["teacher_logits"], torch.Tensor)
    expected = weights(train(make_trainer, "classification", teachers, rows))

    ours = train(
        make_trainer, "classification", None, joined["train"], data_collator=DataCollatorWithPadding(TOKENIZER)
    )
    torch.testing.assert_close(weights(ours), expected, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="different splits"):
        join_teacher_targets([parts[0], DatasetDict(train=parts[1]["train"])])


def test_teachers_with_tokenizers_of_their_own(make_trainer):
    """One reads the text with another tokenizer, one the student's tokens. Labels are in another order."""
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    reverse = {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}
    other_tokenizer = make_text_tokenizer()
    other_tokenizer.add_tokens(["another"])
    one, other = make_model("bert", "classification", **names), make_model("bert", "classification", seed=1, **reverse)
    other.resize_token_embeddings(62)
    texts = make_texts(16)
    rows = Dataset.from_dict({"text": texts, "labels": [0, 1] * 8})
    with_other = add_teacher_targets(rows, other, other_tokenizer, text_columns="text")
    rows = rows.map(lambda batch: TOKENIZER(batch["text"]), batched=True)
    with_one = add_teacher_targets(rows, one, TOKENIZER)
    joined = join_teacher_targets([with_one, with_other])
    trainer = make_trainer(
        make_small("classification", **names), None, joined, joined, alpha_cos=0.0, temperature=1.0, alpha_task=0.0
    )
    seen = trainer.evaluate()["eval_loss_kl"]
    with torch.no_grad():
        batch = TOKENIZER(texts, padding=True, return_tensors="pt")
        log_student, of_one, of_other = (
            model(**batch).logits.double().log_softmax(-1) for model in (trainer.model, one, other)
        )
    mean = (of_one.exp() + of_other.exp().flip(1)) / 2
    assert seen == pytest.approx((mean * (mean.log() - log_student)).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_a_temperature_that_changes(make_trainer, mean):
    """The mean is computed at the temperature of the step, and the live teachers teach the same."""
    rows, teachers = make_dataset("classification").remove_columns("votes"), make_teachers("classification")
    joined = stored(rows, teachers)
    options = {"teacher_mean": mean, "temperature": "linear:4->1"}
    live, ours = (
        train(make_trainer, "classification", given, own, **options)
        for given, own in ((teachers, rows), (None, joined))
    )
    torch.testing.assert_close(weights(ours), weights(live), rtol=0, atol=2e-6)
    of_end = train(make_trainer, "classification", None, joined, teacher_mean=mean, temperature=1.0, learning_rate=0.0)
    of_end.model.load_state_dict(ours.model.state_dict())
    assert ours.evaluate()["eval_loss_kl"] == pytest.approx(of_end.evaluate()["eval_loss_kl"], rel=1e-6)


def test_imported_targets_of_one_teacher(make_trainer):
    """The probabilities that people gave, in another order of labels, next to those of a model."""
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    rows, teacher = make_dataset("classification"), make_model("bert", "classification", **names)
    yes = [0.1 + 0.2 * (index % 5) for index in range(16)]
    of_people = import_teacher_targets(
        rows, [[p, 1 - p] for p in yes], format="probabilities", labels=["yes", "no"], teacher="people"
    )
    joined = join_teacher_targets([add_teacher_targets(rows, teacher, TOKENIZER), of_people])
    options = {"alpha_cos": 0.0, "temperature": 1.0, "teacher_weights": [1, 3]}
    trainer = make_trainer(make_small("classification", **names), None, joined, joined, **options)
    batch = collate([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows])
    with torch.no_grad():
        log_student, of_model = (model(**batch).logits.double().log_softmax(-1) for model in (trainer.model, teacher))
    mean = of_model.exp() / 4 + 0.75 * torch.tensor([[1 - p, p] for p in yes], dtype=torch.double)
    by_hand = (mean * (mean.log() - log_student)).sum(-1).mean().item()
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(by_hand, rel=1e-5)


def test_a_resumed_training(make_trainer, tmp_path):
    rows, teachers = make_dataset("classification"), make_teachers("classification")
    joined = stored(rows, teachers)
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "teacher_weights_column": "votes",
        "dataloader_num_workers": 1,
    }
    whole = train(make_trainer, "classification", None, joined, **options)
    checkpoint = Path(whole.args.output_dir) / "checkpoint-2"
    resumed = make_trainer(
        make_small("classification"),
        None,
        joined,
        **{**options, "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "sgd"},
        alpha_cos=0.0,
    )
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(whole), weights(resumed))
    state = json.loads((checkpoint / "distillation_state.json").read_text())
    assert len(state["teacher_fingerprint"]) == 2


def test_the_card_names_all_teachers(make_trainer, tmp_path):
    teachers = make_teachers("classification")
    for index, teacher in enumerate(teachers):
        teacher.config._name_or_path = teacher.name_or_path = f"someone/teacher-{index}"
    trainer = train(make_trainer, "classification", None, stored(make_dataset("classification"), teachers))
    trainer.save_model()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "trained by knowledge distillation from `someone/teacher-0` and `someone/teacher-1`." in card


def test_other_targets_are_refused(make_trainer):
    rows, teachers = make_dataset("classification").remove_columns("votes"), make_teachers("classification", 3)
    both, others = stored(rows, teachers[:2]), stored(rows, teachers[1:])
    one = add_teacher_targets(rows, teachers[0], TOKENIZER)
    options = {"alpha_cos": 0.0}
    with pytest.raises(ValueError, match="eval_dataset has targets of the teacher"):
        make_trainer(make_small("classification"), None, both, others, **options)
    trainer = make_trainer(make_small("classification"), None, both, **options)
    with pytest.raises(ValueError, match="The dataset has targets of the teacher"):
        trainer.evaluate(one)
    with pytest.raises(ValueError, match="There are two teachers, '' and the columns teacher_logits of"):
        make_trainer(make_small("classification"), teachers[0], both, **options)
    with pytest.raises(ValueError, match="There are several teachers, '', '' and the columns teacher_logits of"):
        make_trainer(make_small("classification"), teachers[:2], both, **options)
    with pytest.raises(ValueError, match="would have no effect with a single teacher"):
        make_trainer(make_small("classification"), None, one, teacher_weights=[1.0], **options)
    with pytest.raises(ValueError, match="3 weights for 2 teachers"):
        make_trainer(make_small("classification"), None, both, teacher_weights=[1.0, 1.0, 1.0], **options)
    with pytest.raises(ValueError, match=r"The loss 'cos' needs the teacher's hidden states, which are not"):
        make_trainer(make_small("classification"), None, both)


def test_what_cannot_be_joined():
    rows, teachers = make_dataset("classification"), make_teachers("classification")
    one, other = (add_teacher_targets(rows, teacher, TOKENIZER) for teacher in teachers)
    causal = make_dataset("causal")
    tokens = [add_teacher_targets(causal, teacher, TOKENIZER, min_mass=0.0) for teacher in make_teachers("causal")]
    three = add_teacher_targets(rows, make_model("bert", "classification", num_labels=3), TOKENIZER)
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    named = add_teacher_targets(rows, make_model("bert", "classification", seed=4, **labels), TOKENIZER)
    labels = {"id2label": {0: "a", 1: "c"}, "label2id": {"a": 0, "c": 1}}
    differently = add_teacher_targets(rows, make_model("bert", "classification", seed=5, **labels), TOKENIZER)
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.add_tokens(["another"])
    retokenised = add_teacher_targets(rows, make_model("bert", "classification", seed=6), tokenizer)
    targets = [name for name in other.column_names if name.startswith("teacher_")]
    for given, message in [
        ([one], "only one dataset"),
        ([one, rows], r"datasets\[1\] has no targets: call add_teacher_targets"),
        ([one, one], r"datasets\[0\] and datasets\[1\] have targets of the same teacher"),
        ([one, other.select(range(8))], "has 16 rows and .* 8: give the same rows"),
        ([one, other.shuffle(seed=0)], "Rows 0 to 16 of .* differ in the column input_ids"),
        ([one, other.select_columns(targets)], "have no column in common"),
        (tokens, r"datasets\[0\] has the 29 most likely tokens .*teacher_model=\[...\]"),
        ([one, three], r"num_labels=2 .* and datasets\[1\] of a .* num_labels=3"),
        ([named, differently], r"datasets\[0\] has the labels \['a', 'b'\] and datasets\[1\] \['a', 'c'\]"),
        ([one, retokenised], "different tokenizers, which read the same"),
    ]:
        with pytest.raises(ValueError, match=message):
            join_teacher_targets(given)
    for given in (one, [], [one, 7], [rows.to_iterable_dataset()] * 2):
        with pytest.raises(TypeError, match="datasets should be a list of Dataset"):
            join_teacher_targets(given)


def test_rows_with_unknown_numbers(make_trainer):
    """A label that is NaN equals itself."""
    rows = make_dataset("regression")
    rows = rows.remove_columns("labels").add_column("labels", [float("nan"), *range(15)])
    assert len(stored(rows, make_teachers("regression"))) == 16
