"""Several teachers: what does not fit is an error, most of it before the first step."""

import pytest
from datasets import Dataset

from hf_distill import make_student
from tests.conftest import collate, make_model, make_rows
from tests.training.teacher.test_ensemble import make_small, make_teachers, with_weights


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (lambda a, b: [], {}, "teacher_model is empty"),
        (lambda a, b: [a, a], {}, r"teacher_model\[0\] and teacher_model\[1\] are the same teacher"),
        (lambda a, b: {"x": "folder", "y": "folder"}, {}, r"teacher_model\['x'\] and .* are the same teacher"),
        (lambda a, b: [a, b], {"teacher_weights": [1, 2, 3]}, "3 weights for 2 teachers"),
        (
            lambda a, b: [a, b],
            {"teacher_weights_column": "votes"},
            "train_dataset has no column teacher_weights_column",
        ),
        (lambda a, b: [a, b], {"teacher_weights_column": "labels"}, "is an input, a label or a target"),
        (lambda a, b: [a, b], {"teacher_weights_column": "token_type_ids"}, "is an input, a label or a target"),
        (lambda a, b: [a, b], {"teacher_model_name_or_path": "c"}, "two teachers, teacher_model and"),
        (lambda a, b: [a, b], {"alpha_kl": 0}, r"only the first would be read, because cos .*alpha_kl above 0"),
        (lambda a, b: [a, b], {"teacher_device_map": "auto"}, r"teacher_model\[0\]: .*no effect on a loaded model"),
        (lambda a, b: a, {"teacher_weights": [1]}, "would have no effect with a single teacher"),
        (lambda a, b: [a], {"teacher_mean": "logits"}, "would have no effect with a single teacher"),
        (lambda a, b: a, {"teacher_weights_column": "votes"}, "would have no effect with a single teacher"),
        (
            lambda a, b: [a, make_student(b), a.bert],
            {},
            r"teacher_model\[2\]: The student is a .*teacher a BertModel, which have",
        ),
        (
            lambda a, b: {"small": a, "big": make_model("bert", "classification", num_labels=3)},
            {},
            r"teacher_model\['big'\]: The student's labels are",
        ),
        (lambda a, b: [a, make_model("bert", "mlm")], {}, r"teacher_model\[1\]: The student is a .*different kinds of"),
        (lambda a, b: [a, b], {"alpha_kl": 0, "alpha_cos": 0}, "teacher_model would have no effect"),
    ],
)
def test_teachers_that_do_not_fit(make_trainer, given, options, message):
    rows = Dataset.from_list(make_rows("classification"))
    with pytest.raises(ValueError, match=message):
        make_trainer(make_small("classification"), given(*make_teachers("classification")), rows, **options)


@pytest.mark.parametrize("given", [lambda a: [a, 7], lambda a: {"x": a, "y": None}, lambda a: {1: a}])
def test_not_a_teacher(make_trainer, given):
    with pytest.raises(TypeError, match=r"teacher_model(\[1\]|\['y'\]): teacher_model should be|has the name 1"):
        make_trainer(make_small("mlm"), given(make_teachers("mlm", 1)[0]))


def test_teachers_that_disagree_in_labels(make_trainer):
    def named(*labels, **options):
        return make_model("bert", "classification", id2label=dict(enumerate(labels)), label2id={}, **options)

    with pytest.raises(ValueError, match=r"teacher_model\['b'\] \['spam', 'eggs'\], but all teachers must have"):
        make_trainer(make_small("classification"), {"a": named("no", "yes"), "b": named("spam", "eggs", seed=1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weights": [1, -1]}, r"teacher_weights=\[1, -1\] should be a list of numbers above 0"),
        ({"teacher_weights": [1, 0]}, "should be a list of numbers above 0"),
        ({"teacher_weights": [1, float("nan")]}, "should be a list of numbers above 0"),
        ({"teacher_weights": "votes"}, "should be a list of numbers above 0"),
        ({"teacher_weights": [1, 1], "teacher_weights_column": "votes"}, "are both set: choose one"),
        ({"teacher_mean": "median"}, "teacher_mean='median' should be one of 'probabilities', 'logits'"),
        ({"teacher_model_name_or_path": ["a", "b"]}, "should be one name or folder: pass several teachers to"),
        ({"teacher_weights": [1, 1], "alpha_kl": 0, "alpha_cos": 0}, "would have no effect with"),
    ],
)
def test_arguments_that_do_not_fit(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_small("classification"), None, make_rows("classification"), **options)


@pytest.mark.parametrize("bad", [[1.0], [0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [1.0, 1.0, 1.0], None])
@pytest.mark.parametrize("as_dataset", [True, False])
def test_weights_of_a_row_that_do_not_fit(make_trainer, bad, as_dataset):
    """A dataset is checked at once, rows that only a collator sees in their batch."""
    rows = with_weights(make_rows("classification"))
    rows[7]["votes"] = bad
    rows = Dataset.from_list(rows) if as_dataset else rows
    options = {"teacher_weights_column": "votes", "max_steps": 1}
    with pytest.raises(ValueError, match=r"A row has the weights .* for 2 teachers: give each row a list of 2 numbers"):
        make_trainer(make_small("classification"), make_teachers("classification"), rows, **options).train()


def test_evaluation_without_weights(make_trainer):
    """Predictions and metrics of rows without weights need no teacher; training rows need weights."""
    rows = make_rows("classification")
    weighted = with_weights(rows)

    def accuracy(evaluated):
        return {"accuracy": (evaluated.predictions.argmax(-1) == evaluated.label_ids).mean()}

    options = {"teacher_weights_column": "votes", "trainer_options": {"compute_metrics": accuracy}, "max_steps": 1}
    trainer = make_trainer(make_small("classification"), make_teachers("classification"), weighted, **options)
    evaluated = trainer.evaluate(rows)
    assert "eval_loss" not in evaluated
    assert evaluated["eval_accuracy"] == trainer.evaluate(weighted)["eval_accuracy"]
    trainer.train_dataset = rows
    with pytest.raises(ValueError, match="The batch has no teacher_weights_column='votes', only"):
        trainer.train()


def test_a_collator_that_packs_rows(make_trainer):
    rows = with_weights(make_rows("classification"))
    options = {"teacher_weights_column": "votes", "max_steps": 1, "data_collator": lambda rows: collate(rows[:3])}
    with pytest.raises(ValueError, match=r"makes 3 examples from 16 rows.*one example per row"):
        make_trainer(make_small("classification"), make_teachers("classification"), rows, **options).train()
