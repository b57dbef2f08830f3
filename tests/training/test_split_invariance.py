"""However a step is split into micro-batches, its losses and its gradient are the same."""

import pytest
import torch
from transformers import TrainerCallback

from tests.conftest import CONFIGS_OF_HEADS, FAMILY_OF_HEAD, HEADS, make_model, make_rows

LOSS_NAMES = ["loss", "loss_kl", "loss_task", "loss_cos"]
TOLERANCE = 1e-6

CASES = [
    *[(head, FAMILY_OF_HEAD.get(head, "bert")) for head in HEADS],
    *[(head, family) for head in ("classification", "mlm") for family in ("roberta", "distilbert")],
    ("mlm", "bert/narrow"),  # with a projection of the hidden states
    *[("causal", "llama"), ("causal", "opt"), ("seq2seq", "t5"), ("classification", "llama")],
]


class KeepGradient(TrainerCallback):
    """Keeps the gradient of the last optimizer step as one vector, and the name of the wrapper."""

    trainer = None

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [parameter.grad for parameter in model.parameters()]
        # Without a gradient, some engines give None and others zero.
        gradients = [
            torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), gradients, strict=True)
        ]
        gradients = [getattr(gradient, "full_tensor", lambda gradient=gradient: gradient)() for gradient in gradients]
        gradients += [parameter.grad for parameter in self.trainer.loss_parameters.trained]
        self.gradient = torch.cat([gradient.detach().flatten() for gradient in gradients]).clone()
        self.wrapper = type(self.trainer.model_wrapped).__name__


def make_pair(head, family):
    """A teacher, and a student of half its layers that is far from it, or of half its width too."""
    family, _, narrow = family.partition("/")
    width = {"width": 8} if narrow else {}
    return make_model(family, head), make_model(family, head, seed=1, num_layers=2, **width)


def make_sparse_rows(head):
    """16 rows. The first 5 have no labels, so some micro-batches have none."""
    rows = make_rows(head)
    for row in rows[:5]:
        for name in {"labels", "start_positions", "end_positions"} & set(row):
            if isinstance(row[name], list):
                row[name] = [-100] * len(row[name])
            else:
                row[name] = float("nan") if head == "regression" else -100
    return rows


def one_step(make_trainer, head, family, rows=None, checkpointing=False, losses=LOSS_NAMES[1:], **arguments):
    """The losses and the gradient of the first optimizer step."""
    teacher, student = make_pair(head, family)
    if checkpointing:
        # its name before transformers 5.10 is deprecated now
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    arguments["project_hidden_states"] = "/" in family
    return one_step_of(make_trainer, student, teacher, rows or make_sparse_rows(head), losses, **arguments)


def one_step_of(make_trainer, student, teacher, rows, losses, **arguments):
    """The total loss, the losses of these names and the gradient of the first optimizer step."""
    keeper = KeepGradient()
    trainer = make_trainer(student, teacher, rows, max_steps=1, trainer_options={"callbacks": [keeper]}, **arguments)
    keeper.trainer = trainer
    trainer.train()
    logged = trainer.state.log_history[0]
    return [
        logged[name] for name in ("loss", *(f"loss_{name.removeprefix('loss_')}" for name in losses))
    ], keeper.gradient


def assert_equal_steps(one, other):
    (one_losses, one_gradient), (other_losses, other_gradient) = one, other
    # Tolerances of parts are relative to the total loss: a small KL is the difference of two larger numbers.
    assert one_losses == pytest.approx(other_losses, rel=0, abs=TOLERANCE * other_losses[0])
    assert min(abs(loss) for loss in one_losses) > 1e-3  # else the comparison says little
    assert one_gradient.norm() > 1e-3
    assert (one_gradient - other_gradient).norm() <= TOLERANCE * other_gradient.norm()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("head", "family"), CASES)
def test_micro_batches(make_trainer, head, family, checkpointing):
    whole = one_step(make_trainer, head, family)
    for batch_size, accumulation in [(16, 1), (4, 4)] if checkpointing else [(8, 2), (4, 4), (1, 16)]:
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        assert_equal_steps(one_step(make_trainer, head, family, checkpointing=checkpointing, **split), whole)


@pytest.mark.parametrize("head", ["mlm", "causal", "token_classification", "seq2seq"])
def test_micro_batches_with_the_kl_at_all_attended_positions(make_trainer, head):
    arguments = {"family": FAMILY_OF_HEAD.get(head, "bert"), "kl_positions": "attended"}
    whole = one_step(make_trainer, head, **arguments)
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_equal_steps(one_step(make_trainer, head, **arguments, **split), whole)


def test_rows_are_ragged_and_labels_few():
    for head in HEADS:
        rows = make_sparse_rows(head)
        lengths = {len(row.get("input_values", row.get("input_ids", []))) for row in rows}
        assert len(lengths) > 3 or head in ("image", "multiple_choice")
    assert CONFIGS_OF_HEADS.keys() <= HEADS.keys()
