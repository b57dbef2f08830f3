"""One training per output folder: its settings, whether it is finished, and how it resumes."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
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
from hf_distill.training.checkpoints.stages import Stage
from hf_distill.training.publishing.trainer import PublishingTrainer
from hf_distill.training.training_args import DistillationTrainingArguments

logger = logging.get_logger(__name__)

RECORD = "training_run.json"
"""In the output folder: the settings of the training, and whether it is finished. It is not pushed to the Hub."""

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
    "log_gradient_norms",
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),  # compared by their product, `rows_per_step`
}
"""Training arguments that change neither the trained weights nor their results."""

MAY_CHANGE = {
    *("num_train_epochs", "max_steps", "save_strategy", "save_steps", "load_best_model_at_end"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("metric_for_best_model", "greater_is_better", "prediction_loss_only", "validation_data", "test_data"),
    *("predict_with_generate", "generation_max_length", "generation_num_beams"),
}
"""Settings that `resume` may change. All others are fixed by the checkpoint, or would mix two trainings."""

ONLY_MEASURED = {"test_data", "per_device_eval_batch_size", "prediction_loss_only"}
"""The part of `MAY_CHANGE` that does not affect the weights. Without a best model, validation data does not either."""


@dataclass(frozen=True)
class TrainingRun:
    """A training tied to its output folder. Its settings are recorded there in `training_run.json`.

    A stopped training resumes from its last checkpoint. A finished training is not repeated. Other settings in the same
    folder are an error, so a folder never mixes the model of one training with the card or the results of another.
    Start with `TrainingRun.begin`.

    Attributes:
        args: the trainer's arguments.
        settings: everything that the result depends on, by name.
        checkpoint: the checkpoint to resume from; None to start from scratch.
        goes_on_unchanged: whether that checkpoint was written with the same settings, except for what is measured.
        stage: the stage, for a training with stages.
        overwrite: whether the training replaces what is in the folder, and in the folders of later stages.
    """

    args: DistillationTrainingArguments
    settings: Mapping[str, object]
    checkpoint: str | None = None
    goes_on_unchanged: bool = False
    stage: Stage | None = None
    overwrite: bool = False

    @classmethod
    def begin(
        cls,
        args: DistillationTrainingArguments,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        overwrite: bool = False,
        stage: Stage | None = None,
    ) -> "TrainingRun | None":
        """Decides whether to start, resume or skip the training in `args.output_dir`.

        Nothing is written or removed before the first optimizer step.

        Args:
            args: the trainer's arguments. Arguments that change the result are compared with the recorded ones. The
                output folder, logging, pushing, saving, and the split of a step's rows into batches and processes are
                not.
            settings: everything else that the result depends on, such as models (`model_identity`) and data
                (`data_identity`).
            resume: continue from the last checkpoint although settings differ. Only the length of the training
                (`num_train_epochs`, `max_steps`) and what is evaluated and saved may differ.
            overwrite: train from scratch and replace what is in the folder.
            stage: the stage that is trained, from `make_stages`. An earlier training in the folder of a later stage is
                then an error, or with `overwrite` replaced, because it would continue with the student of this stage.

        Returns:
            The run, or None if the folder has a finished training with the same settings.

        Raises:
            ValueError: if the folder has a training with other settings that `resume` or `overwrite` does not allow, if
                both are given, or if this stage must be trained but a later one already is.

        Example:
            >>> run = TrainingRun.begin(args, {"model": model_identity("outputs/teacher"), "block_size": 512})
            >>> if run is not None:
            ...     run.train(trainer)
            ...     trainer.save_model()
            ...     run.finish()
        """
        settings = json.loads(json.dumps(_settings_of(args) | dict(settings), default=str))  # as read back
        decided: list[Any] = [None]
        if args.process_index == 0:
            try:
                decided = [_decide(args, settings, resume, overwrite)]
                if stage is not None and decided != [None] and not overwrite:
                    _check_later(stage, is_unchanged=decided[0][1])
            except ValueError as error:
                decided = [error]
        (decision,) = broadcast_object_list(decided)
        if isinstance(decision, ValueError):
            raise decision
        if decision is None:
            return None
        checkpoint, goes_on_unchanged = decision
        return cls(args, settings, checkpoint, goes_on_unchanged, stage, overwrite)

    def train(self, trainer: PublishingTrainer) -> TrainOutput:
        """Trains, starting from the checkpoint if there is one.

        Args:
            trainer: the trainer, created with `args`.

        Returns:
            The output of `trainer.train`. If `trainer.steps_made` is 0, because the training was stopped after its last
            step, its metrics are meaningless.

        Raises:
            ValueError: if there is no step to train, for instance with `num_train_epochs=0`, or if `resume` continues
                from a checkpoint of the last step.
        """
        trainer.goes_on_unchanged = self.goes_on_unchanged
        trainer.earlier_stages = {} if self.stage is None else self.stage.earlier
        trainer.add_callback(_TakeTheFolder(self))
        output = trainer.train(resume_from_checkpoint=self.checkpoint)
        if trainer.steps_made == 0 and self.goes_on_unchanged:
            self._take_the_folder(MEASURED)
        elif trainer.steps_made == 0:
            where = f"{self.checkpoint} is already at step {output.global_step} of {trainer.state.max_steps}. "
            raise ValueError(
                f"There is nothing to train: {where if self.checkpoint else ''}Raise num_train_epochs="
                f"{self.args.num_train_epochs:g} or max_steps={self.args.max_steps}, or start over with --overwrite."
            )
        return output

    def finish(self) -> None:
        """Records that the training is finished. Call it after saving the model and its results."""
        self._write(finished=True)

    def _write(self, finished: bool) -> None:
        if self.args.process_index == 0:
            content = {"finished": finished, "settings": self.settings}
            write_json(Path(self.args.output_dir, RECORD), content)

    def _take_the_folder(self, results: Sequence[str] = RESULTS) -> None:
        """Removes results and checkpoints of an earlier training, and records that this one has started."""
        if self.args.process_index == 0:
            folder = Path(self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if self.checkpoint is None:
                _remove_checkpoints(folder)
            for later in map(Path, self.stage.later if self.stage is not None and self.overwrite else ()):
                _remove_checkpoints(later)
                for name in (RECORD, *RESULTS):
                    (later / name).unlink(missing_ok=True)
            for name in results:
                (folder / name).unlink(missing_ok=True)
            self._write(finished=False)


class _TakeTheFolder(TrainerCallback):
    """Takes the folder at the end of the first step, so an earlier failure leaves the folder unchanged."""

    def __init__(self, run: TrainingRun):
        self.run, self.is_taken = run, False

    def on_step_end(self, *args, **kwargs) -> None:
        if not self.is_taken:
            self.run._take_the_folder()
            self.is_taken = True


def model_identity(name: str | None) -> dict[str, str | None] | None:
    """Identifies a model for `TrainingRun`: by its files if it is a folder, else by its name on the Hub.

    The same files give the same digest in any folder.

    Args:
        name: a folder or a name on the Hub; None for no model.

    Returns:
        A dict with "name" and "sha256", which is None for a name on the Hub; None if `name` is None.

    Example:
        >>> model_identity("distilbert/distilroberta-base")
        {'name': 'distilbert/distilroberta-base', 'sha256': None}
    """
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
    """Identifies a dataset for `TrainingRun`: by its name, its number of rows and a digest of the rows."""
    digest = hashlib.sha256()
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch, default=bytes.hex).encode())
    return {"name": f"{name} ({len(rows):,} rows)", "sha256": digest.hexdigest()}


def _settings_of(args: DistillationTrainingArguments) -> dict[str, object]:
    settings = {name: value for name, value in args.to_dict().items() if name not in WITHOUT_EFFECT}
    settings["rows_per_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["teacher_model_name_or_path"] = model_identity(args.teacher_model_name_or_path)
    if not args.load_best_model_at_end:  # then the saved checkpoints do not affect the result
        del settings["save_strategy"], settings["save_steps"]
    return settings


def _decide(
    args: DistillationTrainingArguments, settings: Mapping[str, object], resume: bool, overwrite: bool
) -> tuple[str | None, bool] | None:
    """The checkpoint, and whether its settings are the same; None if there is nothing to train."""
    folder = Path(args.output_dir)
    checkpoint = args.resume_from_checkpoint
    if checkpoint is None or checkpoint is True:
        checkpoint = last_whole_checkpoint(str(folder))
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    if overwrite:
        if resume or args.resume_from_checkpoint is not None:
            raise ValueError("overwrite starts over, resume and resume_from_checkpoint continue: choose one of them.")
        return None, False
    if record is None:
        return checkpoint, False
    is_finished = record["finished"] and any(folder.glob("*.safetensors"))
    different = _differences(record["settings"], settings)
    if not different:
        if not is_finished:
            return checkpoint, checkpoint is not None and args.resume_from_checkpoint is None
        logger.warning(
            f"Nothing to train: {folder} already has a model trained with the same settings, models and data."
        )
        return None
    if not is_finished and checkpoint is None:
        return None, False  # nothing to lose
    fixed = {name: said for name, said in different.items() if name not in MAY_CHANGE}
    if resume and not fixed:
        if checkpoint is None:
            raise ValueError(f"There is no checkpoint in {folder} to resume from: start over with --overwrite.")
        measured = ONLY_MEASURED if args.load_best_model_at_end else {*ONLY_MEASURED, "validation_data"}
        return checkpoint, different.keys() <= measured
    what = "a finished training" if is_finished else "a stopped training"
    said = "; ".join((fixed if resume else different).values())
    if fixed:
        ways = f"It cannot resume with another {' and '.join(fixed)}: choose another output_dir, or start over"
    else:
        ways = "Continue from the last checkpoint with --resume, choose another output_dir, or start over"
    raise ValueError(f"{folder} has {what} with other settings: {said}. {ways} with --overwrite.")


def _check_later(stage: Stage, is_unchanged: bool) -> None:
    """Checks that no later stage has been trained from another student than this stage will give."""
    trained = [folder for folder in stage.later if Path(folder, RECORD).is_file() or last_whole_checkpoint(folder)]
    if trained and not is_unchanged:
        raise ValueError(
            f"The stage {stage.name!r} has to be trained, but {trained[0]} already has a training, which did not start "
            f"from its student: choose another output_dir, or start over with --overwrite."
        )


def _differences(written: dict[str, object], settings: Mapping[str, object]) -> dict[str, str]:
    """A sentence for each setting that differs, by name. An option that was not there yet had its default."""
    pairs = {name: (written.get(name, _default_of(name)), settings.get(name)) for name in {**written, **settings}}
    return {
        name: f"{name} was {_shown(was)} and is {_shown(now)}"
        if _shown(was) != _shown(now)
        else f"{name}, {_shown(now)}, has changed"
        for name, (was, now) in pairs.items()
        if _compared(was) != _compared(now)
    }


def _default_of(name: str) -> object:
    own = DistillationTrainingArguments.__dataclass_fields__.get(name)
    return None if own is None or own.default is MISSING else own.default


def _compared(value: object) -> object:
    """The digest of a model or dataset, or its name if there is no digest; any other value unchanged."""
    return value["sha256"] or value["name"] if isinstance(value, dict) and value.keys() == {"name", "sha256"} else value


def _shown(value: Any) -> str:
    return value["name"] if _compared(value) != value else repr(value)


def _remove_checkpoints(folder: Path) -> None:
    """Removes the last checkpoint first. Each is renamed before, so a kill leaves no incomplete `checkpoint-*`."""
    checkpoints = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1]))
    for checkpoint in reversed(checkpoints):
        removed = folder / "_removed_checkpoint"
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(checkpoint, removed)
        shutil.rmtree(removed)
