"""Checks of `gpu_report` besides speed: tests marked `gpu`, fp16 against fp32, and synchronisations per step."""

import copy
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_distill import make_student
from recipes.benchmarks._common import train_quietly
from recipes.benchmarks.peers import OPTIONS, Rows, common_trainer, our_trainer, rows_of
from recipes.benchmarks.training_step import BF16, Shape, make_batch

ROOT = Path(__file__).parents[2]
NEEDS_CUDA = "needs CUDA"

Figures = dict[str, object]


PYTEST = (
    "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "sys.exit(pytest.main(sys.argv[1:]))"
)
"""pytest that can be interrupted. A job that a shell starts in the background ignores SIGINT."""


def run_tests(seconds: float) -> Figures:
    """Runs the tests marked `gpu` in a separate process, and interrupts it after `seconds`.

    Only files with such a test are collected, because other files may need packages that are not installed.

    Returns:
        `counts` by outcome, and `problems`: the reason by test that failed or could not be collected.
    """
    if find_spec("pytest") is None:
        return {"counts": {}, "problems": {"pytest": "not installed"}}
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in file.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        command = [sys.executable, "-c", PYTEST, *options, f"--junitxml={report}", *map(str, files)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        problems = {}
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            problems["all"] = f"interrupted after {seconds:.0f} seconds: unfinished tests are not counted"
            process.send_signal(signal.SIGINT)  # pytest still writes its report
            try:
                printed, _ = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                printed, _ = process.communicate()
        if not report.exists():
            return {"counts": {}, "problems": problems | {"pytest": _reason(printed)}}
        cases = list(ElementTree.parse(report).iter("testcase"))
        if "all" in problems:
            del cases[-1:]  # the interrupted test, which looks as if it had passed
    counts: Counter[str] = Counter()
    for case in cases:
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = {None: "passed", "failure": "failed", "error": "error", "skipped": "skipped"}[
            None if bad is None else bad.tag
        ]
        counts[outcome] += 1
        if outcome in ("failed", "error"):
            name = ".".join(filter(None, [case.get("classname"), case.get("name")]))
            problems[name] = _reason(f"{bad.get('message') or ''}\n{bad.text or ''}")
    return {"counts": dict(counts), "problems": problems}


def _reason(text: str) -> str:
    """A failure in one line: the package that is not installed, or the error."""
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing:
        return f"{missing[1]} is not installed"
    lines = [line.removeprefix("E ").strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no output"


class WatchSteps(TrainerCallback):
    """Records the optimizer steps that the gradient scaler skipped."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.skipped = trainer, []

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.accelerator.optimizer_step_was_skipped:
            self.skipped.append(state.global_step)


PRECISIONS = {
    "fp32": {},
    "fp16": {"fp16": True},
    "fp16, teacher in float16": {"fp16": True, "teacher_dtype": "float16"},
    "bf16, teacher in bfloat16": BF16,
}
TOLERANCE = 0.05
"""Allowed deviation of a loss, relative to the fp32 loss at the same step."""


def compare_precisions(shape: Shape, device: str, steps: int, out_of_time: Callable[[], bool]) -> dict[str, Figures]:
    """Runs the same training in each precision, without dropout, on random tokens, and compares the losses.

    Args:
        shape: shape of the models and a batch.
        device: "cuda" or "cpu".
        steps: steps per training.
        out_of_time: called before each training. If it returns True, the remaining trainings are skipped.

    Returns:
        By precision: the losses, the largest deviation from fp32, the steps that the gradient scaler skipped, the final
        scale, and whether it passes; or, as `skipped`, the reason why it did not run.
    """
    teacher, student = _pair(shape, without_dropout=True)
    rows = rows_of(make_batch(shape, "cpu", steps))
    measured: dict[str, Figures] = {}
    for name, options in PRECISIONS.items():
        if options.get("fp16") and device == "cpu":
            measured[name] = {"skipped": NEEDS_CUDA}
            continue
        if measured and out_of_time():
            measured[name] = {"skipped": "no time left"}
            continue
        pair, run = (copy.deepcopy(teacher), copy.deepcopy(student)), {"max_steps": steps, "learning_rate": 5e-5}
        with tempfile.TemporaryDirectory() as folder:
            common = {"per_device_train_batch_size": shape.batch_size, "use_cpu": device == "cpu"}
            trainer = our_trainer(*pair, rows, Path(folder), "labels", **run, **common, **options)
            watch = WatchSteps(trainer)
            trainer.add_callback(watch)
            train_quietly(trainer)
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        expected = measured.get("fp32", {}).get("losses", losses)
        deviation = max(abs(own / other - 1) for own, other in zip(losses, expected, strict=True))
        scaler = trainer.accelerator.scaler
        measured[name] = {
            "losses": losses,
            "deviation": deviation,
            "skipped steps": watch.skipped,
            "scale": scaler.get_scale() if scaler is not None else None,
            "passes": deviation <= TOLERANCE and all(step <= steps // 2 for step in watch.skipped),
        }
    return measured


def student_trainer(
    teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, folder: Path, kl_positions: str, **options
) -> Trainer:
    """`Trainer` itself, without a teacher."""
    return Trainer(student, TrainingArguments(str(folder), **(OPTIONS | options)), train_dataset=rows)


LOOPS = {"Trainer, no teacher": student_trainer, "common pattern": common_trainer, "ours": our_trainer}
WARM_UP = 3
"""Steps before synchronisations are counted, because the first call of a kernel may wait."""


class CountSynchronisations(TrainerCallback):
    """Makes CUDA warn of each synchronisation from the end of step `WARM_UP` to the end of the last step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARM_UP:
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step == args.max_steps:
            torch.cuda.set_sync_debug_mode("default")


def count_synchronisations(shape: Shape, device: str, steps: int) -> dict[str, Figures]:
    """Counts how often the host waits for the GPU in each step of a complete bf16 training loop, and where.

    Returns:
        By loop: `per step`, the number per step; and `where`, the number per step by file and line.
    """
    teacher, student = _pair(shape)
    rows = rows_of(make_batch(shape, "cpu", WARM_UP + steps))
    measured = {}
    for name, make in LOOPS.items():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = {"per_device_train_batch_size": shape.batch_size, "use_cpu": device == "cpu", "bf16": True}
            if make is not student_trainer:
                options["teacher_dtype"] = "bfloat16"
            options |= {"max_steps": WARM_UP + steps, "logging_steps": 1000}
            pair = copy.deepcopy(teacher), copy.deepcopy(student)
            trainer = make(*pair, rows, Path(folder), "labels", **options)
            trainer.add_callback(CountSynchronisations())
            try:
                train_quietly(trainer)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        synchronisations = [own for own in caught if "called a synchronizing CUDA operation" in str(own.message)]
        where = Counter("/".join([*Path(own.filename).parts[-2:]]) + f":{own.lineno}" for own in synchronisations)
        measured[name] = {
            "per step": len(synchronisations) / steps,
            "where": {place: number / steps for place, number in where.most_common()},
        }
    return measured


def _pair(shape: Shape, without_dropout: bool = False) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student with random weights."""
    config = copy.deepcopy(shape.config)
    if without_dropout:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(0)
    teacher = shape.model(config).eval()
    return teacher, make_student(teacher)
