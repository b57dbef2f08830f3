"""A matrix of `Trainer`'s features, run with `Trainer`, with our task loss alone, and with distillation.

With the task loss alone, weights and logs equal `Trainer`'s. With distillation, the weighted parts add up to the loss
in each log, and everything that `Trainer` logs is logged too. A test fails for every field of `TrainingArguments` that
is neither set by a row nor listed in `ELSEWHERE`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer

STOCK, TASK_ONLY, DISTILLING = "Trainer", "the task loss alone", "distilling"
WEIGHTS = {"kl": 5.0, "task": 2.0, "cos": 1.0}
TIMES = ("runtime", "per_second", "preparation_time", "_mem_", "total_flos", "num_input_tokens_seen_per")


class Stream(IterableDataset):
    def __iter__(self):
        yield from make_rows("classification")


class Halves(TrainerCallback):
    """Changes the learning rate and asks for an evaluation."""

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        for group in optimizer.param_groups:
            group["lr"] /= 2
        control.should_evaluate = state.global_step == 2


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class AccuracyInBatches:
    """Metrics for `batch_eval_metrics`, which calls the function once per batch."""

    def __init__(self):
        self.right = []

    def __call__(self, prediction, compute_result):
        self.right += (prediction.predictions.argmax(-1) == prediction.label_ids).tolist()
        if not compute_result:
            return {}
        right, self.right = self.right, []
        return {"accuracy": sum(right) / len(right)}


def inputs_and_losses(prediction):
    return {"inputs": int(prediction.inputs.shape[0]), "losses": int(prediction.losses.shape[0])}


def subclass(**methods) -> Callable[[type], type]:
    """A subclass of a trainer, with methods that are given the class too, to call `super` on."""

    def make(base):
        made = type("Overridden", (base,), {})
        for name, method in methods.items():
            setattr(made, name, lambda self, *args, _method=method, **kwargs: _method(made, self, *args, **kwargs))
        return made

    return make


def own_optimizer(cls, self, *args):
    self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
    return self.optimizer


def own_scheduler(cls, self, num_training_steps, optimizer=None):
    self.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)
    self._created_lr_scheduler = True
    return self.lr_scheduler


def plus_one(cls, self, model, inputs, return_outputs=False, num_items_in_batch=None):
    loss = super(cls, self).compute_loss(model, inputs, return_outputs, num_items_in_batch)
    return (loss[0] + 1, loss[1]) if return_outputs else loss + 1


def counted_step(cls, self, *args, **kwargs):
    self.steps_seen = getattr(self, "steps_seen", 0) + 1
    return super(cls, self).training_step(*args, **kwargs)


def marked_log(cls, self, logs, *args, **kwargs):
    super(cls, self).log({**logs, "marked": 1.0}, *args, **kwargs)


def plain_loader(cls, self, *args):
    return DataLoader(self.train_dataset, batch_size=4, collate_fn=self.data_collator)


def no_decay(cls, self, model):
    return [name for name in super(cls, self).get_decay_parameter_names(model) if "classifier" not in name]


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        arguments: fields of `TrainingArguments`.
        options: options of the trainer, created again for each trainer.
        of_class: makes a subclass of a trainer.
        rows: training rows.
        extra: value that an override adds to the loss.
        resumes: True to train two steps, and continue from their checkpoint with a new trainer.
        is_equal: True if the weights must equal `Trainer`'s.
    """

    arguments: Mapping[str, object] = field(default_factory=dict)
    options: Callable[[torch.nn.Module], dict] = lambda model: {}
    of_class: Callable[[type], type] = lambda base: base
    rows: Callable[[], object] = lambda: make_rows("classification")
    extra: float = 0.0
    resumes: bool = False
    is_equal: bool = True


EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 2}
BEST = {**EVALUATED, **SAVED, "load_best_model_at_end": True}
METRICS = {"compute_metrics": accuracy}


def with_metrics(model):
    return dict(METRICS)


ROWS = {
    # Optimizers
    "adamw": Row({"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}),
    "adafactor": Row({"optim": "adafactor", "weight_decay": 0.1}),
    "rmsprop": Row({"optim": "rmsprop", "optim_args": "alpha=0.9"}),
    "adagrad": Row({"optim": "adagrad"}),
    "an optimizer": Row({}, lambda model: {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.05), None)}),
    "a class of optimizers": Row({}, lambda model: {"optimizer_cls_and_kwargs": (torch.optim.Adamax, {"lr": 1e-2})}),
    "create_optimizer": Row({}, of_class=subclass(create_optimizer=own_optimizer)),
    "weights without decay": Row({"weight_decay": 0.3}, of_class=subclass(get_decay_parameter_names=no_decay)),
    # Schedules
    "cosine": Row({"lr_scheduler_type": "cosine", "warmup_steps": 1}),
    "with a least": Row({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-4}}),
    "on a plateau": Row({"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", **EVALUATED}),
    "create_scheduler": Row({}, of_class=subclass(create_scheduler=own_scheduler)),
    # Steps
    "epochs": Row({"num_train_epochs": 2, "max_steps": -1}),
    "accumulation": Row(
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        is_equal=False,  # Trainer sums this model's loss over the micro-batches
    ),
    "clipping": Row({"max_grad_norm": 0.1}),
    "label smoothing": Row({"label_smoothing_factor": 0.2}),
    "neftune": Row({"neftune_noise_alpha": 5.0}),
    "an empty cache": Row({"torch_empty_cache_steps": 1}),
    "the largest batch": Row({"auto_find_batch_size": True}),
    "checkpointed activations": Row({"activation_checkpointing": True, "activation_checkpointing_kwargs": {}}),
    "use_cache": Row({"use_cache": True}),
    "metrics of memory": Row({"skip_memory_metrics": False}),
    # Logs
    "logs of epochs": Row({"logging_strategy": "epoch", "log_level": "error", "log_level_replica": "error"}),
    "first step": Row({"logging_steps": 3, "logging_first_step": True, "log_on_each_node": False}),
    "all tokens": Row({"include_num_input_tokens_seen": "all"}),
    "tokens": Row({"include_num_input_tokens_seen": "non_padding"}),
    "tensorboard": Row({"report_to": "tensorboard", "run_name": "run"}),
    "a progress bar": Row({"disable_tqdm": False}),
    "log": Row({}, of_class=subclass(log=marked_log)),
    # Evaluations
    "evaluations": Row({**EVALUATED, "per_device_eval_batch_size": 5}, with_metrics),
    "evaluated epochs": Row({"eval_strategy": "epoch", "eval_on_start": True}, with_metrics),
    "a late evaluation": Row({**EVALUATED, "eval_delay": 3}),
    "losses alone": Row({**EVALUATED, "prediction_loss_only": True}, with_metrics),
    "predictions by batches": Row(
        {**EVALUATED, "eval_do_concat_batches": False}, lambda model: {"compute_metrics": lambda p: {"n": len(p[0])}}
    ),
    "gathered objects": Row({**EVALUATED, "eval_use_gather_object": True}, with_metrics),
    "accumulated predictions": Row(
        {**EVALUATED, "eval_accumulation_steps": 1, "per_device_eval_batch_size": 4}, with_metrics
    ),
    "inputs and losses": Row(
        {**EVALUATED, "include_for_metrics": ["inputs", "loss"], "per_device_eval_batch_size": 16},
        lambda model: {"compute_metrics": inputs_and_losses},
    ),
    "metrics of batches": Row(
        {**EVALUATED, "batch_eval_metrics": True}, lambda model: {"compute_metrics": AccuracyInBatches()}
    ),
    "preprocessed logits": Row(
        EVALUATED,
        lambda model: {
            "compute_metrics": lambda p: {"mean": float(p.predictions.mean())},
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
    ),
    "two datasets": Row(
        EVALUATED,
        lambda model: {"eval_dataset": {name: make_rows("classification", seed=i) for i, name in enumerate("ab")}},
    ),
    "half precision": Row({**EVALUATED, "bf16_full_eval": True}),
    # Checkpoints, and the best of them
    "the best": Row({**BEST, "metric_for_best_model": "accuracy", "greater_is_better": True}, with_metrics),
    "the best by its loss": Row({**BEST, "metric_for_best_model": "loss", "save_total_limit": 1}),
    "only the best": Row({**EVALUATED, "save_strategy": "best", "metric_for_best_model": "loss"}),
    "early stopping": Row(
        {**BEST, "metric_for_best_model": "loss", "save_steps": 1, "eval_steps": 1, "learning_rate": 0.5},
        lambda model: {"callbacks": [EarlyStoppingCallback(1)]},
    ),
    "models alone": Row({**SAVED, "save_only_model": True, "save_on_each_node": True}),
    "just in time": Row({**SAVED, "enable_jit_checkpoint": True}),
    "resumed": Row({**SAVED, "restore_callback_states_from_checkpoint": True}, resumes=True),
    "resumed at the first row": Row({**SAVED, "ignore_data_skip": True}, resumes=True),
    # Data
    "shuffled": Row({"train_sampling_strategy": "random", "seed": 3, "data_seed": 7}),
    "in order": Row({"train_sampling_strategy": "sequential", "dataloader_pin_memory": False}),
    "by length": Row(
        {"train_sampling_strategy": "group_by_length", "length_column_name": "input_ids"},
        is_equal=False,  # ours does not draw the order from dropout's generator, which a resume could not repeat
    ),
    "full batches": Row({"per_device_train_batch_size": 5, "dataloader_drop_last": True, "max_steps": 6}),
    "workers": Row(
        {
            "dataloader_num_workers": 1,
            "dataloader_persistent_workers": True,
            "dataloader_prefetch_factor": 1,
            "dataloader_multiprocessing_context": "fork",
            "dataloader_in_order": False,
        }
    ),
    "split batches": Row({"accelerator_config": {"split_batches": True}}),
    "a stream": Row({"max_steps": 4}, rows=Stream),
    "a dataset": Row(
        {"remove_unused_columns": True, "label_names": ["labels"]},
        lambda model: {
            "processing_class": make_text_tokenizer(),
            "data_collator": DataCollatorWithPadding(make_text_tokenizer()),
        },
        rows=lambda: Dataset.from_list([{**row, "note": "unused"} for row in make_rows("classification")]),
    ),
    "a sampler": Row({}, of_class=subclass(_get_train_sampler=lambda c, s, *a: SequentialSampler(s.train_dataset))),
    "a plain loader": Row({}, of_class=subclass(get_train_dataloader=plain_loader)),
    # Hooks
    "compute_loss": Row(EVALUATED, of_class=subclass(compute_loss=plus_one), extra=1.0),
    "training_step": Row({}, of_class=subclass(training_step=counted_step)),
    "callbacks": Row({}, lambda model: {"callbacks": [Halves()]}),
    "full determinism": Row({"full_determinism": True}),
}

ELSEWHERE = {
    **dict.fromkeys(["output_dir", "use_cpu"], "every row"),
    **dict.fromkeys(["fsdp", "fsdp_config", "deepspeed", "average_tokens_across_devices"], "test_engines.py"),
    **dict.fromkeys(
        ["ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"],
        "Accelerate's business",
    ),
    **dict.fromkeys(["ddp_backend", "ddp_timeout", "local_rank", "parallelism_config"], "Accelerate's business"),
    **dict.fromkeys(["torch_compile", "torch_compile_backend", "torch_compile_mode"], "test_trainer.py"),
    **dict.fromkeys(["fp16", "fp16_full_eval", "tf32"], "need a GPU; test_step_on_a_gpu in test_trainer.py"),
    "bf16": "test_bf16 in test_trainer.py",
    **dict.fromkeys(["gradient_checkpointing", "gradient_checkpointing_kwargs"], "older names of activation_..."),
    **dict.fromkeys(["use_liger_kernel", "liger_kernel_config", "optim_target_modules"], "need packages for GPUs"),
    "debug": "fails in Trainer on the masks of BERT, which are of bool",
    "logging_nan_inf_filter": "refused: test_training_args.py",
    **dict.fromkeys(
        ["project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"], "names for a tracker"
    ),
    **dict.fromkeys(
        [
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ],
        "test_push.py",
    ),
    **dict.fromkeys(["do_train", "do_eval", "do_predict", "resume_from_checkpoint"], "read by scripts alone"),
}


def run(kind: str, row: Row, output_dir: Path) -> tuple[torch.Tensor, list[dict], set[str]]:
    """Weights, logs and files in the folder after a training."""
    arguments = {
        "output_dir": str(output_dir),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-3,
        **row.arguments,
    }

    def train(resume: str | None = None, **more):
        set_seed(0)
        model = make_model("bert", "classification", num_layers=1, dropout=0.1)
        given = {
            "model": model,
            "data_collator": collate,
            "train_dataset": row.rows(),
            "eval_dataset": make_rows("classification", seed=1),
            **row.options(model),
        }
        if kind == STOCK:
            trainer = row.of_class(Trainer)(args=TrainingArguments(**{**arguments, **more}), **given)
        else:
            losses = {} if kind == DISTILLING else {"alpha_kl": 0.0, "alpha_cos": 0.0, "alpha_task": 1.0}
            teacher = make_model("bert", "classification", seed=5) if kind == DISTILLING else None
            arguments_of_ours = DistillationTrainingArguments(**{**arguments, **losses, **more})
            trainer = row.of_class(DistillationTrainer)(args=arguments_of_ours, teacher_model=teacher, **given)
        trainer.train(resume)
        return trainer

    if row.resumes:
        train(max_steps=2)
    trainer = train(str(output_dir / "checkpoint-2") if row.resumes else None)
    weights = torch.cat([parameter.detach().float().flatten() for parameter in trainer.model.parameters()])
    return weights, trainer.state.log_history, {path.name for path in output_dir.glob("checkpoint-*")}


def assert_equal_logs(logs, others):
    assert len(logs) == len(others)
    for log, other in zip(logs, others, strict=True):
        own = {name for name in log if not any(time in name for time in TIMES)} - {"loss_task"}
        own -= {name for name in own if name.endswith("_loss_task")}
        assert own == {name for name in other if not any(time in name for time in TIMES)}
        for name in own:
            assert log[name] == pytest.approx(other[name], rel=2e-5, abs=1e-6), name


def assert_parts_are_the_loss(logs, others, extra):
    with_parts = 0
    for log in logs:
        for total in [name for name in log if name == "loss" or (name.endswith("_loss") and name != "train_loss")]:
            parts = [weight * log[f"{total}_{name}"] for name, weight in WEIGHTS.items()]
            assert log[total] == pytest.approx(sum(parts) + extra, rel=2e-5)
            with_parts += 1
    assert with_parts > 0
    if len(logs) == len(others):  # an early stop may come at another step
        assert all(other.keys() <= log.keys() for log, other in zip(logs, others, strict=True))


@pytest.fixture
def deterministic_as_before():
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("deterministic_as_before")
@pytest.mark.parametrize("name", ROWS)
def test_feature(tmp_path, name):
    row = ROWS[name]
    stock, ours, distilled = (run(kind, row, tmp_path / kind) for kind in (STOCK, TASK_ONLY, DISTILLING))
    start = make_model("bert", "classification", num_layers=1, dropout=0.1).parameters()
    moved = (stock[0] - torch.cat([parameter.detach().flatten() for parameter in start])).norm()
    assert moved > 1e-3
    if row.is_equal:
        assert (ours[0] - stock[0]).norm() <= 2e-5 * moved
        assert_equal_logs(ours[1], stock[1])
    assert ours[2] == stock[2]
    assert (distilled[0] - stock[0]).norm() > 1e-3 * moved
    assert math.isfinite(distilled[0].sum())
    assert_parts_are_the_loss(distilled[1], stock[1], row.extra)


def test_every_field_is_in_a_row():
    covered = {name for row in ROWS.values() for name in row.arguments} | ELSEWHERE.keys()
    assert [field.name for field in fields(TrainingArguments) if field.name not in covered] == []
