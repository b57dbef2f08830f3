"""A custom loss with its own parameters, defined outside the package."""

from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from hf_distill import DistillationTrainingArguments, Loss, Needs, add_teacher_targets
from hf_distill.training.checkpoints import folders
from hf_distill.training.losses.parameters import LOSS_PARAMETERS_NAME
from tests.conftest import HEADS, collate, make_model, make_rows
from tests.processes import run_python
from tests.training.teacher.test_targets import TOKENIZER

ROOT = Path(__file__).parents[3]
TASK_ALONE = {"alpha_kl": 0.0, "alpha_cos": 0.0}
NOTHING_ELSE = {**TASK_ALONE, "alpha_task": 0.0}


class ReverseKL(Loss):
    """A loss over logits, without parameters."""

    needs = Needs(logits=True)
    description = "the KL divergence from the student's distribution to the teacher's"
    citation = "@article{gu2023minillm,\n  title = {MiniLLM}\n}"

    def forward(self, student, teacher, scored):
        student_log_probs = student.logits.float().log_softmax(-1)
        teacher_log_probs = teacher.logits.float().log_softmax(-1)
        return (student_log_probs.exp() * (student_log_probs - teacher_log_probs)).sum()


class Mapped(Loss):
    """A loss over hidden states, with a learned projection."""

    needs = Needs(last_hidden_state=True)
    description = "the squared distance of mapped hidden states"

    def __init__(self, student_width=8, teacher_width=16, scale=1.0):
        super().__init__()
        self.map = nn.Linear(student_width, teacher_width)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        self.scale = scale

    def state(self):
        return {"scale": self.scale}

    def forward(self, student, teacher, scored):
        mapped = self.map(student.last_hidden_state).float()
        distance = (mapped - teacher.last_hidden_state.float()).square().mean(-1)
        return self.scale * (scored.state_weights * distance).sum()


class Confident(Loss):
    """A loss that reads only the student."""

    needs = Needs(logits=True)
    reads_teacher = False

    def forward(self, student, teacher, scored):
        assert teacher is None
        probabilities = student.logits.float().softmax(-1)
        return -(probabilities * probabilities.clamp(min=1e-9).log()).sum()


def make_pair(head="mlm", width=8):
    return make_model("bert", head), make_model("bert", head, seed=1, num_layers=2, width=width)


def trainer_with(make_trainer, losses, head="mlm", **options):
    teacher, student = make_pair(head)
    trainer_options = {"losses": losses, **options.pop("trainer_options", {})}
    return make_trainer(
        student, teacher, make_rows(head), make_rows(head, seed=1), trainer_options=trainer_options, **options
    )


@pytest.mark.parametrize("head", ["mlm", "classification", "question_answering"])
def test_is_the_mean_over_its_items(make_trainer, head):
    """The expected loss, by hand from the models' own outputs."""
    teacher, student = make_pair(head)
    rows = make_rows(head)
    trainer = make_trainer(
        student,
        teacher,
        eval_rows=rows,
        per_device_eval_batch_size=5,
        trainer_options={"losses": {"reverse": (ReverseKL(), 0.5), "mapped": (Mapped(), 3.0)}},
        **TASK_ALONE,
    )
    measured = trainer.evaluate()
    batch = collate(rows)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        of_student, of_teacher = student(**inputs), teacher(**inputs)
        hidden = [model.bert(**inputs)[0] for model in (student, teacher)]
    attended = batch["attention_mask"].bool()
    mapped = (F.pad(hidden[0], (0, 8)) - hidden[1]).square().mean(-1)[attended].mean()
    if head == "question_answering":
        padding = ~attended
        logits = [
            torch.cat([out.start_logits.masked_fill(padding, -1e30), out.end_logits.masked_fill(padding, -1e30)])
            for out in (of_student, of_teacher)
        ]
    elif head == "mlm":
        logits = [out.logits[batch["labels"] != -100] for out in (of_student, of_teacher)]
    else:
        logits = [of_student.logits, of_teacher.logits]
    p, q = (values.double().softmax(-1) for values in logits)
    ratio = torch.where(p > 0, p / q, 1.0)
    expected = (p * ratio.log()).sum(-1).mean()
    assert measured["eval_loss_reverse"] == pytest.approx(expected.item(), rel=1e-5)
    assert measured["eval_loss_mapped"] == pytest.approx(mapped.item(), rel=1e-5)
    whole = 0.5 * measured["eval_loss_reverse"] + 3 * measured["eval_loss_mapped"] + 2 * measured["eval_loss_task"]
    assert measured["eval_loss"] == pytest.approx(whole, rel=1e-6)


def test_is_trained_and_its_parameters_are(make_trainer):
    loss = Mapped()
    trainer = trainer_with(
        make_trainer, {"mapped": (loss, 1.0)}, num_train_epochs=20, learning_rate=1e-2, **NOTHING_ELSE
    )
    start = loss.map.weight.detach().clone()
    before = trainer.evaluate()["eval_loss_mapped"]
    trainer.train()
    assert trainer.evaluate()["eval_loss_mapped"] < 0.9 * before
    assert (loss.map.weight - start).norm() > 0.05
    assert loss.map.bias.abs().max() > 0
    assert {"loss", "loss_mapped"} <= trainer.state.log_history[1].keys()


def test_is_in_the_checkpoint_and_not_in_the_student(make_trainer, tmp_path):
    loss = Mapped()
    trainer = trainer_with(
        make_trainer, {"mapped": (loss, 1.0)}, max_steps=1, save_strategy="steps", save_steps=1, **TASK_ALONE
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    stored = load_file(f"{trainer.args.output_dir}/checkpoint-1/{LOSS_PARAMETERS_NAME}")
    assert stored.keys() == {"mapped.map.weight", "mapped.map.bias"}
    assert torch.equal(stored["mapped.map.weight"], loss.map.weight)
    assert not (tmp_path / "student" / LOSS_PARAMETERS_NAME).exists()
    _, loading = HEADS["mlm"].from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not loading["unexpected_keys"]


def test_card(make_trainer, tmp_path):
    losses = {"reverse": (ReverseKL(), 0.5), "quiet": (Confident(), 0.1)}
    losses |= {"mapped": (Mapped(scale=2.0), 1.0), "far": (Mapped(scale=3.0), 1.0)}
    trainer = trainer_with(make_trainer, losses, max_steps=1, **TASK_ALONE)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    card = (tmp_path / "student" / "README.md").read_text()
    assert "loss = 2 * L_task + 0.5 * L_reverse + 0.1 * L_quiet + 1 * L_mapped + 1 * L_far" in card
    assert "| scale | 2 |\n| scale of L_far | 3 |" in card
    assert "- `L_reverse`: the KL divergence from the student's distribution to the teacher's" in card
    assert "- `L_quiet`: Confident" in card
    assert "@article{gu2023minillm" in card
    assert "sanh2019" not in card


@pytest.mark.parametrize("resume", [False, True])
def test_another_state_is_said_at_a_resume(make_trainer, monkeypatch, resume):
    seen = []
    monkeypatch.setattr(folders.logger, "warning", seen.append)
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **TASK_ALONE}
    trainer_with(make_trainer, {"mapped": (Mapped(), 1.0)}, **steps).train()
    scale, weight = (2.0, 0.5) if resume else (1.0, 1.0)
    trainer = trainer_with(make_trainer, {"mapped": (Mapped(scale=scale), weight)}, **steps)
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")
    said = " ".join(seen)
    assert ("alpha_mapped was 1.0 and is 0.5" in said) == resume
    assert ("mapped_scale was 1.0 and is 2.0" in said) == resume


SCRIPT = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_rows
from tests.training.losses.test_given import Mapped, make_pair

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

def train(folder, callbacks=(), resume=None):
    teacher, student = make_pair()
    loss = Mapped()
    args = DistillationTrainingArguments(
        folder, use_cpu=True, report_to="none", disable_tqdm=True, save_steps=2, max_steps=8, alpha_cos=0.0,
        learning_rate=1e-2, per_device_train_batch_size=4, save_total_limit=1,
    )
    losses = {"mapped": (loss, 1.0)}
    trainer = DistillationTrainer(
        student, args, collate, make_rows("mlm"), teacher_model=teacher, losses=losses, callbacks=list(callbacks)
    )
    trainer.train(resume_from_checkpoint=resume)
    return torch.cat([parameter.detach().flatten() for parameter in [*student.parameters(), *loss.parameters()]])

folder, what = sys.argv[1:]
if what == "kill":
    train(folder, [Kill()])
whole, resumed = train(folder + "/whole"), train(folder, resume=True)
assert torch.equal(whole, resumed)
print("equal")
"""


def test_a_kill_and_a_resume_end_in_the_same_weights(tmp_path):
    """Parameters of the student and of the loss."""
    for what in ("kill", "resume"):
        run = run_python(["-c", SCRIPT, tmp_path, what], cwd=ROOT)
        if what == "kill":
            assert run.returncode == -9, run.stderr
            assert (tmp_path / "checkpoint-4" / LOSS_PARAMETERS_NAME).is_file()
    assert run.stdout.endswith("equal\n"), run.stderr


def test_replaces_one_of_ours(make_trainer):
    options = {"alpha_kl": 0.0, "alpha_cos": 0.0}
    trainer = trainer_with(make_trainer, {"kl": (ReverseKL(), 0.25)}, max_steps=1, **options)
    assert {name for name, weight in trainer.loss_weights.items() if weight} == {"kl", "task"}
    assert trainer.loss_weights["kl"] == 0.25
    assert type(trainer.losses["kl"]) is ReverseKL
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(0.25 * log["loss_kl"] + 2 * log["loss_task"], rel=1e-6)


def test_alone_and_without_a_teacher(make_trainer):
    _, student = make_pair()
    losses = {"confident": (Confident(), 1.0)}
    trainer = make_trainer(
        student, None, make_rows("mlm"), max_steps=1, trainer_options={"losses": losses}, **NOTHING_ELSE
    )
    trainer.train()
    assert trainer.teacher is None
    assert trainer.losses.keys() == losses.keys()


def test_with_the_weight_0_is_off(make_trainer):
    trainer = trainer_with(make_trainer, {"mapped": (Mapped(), 0)}, max_steps=1, alpha_cos=0.0)
    assert trainer.losses.keys() == {"kl", "task"}
    assert not trainer.loss_parameters.trained


def test_integer_weights(make_trainer):
    trainer = trainer_with(make_trainer, {"mapped": (Mapped(), 2)}, max_steps=1, alpha_kl=0, alpha_task=0, alpha_cos=0)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(2 * metrics["eval_loss_mapped"])


def test_model_init_begins_with_the_parameters_that_were_given(make_trainer):
    loss = Mapped()
    teacher, _ = make_pair()
    trainer = make_trainer(
        None,
        teacher,
        make_rows("mlm"),
        max_steps=2,
        learning_rate=0.1,
        trainer_options={"model_init": lambda: make_pair()[1], "losses": {"mapped": (loss, 1.0)}},
        **TASK_ALONE,
    )
    losses = []
    for _ in range(2):
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "learning_rate" in log])
    assert losses[0] == losses[1]


def test_with_stored_targets(make_trainer):
    """The losses are the same as with a live teacher, to the stored precision."""
    rows = make_rows("classification")
    teacher, student = make_pair("classification")
    losses = {"reverse": (ReverseKL(), 0.5), "mapped": (Mapped(), 1.0)}
    options = {"trainer_options": {"losses": losses}, **TASK_ALONE}
    live = make_trainer(student, teacher, eval_rows=rows, **options).evaluate()
    stored_rows = add_teacher_targets(
        datasets.Dataset.from_list(rows),
        teacher,
        TOKENIZER,
        hidden_states=True,
    )
    stored = make_trainer(student, None, eval_rows=stored_rows, **options).evaluate()
    for name in ("eval_loss_reverse", "eval_loss_mapped"):
        assert stored[name] == pytest.approx(live[name], rel=2e-3)


class NeedsNothing(Loss):
    pass


class NeedsBoth(Loss):
    needs = Needs(logits=True, last_hidden_state=True)


class LabelsOfStates(Loss):
    needs = Needs(last_hidden_state=True, labels=True)


class Refuses(ReverseKL):
    def check(self, student, teacher):
        raise ValueError(f"Refuses has no use for a {student.model} of a {teacher.model}.")


@pytest.mark.parametrize(
    ("losses", "options", "error", "message"),
    [
        ([ReverseKL()], {}, TypeError, r'losses should be a dict such as \{"name": \(loss, weight\)\}, but is list'),
        ({"mine": ReverseKL()}, {}, TypeError, r"losses\['mine'\] should be a pair \(loss, weight\)"),
        (
            {"mine": (torch.nn.MSELoss(), 1.0)},
            {},
            TypeError,
            r"losses\['mine'\] has a MSELoss, not a loss: subclass hf_distill.Loss",
        ),
        ({"mine": (ReverseKL(), "1")}, {}, TypeError, r"losses\['mine'\] has weight '1'"),
        ({"mine": (ReverseKL(), float("nan"))}, {}, TypeError, r"losses\['mine'\] has weight nan"),
        ({"mine": (ReverseKL(), -0.5)}, {}, ValueError, r"losses\['mine'\] has weight -0.5, which should be 0"),
        ({"my loss": (ReverseKL(), 1.0)}, {}, ValueError, r"losses\['my loss'\]: the name should be a valid"),
        ({"mine": (NeedsNothing(), 1.0)}, {}, ValueError, r"losses\['mine'\] is a NeedsNothing.*reads exactly one of"),
        (
            {"mine": (NeedsBoth(), 1.0)},
            {},
            ValueError,
            r"losses\['mine'\] is a NeedsBoth.*reads exactly one of logits, ",
        ),
        ({"mine": (LabelsOfStates(), 1.0)}, {}, ValueError, r"losses\['mine'\] is a LabelsOfStates.*only a loss that"),
        (
            {"kl": (ReverseKL(), 1.0)},
            {},
            ValueError,
            r"losses\['kl'\] has the name of a built-in loss.*alpha_kl=0",
        ),
        ({"mine": (Refuses(), 1.0)}, {"alpha_cos": 0.0}, ValueError, "Refuses has no use for a BertForMaskedLM"),
    ],
)
def test_bad_losses(make_trainer, losses, options, error, message):
    with pytest.raises(error, match=message):
        trainer_with(make_trainer, losses, **options)


def test_reads_a_teacher_and_there_is_none(make_trainer):
    _, student = make_pair()
    with pytest.raises(ValueError, match=r"losses\['mine'\] need a teacher: pass teacher_model"):
        make_trainer(student, None, trainer_options={"losses": {"mine": (ReverseKL(), 1.0)}}, **TASK_ALONE)


def test_reads_hidden_states_that_are_not_stored(make_trainer):
    rows = datasets.Dataset.from_list(make_rows("classification"))
    teacher, student = make_pair("classification")
    stored = add_teacher_targets(rows, teacher, TOKENIZER)
    losses = {"mapped": (Mapped(), 1.0)}
    message = r"'mapped' needs the teacher's hidden states, .*leave out losses\['mapped'\], or store them"
    with pytest.raises(ValueError, match=message):
        make_trainer(student, None, stored, trainer_options={"losses": losses}, alpha_cos=0.0)


def test_returns_no_sum(make_trainer):
    class PerItem(ReverseKL):
        def forward(self, student, teacher, scored):
            return (student.logits - teacher.logits).square().sum(-1)

    with pytest.raises(ValueError, match=r"The loss 'mine' returned \[\d+\]: return the sum over its items"):
        trainer_with(make_trainer, {"mine": (PerItem(), 1.0)}, max_steps=1, **TASK_ALONE).train()


def test_arguments_alone_still_have_to_train_something():
    with pytest.raises(ValueError, match="turn all losses off"):
        DistillationTrainingArguments("out", **NOTHING_ELSE).check_losses()
    DistillationTrainingArguments("out", **NOTHING_ELSE).check_losses([ReverseKL()])


class OfLabels(ReverseKL):
    needs = Needs(logits=True, labels=True)


IN_PLACE_OF_OURS = {"trainer_options": {"losses": {"kl": (OfLabels(), 1.0)}}, "max_steps": 1, **NOTHING_ELSE}
"""Errors must not name `alpha_kl`, which is already 0."""


def test_one_in_place_of_ours_without_a_teacher(make_trainer):
    with pytest.raises(ValueError, match=r"losses\['kl'\] need a teacher"):
        make_trainer(make_pair("classification")[1], None, **IN_PLACE_OF_OURS)


def test_one_in_place_of_ours_without_labels(make_trainer):
    _, student = make_pair("classification")
    rows = [{"input_ids": [5, 6]}]
    trainer = make_trainer(student, make_model("bert", "classification"), rows, data_collator=None, **IN_PLACE_OF_OURS)
    with pytest.raises(ValueError, match=r"labels, only .* by losses\['kl'\]: .*leave out losses\['kl'\]"):
        trainer.train()
