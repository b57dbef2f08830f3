"""`DistillationTrainer` as a drop-in replacement of `Trainer`: same weights, same evaluation, no more memory."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from tests.conftest import FAMILY_OF_HEAD, collate, make_model, make_rows


def stock_arguments(arguments):
    fields = {n for n, field in TrainingArguments.__dataclass_fields__.items() if field.init}
    return TrainingArguments(**{name: value for name, value in vars(arguments).items() if name in fields})


@pytest.mark.parametrize(
    ("head", "family", "options"),
    [
        *[("classification", family, {}) for family in ("bert", "roberta", "distilbert")],
        ("classification", "bert", {"label_smoothing_factor": 0.1}),
        ("classification", "bert", {"max_grad_norm": 1.0}),
        *[(head, "bert", {}) for head in ("multi_label", "regression", "token_classification", "question_answering")],
        *[(head, FAMILY_OF_HEAD.get(head, "bert"), {}) for head in ("multiple_choice", "mlm", "image")],
        *[("causal", family, {}) for family in ("gpt2", "llama")],
        *[("seq2seq", family, {}) for family in ("bart", "t5")],
    ],
    ids=str,
)
def test_drop_in_for_trainer(make_trainer, head, family, options):
    """Without a teacher, the student's weights equal those of `Trainer`, including dropout.

    The test uses one micro-batch per step on one process, where `Trainer` is right for nearly every head. In question
    answering its softmax includes padding, so all rows have the same length. For GPT-2, and in older versions for every
    causal model, it counts each row's first token, which nothing predicts; here that token has no label.
    """
    rows, weights = make_rows(head), []
    # Adam turns rounding errors into large steps if they are all of a parameter's gradient.
    steps = {"learning_rate": 1e-3} if head == "classification" else {"optim": "sgd", "learning_rate": 1e-2}
    if head in ("mlm", "causal", "token_classification"):
        rows = rows[8:]  # those with many labels: it gives NaN for a batch without any
    if head == "causal":
        rows = [{**row, "labels": [-100, *row["labels"][1:]]} for row in rows]
    if head == "seq2seq":
        rows = [row for row in rows if row["labels"]]
    if head == "question_answering":
        rows = [{name: value[:3] if isinstance(value, list) else value for name, value in row.items()} for row in rows]
        rows = [{**row, "start_positions": i % 3, "end_positions": 2} for i, row in enumerate(rows)]
    for kind in ("ours", "trainer"):
        model = make_model(family, head, dropout=0.1)
        trainer = make_trainer(
            model,
            None,
            rows,
            alpha_kl=0.0,
            alpha_cos=0.0,
            alpha_task=1.0,
            max_steps=8,
            per_device_train_batch_size=4,
            **steps,
            **options,
        )
        if kind == "trainer":
            trainer = Trainer(model, stock_arguments(trainer.args), collate, rows)
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    start = make_model(family, head, dropout=0.1)
    moved = (torch.cat([parameter.detach().flatten() for parameter in start.parameters()]) - weights[1]).norm()
    assert moved > 0.01
    assert (weights[0] - weights[1]).norm() <= 1e-5 * moved


def test_drop_in_for_trainers_evaluation(make_trainer, family, head):
    """Predictions, labels and metrics are those of `Trainer`, and nothing else is gathered."""
    rows, model = make_rows(head), make_model(family, head)
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        return {"mean": float(prediction.predictions.mean())}

    options = {"trainer_options": {"compute_metrics": compute_metrics}, "per_device_eval_batch_size": 4}
    make_trainer(make_student(model, num_layers=4), model, eval_rows=rows, **options).evaluate()
    arguments = TrainingArguments("out", use_cpu=True, report_to="none", per_device_eval_batch_size=4)
    Trainer(model, arguments, eval_dataset=rows, data_collator=collate, compute_metrics=compute_metrics).evaluate()
    ours, theirs = seen
    assert ours.predictions.shape == theirs.predictions.shape
    torch.testing.assert_close(torch.tensor(ours.predictions), torch.tensor(theirs.predictions))
    assert (ours.label_ids == theirs.label_ids).all()


def test_predict_without_labels(make_trainer, head):
    rows = make_rows(head)
    for row in rows:
        del row["labels"]
    teacher = make_model("bert", head)
    predicted = make_trainer(make_student(teacher), teacher).predict(rows)
    assert len(predicted.predictions) == 16
    assert "test_loss" not in predicted.metrics


def test_evaluation_gathers_logits_and_nothing_else(make_trainer, every_head, monkeypatch):
    """Evaluation needs no more memory than `Trainer`'s. Without metrics it does not even gather logits."""
    family = FAMILY_OF_HEAD.get(every_head, "bert")
    teacher, student = make_model(family, every_head), make_model(family, every_head, seed=1, num_layers=2)
    rows, seen = make_rows(every_head), []
    for options in ({}, {"trainer_options": {"compute_metrics": lambda prediction: {}}}):
        trainer = make_trainer(student, teacher, eval_rows=rows, per_device_eval_batch_size=4, **options)
        step = trainer.prediction_step

        def watched(*args, step=step, **kwargs):
            seen.append(step(*args, **kwargs))
            return seen[-1]

        monkeypatch.setattr(trainer, "prediction_step", watched)
        trainer.evaluate()
    without_metrics, with_metrics = seen[0], seen[-1]
    assert without_metrics[1:] == (None, None)
    logits = with_metrics[1] if isinstance(with_metrics[1], tuple) else (with_metrics[1],)
    assert len(logits) == (2 if every_head == "question_answering" else 1)
    assert all(len(tensor) == 4 for tensor in logits)
    assert not any(tensor.requires_grad for tensor in logits)


def test_arguments_in_trainers_order(tmp_path):
    teacher, rows = make_model("bert", "mlm"), make_rows("mlm")
    arguments = DistillationTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = DistillationTrainer(make_student(teacher), arguments, collate, rows, rows, teacher_model=teacher)
    assert (trainer.args, trainer.data_collator) == (arguments, collate)
    assert (trainer.train_dataset, trainer.eval_dataset) == (rows, rows)
