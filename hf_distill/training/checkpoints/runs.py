"""One training per output folder: what it was trained with, whether it is finished, and how it goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from hf_distill.files import read_json, write_json
from hf_distill.hub.push import MODEL
from hf_distill.training.checkpoints.folders import last_whole_checkpoint
from hf_distill.training.publishing.trainer import PublishingTrainer
from hf_distill.training.training_args import DistillationTrainingArguments

logger = logging.get_logger(__name__)

RECORD = "training_run.json"
"""In the output folder: the settings of its training, and whether it is finished. It is not pushed."""

MEASURED = ("eval_results.json", "test_results.json", "all_results.json")
RESULTS = ("train_results.json", *MEASURED)

WITHOUT_EFFECT = {
    *("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "debug", "local_rank"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
    *("log_level", "log_level_replica", "disable_tqdm", "skip_memory_metrics", "include_num_input_tokens_seen"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("dataloader_multiprocessing_context", "ddp_timeout", "ddp_backend", "torch_empty_cache_steps", "use_cache"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),  # their product is compared, as `rows_per_step`
}
"""Training arguments on which the trained weights and their results do not depend."""

MAY_CHANGE = {
    *("num_train_epochs", "max_steps", "save_strategy", "save_steps", "load_best_model_at_end"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("metric_for_best_model", "greater_is_better", "prediction_loss_only", "validation_data", "test_data"),
}
"""What a training that goes on can do otherwise. The rest is in the checkpoint, or would make two trainings of it."""

ONLY_MEASURED = {"test_data", "per_device_eval_batch_size", "prediction_loss_only"}
"""Of these, what does not change the weights. Where no best model is chosen, the validation data does not either."""


@dataclass(frozen=True)
class TrainingRun:
    """The training of an output folder, whose settings are kept beside it in `training_run.json`.

    A training that was stopped goes on from its last checkpoint. One that is finished is left alone, and one with other
    settings is refused, so that a folder never holds a model of one training and the card or the results of another.

    Attributes:
        args: of the trainer.
        settings: by name, all that the result depends on.
        checkpoint: where the training goes on; None if it starts anew.
        goes_on_unchanged: whether that checkpoint was written with the same settings, but for what is measured then.
    """

    args: DistillationTrainingArguments
    settings: Mapping[str, object]
    checkpoint: str | None = None
    goes_on_unchanged: bool = False

    @classmethod
    def begin(
        cls,
        args: DistillationTrainingArguments,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> "TrainingRun | None":
        """Decides what there is to train in `args.output_dir`. Nothing is written or removed before the first step.

        Args:
            args: of the trainer. Those that change the result are compared; not the output folder, logging, pushing,
                saving, or how the rows of a step are split into batches and processes.
            settings: what else the result depends on, such as models (`model_identity`) and data (`data_identity`).
            resume: go on from the last checkpoint although the settings differ, if they do so only in how long is
                trained (`num_train_epochs`, `max_steps`) and in what is evaluated and saved.
            overwrite: train anew, in place of what is there.

        Returns:
            The run, or None if the folder has a finished training with the same settings.

        Raises:
            ValueError: if the folder has a training with other settings, unless `resume` or `overwrite` allow it.

        Example:
            >>> run = TrainingRun.begin(args, {"model": model_identity("outputs/teacher"), "block_size": 512})
            >>> if run is not None:
            ...     run.train(trainer)
            ...     trainer.save_model()
            ...     run.finish()
        """
        settings = json.loads(json.dumps(_settings_of(args) | dict(settings), default=str))  # as they will be read
        decided: list[Any] = [None]
        if args.process_index == 0:
            try:
                decided = [_decide(args, settings, resume, overwrite)]
            except ValueError as error:
                decided = [error]
        (decision,) = broadcast_object_list(decided)
        if isinstance(decision, ValueError):
            raise decision
        return None if decision is None else cls(args, settings, *decision)

    def train(self, trainer: PublishingTrainer) -> TrainOutput:
        """Trains, from the checkpoint if there is one.

        Returns:
            As `trainer.train`. Where `trainer.steps_made` is 0, since a training was stopped after its last step, there
            are no metrics in it that are worth keeping.

        Raises:
            ValueError: if there is no step to make, as with `num_train_epochs=0`, or where `resume` finds the last
                checkpoint at the end.
        """
        trainer.goes_on_unchanged = self.goes_on_unchanged
        trainer.add_callback(_TakeTheFolder(self))
        output = trainer.train(resume_from_checkpoint=self.checkpoint)
        if trainer.steps_made == 0 and self.goes_on_unchanged:
            self._take_the_folder(MEASURED)
        elif trainer.steps_made == 0:
            where = f"{self.checkpoint} is at step {output.global_step} of {trainer.state.max_steps}, the last one. "
            raise ValueError(
                f"Nothing was trained: {where if self.checkpoint else ''}Raise num_train_epochs="
                f"{self.args.num_train_epochs:g} or max_steps={self.args.max_steps}, or train anew with --overwrite."
            )
        return output

    def finish(self) -> None:
        """Notes that the model and its results are saved."""
        self._write(finished=True)

    def _write(self, finished: bool) -> None:
        if self.args.process_index == 0:
            content = {"finished": finished, "settings": self.settings}
            write_json(Path(self.args.output_dir, RECORD), content)

    def _take_the_folder(self, results: Sequence[str] = RESULTS) -> None:
        """Removes what another training left, and notes that this one has begun."""
        if self.args.process_index == 0:
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if self.checkpoint is None:
                _remove_checkpoints(folder)
            for name in results:
                (folder / name).unlink(missing_ok=True)
            self._write(finished=False)


class _TakeTheFolder(TrainerCallback):
    """At the end of the first step: what fails before leaves all as it was."""

    def __init__(self, run: TrainingRun):
        self.run, self.is_taken = run, False

    def on_step_end(self, *args, **kwargs) -> None:
        if not self.is_taken:
            self.run._take_the_folder()
            self.is_taken = True


def model_identity(name: str | None) -> dict[str, str | None] | None:
    """A name on the Hub; of a folder, a digest of the files of the model, wherever it is."""
    if name is None:
        return None
    if not Path(name).is_dir():
        return {"name": name, "sha256": None}
    digest = hashlib.sha256()
    for file in sorted(Path(name).iterdir()):
        if file.is_file() and any(fnmatchcase(file.name, pattern) for pattern in MODEL):
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return {"name": str(name), "sha256": digest.hexdigest()}


def data_identity(name: str, rows: Dataset) -> dict[str, str]:
    """What a data set is called, and a digest of its rows."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch).encode())
    return {"name": f"{name} ({len(rows):,} rows)", "sha256": digest.hexdigest()}


def _settings_of(args: DistillationTrainingArguments) -> dict[str, object]:
    settings = {name: value for name, value in args.to_dict().items() if name not in WITHOUT_EFFECT}
    settings["rows_per_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["teacher_model_name_or_path"] = model_identity(args.teacher_model_name_or_path)
    if not args.load_best_model_at_end:  # then it does not matter which weights are saved in between
        del settings["save_strategy"], settings["save_steps"]
    return settings


def _decide(
    args: DistillationTrainingArguments, settings: Mapping[str, object], resume: bool, overwrite: bool
) -> tuple[str | None, bool] | None:
    """The checkpoint, and whether it is of the same training; None if there is nothing to do."""
    folder = Path(args.output_dir)
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None or checkpoint is True:
        checkpoint = last_whole_checkpoint(str(folder))
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    if overwrite:
        if resume or args.resume_from_checkpoint is not None:
            raise ValueError("overwrite trains anew, where resume and resume_from_checkpoint go on: give one of them.")
        return None, False
    if record is None:
        return checkpoint, False
    is_finished = record["finished"] and any(folder.glob("*.safetensors"))
    different = _differences(record["settings"], settings)
    if not different:
        if not is_finished:
            return checkpoint, checkpoint is not None and args.resume_from_checkpoint is None
        logger.warning(
            f"{folder} has this model already: it was trained with the same settings, models and data. Nothing is done."
        )
        return None
    if not is_finished and checkpoint is None:
        return None, False  # nothing is lost
    fixed = {name: said for name, said in different.items() if name not in MAY_CHANGE}
    if resume and not fixed:
        if checkpoint is None:
            raise ValueError(f"There is no checkpoint in {folder} to go on from: train anew with --overwrite.")
        measured = ONLY_MEASURED if args.load_best_model_at_end else {*ONLY_MEASURED, "validation_data"}
        return checkpoint, different.keys() <= measured
    what = "a finished training" if is_finished else "a training that was stopped"
    said = "; ".join((fixed if resume else different).values())
    if fixed:
        ways = f"With another {' and '.join(fixed)} a training cannot go on: choose another output_dir, or train anew"
    else:
        ways = "Go on from the last checkpoint with --resume, choose another output_dir, or train anew"
    raise ValueError(f"{folder} has {what} with other settings: {said}. {ways} with --overwrite.")


def _differences(written: dict[str, object], settings: Mapping[str, object]) -> dict[str, str]:
    """By name, what is said of each setting that differs."""
    pairs = {name: (written.get(name), settings.get(name)) for name in {**written, **settings}}
    return {
        name: f"{name} was {_shown(was)} and is {_shown(now)}"
        if _shown(was) != _shown(now)
        else f"{name}, {_shown(now)}, has changed"
        for name, (was, now) in pairs.items()
        if _compared(was) != _compared(now)
    }


def _compared(value: object) -> object:
    """Of a model or data, what is in it; of one on the Hub, its name."""
    return value["sha256"] or value["name"] if isinstance(value, dict) and value.keys() == {"name", "sha256"} else value


def _shown(value: Any) -> str:
    return value["name"] if _compared(value) != value else repr(value)


def _remove_checkpoints(folder: Path) -> None:
    """The last one first; a process that is killed meanwhile leaves no half of one that has the name of a whole one."""
    checkpoints = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1]))
    for checkpoint in reversed(checkpoints):
        removed = folder / "_removed_checkpoint"
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(checkpoint, removed)
        shutil.rmtree(removed)
