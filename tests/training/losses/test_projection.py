"""Hidden states of different width: their projection is trained, and never saved with the student."""

import os

import pytest
import torch

from hf_distill import DistillationTrainer
from hf_distill.training.losses.parameters import LOSS_PARAMETERS_NAME
from tests.conftest import HEADS, collate, make_model, make_rows


def make_pair(head="classification"):
    return make_model("bert", head), make_model("bert", head, seed=1, width=8, num_layers=2)


OPTIONS = {"project_hidden_states": True, "learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.mark.parametrize("head", ["classification", "mlm"])
def test_is_learned(make_trainer, head):
    """With the cosine loss alone, the student's states move towards the teacher's."""
    teacher, student = make_pair(head)
    rows = make_rows(head)
    trainer = make_trainer(student, teacher, rows, rows, alpha_kl=0.0, alpha_task=0.0, num_train_epochs=15, **OPTIONS)
    start = trainer.losses["cos"].projection.weight.detach().clone()
    before = trainer.evaluate()["eval_loss_cos"]
    trainer.train()
    assert trainer.evaluate()["eval_loss_cos"] < 0.7 * before
    assert (trainer.losses["cos"].projection.weight - start).norm() > 0.1 * start.norm()


def test_cosine_is_that_of_the_projected_states(make_trainer):
    teacher, student = make_pair()
    rows = make_rows("classification")[:1]
    trainer = make_trainer(student, teacher, eval_rows=rows, **OPTIONS)
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    with torch.no_grad():
        hidden = student.bert(**inputs)[0] @ trainer.losses["cos"].projection.weight.T
        cosine = torch.cosine_similarity(hidden, teacher.bert(**inputs)[0], dim=-1)
    assert trainer.evaluate()["eval_loss_cos"] == pytest.approx((1 - cosine).mean().item(), rel=1e-5)


def test_is_in_the_checkpoint_and_not_in_the_student(make_trainer, tmp_path):
    teacher, student = make_pair()
    trainer = make_trainer(
        student, teacher, make_rows("classification"), max_steps=1, save_strategy="steps", save_steps=1, **OPTIONS
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert LOSS_PARAMETERS_NAME in os.listdir(f"{trainer.args.output_dir}/checkpoint-1")
    assert LOSS_PARAMETERS_NAME not in os.listdir(tmp_path / "student")
    _, loading = HEADS["classification"].from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not loading["unexpected_keys"]


def test_resume(make_trainer):
    rows, weights = make_rows("classification"), []
    for resume in (False, True):
        teacher, student = make_pair()
        trainer = make_trainer(student, teacher, rows, max_steps=4, save_strategy="steps", save_steps=2, **OPTIONS)
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2" if resume else None)
        parameters = [*student.parameters(), trainer.losses["cos"].projection.weight]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.equal(*weights)


def test_resume_without_one(make_trainer):
    rows = make_rows("classification")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    teacher, student = make_pair()
    make_trainer(student, teacher, rows, alpha_cos=0.0, **options).train()
    trainer = make_trainer(student, teacher, rows, project_hidden_states=True, **options)
    with pytest.raises(ValueError, match=r"lacks cos\.projection\.weight, which the losses of this"):
        trainer.train(resume_from_checkpoint=True)


def test_resume_with_one_that_is_not_wanted(make_trainer):
    rows = make_rows("classification")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    teacher, student = make_pair()
    make_trainer(student, teacher, rows, project_hidden_states=True, **options).train()
    trainer = make_trainer(student, teacher, rows, alpha_cos=0.0, **options)
    with pytest.raises(ValueError, match=r"has cos\.projection\.weight, which no loss of this training has"):
        trainer.train(resume_from_checkpoint=True)


class OwnOptimizer(DistillationTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, weight_decay=0.2)
        return self.optimizer


@pytest.mark.parametrize("made_by", ["Trainer", "the caller", "an override"])
def test_is_stepped_whoever_made_the_optimizer(make_trainer, monkeypatch, made_by):
    """The projection is trained with the student's optimizer options, compared with a step by hand."""
    teacher, student = make_pair()
    options = {"max_steps": 1, "per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
    if made_by == "the caller":
        sgd = torch.optim.SGD(student.parameters(), lr=0.1, weight_decay=0.2)
        options["trainer_options"] = {"optimizers": (sgd, None)}
    elif made_by == "an override":
        monkeypatch.setattr("tests.training.conftest.DistillationTrainer", OwnOptimizer)
    else:
        options |= {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.2}
    rows = make_rows("classification")
    trainer = make_trainer(student, teacher, rows, rows, project_hidden_states=True, **options)
    start = trainer.losses["cos"].projection.weight.detach().clone()
    trainer.compute_loss(student.train(), collate(rows)).backward()
    gradient = trainer.losses["cos"].projection.weight.grad.clone()
    student.zero_grad()
    trainer.train()
    torch.testing.assert_close(trainer.losses["cos"].projection.weight.detach(), start - 0.1 * (gradient + 0.2 * start))


def test_decays_as_the_arguments_say(make_trainer):
    """AdamW's own default is 0.01, `Trainer`'s is 0."""
    for decay in (0.0, 0.3):
        teacher, student = make_pair()
        trainer = make_trainer(
            student, teacher, make_rows("classification"), max_steps=1, weight_decay=decay, **OPTIONS
        )
        trainer.train()
        weight = trainer.losses["cos"].projection.weight
        (group,) = (g for g in trainer.optimizer.param_groups if any(p is weight for p in g["params"]))
        assert group["weight_decay"] == decay


def test_has_the_schedule_of_the_student(make_trainer):
    teacher, student = make_pair()
    trainer = make_trainer(student, teacher, make_rows("classification"), max_steps=4, **OPTIONS)
    trainer.train()
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 1


def test_a_scheduler_that_was_made_before(make_trainer):
    teacher, student = make_pair()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match=r"Pass optimizers=\(optimizer, None\)"):
        make_trainer(
            student,
            teacher,
            make_rows("classification"),
            project_hidden_states=True,
            trainer_options={"optimizers": (optimizer, scheduler)},
        )


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_is_within_the_gradients_norm(make_trainer, max_grad_norm):
    """Gradient clipping includes the projection: a step of plain SGD has the length of the clipped norm."""
    teacher, student = make_pair()
    rows = make_rows("classification")
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_steps": 1}
    trainer = make_trainer(student, teacher, rows, project_hidden_states=True, max_grad_norm=max_grad_norm, **options)
    parameters = [*student.parameters(), trainer.losses["cos"].projection.weight]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
    trainer.train()
    step = (torch.cat([parameter.detach().flatten() for parameter in parameters]) - before).norm().item()
    norm = trainer.state.log_history[0]["grad_norm"]
    assert norm > 0.5
    assert step == pytest.approx(max_grad_norm or norm, rel=1e-4)


def test_is_the_best_models_at_the_end(make_trainer):
    """The projection of the best checkpoint is loaded, not that of the last step."""
    rows = make_rows("classification")
    teacher, student = make_pair()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        rows,
        max_steps=3,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss_cos",
        greater_is_better=True,  # the first checkpoint is then the best
        learning_rate=0.1,
        project_hidden_states=True,
    )
    trainer.train()
    evaluated = [log["eval_loss_cos"] for log in trainer.state.log_history if "eval_loss_cos" in log]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert trainer.evaluate()["eval_loss_cos"] == pytest.approx(evaluated[0], rel=1e-6)


def test_model_init_begins_with_a_new_one(make_trainer):
    """Each trial of `hyperparameter_search`, and a further call of `train`, starts with a new projection."""
    teacher, _ = make_pair()
    trainer = make_trainer(
        None,
        teacher,
        make_rows("classification"),
        max_steps=2,
        trainer_options={"model_init": lambda: make_pair()[1]},
        **OPTIONS,
    )
    losses = []
    for _ in range(2):
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "learning_rate" in log])
    assert losses[0] == losses[1]
