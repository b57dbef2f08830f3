"""`DistillationTrainingArguments`: all options of distillation, with their help texts and checks."""

import copy
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments

from hf_distill.training.losses import DIVERGENCES, LOSSES, Loss
from hf_distill.training.losses.schedules import (
    Schedule,
    Scheduled,
    Value,
    check_some_is_on,
    check_temperature,
    check_weight,
    is_on,
    parse_schedule,
    value_at,
)

KLPositions = Literal["labels", "attended"]
HiddenDistance = Literal["mse", "cosine", "normalized_mse"]
AttentionHeads = Literal["each", "mean"]
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "mse", "dkd", "dist"]
TeacherDtype = Literal["float32", "bfloat16", "float16"]
TeacherQuantization = Literal["8bit", "4bit"]
TeacherMean = Literal["probabilities", "logits"]
TeacherDeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]

CHOICES: dict[str, tuple[str, ...]] = {
    "kl_positions": get_args(KLPositions),
    "hidden_loss": get_args(HiddenDistance),
    "attention_heads": get_args(AttentionHeads),
    "divergence": get_args(DivergenceName),
    "teacher_dtype": get_args(TeacherDtype),
    "teacher_quantization": get_args(TeacherQuantization),
    "teacher_device_map": get_args(TeacherDeviceMap),
    "teacher_mean": get_args(TeacherMean),
}
"""The allowed values of arguments, in addition to their default."""

DEFAULT_TEMPERATURE = 2.0

LOWER_IS_BETTER = ("kl_to_teacher", "expected_calibration_error")
"""Metrics of `classification_metrics` for which lower is better. `Trainer` assumes that greater is better."""


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a temperature, three loss weights and a teacher.

    All arguments of `TrainingArguments` work as usual. The defaults are the published DistilBERT command:
    `loss = 5 * L_kl + 2 * L_task + 1 * L_cos` at temperature 2.

    The temperature and each weight may be a number, a schedule such as `"linear:4->1"`, or a function from the progress
    of the training, between 0 and 1, to the value.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108

    Raises:
        ValueError: if a value is out of range, or if an option would have no effect, such as a temperature with
            `alpha_kl=0`.

    Example:
        >>> args = DistillationTrainingArguments(output_dir="student", temperature=4.0, alpha_cos=0.0)
        >>> args = DistillationTrainingArguments(output_dir="student", temperature="linear:4->1")

        From the command line or from YAML, as with `TrainingArguments`:

        >>> (args,) = HfArgumentParser(DistillationTrainingArguments).parse_yaml_file("config.yaml")
    """

    # The losses
    temperature: Scheduled = field(
        default=2.0,
        metadata={
            "help": "Softens both distributions in the KL loss: softmax(logits / temperature). Above 0. It may change "
            "during the training, as may every alpha: 'linear:4->1', 'cosine:4->1@0.1-0.6', 'piecewise:0=4,0.5=2'."
        },
    )
    alpha_kl: Scheduled = field(
        default=5.0,
        metadata={"help": "Weight of the KL divergence between the softened outputs of teacher and student. 0 is off."},
    )
    alpha_task: Scheduled = field(
        default=2.0,
        metadata={"help": "Weight of the task loss on hard labels. Set it to 0 to train on unlabelled data."},
    )
    alpha_cos: Scheduled = field(
        default=1.0,
        metadata={"help": "Weight of 1 - cosine between the last hidden states of teacher and student. 0 is off."},
    )
    alpha_hidden: Scheduled = field(
        default=0.0,
        metadata={"help": "Weight of the distance between the hidden states of mapped layers. 0 is off."},
    )
    alpha_attention: Scheduled = field(
        default=0.0,
        metadata={"help": "Weight of the squared difference between the attention maps of mapped layers. 0 is off."},
    )
    alpha_relation: Scheduled = field(
        default=0.0,
        metadata={
            "help": "Weight of the KL divergence between the relations of queries, of keys and of values in the "
            "student's last layer and a layer of the teacher, as in MiniLMv2. 0 is off."
        },
    )
    project_hidden_states: bool = field(
        default=False,
        metadata={
            "help": "Compare hidden states of different width: learn a linear map from the student's width to the "
            "teacher's. Checkpoints contain it, the saved student does not."
        },
    )
    layer_map: list | str | None = field(
        default=None,
        metadata={
            "help": "Which layers are compared, as pairs of student and teacher layer counted from 0, such as "
            "'[[0, 1], [1, 3]]', or such pairs by stack. By default each student layer with the teacher layer that its "
            "output stands for: where make_student cut, else evenly spaced."
        },
    )
    hidden_loss: HiddenDistance = field(
        default="mse",
        metadata={
            "help": "Distance between hidden states for alpha_hidden: 'mse' as in TinyBERT, 'cosine', or "
            "'normalized_mse' as in Patient Knowledge Distillation."
        },
    )
    hidden_embeddings: bool = field(
        default=False, metadata={"help": "Also compare the embeddings with alpha_hidden, as in TinyBERT."}
    )
    attention_heads: AttentionHeads = field(
        default="each",
        metadata={"help": "Compare the attention maps of 'each' head, or the 'mean' over heads."},
    )
    relation_layer: int = field(
        default=-1,
        metadata={
            "help": "The teacher's layer for alpha_relation, counted from 0; -1 is the last. In large teachers an "
            "upper middle layer is better: MiniLMv2 takes layer 20 of BERT-large's 24 (0 to 23)."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "Number of relation heads for alpha_relation. It must divide the widths of queries, keys and "
            "values in both models. By default the teacher's attention heads, or the next lower number that divides."
        },
    )
    kl_positions: KLPositions = field(
        default="labels",
        metadata={
            "help": "For models with one distribution per token, which tokens the KL loss compares: 'labels' for those "
            "with a label (about one in seven in masked language modelling), 'attended' for all except padding."
        },
    )

    # The divergence of the KL loss
    divergence: DivergenceName = field(
        default="forward_kl",
        metadata={
            "help": "What the KL loss minimises; docs/losses.md describes each divergence. 'dkd' needs labels, and "
            "'dkd' and 'dist' need three or more classes."
        },
    )
    divergence_beta: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the teacher in divergence='jsd': near 0 it is like forward KL, near 1 like reverse KL."
        },
    )
    divergence_skew: float = field(
        default=0.1,
        metadata={
            "help": "Share of the teacher in the student's side of divergence='skew_kl', and of the student in the "
            "teacher's side of 'skew_reverse_kl'. Between 0 and 1."
        },
    )
    dkd_alpha: float = field(
        default=1.0,
        metadata={"help": "Weight of the labelled class against all others in divergence='dkd'."},
    )
    dkd_beta: float = field(
        default=8.0,
        metadata={"help": "Weight of the distribution over the other classes in divergence='dkd'."},
    )
    standardize_logits: bool = field(
        default=False,
        metadata={
            "help": "Standardise the logits of each position, in student and teacher: subtract their mean and divide "
            "by their standard deviation, before the temperature. Needs three or more classes."
        },
    )
    log_gradient_norms: int = field(
        default=0,
        metadata={
            "help": "In every N-th optimizer step, log the gradient norm of each loss by itself, without its weight. "
            "Such a step takes one more forward and backward pass for each loss. 0 is off."
        },
    )

    # The teacher
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "The teacher to load: name on the Hub or folder of a model or PEFT adapter. Leave it out if "
            "you pass teacher_model to the trainer."
        },
    )
    teacher_dtype: TeacherDtype | None = field(
        default=None,
        metadata={"help": "Dtype of the teacher. By default the dtype it is stored in or was loaded in."},
    )
    teacher_quantization: TeacherQuantization | None = field(
        default=None,
        metadata={"help": "Load the teacher with 8-bit or 4-bit weights. Needs bitsandbytes."},
    )
    teacher_device_map: TeacherDeviceMap | None = field(
        default=None,
        metadata={"help": "Spread the teacher over the devices of this machine, as `device_map` does in transformers."},
    )

    # Several teachers
    teacher_mean: TeacherMean = field(
        default="probabilities",
        metadata={
            "help": "With several teachers, what is averaged: 'probabilities' at the temperature of the loss, or "
            "'logits'."
        },
    )
    teacher_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "With several teachers, the weight of each, in their order, such as 2 1. They are divided by their "
            "sum. By default all are equal."
        },
    )
    teacher_weights_column: str | None = field(
        default=None,
        metadata={
            "help": "With several teachers, the column of the data with a list of weights per row, one for each "
            "teacher, in place of teacher_weights."
        },
    )

    # Trainer's default replaces a NaN loss by the average of earlier losses, and copies the loss to the host in every
    # micro-batch to check it. Here such a loss stops the training, and no step waits for the check.
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Do not set: a NaN or infinite loss always stops the training."},
    )

    def __post_init__(self):
        self.check_distillation_fields()
        metric = self.metric_for_best_model or ""
        is_loss = re.fullmatch(r"(.+_)?loss_\w+", metric)  # such as eval_loss_kl
        if self.greater_is_better is None and (is_loss or metric.endswith(LOWER_IS_BETTER)):
            self.greater_is_better: bool | None = False
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # as it would have no effect, of which PyTorch warns
        super().__post_init__()

    def __setattr__(self, name: str, value: object) -> None:
        if callable(value) and (name == "temperature" or name.startswith("alpha_")):
            value = Schedule.of_function(value)
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """As in `TrainingArguments`. A function is written as its name."""
        return {name: str(value) if isinstance(value, Schedule) else value for name, value in super().to_dict().items()}

    def distillation_fields(self) -> dict[str, object]:
        """The values of all fields that the losses and the teacher depend on."""
        own = DistillationTrainingArguments.__dataclass_fields__.keys() - TrainingArguments.__dataclass_fields__.keys()
        return {name: getattr(self, name) for name in sorted({*own, "label_smoothing_factor"})}

    def check_distillation_fields(self) -> None:
        """Checks the range of each value, and that every option has an effect.

        Raises:
            ValueError: if a value is out of range, or if an option would have no effect.
        """
        for name in ("temperature", *self._alphas):
            self._value_of(name)
        if type(self.log_gradient_norms) is not int or self.log_gradient_norms < 0:
            raise ValueError(f"log_gradient_norms={self.log_gradient_norms!r} should be a number of steps, or 0 (off).")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in (self.__dataclass_fields__[name].default, *allowed):
                raise ValueError(f"{name}={value!r} should be one of {', '.join(map(repr, allowed))}.")
        self._check_teacher_weights()
        for loss in self._losses_in_use:
            loss.check_arguments(self)
        self._refuse(self._set_by_user(*self._unread_by_losses))
        if self.logging_nan_inf_filter:
            raise ValueError(
                "logging_nan_inf_filter=True would have no effect, because a NaN or infinite loss stops the training: "
                "leave it out."
            )
        if not self.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False would have no effect, because losses are means over all "
                "processes: leave it out."
            )

    def _check_teacher_weights(self) -> None:
        """Checks the arguments of several teachers."""
        name, weights = self.teacher_model_name_or_path, self.teacher_weights
        if name is not None and not isinstance(name, str | os.PathLike):
            raise ValueError(
                f"teacher_model_name_or_path={name!r} should be one name or folder: pass several teachers to the "
                f"trainer, as teacher_model=[...]."
            )
        if weights is None:
            return
        if self.teacher_weights_column is not None:
            raise ValueError(
                f"teacher_weights={weights!r} and teacher_weights_column={self.teacher_weights_column!r} are both set: "
                f"choose one of them."
            )
        are_numbers = isinstance(weights, list | tuple) and all(
            isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            for weight in weights
        )
        if not are_numbers or any(weight <= 0 for weight in weights):
            raise ValueError(
                f"teacher_weights={weights!r} should be a list of numbers above 0, one for each teacher, such as "
                f"[2, 1]. Leave out a teacher that should have no weight."
            )

    def check_losses(self, given: Collection[Loss] = ()) -> None:
        """Checks that at least one loss is on, and that the losses read every option that is set.

        Args:
            given: the user's own losses, in addition to the losses of the `alpha_...` arguments.

        Raises:
            ValueError: if no loss is on, or if an option would have no effect.
        """
        if not given:
            check_some_is_on({f"alpha_{name}": weight for name, weight in self.loss_weights.items()})
        if self._divergence_reads_labels and self.kl_positions != "labels" and not given:
            raise ValueError(
                f"kl_positions={self.kl_positions!r} would have no effect with divergence={self.divergence!r}, which "
                f"compares positions with a label only: leave it out, or choose another divergence."
            )
        self._refuse(self.unread_options(given))

    def unread_options(self, given: Collection[Loss] = ()) -> dict[str, object]:
        """The options that are set although no loss that is on reads them.

        Args:
            given: the user's own losses, in addition to the losses of the `alpha_...` arguments.
        """
        unread = self._set_by_user(*self._unread_by_losses)
        is_read = any("layer_map" in loss.options for loss in self._losses_in_use)
        if not is_read and not any(loss.needs.layers for loss in given):
            unread |= self._set_by_user("layer_map")
        if self.alpha_kl == 0 and not given:
            unread |= self._set_by_user("kl_positions")
        if not self.reads_teacher and not any(loss.reads_teacher for loss in given):
            unread |= self._set_by_user(*(name for name in self.__dataclass_fields__ if name.startswith("teacher_")))
        return unread

    @property
    def loss_weights(self) -> dict[str, Value]:
        """The weights of the losses by name: `{"kl": alpha_kl, ...}`, each a number or a `Schedule`."""
        return {name: self._value_of(f"alpha_{name}") for name in LOSSES}

    @property
    def loss_temperature(self) -> Value:
        """The temperature, a number or a `Schedule`."""
        return self._value_of("temperature")

    def at(self, progress: float) -> "DistillationTrainingArguments":
        """A copy with the value of each schedule at a moment of the training, from 0 to 1."""
        copied = copy.copy(self)
        copied.temperature = value_at(self.loss_temperature, progress)
        for name, weight in self.loss_weights.items():
            setattr(copied, f"alpha_{name}", value_at(weight, progress))
        return copied

    @property
    def reads_teacher(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        return any(loss.reads_teacher for loss in self._losses_in_use)

    @property
    def reads_hidden_states(self) -> bool:
        """Whether any loss compares hidden states."""
        return any(loss.needs.last_hidden_state for loss in self._losses_in_use)

    @property
    def reads_labels(self) -> bool:
        """Whether any loss reads hard labels."""
        return self._divergence_reads_labels or any(loss.needs.labels for loss in self._losses_in_use)

    def leave_out_teacher(self) -> None:
        """Turns off the losses that read a teacher: sets their weights to 0, and default weights of other losses to 1.

        Changes nothing if the user set the weight of a loss that reads a teacher.
        """
        defaults = {name: self.__dataclass_fields__[f"alpha_{name}"].default for name in LOSSES}
        readers = [name for name, loss in LOSSES.items() if loss.reads_teacher]
        if any(self.loss_weights[name] != defaults[name] for name in readers):
            return
        for name, weight in self.loss_weights.items():
            if weight == defaults[name]:
                setattr(self, f"alpha_{name}", 0.0 if name in readers else 1.0)
        self.check_distillation_fields()

    def _value_of(self, name: str) -> Value:
        """The value of the temperature or of a weight, checked."""
        given = getattr(self, name)
        try:
            value = parse_schedule(given)
            (check_temperature if name == "temperature" else check_weight)(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={given!r} {error}") from None
        return value

    @property
    def _alphas(self) -> dict[str, object]:
        """The weights of the losses as given, by field: `{"alpha_kl": alpha_kl, ...}`."""
        return {f"alpha_{name}": getattr(self, f"alpha_{name}") for name in LOSSES}

    @property
    def _divergence_reads_labels(self) -> bool:
        return is_on(self.loss_weights["kl"]) and DIVERGENCES[self.divergence].reads_labels

    @property
    def _losses_in_use(self) -> list[type[Loss]]:
        return [LOSSES[name] for name, weight in self.loss_weights.items() if is_on(weight)]

    @property
    def _unread_by_losses(self) -> list[str]:
        """The options that only losses of the `alpha_...` arguments read, and none that is on."""
        read = {option for loss in self._losses_in_use for option in loss.options}
        return sorted({option for loss in LOSSES.values() for option in loss.options} - read - {"layer_map"})

    def _refuse(self, unread: dict[str, object]) -> None:
        if unread:
            raise ValueError(
                f"{_as_text(unread)} would have no effect with {_as_text(self._alphas)}: leave it out, or raise the "
                f"weight of the loss that reads it."
            )

    def _set_by_user(self, *names: str) -> dict[str, object]:
        fields = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}


def _as_text(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
