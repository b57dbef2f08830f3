"""Runs Python in separate processes that are forked after all imports: imports take seconds, a fork takes a moment.

Tests of the interpreter, of imports or of a launcher need a really new process, started with `subprocess`.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from types import ModuleType

import torch

# A process that was forked after the imports cannot use CUDA.
PROCESSES = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
PROCESSES.set_forkserver_preload(["tests.imported_before_forking"])

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""For two processes on the CPU: where there is one GPU, PyTorch's barrier misses a second one, also with gloo."""


def run_python(words: list, env: dict | None = None, cwd: Path | None = None, timeout: float = 300) -> CompletedProcess:
    """Does the same as `subprocess.run([sys.executable, *words], capture_output=True, text=True)`."""
    return _run([{**os.environ, **(env or {})}], words, cwd, timeout)


def run_on_two_processes(
    words: list, env: dict | None = None, cwd: Path | None = None, timeout: float = 300
) -> CompletedProcess:
    """Does the same as `torchrun --nproc_per_node=2`: sets its variables, without its own process and threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, **NO_GPU, **(env or {}), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    counts = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(2)]
    return _run([{**shared, **counts, **rank} for rank in ranks], words, cwd, timeout)


def _run(environments: list[dict], words: list, cwd: Path | None, timeout: float) -> CompletedProcess:
    """Waits for all processes. If one fails or takes too long, all are ended."""
    words, cwd = [str(word) for word in words], cwd or Path.cwd()
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        processes = [PROCESSES.Process(target=_python, args=(words, own, cwd, outputs)) for own in environments]
        for process in processes:
            process.start()
        running = {process.sentinel: process for process in processes}
        while running and (ended := wait(running, timeout)):
            if any(running.pop(sentinel).exitcode for sentinel in ended):
                break
        for process in running.values():
            process.kill()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        return CompletedProcess(words, max(codes, key=abs), *(output.read_text() for output in outputs))


def _python(words: list[str], own: dict[str, str], cwd: Path, outputs: list[Path]) -> None:
    """Runs these words as `python` does: a script, or `-m` or `-c`, and its arguments."""
    for descriptor, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    torch.set_num_threads(1)  # a thread may fail if several of them recreate PyTorch's thread pool at the same time
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(own)
    if "HF_DATASETS_CACHE" in own:  # datasets reads this variable only when it is imported
        import datasets

        datasets.config.HF_DATASETS_CACHE = own["HF_DATASETS_CACHE"]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(words[1], main.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
