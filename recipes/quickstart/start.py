"""Starts a job, and turns what can go wrong around it into one clear line.

This file and those that import it run on old versions of Python too, to say that a newer one is needed.
"""

import errno
import sys
from importlib import import_module
from pathlib import Path

OLDEST_PYTHON = (3, 11)
INSTALL = 'pip install -c constraints.txt ".[quickstart]"'
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", None))
NO_SPACE_WORDS = ("No space left on device", "Disk quota exceeded", "not enough space on the disk")


class StopError(Exception):
    """The job cannot go on. The message says why and what to do."""


def start(module: str, output: Path, **options: object) -> int:
    """Imports a module and calls its `run(output, **options)`. Returns the exit code."""
    if sys.version_info < OLDEST_PYTHON:
        return _fail(f"Python {_dotted(OLDEST_PYTHON)} or later is needed; this is Python {_dotted(sys.version_info)}.")
    try:
        import_module("hf_distill").quiet_libraries()  # before transformers and PyTorch are imported
        import_module(module).run(output, **options)
    except KeyboardInterrupt:
        _fail("\nStopped. Run the same command again to go on: finished models are kept.")
        return 130
    except StopError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"The package {error.name} is not installed. To install what is needed: {INSTALL}")
    except Exception as error:
        if not is_full_disk(error):
            raise
        return _fail("The disk is full. Free some space and run the same command again: finished models are kept.")
    return 0


def is_full_disk(error: "BaseException | None") -> bool:
    """Whether an error, or one that caused it, is about a full disk. Some libraries raise their own classes for it."""
    while error is not None:
        if getattr(error, "errno", None) in NO_SPACE or any(words in str(error) for words in NO_SPACE_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _dotted(version: tuple) -> str:
    return ".".join(str(number) for number in version[:2])
