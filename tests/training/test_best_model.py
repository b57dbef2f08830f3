"""Choice of the best model: among the checkpoints of a training, and among the trials of a search."""

import copy

import pytest
from transformers import EarlyStoppingCallback

from hf_distill import make_student
from tests.conftest import make_model, make_rows

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def make_pair():
    return make_model("bert", "classification"), make_student(make_model("bert", "classification", seed=1))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("part", ["loss_kl", "loss_task", "loss_cos"])
def test_best_checkpoint_by_a_loss(make_trainer, part, named):
    rows = make_rows("classification")
    teacher, student = make_pair()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        {"books": rows} if named else rows,
        max_steps=4,
        learning_rate=1e-2,
        metric_for_best_model=f"eval_books_{part}" if named else part,
        load_best_model_at_end=True,
        trainer_options={"callbacks": [EarlyStoppingCallback(early_stopping_patience=4)]},
        **EVERY_STEP,
    )
    trainer.train()
    name = f"eval_books_{part}" if named else f"eval_{part}"
    losses = [log[name] for log in trainer.state.log_history if name in log]
    assert len(losses) == 4
    assert len(set(losses)) == 4
    assert trainer.state.best_metric == min(losses)
    assert trainer.evaluate()[name] == pytest.approx(min(losses), rel=1e-6)


def test_improvement_does_not_stop_a_training(make_trainer):
    rows = make_rows("classification")
    teacher, student = make_pair()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        rows,
        alpha_task=0.0,
        alpha_cos=0.0,
        max_steps=5,
        learning_rate=1e-3,
        metric_for_best_model="loss_kl",
        load_best_model_at_end=True,
        trainer_options={"callbacks": [EarlyStoppingCallback(early_stopping_patience=1)]},
        **EVERY_STEP,
    )
    trainer.train()
    losses = [log["eval_loss_kl"] for log in trainer.state.log_history if "eval_loss_kl" in log]
    assert losses == sorted(losses, reverse=True)
    assert trainer.state.global_step == 5


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


LEARNING_RATES = [1e-5, 3e-2, 1e-3]


@pytest.mark.parametrize("by", ["accuracy", "loss"])
def test_hyperparameter_search_by_default(make_trainer, by):
    """Optuna's best trial is the one with the best accuracy, or without metrics the one with the lowest `eval_loss`."""
    rows = make_rows("classification", num_rows=32)
    teacher, student = make_pair()
    trainer = make_trainer(
        None,
        teacher,
        rows,
        rows,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=8,
        trainer_options={
            "model_init": lambda: copy.deepcopy(student),
            "compute_metrics": accuracy if by == "accuracy" else None,
        },
    )
    trials = iter(LEARNING_RATES)
    evaluations = []
    report = trainer._report_to_hp_search

    def keep(trial, step, metrics):
        evaluations.append(dict(metrics))
        report(trial, step, metrics)

    trainer._report_to_hp_search = keep
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": next(trials)},
        n_trials=3,
        direction="maximize" if by == "accuracy" else "minimize",
        backend="optuna",
    )
    values = [metrics[f"eval_{by}"] for metrics in evaluations]
    assert len(set(values)) > 1
    assert best.objective == pytest.approx(max(values) if by == "accuracy" else min(values))


def test_an_objective_of_ones_own(make_trainer):
    rows = make_rows("classification")
    teacher, student = make_pair()
    options = {"max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"trainer_options": {"model_init": lambda: copy.deepcopy(student)}}
    trainer = make_trainer(None, teacher, rows, rows, **options)
    seen = []

    def objective(metrics):
        seen.append(metrics["eval_loss_kl"])
        return seen[-1]

    best = trainer.hyperparameter_search(
        lambda trial: {"temperature": trial.suggest_float("temperature", 1.0, 4.0)},
        objective,
        n_trials=2,
        backend="optuna",
    )
    assert best.objective == min(seen) < max(seen)
