"""Gradient norms of single losses against autograd, and that measuring them does not change the training."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import DistributedType

from hf_distill import DistillationTrainingArguments, make_student, suggest_weights
from hf_distill.training.losses import gradient_norms
from hf_distill.training.losses.gradient_norms import check_gradient_norms
from hf_distill.training.scoring import pieces
from tests.conftest import collate, make_model, make_rows
from tests.processes import run_on_two_processes
from tests.training.losses.test_given import Mapped
from tests.training.test_split_invariance import make_pair as make_family_pair

LOSSES = ("kl", "task", "cos")


def make_pair(head="classification", **options):
    teacher = make_model("bert", head)
    return teacher, make_student(make_model("bert", head, seed=1, **options))


def logged(trainer):
    names = [f"grad_norm_{name}" for name in trainer.losses]
    return {entry["step"]: [entry[name] for name in names] for entry in trainer.state.log_history if names[0] in entry}


def by_autograd(teacher, student, rows, head):
    """The norm of the gradient of each loss over one batch, in float64."""
    batch = collate(rows)
    labels = batch.pop("labels")
    student, teacher = (model.double().train() for model in (student, teacher))
    own, of_teacher = (model(**batch, output_hidden_states=True) for model in (student, teacher))
    scored = labels != -100
    logits = own.logits[scored] if head == "mlm" else own.logits
    teacher_logits = of_teacher.logits[scored] if head == "mlm" else of_teacher.logits
    p, q = (values.div(2).log_softmax(-1) for values in (teacher_logits, logits))
    hidden = [outputs.hidden_states[-1][batch["attention_mask"].bool()] for outputs in (own, of_teacher)]
    losses = [
        4 * (p.exp() * (p - q)).sum(-1).mean(),
        F.cross_entropy(logits, labels[scored] if head == "mlm" else labels),
        (1 - F.cosine_similarity(*hidden, dim=-1)).mean(),
    ]
    parameters = list(student.parameters())
    norms = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms.append(sum(gradient.square().sum() for gradient in gradients if gradient is not None).sqrt().item())
    return norms


@pytest.mark.parametrize("head", ["classification", "mlm"])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_norms(make_trainer, monkeypatch, head, accumulation, checkpointing):
    """Over the whole step, without weights, also with logits in pieces."""
    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS_ON_CPU", 150)
    teacher, student = make_pair(head)
    if checkpointing:
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    rows = make_rows(head)
    trainer = make_trainer(
        student,
        teacher,
        rows,
        log_gradient_norms=1,
        max_steps=2,
        learning_rate=0.0,
        per_device_train_batch_size=16 // accumulation,
        gradient_accumulation_steps=accumulation,
        alpha_kl="linear:0->5",
    )
    trainer.train()
    expected = by_autograd(*make_pair(head), rows, head)
    assert logged(trainer) == {step: pytest.approx(expected, rel=1e-5) for step in (1, 2)}


def everything(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", ["bert", "resnet"])
def test_the_training_does_not_change(make_trainer, family):
    """With dropout, accumulation, a learned projection, and the running means of batch normalization."""
    head = "image" if family == "resnet" else "classification"
    ends = []
    for every in (0, 2):
        if family == "resnet":
            teacher, student = make_family_pair(head, family)
        else:
            teacher, student = make_pair(dropout=0.1)
        loss = Mapped(student_width=16)
        given = {"losses": {"mapped": (loss, 1.0)}} if family == "bert" else None
        trainer = make_trainer(
            student,
            teacher,
            make_rows(head),
            log_gradient_norms=every,
            max_steps=5,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            trainer_options=given,
        )
        trainer.train()
        ends.append({**everything(student), **everything(loss)})
    assert list(logged(trainer)) == [2, 4]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_other_steps_cost_nothing(make_trainer, monkeypatch):
    teacher, student = make_pair()
    forwards = []
    student.bert.register_forward_hook(lambda *args: forwards.append(trainer.state.global_step))
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 3}
    trainer = make_trainer(student, teacher, make_rows("classification"), log_gradient_norms=2, **options)
    trainer.train()
    assert [forwards.count(step) for step in range(3)] == [2, 2 + 3 * 2, 2]


def test_mean_over_the_measured_steps(make_trainer):
    """A log has the mean over the steps since the last log, and nothing if none was measured."""
    norms = []
    for logging_steps in (1, 2):
        teacher, student = make_pair()
        options = {"max_steps": 4, "logging_steps": logging_steps, "learning_rate": 1e-2}
        trainer = make_trainer(student, teacher, make_rows("classification"), log_gradient_norms=1, **options)
        trainer.train()
        norms.append(logged(trainer))
    single, double = norms
    for step in (2, 4):
        assert double[step] == pytest.approx(
            [sum(pair) / 2 for pair in zip(single[step - 1], single[step], strict=True)]
        )


SCRIPT = """
import json, os, sys
from pathlib import Path
from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_rows
from tests.training.losses.test_gradient_norms import logged, make_pair

teacher, student = make_pair("mlm")
args = DistillationTrainingArguments(
    sys.argv[1], use_cpu=True, ddp_backend="gloo", report_to="none", disable_tqdm=True, save_strategy="no", max_steps=2,
    logging_steps=1, train_sampling_strategy="sequential", per_device_train_batch_size=4, gradient_accumulation_steps=2,
    learning_rate=0.0, log_gradient_norms=1,
)
trainer = DistillationTrainer(student, args, collate, make_rows("mlm"), teacher_model=teacher)
trainer.train()
assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
if os.environ["RANK"] == "0":
    Path(sys.argv[1], "norms.json").write_text(json.dumps(logged(trainer)))
"""


def test_two_processes(tmp_path):
    run = run_on_two_processes(["-c", SCRIPT, tmp_path])
    assert run.returncode == 0, run.stderr[-3000:]
    expected = by_autograd(*make_pair("mlm"), make_rows("mlm"), "mlm")
    norms = json.loads((tmp_path / "norms.json").read_text())
    assert norms == {step: pytest.approx(expected, rel=1e-5) for step in ("1", "2")}


def test_one_warning(make_trainer, monkeypatch):
    warnings = []
    monkeypatch.setattr(gradient_norms.logger, "warning", warnings.append)
    for alpha_kl in (1.0, 1e5):
        teacher, student = make_pair()
        options = {"alpha_kl": alpha_kl, "alpha_task": 0.0, "max_steps": 3}
        make_trainer(student, teacher, make_rows("classification"), log_gradient_norms=1, **options).train()
        assert len(warnings) == (alpha_kl > 1)
    assert "loss_kl has " in warnings[0]
    assert "times the gradient of loss_cos" in warnings[0]


def test_suggested_weights(make_trainer):
    history = [{"loss": 3.0}, {"grad_norm": 9.0, "grad_norm_kl": 1.0, "grad_norm_cos": 0.5}, {"grad_norm_kl": 3.0}]
    assert suggest_weights(history) == {"alpha_kl": pytest.approx(0.4), "alpha_cos": pytest.approx(1.6)}

    def train(**weights):
        teacher, student = make_pair()
        options = {"log_gradient_norms": 1, "max_steps": 1, "learning_rate": 0.0, **weights}
        trainer = make_trainer(student, teacher, make_rows("classification"), **options)
        trainer.train()
        return trainer

    weights = suggest_weights(train().state.log_history)
    assert sum(weights.values()) == pytest.approx(3)
    trainer = train(**weights)
    (norms,) = logged(trainer).values()
    weighted = [trainer.loss_weights[name] * norm for name, norm in zip(LOSSES, norms, strict=True)]
    assert weighted == pytest.approx([weighted[0]] * 3)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([{"loss": 1.0}], "The 1 entries of the log history have no gradient norms: train with log_gradient_norms=100"),
        ([{"grad_norm_kl": 1.0, "grad_norm_cos": 0.0}], "The gradient norm of loss_cos is 0.0, so no weight"),
        ([{"grad_norm_kl": float("nan")}], "The gradient norm of loss_kl is nan"),
    ],
)
def test_no_weights_to_suggest(history, message):
    with pytest.raises(ValueError, match=message):
        suggest_weights(history)


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_engines_that_compute_only_the_whole_gradient(engine):
    accelerator = SimpleNamespace(distributed_type=engine)
    args = DistillationTrainingArguments("out", log_gradient_norms=10)
    with pytest.raises(ValueError, match=f"log_gradient_norms=10 does not work under {engine.value}"):
        check_gradient_norms(args, torch.nn.Module(), accelerator)
    check_gradient_norms(DistillationTrainingArguments("out"), torch.nn.Module(), accelerator)


def test_options(make_trainer):
    for value in (-1, 2.0, True):
        with pytest.raises(ValueError, match=f"log_gradient_norms={value} should be a number of steps, or 0"):
            DistillationTrainingArguments("out", log_gradient_norms=value)
    teacher, student = make_pair()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"log_gradient_norms=1 does not work with .*'use_reentrant': True"):
        make_trainer(student, teacher, make_rows("classification"), log_gradient_norms=1, **options)
