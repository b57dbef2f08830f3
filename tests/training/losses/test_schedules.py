"""Schedules of the temperature and of weights: notation, values, what training and evaluation use, resume."""

import copy
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import HfArgumentParser, TrainerCallback

from hf_distill import DistillationTrainingArguments, add_teacher_targets, make_student, parse_config
from hf_distill.training.checkpoints import folders
from hf_distill.training.losses.schedules import is_on, parse_schedule, value_at
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer
from tests.training.losses.test_given import ReverseKL

STEPS = 5


def falling(progress):
    return 3.0 - 2.0 * progress


def make_pair(head="classification", **options):
    teacher = make_model("bert", head)
    return teacher, make_student(make_model("bert", head, seed=1, **options))


def by_step(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize(
    ("notation", "positions", "values"),
    [
        ("linear:4->1", [0, 1], [4, 1]),
        ("linear:0->2.5", [0, 1], [0, 2.5]),
        (" Linear: 4 -> 1 @ 0.1 - 0.6 ", [0.1, 0.6], [4, 1]),
        ("linear:1e1->1E-1@0-0.5", [0, 0.5], [10, 0.1]),
        ("piecewise:0=4,0.5=2,0.9=1", [0, 0.5, 0.9], [4, 2, 1]),
        ("piecewise:.25=1,1=3", [0.25, 1], [1, 3]),
    ],
)
def test_straight_lines(notation, positions, values):
    schedule = parse_schedule(notation)
    for progress in np.linspace(0, 1, 41):
        assert schedule.at(progress) == pytest.approx(np.interp(progress, positions, values), rel=1e-14)
    assert schedule.range == (min(values), max(values))


def test_half_a_cosine():
    schedule = parse_schedule("cosine:4->1@0.2-0.6")
    assert [schedule.at(progress) for progress in (0, 0.2, 0.6, 1)] == [4, 4, 1, 1]
    assert schedule.at(0.4) == pytest.approx(2.5, rel=1e-14)
    assert schedule.at(0.3) == pytest.approx(1 + 3 * (1 + math.cos(math.pi / 4)) / 2, rel=1e-14)


def test_a_jump():
    schedule = parse_schedule("piecewise:0=4,0.5=4,0.5=1")
    assert [schedule.at(progress) for progress in (0, 0.499, 0.5, 1)] == [4, 4, 1, 1]


def test_numbers_and_functions():
    assert (value_at(parse_schedule(2.0), 0.3), value_at(parse_schedule(falling), 0.5)) == (2.0, 2.0)
    assert [is_on(parse_schedule(weight)) for weight in (0.0, 0.1, "linear:0->1")] == [False, True, True]


NOTATION = "should be a finite number, or a schedule such as 'linear:4->1'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "linear:4"}, f"temperature='linear:4' {NOTATION}.*put a schedule in quotes"),
        ({"temperature": "linear:4-"}, f"temperature='linear:4-' {NOTATION}"),  # a shell takes > for itself
        ({"alpha_kl": "quadratic:4->1"}, f"alpha_kl='quadratic:4->1' {NOTATION}"),
        ({"alpha_kl": "piecewise:0=4"}, f"alpha_kl='piecewise:0=4' {NOTATION}"),
        ({"alpha_kl": [1, 2]}, rf"alpha_kl=\[1, 2\] {NOTATION}"),
        ({"temperature": "linear:4->1@0.6-0.1"}, "ends before it begins: 0.1 should not be less than 0.6"),
        ({"temperature": "linear:4->1@0.6-0.6"}, "begins and ends at 0.6: write a jump as 'piecewise:0.6=4,0.6=1'"),
        ({"temperature": "piecewise:0=4,0.5=2,0.4=1"}, "ends before it begins: 0.4 should not be less than 0.5"),
        ({"temperature": "cosine:4->1@100-600"}, "has the position 100, which should be a share of the training"),
        ({"temperature": "linear:4->0"}, "temperature='linear:4->0' reaches 0, but should be above 0"),
        ({"temperature": "piecewise:0=4,0.5=-1,1=4"}, "reaches -1, but should be above 0"),
        ({"temperature": lambda progress: 1 - progress}, "temperature='function .*<lambda>' reaches 0"),
        ({"temperature": lambda progress: None}, "returned None at 0, which should be a finite number"),
        ({"temperature": lambda progress: math.inf}, "returned inf at 0"),
        ({"alpha_cos": "cosine:1->-0.5"}, "alpha_cos='cosine:1->-0.5' reaches -0.5, but should be 0 or above"),
        ({"alpha_cos": lambda progress: progress - 0.5}, "alpha_cos='function .*' reaches -0.5"),
        ({"alpha_cos": "linear:0->0"}, "alpha_cos='linear:0->0' is 0 during the whole training: write 0"),
        (
            {"alpha_kl": "linear:1->0", "alpha_task": "linear:1->0@0-0.5", "alpha_cos": 0},
            "alpha_kl='linear:1->0', alpha_task='linear:1->0@0-0.5', alpha_cos=0, .* turn all losses off at 100.0%",
        ),
        (
            {"alpha_kl": "linear:1->0@0-0.3", "alpha_task": "linear:0->1@0.7-1", "alpha_cos": 0},
            "turn all losses off at 30.0% of the training",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments("out", **options).check_losses()


def test_command_line_and_yaml(tmp_path):
    words = ["--output_dir=out", "--temperature", "linear:4->1", "--alpha-kl=3", "--alpha_cos", "cosine:0->1"]
    (tmp_path / "config.yaml").write_text("temperature: linear:4->1\nalpha_kl: 3\nalpha_cos: cosine:0->1\n")
    for (args,) in (
        HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(words),
        parse_config([DistillationTrainingArguments], words),
        parse_config([DistillationTrainingArguments], ["--config", str(tmp_path / "config.yaml")]),
    ):
        assert (args.temperature, args.alpha_kl, args.alpha_cos) == ("linear:4->1", 3.0, "cosine:0->1")
        assert json.loads(args.to_json_string())["temperature"] == "linear:4->1"


def test_a_function_is_saved_as_its_name():
    args = DistillationTrainingArguments("out", temperature=falling, alpha_cos=lambda progress: progress)
    name = f"function {__name__}.falling"
    assert json.loads(args.to_json_string())["temperature"] == args.to_dict()["temperature"] == name
    assert pickle.loads(pickle.dumps(args)).temperature == name
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert (copied.at(0.5).temperature, copied.at(0.5).alpha_cos) == (2.0, 0.5)
    with pytest.raises(ValueError, match=f"temperature='{name}' {NOTATION}"):
        DistillationTrainingArguments("out", temperature=name)


def kl_in_float64(teacher, student, temperature):
    """The mean over the rows of T^2 * KL(teacher || student)."""

    def log_probs(logits):
        scaled = logits.detach().double().numpy() / temperature
        return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))

    p, q = log_probs(teacher), log_probs(student)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_uses_the_values_of_its_moment(make_trainer, accumulation):
    """Without a learning rate, all steps differ only in their temperature and weights. All micro-batches share them."""
    teacher, student = make_pair()
    rows = make_rows("classification")
    trainer = make_trainer(
        student,
        teacher,
        rows,
        rows,
        learning_rate=0.0,
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        temperature=falling,
        alpha_kl="piecewise:0=0,0.4=1",
        alpha_task=2.0,
        alpha_cos=0.0,
    )
    before = trainer.evaluate()
    trainer.train()
    temperatures, weights = [3.0, 2.6, 2.2, 1.8, 1.4], [0, 0.5, 1, 1, 1]
    assert by_step(trainer, "temperature") == pytest.approx(temperatures)
    assert by_step(trainer, "alpha_kl") == pytest.approx(weights)
    assert "alpha_task" not in trainer.state.log_history[1]
    inputs = {name: value for name, value in collate(rows).items() if name != "labels"}
    logits = [model.eval()(**inputs).logits for model in (teacher, student)]
    expected = [kl_in_float64(*logits, temperature) for temperature in temperatures]
    assert by_step(trainer, "loss_kl") == pytest.approx(expected, rel=1e-5)
    task = by_step(trainer, "loss_task")
    losses = [weight * kl + 2 * own for weight, kl, own in zip(weights, expected, task, strict=True)]
    assert by_step(trainer, "loss") == pytest.approx(losses, rel=1e-3)  # Trainer rounds it

    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry] + [before, trainer.evaluate()]
    at_the_end = kl_in_float64(*logits, 1.0)
    assert len(evaluated) == STEPS + 3
    for entry in evaluated:
        assert entry["eval_loss_kl"] == pytest.approx(at_the_end, rel=1e-5)
        assert entry["eval_loss"] == pytest.approx(at_the_end + 2 * task[0], rel=1e-5)


def weights_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_constant_schedule_is_a_number(make_trainer):
    ends = []
    for options in ({}, {"temperature": "linear:2->2", "alpha_kl": lambda progress: 5, "alpha_cos": "cosine:1->1"}):
        teacher, student = make_pair(dropout=0.1)
        make_trainer(student, teacher, make_rows("classification"), max_steps=3, learning_rate=1e-2, **options).train()
        ends.append(weights_of(student))
    assert torch.equal(*ends)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_resume(make_trainer, monkeypatch):
    """To the same bits, also with functions that have no name of their own. Other schedules are warned of."""
    warnings = []
    monkeypatch.setattr(folders.logger, "warning", warnings.append)

    def make(callbacks=(), alpha_kl="linear:0->5", **options):
        teacher, student = make_pair(dropout=0.1)
        schedules = {"temperature": lambda progress: 4 - 3 * progress**2, "alpha_cos": "cosine:0->1@0.2-0.9"}
        losses = {"reverse": (ReverseKL(), "linear:1->0")}
        return make_trainer(
            student,
            teacher,
            make_rows("classification"),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            save_strategy="steps",
            save_steps=1,
            learning_rate=1e-2,
            alpha_kl=alpha_kl,
            trainer_options={"losses": losses, "callbacks": list(callbacks)},
            **schedules,
        )

    whole = make()
    whole.train()
    expected = whole.state.log_history[:-1]
    make([Stop()]).train()
    resumed = make()
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-3")
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
    assert [{name: value for name, value in entry.items() if name in whole._schedules} for entry in expected] == [
        {name: value for name, value in entry.items() if name in whole._schedules}
        for entry in resumed.state.log_history[:-1]
    ]
    assert by_step(resumed, "alpha_reverse") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert warnings == []
    state = json.loads(Path(resumed.args.output_dir, "checkpoint-5", "distillation_state.json").read_text())
    assert (state["alpha_kl"], state["alpha_cos"], state["alpha_reverse"]) == (
        "linear:0->5",
        "cosine:0->1@0.2-0.9",
        "linear:1->0",
    )
    assert state["kl_temperature"] == f"function {__name__}.test_resume.<locals>.make.<locals>.<lambda>"

    other = make(alpha_kl="linear:0->4")
    other.train(resume_from_checkpoint=f"{other.args.output_dir}/checkpoint-4")
    assert "alpha_kl was 'linear:0->5' and is 'linear:0->4'." in warnings[0]
    assert "temperature" not in warnings[0]


def test_the_card(make_trainer, tmp_path):
    teacher, student = make_pair()
    options = {"temperature": "linear:4->1", "alpha_cos": "cosine:0->1"}
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=1, **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    card = (tmp_path / "student" / "README.md").read_text()
    assert "loss = 5 * L_kl + 2 * L_task + (cosine:0->1) * L_cos" in card
    assert "| temperature | linear:4->1 |" in card


def test_bad_weights_of_own_losses(make_trainer):
    teacher, student = make_pair()
    rows = make_rows("classification")
    nothing_else = {"alpha_kl": 0.0, "alpha_task": 0.0, "alpha_cos": 0.0}
    for weight, options, message in (
        ("linear:1->-1", {}, r"losses\['mine'\] has weight 'linear:1->-1', which reaches -1"),
        ("linear:1", {}, rf"losses\['mine'\] has weight 'linear:1', which {NOTATION}"),
        ("linear:1->0", nothing_else, "alpha_mine='linear:1->0' turn all losses off at 100.0% of the training"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(student, teacher, rows, trainer_options={"losses": {"mine": (ReverseKL(), weight)}}, **options)


def test_targets_that_are_stored_at_one_temperature(make_trainer):
    teacher, student = (make_model("gpt2", "causal", seed=seed) for seed in (0, 1))
    rows = Dataset.from_list(make_rows("causal"))
    rows = add_teacher_targets(rows, teacher, make_text_tokenizer(), top_k=8, min_mass=0.0)
    with pytest.raises(ValueError, match="temperature='linear:4->1' does not work with stored teacher targets"):
        make_trainer(student, None, rows, temperature="linear:4->1", alpha_cos=0.0)
