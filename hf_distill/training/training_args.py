"""`DistillationTrainingArguments`: all options of distillation, with their help texts and checks."""

import math
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from hf_distill.training.losses import LOSSES, Loss
from hf_distill.training.losses.arguments import CHOICES_OF_LOSSES, LossTrainingArguments
from hf_distill.training.losses.generation import GenerationTrainingArguments
from hf_distill.training.losses.schedules import check_some_is_on

TeacherDtype = Literal["float32", "bfloat16", "float16"]
TeacherQuantization = Literal["8bit", "4bit"]
TeacherMean = Literal["probabilities", "logits"]
TeacherDeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]

CHOICES: dict[str, tuple[str, ...]] = {
    **CHOICES_OF_LOSSES,
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
class DistillationTrainingArguments(LossTrainingArguments):
    """`TrainingArguments` with a temperature, the weights of the losses, and a teacher.

    All arguments of `TrainingArguments` and `Seq2SeqTrainingArguments` work as usual. The defaults are the published
    DistilBERT command: `loss = 5 * L_kl + 2 * L_task + 1 * L_cos` at temperature 2.

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

    share_encoder: bool = field(
        default=False,
        metadata={
            "help": "For encoder-decoders whose student has the teacher's encoder: freeze it, with the embeddings that "
            "it reads, and run it once per batch for both, as in Distil-Whisper."
        },
    )

    # Completions that the student writes
    on_policy_fraction: float = field(
        default=0.0,
        metadata={
            "help": "For causal models: the share of the optimizer steps, from 0 to 1, in which the student itself "
            "writes the completions of the prompts, as in GKD. Needs alpha_task=0 and a live teacher."
        },
    )
    on_policy_max_new_tokens: int = field(
        default=128, metadata={"help": "With on_policy_fraction, the most tokens that the student writes for a prompt."}
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

    def distillation_fields(self) -> dict[str, object]:
        """The values of all fields that the losses and the teacher depend on."""
        others = GenerationTrainingArguments.__dataclass_fields__
        own = DistillationTrainingArguments.__dataclass_fields__.keys() - others.keys()
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
        self.check_generation()
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
        if self.share_encoder and (self.reads_layers or any(loss.needs.layers for loss in given)):
            raise ValueError(
                "share_encoder=True does not work with losses over layers, because the student's encoder does not run: "
                "set alpha_hidden, alpha_attention and alpha_relation to 0, or leave it out."
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
            of_teacher = (name for name in self.__dataclass_fields__ if name.startswith("teacher_"))
            unread |= self._set_by_user("share_encoder", *of_teacher)
        return unread

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
