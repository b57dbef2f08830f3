"""Stages: trainings one after the other, each of which continues with the student of the one before."""

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from hf_distill.training.training_args import DistillationTrainingArguments

SHARED = (
    *("output_dir", "resume_from_checkpoint", "push_to_hub", "use_cpu", "bf16", "fp16", "deepspeed"),
    *("accelerator_config", "parallelism_config", "local_rank"),
)
SHARED_PREFIXES = ("hub_", "fsdp", "ddp_", "do_")
"""Arguments that all stages share: the folder, the Hub, and what a process can set up only once."""

EXAMPLE = "`stages: [{name: inner, alpha_kl: 0.0, num_train_epochs: 10}, {name: predictions}]`"


@dataclass(frozen=True)
class Stage:
    """A stage of a training, from `make_stages`.

    Attributes:
        args: the training arguments, with an output folder of its own. The last stage has the shared output folder.
        name: the name; None if the training has no stages.
        student: the folder with the student of the stage before; None for the first stage.
        later: the output folders of the later stages.
        earlier: what the earlier stages trained on, by name, for the model card.
    """

    args: DistillationTrainingArguments
    name: str | None = None
    student: str | None = None
    later: tuple[str, ...] = ()
    earlier: Mapping[str, str] = field(default_factory=dict)


def make_stages(
    training: DistillationTrainingArguments, stages: Sequence[Mapping[str, Any]] | None = None
) -> list[Stage]:
    """Divides a training into stages, such as TinyBERT's: inner layers first, predictions after.

    Each stage trains the student of the stage before with a new optimizer and a new learning rate schedule. Its model
    and checkpoints are in a subfolder of the output folder, such as `stage-1-inner`; the last stage has the output
    folder itself. Run each stage as a `TrainingRun`: a run that was stopped then skips the finished stages, and resumes
    in the stage where it was stopped.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351, section 3.2

    Args:
        training: the arguments that the stages share. An option that no loss of a stage reads, such as a temperature in
            a stage without `alpha_kl`, is left out there.
        stages: for each stage, `name` and the training arguments that differ. None for a training without stages.

    Returns:
        The stages in their order; a single one with `training` itself if `stages` is None.

    Raises:
        ValueError: if there is no stage, if a name is missing, repeated or no folder name, if an argument is unknown or
            cannot differ between stages, if a value is out of range, if a stage turns all losses off, or if a shared
            option has no effect in any stage.

    Example:
        >>> inner = {"name": "inner", "alpha_kl": 0.0, "alpha_task": 0.0, "num_train_epochs": 10}
        >>> for stage in make_stages(args, [inner, {"name": "predictions"}]):
        ...     settings = {"model": model_identity(stage.student or "bert-base-uncased")}
        ...     run = TrainingRun.begin(stage.args, settings, stage=stage)
        ...     if run is not None:
        ...         student = make_student(teacher) if stage.student is None else load(stage.student)
        ...         trainer = DistillationTrainer(student, stage.args, teacher_model=teacher, train_dataset=rows)
        ...         run.train(trainer)
        ...         trainer.save_model()
        ...         run.finish()
    """
    if stages is None:
        return [Stage(training)]
    _check_names(stages)
    if training.resume_from_checkpoint is not None:
        raise ValueError(
            f"resume_from_checkpoint={training.resume_from_checkpoint!r} does not work with stages: leave it out. A "
            f"stopped run continues by itself."
        )
    names = [stage["name"] for stage in stages]
    folders = [os.path.join(training.output_dir, f"stage-{index}-{name}") for index, name in enumerate(names, start=1)]
    folders[-1] = training.output_dir
    made: list[Stage] = []
    unread: list[set[str]] = []
    for index, (name, given) in enumerate(zip(names, stages, strict=True)):
        with errors_of(name):
            args, without_effect = _arguments(training, given, folders[index], is_last=index == len(stages) - 1)
        unread.append(without_effect)
        made.append(
            Stage(
                args=args,
                name=name,
                student=folders[index - 1] if index else None,
                later=tuple(folders[index + 1 :]),
                earlier={f"stage {number}, {own.name}": _summary(own.args) for number, own in enumerate(made, start=1)},
            )
        )
    if nowhere := sorted(set.intersection(*unread)):
        said = ", ".join(f"{option}={getattr(training, option)!r}" for option in nowhere)
        raise ValueError(f"{said} would have no effect in any stage: leave it out.")
    return made


@contextmanager
def errors_of(name: str | None) -> Iterator[None]:
    """Names the stage in errors. `name` is None if there are no stages."""
    try:
        yield
    except ValueError as error:
        if name is None:
            raise
        raise ValueError(f"Stage {name!r}: {error}") from None


def _check_names(stages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(stages, str | Mapping) or not isinstance(stages, Sequence) or not stages:
        raise ValueError(f"stages={stages!r} should be a list of at least one stage, such as {EXAMPLE}.")
    names = []
    for number, stage in enumerate(stages, start=1):
        if not isinstance(stage, Mapping):
            raise ValueError(f"Stage {number} should be a mapping, as in {EXAMPLE}, but is {stage!r}.")
        name = stage.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(
                f"Stage {number} has the name {name!r}: give it one of letters, digits, _ and -, as in {EXAMPLE}."
            )
        names.append(name)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Several stages have the name {', '.join(repeated)}: give each its own.")


def _arguments(
    training: DistillationTrainingArguments, stage: Mapping[str, Any], output_dir: str, is_last: bool
) -> tuple[DistillationTrainingArguments, set[str]]:
    """The arguments of a stage, and the shared options that it does not read."""
    given = {name: value for name, value in stage.items() if name != "name"}
    fields = training.__dataclass_fields__
    for name, value in given.items():
        if name not in fields or not fields[name].init:
            near = get_close_matches(name, fields, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} is not a training argument.{meant}")
        if name in SHARED or name.startswith(SHARED_PREFIXES):
            raise ValueError(f"{name} must be the same in all stages: set it outside of the stages.")
        if isinstance(value, str) and type(getattr(training, name)) in (int, float) and not _may_be_scheduled(name):
            raise ValueError(f"{name} is the text {value!r}, not a number (YAML reads 1e-4 as text: write 1.0e-4).")
    args = copy.copy(training)
    for name, value in given.items():
        setattr(args, name, value)
    args.output_dir, args.push_to_hub = output_dir, training.push_to_hub and is_last
    unread = args.unread_options().keys() - given.keys()
    for name in unread:
        setattr(args, name, fields[name].default)
    args = replace(args)  # checks the values
    args.check_losses()
    return args, unread


def _may_be_scheduled(name: str) -> bool:
    return name == "temperature" or name.startswith("alpha_")


def _summary(args: DistillationTrainingArguments) -> str:
    weights = {name: weight for name, weight in args.loss_weights.items() if weight != 0}
    losses = " + ".join(f"{weight} * L_{name}" for name, weight in weights.items())
    length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    return f"loss = {losses}; {length}; learning rate {args.learning_rate:g}"
