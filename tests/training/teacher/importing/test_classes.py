"""Class probabilities, logits, votes and numbers of another program become logits."""

import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from transformers import DataCollatorWithPadding, pipeline

from hf_distill import add_teacher_targets, import_teacher_targets
from hf_distill.training.teacher.columns import source_of
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.training.teacher.test_targets import losses, train, weights

TOKENIZER = make_text_tokenizer()
LABELS = ["bad", "fair", "good"]
PROBABILITIES = [[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]


def texts(num_rows=2, **columns):
    return Dataset.from_dict({"text": [f"text {index}" for index in range(num_rows)], **columns})


def imported(entries, format="probabilities", **options):
    options = {"labels": None if format == "regression" else LABELS} | options
    rows = import_teacher_targets(texts(len(entries)), entries, format=format, teacher="a program", **options)
    return np.array(rows["teacher_logits"][:])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


SHAPES = {
    "list": list,
    "dict": lambda row: dict(zip(LABELS, row, strict=True)),
    "pipeline": lambda row: sorted(
        ({"label": label, "score": score} for label, score in zip(LABELS, row, strict=True)),
        key=lambda own: -own["score"],
    ),
    "zero-shot": lambda row: {"sequence": "a text", "labels": LABELS[::-1], "scores": row[::-1]},
    "array": np.array,
    "numbers of numpy": lambda row: {label: np.float32(p) for label, p in zip(LABELS, row, strict=True)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_in_every_shape(shape):
    logits = imported([SHAPES[shape](row) for row in PROBABILITIES])
    assert logits == pytest.approx(np.log(PROBABILITIES), rel=1e-6)
    assert softmax(logits) == pytest.approx(np.array(PROBABILITIES), rel=1e-6)


@pytest.mark.parametrize("shape", ["list", "dict", "pipeline", "zero-shot"])
def test_the_same_from_a_column(shape):
    """Arrow gives structs of the same keys, or lists of structs."""
    rows = texts(2, answer=[SHAPES[shape](row) for row in PROBABILITIES])
    rows = import_teacher_targets(rows, column="answer", format="probabilities", teacher="a program", labels=LABELS)
    assert rows.column_names == ["text", "answer", "teacher_logits", "teacher_source"]
    assert np.array(rows["teacher_logits"][:]) == pytest.approx(np.log(PROBABILITIES), rel=1e-6)


def test_probabilities_that_a_program_rounded():
    """Their sum is 1 only nearly. The softmax of the logits sums to 1."""
    logits = imported([[0.3333, 0.3333, 0.3333]])
    assert softmax(logits) == pytest.approx(np.full((1, 3), 1 / 3), rel=1e-6)


def test_logits_stay_as_they_are():
    assert imported([[-1.5, 0.0, 20.0], [3, -4, 5]], "logits").tolist() == [[-1.5, 0.0, 20.0], [3.0, -4.0, 5.0]]


@pytest.mark.parametrize(
    "votes",
    [[2, 0, 1], {"bad": 2, "fair": 0, "good": 1}, ["bad", "good", "bad"], {"good": 1.0, "fair": 0.0, "bad": 2.0}],
)
def test_votes(votes):
    """Laplace's rule: (votes + 1) / (all votes + classes)."""
    assert softmax(imported([votes], "votes", smoothing=1.0)) == pytest.approx(np.array([[3, 1, 2]]) / 6, rel=1e-6)


def test_votes_for_every_class_need_no_smoothing():
    assert softmax(imported([[2, 1, 1]], "votes")) == pytest.approx(np.array([[0.5, 0.25, 0.25]]), rel=1e-6)


def test_smoothed_probabilities():
    logits = imported([[0.9, 0.1, 0.0]], smoothing=0.05)
    assert softmax(logits) == pytest.approx(np.array([[0.95, 0.15, 0.05]]) / 1.15, rel=1e-6)


def test_several_labels():
    given = np.array([[0.9, 0.2, 0.5]])
    logits = imported(given.tolist(), "multi_label_probabilities")
    assert logits == pytest.approx(np.log(given / (1 - given)), rel=1e-6)
    assert imported([[0.0, 1.0, 0.5]], "multi_label_probabilities", smoothing=0.1) == pytest.approx(
        np.array([[math.log(0.1 / 1.1), math.log(1.1 / 0.1), 0.0]]), rel=1e-6
    )
    assert imported([[-9.0, 0.0, 9.0]], "multi_label_logits").tolist() == [[-9.0, 0.0, 9.0]]


def test_numbers():
    assert imported([3.5, -1], "regression").tolist() == [[3.5], [-1.0]]
    assert imported([[1.0, 2.0]], "regression", labels=["x", "y"]).tolist() == [[1.0, 2.0]]


def classifier(num_labels=3, **options):
    names = dict(enumerate(LABELS[:num_labels]))
    return make_model(
        "bert", "classification", id2label=names, label2id={name: index for index, name in names.items()}, **options
    )


SOURCES = {
    "single_label_classification": ("softmax", "probabilities"),
    "multi_label_classification": ("sigmoid", "multi_label_probabilities"),
    "regression": ("none", "regression"),
}


@pytest.mark.parametrize(
    ("problem_type", "temperature"), [*((own, t) for own in list(SOURCES)[:2] for t in (1.0, 2.0)), ("regression", 2.0)]
)
def test_a_pipeline_teaches_what_its_model_teaches(make_trainer, problem_type, temperature):
    """Real output of `transformers.pipeline`, against the same model as a live teacher."""
    num_labels = 1 if problem_type == "regression" else 3
    teacher, student = (classifier(num_labels, problem_type=problem_type, seed=seed, num_layers=2) for seed in (0, 3))
    text = make_texts(12)
    labels = {
        "single_label_classification": [index % 3 for index in range(12)],
        "multi_label_classification": [[0.0, 1.0, float(index % 2)] for index in range(12)],
        "regression": [index / 3 for index in range(12)],
    }[problem_type]
    rows = Dataset.from_dict({"text": text, "labels": labels})
    tokenised = rows.map(lambda row: TOKENIZER(row["text"]), remove_columns="text")
    function, format = SOURCES[problem_type]
    pipe = pipeline("text-classification", model=teacher, tokenizer=TOKENIZER, device="cpu")
    answers = pipe(text, top_k=None, function_to_apply=function, batch_size=4)
    ours = import_teacher_targets(
        tokenised, answers, format=format, teacher="a pipeline", labels=LABELS[:num_labels][::-1]
    )
    stored = add_teacher_targets(tokenised, teacher, TOKENIZER)
    options = {"alpha_cos": 0.0, "temperature": temperature, "data_collator": DataCollatorWithPadding(TOKENIZER)}
    live, of_stored, of_pipeline = (
        train(make_trainer, student, given, data, eval_rows=data, **options)
        for given, data in ((teacher, tokenised), (None, stored), (None, ours))
    )
    assert losses(of_pipeline) == pytest.approx(losses(live), rel=1e-5, abs=1e-6)
    assert losses(of_pipeline) == pytest.approx(losses(of_stored), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(weights(of_pipeline), weights(live), rtol=0, atol=5e-6)
    assert of_pipeline.evaluate()["eval_loss_kl"] == pytest.approx(live.evaluate()["eval_loss_kl"], rel=1e-4, abs=1e-6)


def test_soft_targets_at_a_temperature(make_trainer):
    """Probabilities that were softened already are imported as `T * log(p)`."""
    teacher, student = (classifier(seed=seed, num_layers=2) for seed in (0, 3))
    text = make_texts(6)
    rows = Dataset.from_dict({"text": text, "labels": [0, 1, 2] * 2})
    rows = rows.map(lambda row: TOKENIZER(row["text"]), remove_columns="text")
    with torch.no_grad():
        logits = torch.cat([teacher(**TOKENIZER(one, return_tensors="pt")).logits for one in text])
    soft = (logits / 4).softmax(-1)
    ours = import_teacher_targets(rows, 4 * soft.log(), format="logits", teacher="x", labels=LABELS)
    options = {"alpha_cos": 0.0, "temperature": 4.0, "data_collator": DataCollatorWithPadding(TOKENIZER)}
    evaluated = [
        make_trainer(student, given, data, data, **options).evaluate()["eval_loss_kl"]
        for given, data in ((teacher, rows), (None, ours))
    ]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-5)


def test_votes_teach_the_loss_by_hand(make_trainer):
    """The teacher's classes have another order than the student's."""
    student = classifier(num_layers=2)
    text = make_texts(4)
    votes = [[3, 0, 1], [0, 0, 5], [1, 1, 1], [2, 4, 0]]
    rows = Dataset.from_dict({"text": text, "labels": [0, 2, 1, 1]})
    rows = rows.map(lambda row: TOKENIZER(row["text"]), remove_columns="text")
    rows = import_teacher_targets(
        rows, votes, format="votes", teacher="five readers", labels=["good", "bad", "fair"], smoothing=0.5
    )
    options = {"alpha_cos": 0.0, "temperature": 3.0, "data_collator": DataCollatorWithPadding(TOKENIZER)}
    evaluated = make_trainer(student, None, rows, rows, **options).evaluate()
    smoothed = np.array(votes)[:, [1, 2, 0]] + 0.5
    p = (smoothed / smoothed.sum(1, keepdims=True)) ** (1 / 3)  # softening a probability
    p = p / p.sum(1, keepdims=True)
    with torch.no_grad():
        logits = torch.cat([student(**TOKENIZER(one, return_tensors="pt")).logits for one in text]).double().numpy()
    q = softmax(logits / 3)
    assert evaluated["eval_loss_kl"] == pytest.approx(9 * (p * np.log(p / q)).sum() / 4, rel=1e-5)


def test_names_of_the_classes_from_the_dataset():
    rows = texts(2, label=[0, 1]).cast_column("label", ClassLabel(names=["bad", "good"]))
    ours = import_teacher_targets(rows, [{"good": 0.1, "bad": 0.9}] * 2, format="probabilities", teacher="x")
    assert source_of(ours).head_spec.labels == ["bad", "good"]
    assert ours["teacher_logits"][0] == pytest.approx([math.log(0.9), math.log(0.1)])
    with pytest.raises(ValueError, match=r"labels is \['neg', 'pos'\], but the dataset's ClassLabel column has \['bad"):
        import_teacher_targets(rows, [[0, 1]] * 2, format="logits", teacher="x", labels=["neg", "pos"])


Score = namedtuple("Score", "label score")
FINE = [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("format", "entry", "message"),
    [
        ("probabilities", [0.5, 0.5], r"Row 1 has 2 values for 3 classes, \['bad', 'fair', 'good'\]"),
        ("probabilities", {"bad": 0.5, "good": 0.5}, "Row 1 has no class 'fair', only 'bad', 'good'.*top_k=None"),
        ("probabilities", {"bad": 0.5, "fair": None, "good": 0.5}, "Row 1 has no class 'fair'"),
        ("probabilities", [{"label": "bad", "score": 0.9}], "Row 1 has no class 'fair'"),
        ("probabilities", {"labels": LABELS, "scores": [0.5, 0.5]}, "Row 1 has 3 labels and 2 scores"),
        (
            "probabilities",
            {**dict.fromkeys(LABELS, 0.25), "bed": 0.25},
            r"Row 1 has a class 'bed', but labels is \['bad",
        ),
        ("probabilities", [{"label": "bad", "score": 0.9}] * 2, "Row 1 has the class 'bad' twice"),
        ("probabilities", [0.6, 0.6, 0.1], r"Row 1 has probabilities that sum to 1.3, not to 1.*'votes'"),
        ("probabilities", [1.1, -0.1, 0.0], "Row 1 has negative probabilities"),
        ("probabilities", [1.0, 0.0, 0.0], "Row 1 has probability 0 for 'fair'.*smoothing=1e-6"),
        ("probabilities", [math.nan, 0.5, 0.5], "Row 1 has values that are not finite"),
        ("logits", [math.inf, 0.5, 0.5], "Row 1 has values that are not finite"),
        (
            "probabilities",
            {"bad": "0.5", "fair": 0.25, "good": 0.25},
            "Row 1 has '0.5' for 'bad', which is not a number",
        ),
        ("probabilities", "positive", "Row 1 is 'positive', which is none of the shapes that format='probabilities'"),
        ("probabilities", None, "Row 1 is None, which is none of the shapes"),
        ("probabilities", [], r"Row 1 is \[\], which is none of the shapes"),
        ("probabilities", ["bad", "good"], r"Row 1 is \['bad', 'good'\], which is none"),
        ("probabilities", [True, False, False], "Row 1 is .True, False, False., which is none"),
        ("probabilities", [Score("bad", 0.1)], "Row 1 is .Score.*which is none"),
        ("votes", ["bad", "ugly"], "Row 1 has a vote for 'ugly', but labels is"),
        ("votes", ["bad", "good"], "Row 1 has no votes for 'fair'.*smoothing=1.0"),
        ("votes", [1, -1, 2], "Row 1 has negative votes"),
        ("multi_label_probabilities", [0.5, 1.0, 0.5], "Row 1 has a probability of exactly 0 or 1 for 'fair'"),
        ("multi_label_probabilities", [0.5, 1.5, 0.5], "Row 1 has probabilities above 1"),
        ("multi_label_probabilities", [0.5, -0.5, 0.5], "Row 1 has negative multi label probabilities"),
        ("regression", [1.0, 2.0], "Row 1 has 2 values for 3 classes"),
    ],
)
def test_entries_that_do_not_fit(format, entry, message, cache):
    fine = {"votes": [1, 1, 1]}.get(format, FINE)
    with pytest.raises(ValueError, match=message):
        imported([fine, entry], format, labels=LABELS)
    assert not list(cache.iterdir())
