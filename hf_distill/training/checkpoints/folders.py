"""What a checkpoint says of the distillation that wrote it, and how it comes to be whole or not at all."""

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
"""No checkpoint for who looks for one, and, with its underscore, nothing that `Trainer` pushes."""

SENTINEL_NAME = "checkpoint-is-incomplete.txt"
"""What `Trainer` writes into the folder of a just-in-time checkpoint before the checkpoint itself."""


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The last checkpoint in `output_dir` that can be resumed from; None if there is none. Warns of those it skips."""
    if not os.path.isdir(output_dir):
        return None
    steps = [re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name) for name in os.listdir(output_dir)]
    for step in sorted((int(match[1]) for match in steps if match), reverse=True):
        checkpoint = os.path.join(output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        if _is_whole(checkpoint):
            return checkpoint
        logger.warning(
            f"{checkpoint} is not a whole checkpoint, and is skipped: it was interrupted while it was saved."
        )
    return None


def whole_checkpoint(checkpoint: str | None) -> str:
    """The checkpoint.

    Raises:
        ValueError: if it cannot be resumed from.
    """
    if checkpoint is None:
        raise ValueError(
            "There is no checkpoint in output_dir to resume from: train without resume_from_checkpoint, or give the "
            "folder of a checkpoint."
        )
    if not _is_whole(checkpoint):
        raise ValueError(
            f"{checkpoint} is not a whole checkpoint: it does not exist, has no {TRAINER_STATE_NAME}, or saving it was "
            f"interrupted. Resume from another one."
        )
    return checkpoint


def _is_whole(checkpoint: str) -> bool:
    names = set(os.listdir(checkpoint)) if os.path.isdir(checkpoint) else set()
    return TRAINER_STATE_NAME in names and SENTINEL_NAME not in names


def write_distillation_state(checkpoint: str, state: Mapping[str, object]) -> None:
    """Writes beside a checkpoint what its losses depend on."""
    write_json(Path(checkpoint, DISTILLATION_STATE_NAME), state)


def warn_of_differences(checkpoint: str, state: Mapping[str, object]) -> None:
    """Warns by name of what a training that resumes from a checkpoint does otherwise than the one that wrote it."""
    path = Path(checkpoint, DISTILLATION_STATE_NAME)
    if not path.is_file():
        logger.warning(f"{checkpoint} does not say what it was distilled with: it has no {DISTILLATION_STATE_NAME}.")
        return
    written = read_json(path)
    if written.get("teacher_fingerprint") == state.get("teacher_fingerprint"):  # it may have moved
        written = {**written, "teacher": state.get("teacher")}
    if different := differences(written, state):
        logger.warning(f"The training goes on from {checkpoint} in another way: {'; '.join(different)}.")


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs, in words, a name each."""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name} was {before.get(name)!r} and is {after.get(name)!r}" for name in names]


@contextmanager
def named_when_whole(folder: str, is_writer: bool, wait_for_everyone) -> Iterator[str]:
    """Gives another folder to write to, which gets the name `folder` at the end, in place of one that is there.

    A process that is killed meanwhile leaves nothing of that name behind.

    Args:
        folder: the name that it will have.
        is_writer: whether this process is the one that renames.
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
