"""Hidden states of different width, and the map between them that is trained and never saved with the student."""

import os

import pytest
import torch

from tests.conftest import HEADS, make_model, make_rows


def make_pair(head="classification"):
    return make_model("bert", head), make_model("bert", head, seed=1, width=8, num_layers=2)


OPTIONS = {"project_hidden_states": True, "learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.mark.parametrize("head", ["classification", "mlm"])
def test_is_learned(make_trainer, head):
    """From the cosine alone, the student's states come nearer to the teacher's."""
    teacher, student = make_pair(head)
    rows = make_rows(head)
    trainer = make_trainer(student, teacher, rows, rows, alpha_kl=0.0, alpha_task=0.0, num_train_epochs=15, **OPTIONS)
    start = trainer.projection.weight.detach().clone()
    before = trainer.evaluate()["eval_loss_cos"]
    trainer.train()
    assert trainer.evaluate()["eval_loss_cos"] < 0.7 * before
    assert (trainer.projection.weight - start).norm() > 0.1 * start.norm()


def test_cosine_is_that_of_the_projected_states(make_trainer):
    teacher, student = make_pair()
    rows = make_rows("classification")[:1]
    trainer = make_trainer(student, teacher, eval_rows=rows, **OPTIONS)
    inputs = {"input_ids": torch.tensor([rows[0]["input_ids"]])}
    with torch.no_grad():
        hidden = student.bert(**inputs)[0] @ trainer.projection.weight.T
        cosine = torch.cosine_similarity(hidden, teacher.bert(**inputs)[0], dim=-1)
    assert trainer.evaluate()["eval_loss_cos"] == pytest.approx((1 - cosine).mean().item(), rel=1e-5)


def test_is_in_the_checkpoint_and_not_in_the_student(make_trainer, tmp_path):
    teacher, student = make_pair()
    trainer = make_trainer(
        student, teacher, make_rows("classification"), max_steps=1, save_strategy="steps", save_steps=1, **OPTIONS
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert "hidden_state_projection.safetensors" in os.listdir(f"{trainer.args.output_dir}/checkpoint-1")
    assert "hidden_state_projection.safetensors" not in os.listdir(tmp_path / "student")
    _, loading = HEADS["classification"].from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not loading["unexpected_keys"]


def test_resume(make_trainer):
    rows, weights = make_rows("classification"), []
    for resume in (False, True):
        teacher, student = make_pair()
        trainer = make_trainer(student, teacher, rows, max_steps=4, save_strategy="steps", save_steps=2, **OPTIONS)
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2" if resume else None)
        parameters = [*student.parameters(), trainer.projection.weight]
        weights.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert torch.equal(*weights)


def test_resume_without_one(make_trainer):
    rows = make_rows("classification")
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    teacher, student = make_pair()
    make_trainer(student, teacher, rows, alpha_cos=0.0, **options).train()
    trainer = make_trainer(student, teacher, rows, project_hidden_states=True, **options)
    with pytest.raises(ValueError, match="written without project_hidden_states"):
        trainer.train(resume_from_checkpoint=True)
