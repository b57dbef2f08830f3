"""Files and folders that are written completely or not at all, and a lock against a second run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from recipes.quickstart.start import StopError


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end. What a killed process left in it is removed first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives an unfinished folder to write to, which replaces `folder` if no error occurs.

    `folder` is never half-written, even after a power cut.
    """
    with temporary_folder(folder.parent / ".unfinished") as parent:
        unfinished = parent / folder.name
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)


@contextmanager
def written_file(file: Path) -> Iterator[Path]:
    """Gives a path to write to, which replaces `file` if no error occurs: `file` is never half-written.

    Several processes may write the same file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent, prefix=".unfinished") as parent:
        unfinished = Path(parent, file.name)
        yield unfinished
        unfinished.replace(file)


def write_json(file: Path, value: object) -> None:
    """Writes JSON and creates the folder if needed."""
    with written_file(file) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder. The operating system releases it when the process ends, however it ends.

    Raises:
        StopError: if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".quickstart.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StopError(f"A quickstart is already running in {folder}. Wait until it ends.") from None
    try:
        yield
    finally:
        lock.release()


def check_free_space(folder: Path, megabytes: int) -> None:
    """Raises `StopError` if the disk has less free space than a job needs."""
    free = shutil.disk_usage(folder).free / 1e6
    if free < megabytes:
        raise StopError(f"The quickstart needs about {megabytes} MB in {folder}, but only {free:.0f} MB are free.")
