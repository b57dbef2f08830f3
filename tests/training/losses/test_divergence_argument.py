"""`divergence=...` in a training: its items, its checks, and what logs, cards and checkpoints say."""

from pathlib import Path

import datasets
import pytest
import torch
from transformers import HfArgumentParser

from hf_distill import DistillationTrainingArguments, add_teacher_targets, check_split_invariance
from hf_distill.training.checkpoints import folders
from hf_distill.training.losses import DIVERGENCES, LOSSES, DivergenceLoss
from tests.conftest import FAMILY_OF_HEAD, collate, make_model, make_rows
from tests.training.losses.test_losses import make_setup
from tests.training.teacher.test_targets import ALL, TOKENIZER
from tests.training.test_split_invariance import make_sparse_rows

ALONE = {"alpha_task": 0.0, "alpha_cos": 0.0}


def make_pair(head, **overrides):
    family = FAMILY_OF_HEAD.get(head, "bert")
    return make_model(family, head, **overrides), make_model(family, head, seed=1, num_layers=2, **overrides)


@pytest.mark.parametrize(
    ("loss", "head"),
    [
        *((DivergenceLoss(name), "token_classification") for name in DIVERGENCES),
        (DivergenceLoss("dkd"), "mlm"),
        (DivergenceLoss("tvd"), "question_answering"),
        (DivergenceLoss("mse"), "question_answering"),
        (DivergenceLoss("dist"), "question_answering"),
        (DivergenceLoss(standardize_logits=True), "question_answering"),
        (DivergenceLoss(standardize_logits=True), "mlm"),
        (DivergenceLoss("jsd", distribution="binary"), "multi_label"),
    ],
    ids=lambda value: value.divergence if isinstance(value, DivergenceLoss) else value,
)
def test_does_not_depend_on_how_a_step_is_split(loss, head):
    """Nor on padding: question answering has one class per token, and its rows have different lengths."""
    teacher, student = make_pair(head)
    rows = [*make_sparse_rows(head)[:4], *make_rows(head)[8:12]]
    if head == "question_answering":
        rows = [row for row in make_rows(head) if len(row["input_ids"]) > 3][:8]
    check_split_invariance(loss, model=student, teacher_model=teacher, train_dataset=rows, data_collator=collate)


def test_dkd_has_the_labelled_positions_as_items(make_trainer):
    teacher, student = make_pair("token_classification")
    rows = make_sparse_rows("token_classification")
    options = {"divergence": "dkd", "dkd_alpha": 2.0, "dkd_beta": 0.5, "temperature": 3.0, **ALONE}
    trainer = make_trainer(student, teacher, rows, rows, max_steps=1, per_device_train_batch_size=4, **options)
    batch = collate(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labelled = batch["labels"] != -100
    with torch.no_grad():
        p, q = ((model.eval()(**inputs).logits[labelled].double() / 3).softmax(-1) for model in (teacher, student))
    labels = batch["labels"][labelled].unsqueeze(1)
    (p_target, q_target), (p_rest, q_rest) = (
        (v.gather(1, labels) for v in (p, q)),
        (1 - v.gather(1, labels) for v in (p, q)),
    )
    of_target = p_target * (p_target / q_target).log() + p_rest * (p_rest / q_rest).log()
    of_others = (p / p_rest * ((p / p_rest) / (q / q_rest)).log()).scatter(1, labels, 0.0).sum(1)
    expected = 9 * (2 * of_target.mean() + 0.5 * of_others.mean())
    assert 0 < labelled.sum() < batch["attention_mask"].sum()
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(expected.item(), rel=1e-5)
    trainer.train()


def test_dkd_without_labels(make_trainer):
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in make_rows("token_classification")]
    trainer = make_trainer(*make_pair("token_classification")[::-1], rows, divergence="dkd", **ALONE)
    message = r"have no labels.*needed by divergence='dkd': add labels, or choose another divergence to learn"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.args.reads_labels
    assert not DistillationTrainingArguments("out", divergence="jsd", **ALONE).reads_labels


@pytest.mark.parametrize("name", [name for name, row in DIVERGENCES.items() if "top k" in row.functions])
def test_of_stored_tokens_is_that_of_a_live_teacher(make_trainer, tmp_path, monkeypatch, name):
    """Every token is stored, so both are equal to the stored precision."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    teacher, student = make_pair("causal")
    rows = datasets.Dataset.from_list(make_rows("causal"))
    stored = add_teacher_targets(rows, teacher, TOKENIZER, **ALL)
    live, ours = (
        make_trainer(student, given, eval_rows=dataset, divergence=name, **ALONE).evaluate()["eval_loss_kl"]
        for given, dataset in ((teacher, rows), (None, stored))
    )
    assert live > 1e-3
    assert ours == pytest.approx(live, rel=2e-4)  # log-probabilities are stored in half precision


def test_card_log_and_checkpoint(make_trainer, monkeypatch):
    teacher, student = make_pair("token_classification")
    rows = make_rows("token_classification")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "alpha_cos": 0.0, "standardize_logits": True}
    trainer = make_trainer(student, teacher, rows, divergence="jsd", divergence_beta=0.25, **options)
    trainer.train()
    trainer.save_model()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert "- `L_kl`: the generalised Jensen-Shannon divergence between the softened outputs of teacher and" in card
    assert "with standardised logits" in card
    assert "| divergence | jsd |\n| divergence beta | 0.25 |\n| standardize logits | True |" in card
    assert "@article{agarwal2023gkd" in card
    assert "@article{sun2024logit" in card
    assert "hinton2015" not in card
    seen = []
    monkeypatch.setattr(folders.logger, "warning", seen.append)
    other = make_trainer(student, teacher, rows, divergence="skew_kl", **options)
    other.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
    assert "kl_divergence was 'jsd' and is 'skew_kl'" in " ".join(seen)
    assert "kl_divergence_beta was 0.25 and is None" in " ".join(seen)


def test_state():
    """The default has the state of a checkpoint from before there were other divergences."""
    loss = LOSSES["kl"]
    assert loss.from_setup(make_setup()).state() == {"temperature": 2.0}
    assert DivergenceLoss("mse").state() == {"divergence": "mse"}
    assert DivergenceLoss("mse", distribution="real").state() == {}
    expected = {"temperature": 2.0, "divergence": "skew_kl", "divergence_skew": 0.3}
    assert loss.from_setup(make_setup(divergence="skew_kl", divergence_skew=0.3)).state() == expected


def test_on_the_command_line():
    options = "--output_dir=out --divergence=jsd --divergence_beta=0.9 --standardize_logits"
    (arguments,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(options.split(" "))
    assert (arguments.divergence, arguments.divergence_beta, arguments.standardize_logits) == ("jsd", 0.9, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "kl"}, r"divergence='kl' should be one of 'forward_kl', 'reverse_kl', 'jsd'"),
        ({"divergence_beta": 0.3}, r"divergence_beta=0.3 would have no effect.*forward_kl'.*set divergence='jsd'"),
        ({"divergence": "jsd", "dkd_beta": 2.0}, r"dkd_beta=2.0 would have no effect with divergence='jsd'"),
        ({"divergence_skew": 0.3}, r"divergence_skew=0.3 would.*set divergence='skew_kl' or 'skew_reverse_kl'"),
        (
            {"divergence": "jsd", "divergence_beta": 1.0},
            r"divergence_beta=1.0 should be above 0 and below 1; .*'reverse",
        ),
        ({"divergence": "skew_kl", "divergence_skew": 0}, r"divergence_skew=0 should be above 0 and below 1; at 0 use"),
        ({"divergence": "jsd", "divergence_beta": "5e-1"}, r"divergence_beta='5e-1' should be a finite number \(YAML"),
        ({"divergence": "dkd", "dkd_alpha": -1.0}, r"dkd_alpha=-1.0 should be 0 or above"),
        ({"divergence": "dkd", "dkd_beta": float("nan")}, r"dkd_beta=nan should be a finite number"),
        ({"divergence": "dkd", "dkd_alpha": 0, "dkd_beta": 0}, r"leave nothing of the loss"),
        ({"divergence": "mse", "temperature": 4.0}, r"temperature=4.0 would have no effect with divergence='mse'"),
        ({"divergence": "tvd", "alpha_kl": 0.0}, r"divergence='tvd' would have no effect with alpha_kl=0.0"),
        ({"standardize_logits": True, "alpha_kl": 0.0}, r"standardize_logits=True would have no effect"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments("out", **options)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (
            "classification",
            {"divergence": "dkd"},
            r"'dkd' needs at least 3 classes, but the BertFor.* has 2: use one of",
        ),
        ("classification", {"divergence": "dist"}, r"'dist' needs at least 3 classes, but the BertFor.* has 2: use"),
        (
            "classification",
            {"standardize_logits": True},
            r"needs at least 3 classes, but the BertFor.* has 2: with two",
        ),
        (
            "multi_label",
            {"divergence": "dist"},
            r"'dist' is not defined for a BertFor.*'multi_label.*one of 'forward_kl'",
        ),
        (
            "multi_label",
            {"standardize_logits": True},
            r"only defined for softmax outputs, not for a BertFor.*multi_label",
        ),
        ("regression", {"divergence": "jsd"}, r"'jsd' is not defined for a BertFor.*use one of 'forward_kl', 'mse'\."),
        ("token_classification", {"divergence": "dkd", "kl_positions": "attended"}, r"no effect with divergence='dkd'"),
    ],
)
def test_not_defined_for_the_head(make_trainer, head, options, message):
    teacher, student = make_pair(head)
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teacher, make_rows(head), alpha_cos=0.0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"divergence": "mse"},
            r"'mse' compares every logit, but .*only the 8 most likely.*teacher_model, or use.*'tvd'\.",
        ),
        ({"divergence": "dkd"}, r"'dkd' compares every logit"),
        ({"standardize_logits": True}, r"needs all logits, but the dataset stores only the 8 most likely"),
    ],
)
def test_not_defined_for_the_most_likely_tokens(options, message):
    with pytest.raises(ValueError, match=message):
        LOSSES["kl"].from_setup(make_setup(top_k=8, **options))


def test_regression_is_unchanged(make_trainer):
    teacher, student = make_pair("regression")
    rows = make_rows("regression")
    evaluated = [
        make_trainer(student, teacher, eval_rows=rows, alpha_cos=0.0, **options).evaluate()["eval_loss_kl"]
        for options in ({}, {"divergence": "mse"})
    ]
    assert evaluated[0] == evaluated[1] > 0
