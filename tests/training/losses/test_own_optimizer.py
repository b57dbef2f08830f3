"""The optimizer of losses' parameters under FSDP2 and DeepSpeed. `test_engines.py` tests it in a training."""

import copy

import pytest
import torch
from accelerate.utils import DistributedType

from hf_distill.training.losses.own_optimizer import OwnOptimizer
from tests.conftest import make_model, make_rows


def make_parameters():
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return parameters


def make_optimizer(make_trainer, parameters, **arguments):
    model = make_model("bert", "classification")
    trainer = make_trainer(model, None, make_rows("classification"), alpha_kl=0.0, alpha_cos=0.0, **arguments)
    return OwnOptimizer(parameters, trainer)


def test_steps_as_the_students_optimizer(make_trainer):
    """AdamW with the arguments' options, at the learning rate of the step."""
    parameters = make_parameters()
    expected = copy.deepcopy(parameters)
    for own, other in zip(expected, parameters, strict=True):
        own.grad = other.grad.clone()
    options = {"adam_beta2": 0.9, "weight_decay": 0.1}
    optimizer = make_optimizer(make_trainer, parameters, **options)
    adamw = torch.optim.AdamW(expected, betas=(0.9, 0.9), weight_decay=0.1, eps=1e-8)
    for learning_rate in (0.1, 0.05):
        adamw.param_groups[0]["lr"] = learning_rate
        adamw.step()
        optimizer.begin_step(learning_rate, loss_scale=1.0)
        optimizer.step()
    for own, other in zip(parameters, expected, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_clips_by_its_own_norm_after_the_loss_scale(make_trainer, loss_scale):
    parameters = make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad *= loss_scale
    optimizer = make_optimizer(make_trainer, parameters, optim="sgd", max_grad_norm=0.25)
    optimizer.begin_step(1.0, loss_scale)
    optimizer.step()
    moved = torch.cat([(own - start).flatten() for own, start in zip(parameters, before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.25, rel=1e-5)


def test_leaves_out_a_step_that_overflowed(make_trainer):
    parameters = make_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad[0, 0] = float("inf")
    optimizer = make_optimizer(make_trainer, parameters)
    optimizer.begin_step(1.0, 65536.0)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(parameters, before, strict=True))


def test_resumes(make_trainer, tmp_path):
    """A step after saving and loading equals the same step without."""
    ends = []
    for is_resumed in (False, True):
        parameters = make_parameters()
        optimizer = make_optimizer(make_trainer, parameters)
        optimizer.begin_step(0.1, 1.0)
        optimizer.step()
        if is_resumed:
            optimizer.save(str(tmp_path))
            optimizer = make_optimizer(make_trainer, parameters)
            optimizer.load(str(tmp_path))
            optimizer.begin_step(0.1, 1.0)
        optimizer.step()
        ends.append(parameters)
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    with pytest.raises(ValueError, match="was written by another engine"):
        make_optimizer(make_trainer, make_parameters()).load(str(tmp_path / "other"))


def test_other_optimizers(make_trainer, monkeypatch):
    factory = "transformers.Trainer.get_optimizer_cls_and_kwargs"
    monkeypatch.setattr(factory, lambda *args: (lambda *args: None, {"params": []}))
    with pytest.raises(ValueError, match="optim='adafactor' cannot train the parameters of losses under this engine"):
        make_optimizer(make_trainer, make_parameters(), optim="adafactor")


def test_an_optimizer_of_the_caller(make_trainer, monkeypatch):
    student = make_model("bert", "classification", width=8)
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType.DEEPSPEED)
    monkeypatch.setattr("hf_distill.training.checks.check_engine", lambda accelerator: None)
    monkeypatch.setattr("hf_distill.training.teacher.loading.shard_teacher", lambda *args: None)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizers=\(optimizer, None\) under DEEPSPEED: choose the optimizer with"):
        make_trainer(
            student,
            make_model("bert", "classification"),
            make_rows("classification"),
            project_hidden_states=True,
            trainer_options={"optimizers": (sgd, None)},
        )
