"""Checkpoint folders: written completely or not at all, with a record of the distillation settings."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_distill.files import read_json, write_json

logger = logging.get_logger(__name__)

DISTILLATION_STATE_NAME = "distillation_state.json"
UNFINISHED_NAME = "_unfinished_checkpoint"
"""Not the name of a checkpoint, so nothing resumes from it. `Trainer` pushes no names that begin with an underscore."""

SENTINEL_NAME = "checkpoint-is-incomplete.txt"
"""`Trainer` writes this file into a just-in-time checkpoint first, and removes it once the checkpoint is complete."""


def last_whole_checkpoint(output_dir: str) -> str | None:
    """Finds the last complete checkpoint in `output_dir`; None if there is none. Logs a warning for each it skips."""
    if not os.path.isdir(output_dir):
        return None
    steps = [re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name) for name in os.listdir(output_dir)]
    for step in sorted((int(match[1]) for match in steps if match), reverse=True):
        checkpoint = os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if _is_whole(checkpoint):
            return checkpoint
        logger.warning(f"{checkpoint} is incomplete and is skipped: the training was interrupted while saving it.")
    return None


def whole_checkpoint(checkpoint: str | None) -> str:
    """Returns the checkpoint after checking that it is complete.

    Raises:
        ValueError: if there is no checkpoint, or if it is incomplete.
    """
    if checkpoint is None:
        raise ValueError(
            "There is no checkpoint in output_dir to resume from: train without resume_from_checkpoint, or set it to "
            "the folder of a checkpoint."
        )
    if not _is_whole(checkpoint):
        raise ValueError(
            f"{checkpoint} is not a complete checkpoint: it does not exist, has no {TRAINER_STATE_NAME}, or saving it "
            f"was interrupted. Resume from another one."
        )
    return checkpoint


def _is_whole(checkpoint: str) -> bool:
    names = set(os.listdir(checkpoint)) if os.path.isdir(checkpoint) else set()
    return TRAINER_STATE_NAME in names and SENTINEL_NAME not in names


def write_distillation_state(checkpoint: str, state: Mapping[str, object]) -> None:
    """Writes the distillation settings into a checkpoint."""
    write_json(Path(checkpoint, DISTILLATION_STATE_NAME), state)


def warn_of_differences(checkpoint: str, state: Mapping[str, object]) -> None:
    """Logs a warning that lists the settings in which a resumed training differs from its checkpoint."""
    path = Path(checkpoint, DISTILLATION_STATE_NAME)
    if not path.is_file():
        logger.warning(f"{checkpoint} has no {DISTILLATION_STATE_NAME}, so its settings cannot be compared.")
        return
    written = read_json(path)
    if written.get("teacher_fingerprint") == state.get("teacher_fingerprint"):  # the teacher's folder may differ
        written = {**written, "teacher": state.get("teacher")}
    if different := differences(written, state):
        logger.warning(f"The training resumes from {checkpoint} with other settings: {'; '.join(different)}.")


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The differing settings as sentences, such as "temperature was 2.0 and is 4.0"."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} was {before.get(name)!r} and is {after.get(name)!r}" for name in names]


@contextmanager
def named_when_whole(folder: str, is_writer: bool, wait_for_everyone) -> Iterator[str]:
    """Yields a temporary folder to write to, and renames it to `folder` at the end. An existing `folder` is replaced.

    If the process is killed in between, there is no incomplete `folder`.

    Args:
        folder: the final name.
        is_writer: whether this process does the renaming.
        wait_for_everyone: waits until all processes have called it.
    """
    unfinished = os.path.join(os.path.dirname(folder), UNFINISHED_NAME)
    if is_writer:
        shutil.rmtree(unfinished, ignore_errors=True)
    wait_for_everyone()
    yield os.path.join(unfinished, os.path.basename(folder))
    wait_for_everyone()
    if is_writer:
        if os.path.isdir(folder):
            os.rename(folder, os.path.join(unfinished, "replaced"))
        os.rename(os.path.join(unfinished, os.path.basename(folder)), folder)
        shutil.rmtree(unfinished)
    wait_for_everyone()
