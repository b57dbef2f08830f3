"""Subclasses, callbacks and mixins of `Trainer` work with the losses of a `DistillationTrainer`."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback

from hf_distill import DistillationTrainer
from hf_distill.training import trainer as trainer_module
from hf_distill.training.losses import evaluation
from tests.conftest import collate, make_model, make_rows

PARTS = ["loss_kl", "loss_task", "loss_cos"]
DOCS = Path(__file__).parents[2] / "docs" / "training.md"
WEIGHTS = {"loss_kl": 5.0, "loss_task": 2.0, "loss_cos": 1.0}


def make_pair(head="classification", family="bert"):
    return make_model(family, head), make_model(family, head, seed=1, num_layers=2)


@pytest.fixture
def make(make_trainer, monkeypatch):
    """Makes a trainer of a subclass of `DistillationTrainer`."""

    def make(cls, head="classification", **options):
        monkeypatch.setattr("tests.training.conftest.DistillationTrainer", cls)
        teacher, student = make_pair(head)
        return make_trainer(student, teacher, make_rows(head), make_rows(head, seed=1), **options)

    return make


@pytest.fixture
def warnings(monkeypatch):
    seen = []
    for module in (trainer_module, evaluation):
        monkeypatch.setattr(module.logger, "warning_once", seen.append)
    return seen


def logs_of_steps(trainer):
    return [log for log in trainer.state.log_history if "learning_rate" in log]


def weighted(log, prefix=""):
    return sum(weight * log[prefix + name] for name, weight in WEIGHTS.items())


class PlusHundred(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (loss[0] + 100, loss[1]) if return_outputs else loss + 100


def test_an_overridden_loss_is_the_one_that_is_evaluated(make):
    for metrics in ({}, {"trainer_options": {"compute_metrics": lambda prediction: {}}}):
        trainer = make(PlusHundred, per_device_eval_batch_size=5, **metrics)
        evaluated = trainer.evaluate()
        assert evaluated["eval_loss"] == pytest.approx(100 + weighted(evaluated, "eval_"), rel=1e-6)
        plain = make(DistillationTrainer, per_device_eval_batch_size=5, **metrics).evaluate()
        assert [evaluated[f"eval_{name}"] for name in PARTS] == [plain[f"eval_{name}"] for name in PARTS]
        assert plain["eval_loss"] == pytest.approx(weighted(plain, "eval_"), rel=1e-6)


def test_an_overridden_loss_in_training(make):
    trainer = make(PlusHundred, max_steps=2)
    trainer.train()
    for log in logs_of_steps(trainer):
        assert log["loss"] == pytest.approx(100 + weighted(log), rel=1e-6)


def test_a_loss_of_ones_own_has_no_parts(make):
    """Losses that an overridden `compute_loss` does not compute are not logged as 0."""

    class OfItsOwn(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    trainer = make(OfItsOwn, max_steps=1)
    evaluated = trainer.evaluate()
    assert not {f"eval_{name}" for name in PARTS} & evaluated.keys()
    batch = collate(trainer.eval_dataset)
    with torch.no_grad():
        assert evaluated["eval_loss"] == pytest.approx(trainer.compute_loss(trainer.model.eval(), batch).item())
    trainer.train()
    (log,) = logs_of_steps(trainer)
    assert not set(PARTS) & log.keys()
    assert log["loss"] > 0


def test_a_loss_that_is_computed_twice_in_a_step_is_counted_once(make):
    class Twice(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            other = super().compute_loss(model, inputs, False, num_items_in_batch)
            return ((loss[0] + other) / 2, loss[1]) if return_outputs else (loss + other) / 2

    split = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    once, twice = make(DistillationTrainer, **split), make(Twice, **split)
    assert twice.evaluate()["eval_loss"] == pytest.approx(once.evaluate()["eval_loss"], rel=1e-6)
    for trainer in (once, twice):
        trainer.train()
    for log, other in zip(logs_of_steps(once), logs_of_steps(twice), strict=True):
        assert [other[name] for name in ["loss", *PARTS]] == pytest.approx([log[name] for name in ["loss", *PARTS]])


@pytest.mark.parametrize("head", ["classification", "question_answering", "mlm"])
def test_outputs_are_those_of_the_model(make, head):
    trainer = make(DistillationTrainer, head)
    batch = collate(trainer.train_dataset)
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    plain = trainer.model(**{name: batch[name] for name in ("input_ids", "attention_mask")})
    for name in ("start_logits", "end_logits") if head == "question_answering" else ("logits",):
        torch.testing.assert_close(getattr(outputs, name), getattr(plain, name))
        torch.testing.assert_close(outputs[name], getattr(plain, name))


@pytest.mark.parametrize("in_place", [True, False])
def test_labels_may_be_edited_on_the_way(make, in_place):
    """The override moves labels to other positions than those that the collator counted; their number is the same."""

    class Edits(DistillationTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            edited = inputs["labels"].flip(1)
            if in_place:
                inputs["labels"].copy_(edited)
            else:
                inputs = {**inputs, "labels": edited}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def whole(rows):
        return [{name: (values * 20)[:12] for name, values in row.items()} for row in rows]

    def flipped(rows):
        return [{**row, "labels": row["labels"][::-1]} for row in rows]

    trainers = [make(cls, "mlm", max_steps=1) for cls in (Edits, DistillationTrainer)]
    rows = whole(make_rows("mlm"))
    trainers[0].train_dataset, trainers[1].train_dataset = rows, flipped(rows)
    for trainer in trainers:
        trainer.train()
    (edited,), (expected,) = map(logs_of_steps, trainers)
    assert [edited[name] for name in PARTS] == pytest.approx([expected[name] for name in PARTS], rel=1e-6)


def test_predicting_within_an_evaluation_leaves_it_alone(make):
    plain = make(DistillationTrainer).evaluate()
    trainer = None

    def compute_metrics(prediction):
        if not within:
            within.append(True)
            trainer.predict(make_rows("classification", seed=7))
        return {}

    within = []
    trainer = make(DistillationTrainer, trainer_options={"compute_metrics": compute_metrics})
    evaluated = trainer.evaluate()
    assert within
    for name in ["loss", *PARTS]:
        assert evaluated[f"eval_{name}"] == pytest.approx(plain[f"eval_{name}"], rel=1e-6)


def test_a_prediction_step_without_a_loss(make, warnings):
    class Predicts(DistillationTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            with torch.no_grad():
                return None, model(**self._student_inputs(inputs)).logits, inputs["labels"]

    assert not any("eval_loss" in name for name in make(Predicts).evaluate())
    assert not warnings


def test_a_prediction_step_with_another_loss(make, warnings):
    """The override's number is `eval_loss`, as in `Trainer`, with a warning that it is not the distillation loss."""

    class Other(DistillationTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            return torch.tensor(7.0), None, None

    evaluated = make(Other).evaluate()
    assert evaluated["eval_loss"] == 7.0
    assert not {f"eval_{name}" for name in PARTS} & evaluated.keys()
    (warning,) = warnings
    assert "eval_loss is the loss that Other.prediction_step returns" in warning


def test_a_prediction_step_that_asks_for_the_loss(make, warnings):
    class Asks(DistillationTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            with torch.no_grad():
                loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            return loss, outputs.logits, inputs["labels"]

    evaluated, plain = (make(cls).evaluate() for cls in (Asks, DistillationTrainer))
    for name in ["loss", *PARTS]:  # all rows are in one batch
        assert evaluated[f"eval_{name}"] == pytest.approx(plain[f"eval_{name}"], rel=1e-6)
    assert not warnings


def test_every_row_of_an_unprepared_dataloader_is_evaluated(make):
    """Also where a training has left Accelerate at the end of a shorter loader."""

    class Plain(DistillationTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return DataLoader(self.eval_dataset, batch_size=6, collate_fn=self.data_collator)

    class EvaluatesWithin(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = state.global_step == 2

    arguments = {"max_steps": 3, "per_device_train_batch_size": 11, "learning_rate": 1e-9}
    options = {"trainer_options": {"callbacks": [EvaluatesWithin()]}}
    trainer = make(Plain, **arguments, **options)
    trainer.train()
    (within,) = (log for log in trainer.state.log_history if "eval_loss" in log)
    plain = make(DistillationTrainer).evaluate()
    for name in ["loss", *PARTS]:
        assert within[f"eval_{name}"] == pytest.approx(plain[f"eval_{name}"], rel=1e-5)


def test_a_collator_may_make_two_sequences_of_a_row(make):
    def collate_twice(rows):
        return collate([copy.deepcopy(row) for row in rows for _ in range(2)])

    twice = make(DistillationTrainer, data_collator=collate_twice, per_device_eval_batch_size=6).evaluate()
    plain = make(DistillationTrainer, per_device_eval_batch_size=6).evaluate()
    for name in ["loss", *PARTS]:
        assert twice[f"eval_{name}"] == pytest.approx(plain[f"eval_{name}"], rel=1e-6)


def test_the_first_entry_of_a_batch_need_not_have_a_row_per_example(make):
    class Drops(DistillationTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, {n: v for n, v in inputs.items() if n != "note"}, *args, **kwargs)

    def collate_noted(rows):
        return {"note": torch.zeros(1), **collate(rows)}

    noted = make(Drops, data_collator=collate_noted, max_steps=1, per_device_eval_batch_size=6)
    plain = make(DistillationTrainer, max_steps=1, per_device_eval_batch_size=6)
    evaluated, expected = noted.evaluate(), plain.evaluate()
    for name in ["loss", *PARTS]:
        assert evaluated[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-6)
    for trainer in (noted, plain):
        trainer.train()
    (log,), (other) = map(logs_of_steps, (noted, plain))
    assert [log[name] for name in PARTS] == pytest.approx([other[0][name] for name in PARTS])


def test_a_further_name_of_labels_reaches_the_metrics(make):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.label_ids)
        return {}

    trainer = make(
        DistillationTrainer,
        label_names=["labels", "importance"],
        trainer_options={"compute_metrics": compute_metrics},
    )
    trainer.eval_dataset = [{**row, "importance": float(i)} for i, row in enumerate(trainer.eval_dataset)]
    evaluated = trainer.evaluate()
    labels, importance = seen[0]
    assert labels.tolist() == [row["labels"] for row in trainer.eval_dataset]
    assert importance.tolist() == list(range(16))
    assert evaluated["eval_loss"] > 0


@pytest.mark.parametrize(("name", "value"), [("temperature", 3.0), ("alpha_kl", 0.5), ("kl_positions", "attended")])
def test_a_callback_cannot_change_what_the_losses_are_made_of(make, name, value):
    class Changes(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            setattr(args, name, value)

    trainer = make(DistillationTrainer, "mlm", max_steps=3, trainer_options={"callbacks": [Changes()]})
    with pytest.raises(ValueError, match=f"{name} was .* and is {value!r}: this argument cannot change during"):
        trainer.train()


def test_arguments_that_change_between_trainings(make):
    trainer, fresh = make(DistillationTrainer), make(DistillationTrainer, temperature=5.0)
    trainer.args.temperature = 5.0
    changed, expected = trainer.evaluate(), fresh.evaluate()
    assert changed["eval_loss_kl"] == expected["eval_loss_kl"]


# The accounts of a training


class Stream(IterableDataset):
    """Rows without a known number, which end."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from self.rows


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        self.gradients.append(gradient.clone())


FIXED = {"optim": "sgd", "learning_rate": 1e-9}  # each step is computed on the same weights


def test_the_end_of_a_finite_stream(make):
    """6 batches per pass, 4 per step: leftover batches start the next step, whose mean is over all its rows."""
    keeper = KeepGradients()
    trainer = make(
        DistillationTrainer,
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        trainer_options={"callbacks": [keeper]},
        **FIXED,
    )
    rows = trainer.train_dataset[:12]
    trainer.train_dataset = Stream(rows)
    trainer.train()
    for step, indices in enumerate(([*range(8)], [8, 9, 10, 11, 0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11])):
        whole = KeepGradients()
        expected = make(DistillationTrainer, max_steps=1, trainer_options={"callbacks": [whole]}, **FIXED)
        expected.train_dataset = [rows[index] for index in indices]
        expected.train()
        assert (keeper.gradients[step] - whole.gradients[0]).norm() <= 1e-5 * whole.gradients[0].norm()
        log, other = logs_of_steps(trainer)[step], logs_of_steps(expected)[0]
        assert [log[n] for n in ["loss", *PARTS]] == pytest.approx([other[n] for n in ["loss", *PARTS]], rel=1e-5)


def test_a_stream_that_is_shorter_than_a_step(make):
    trainer = make(DistillationTrainer, max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train_dataset = Stream(trainer.train_dataset[:4])
    with pytest.raises(ValueError, match="has 2 batches, too few for an optimizer step with gradient_acc"):
        trainer.train()


def test_an_epoch_that_stops_within_a_step(make):
    """An unfinished step is neither logged nor part of the next step's gradient."""

    class Stops(TrainerCallback):
        substeps = 0

        def on_substep_end(self, args, state, control, **kwargs):
            self.substeps += 1
            control.should_epoch_stop = self.substeps == 2  # in the second step

    keeper, plain = KeepGradients(), KeepGradients()
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2, **FIXED}
    stopped = make(DistillationTrainer, trainer_options={"callbacks": [Stops(), keeper]}, logging_steps=2, **split)
    whole = make(DistillationTrainer, trainer_options={"callbacks": [plain]}, **split)
    for trainer in (stopped, whole):
        trainer.train()
    assert len(keeper.gradients) == 3  # one in the first epoch, two in the second
    for gradient, expected in zip(keeper.gradients, [plain.gradients[i] for i in (0, 0, 1)], strict=True):
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    steps = [logs_of_steps(whole)[i] for i in (0, 0, 1)]
    log = logs_of_steps(stopped)[0]
    for name in ["loss", *PARTS]:
        assert log[name] == pytest.approx((steps[0][name] + steps[1][name]) / 2, rel=1e-5)


def test_the_attempt_that_ran_out_of_memory_is_not_logged(make):
    class RunsOut(DistillationTrainer):
        failed = False

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if self.state.global_step == 1 and not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return loss

    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "max_steps": 4, "logging_steps": 4}
    trainer = make(RunsOut, **options, **FIXED)
    trainer.train()
    (log,) = logs_of_steps(trainer)
    assert trainer.failed
    assert log["loss"] == pytest.approx(weighted(log), rel=1e-5)


def test_batches_without_their_number_of_items(make, warnings):
    """As in `Trainer`: the mean of the micro-batches' losses."""

    class WithoutItems(DistillationTrainer):
        def get_batch_samples(self, *args):
            return super().get_batch_samples(*args)[0], None

    options = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, **FIXED}
    trainer = make(WithoutItems, **options)
    with torch.no_grad():
        batches = [collate(trainer.train_dataset[start : start + 4]) for start in range(0, 16, 4)]
        expected = torch.stack([trainer.compute_loss(trainer.model, batch) for batch in batches]).mean().item()
    trainer.train()
    (log,) = logs_of_steps(trainer)
    assert log["loss"] == pytest.approx(expected, rel=1e-5)
    assert weighted(log) == pytest.approx(expected, rel=1e-5)
    assert "num_items_in_batch" in warnings[0]


def test_a_loss_that_a_person_logs(make):
    """Before the training, or within it, it is what it is."""

    class LogsItsOwn(DistillationTrainer):
        def training_step(self, *args, **kwargs):
            self.log({"loss": 7.0})
            return super().training_step(*args, **kwargs)

    trainer = make(LogsItsOwn, max_steps=2)
    trainer.log({"loss": 3.0})
    (logged,) = trainer.state.log_history
    assert {name for name in logged if "loss" in name} == {"loss"}
    trainer.train()
    own = [log for log in trainer.state.log_history if log.get("loss") == 7.0]
    assert len(own) == 2
    assert not any("loss_kl" in log for log in own)
    for log in logs_of_steps(trainer):
        assert log["loss"] == pytest.approx(weighted(log), rel=1e-5)


def test_the_example_of_the_docs(make):
    """docs/training.md: an override that adds a mean over the micro-batch, on any split into micro-batches."""
    (block,) = re.findall(r"^class WithPenalty.*?(?=^trainer = )", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    names = {"DistillationTrainer": DistillationTrainer}
    exec(block, names)
    losses = []
    for size, accumulation in [(16, 1), (4, 4)]:
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = make(names["WithPenalty"], max_steps=1, **split)
        trainer.train()
        (log,) = logs_of_steps(trainer)
        losses.append(log["loss"])
        assert log["loss"] > weighted(log)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
