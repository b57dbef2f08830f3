"""`python -m recipes.benchmarks.gpu_report`: all checks and benchmarks that need a GPU, in less than nine minutes.

It runs the tests marked `gpu`; compares a training step in bf16 (`training_step`) with the common pattern and, if they
are installed, with TextBrewer and TRL; compares fp16 and its gradient scaler with fp32; counts synchronisations per
step; and tries `torch_compile`. It writes `gpu.md` and `gpu.json` after each section, so an interrupted run keeps the
finished sections.

It needs no network, and hf_distill may be on PYTHONPATH without being installed. `--device cpu --tiny` is a dry run.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from recipes.benchmarks import training_step
from recipes.benchmarks._common import PACKAGES, print_versions, silence, table, write_json
from recipes.benchmarks.gpu_checks import (
    NEEDS_CUDA,
    TOLERANCE,
    WARM_UP,
    compare_precisions,
    count_synchronisations,
    run_tests,
)
from recipes.benchmarks.training_step import CAUSAL_SIDES, SHAPES, Shape, is_installed, release_memory

MAX_ROUNDS = 40
SECONDS = {"tests": 130, "steps": 60, "short steps": 40, "causal": 40, "precision": 60, "synchronisations": 40}
SECONDS |= {"compile": 80}
"""Approximate time limit of each section in seconds. A round that has started is finished."""

TOTAL, ENOUGH = 470, 30
"""Time limit of all sections in seconds, and the time that must be left to start a section."""

MASKED_LM_SIDES = ["common pattern, bf16", "common pattern, same positions, bf16", "TextBrewer, bf16", "ours, bf16"]
OPTIONAL_PACKAGES = ["textbrewer", "trl"]

READING = """\
A step is the teacher's forward pass, the student's forward and backward pass, and AdamW. *Share of the matrix peak* is
the minimal arithmetic of a step, divided by what the card computes in the time of both passes at the rate of a large
bf16 matrix product, measured in the same rounds. *Memory* is the peak of tensors above weights and optimizer. Teachers
are in bfloat16. The *common pattern* is a `Trainer` whose `compute_loss` computes all logits of both models and
compares all tokens; *same positions* compares only the tokens with a label, as hf_distill does.
"""

Figures = dict[str, object]


@dataclass(frozen=True)
class Settings:
    """Device and size of the run.

    Attributes:
        device: "cuda" or "cpu".
        tiny: True for tiny models and few rounds.
    """

    device: str
    tiny: bool

    def shape(self, name: str) -> Shape:
        if not self.tiny:
            return SHAPES[name]
        return SHAPES["tiny-gpt2" if SHAPES[name].is_causal else "tiny"]

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else MAX_ROUNDS

    @property
    def steps(self) -> int:
        """Steps of each training in the comparison of precisions."""
        return 4 if self.tiny else 30


@dataclass(frozen=True)
class Section:
    """A part of the report: `measure(settings, until)` returns its figures, and `write` formats them as Markdown."""

    title: str
    measure: Callable[[Settings, float], Figures]
    write: Callable[[Figures], str]


def measure_tests(settings: Settings, until: float) -> Figures:
    if settings.device == "cpu":
        return {"skipped": NEEDS_CUDA}
    return run_tests(max(1.0, until - time.perf_counter()))


def write_tests(figures: Figures) -> str:
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(figures["counts"].items())) or "none ran"
    problems = [[f"`{name}`", reason] for name, reason in figures["problems"].items()]
    return f"{counts}.\n" + (f"\n{_table(['test', 'problem'], problems)}\n" if problems else "")


def measure_steps(shape_name: str, names: Sequence[str]) -> Callable[[Settings, float], Figures]:
    def measure(settings: Settings, until: float) -> Figures:
        shape = settings.shape(shape_name)
        present = [name for name in names if is_installed(name)]
        with tempfile.TemporaryDirectory() as folder:
            measured = training_step.measure(
                shape, "labels", present, settings.rounds, Path(folder), settings.device, until
            )
        ran = [own for own in measured.values() if "skipped" not in own]
        sides = {name: measured.get(name, {"skipped": "not installed"}) for name in names}
        return {
            "model": type(shape.config).__name__.removesuffix("Config"),
            "layers": shape.config.num_hidden_layers,
            "batch": [shape.batch_size, shape.length],
            "rounds": min(len(own["steps"]) for own in ran),
            "matrix peak": statistics.median(rate for own in ran for rate in own["rates"]),
            "sides": sides,
        }

    return measure


def write_steps(figures: Figures) -> str:
    ran = {name: own for name, own in figures["sides"].items() if "skipped" not in own}
    first = next(iter(ran))  # ours always runs, or the section has failed
    header = ["", "s per step", f"times as fast as {first}", "share of the matrix peak", "tokens per s", "memory, MB"]
    lines = []
    for name, own in figures["sides"].items():
        if "skipped" in own:
            lines.append([name, f"not measured: {own['skipped']}", *[""] * 5])
            continue
        memory = f"{own['memory'] / 1e6:,.0f} ({own['memory'] / ran[first]['memory']:.2f})"
        cells = [f"{statistics.median(own['steps']):.4f}", f"{own['times as fast']:.2f}"]
        cells += [f"{1 / own['times the floor']:.0%}", f"{own['tokens per second']:,.0f}", memory]
        lines.append([name, *cells, f"{own['loss']:.4f}"])
    rows, length = figures["batch"]
    return (
        f"A {figures['model']} teacher with {figures['layers']} layers, a student with every other layer, random "
        f"weights, {rows} x {length} tokens.\n"
        f"Medians of {figures['rounds']} interleaved rounds. Measured matrix peak in bf16: "
        f"{figures['matrix peak'] / 1e12:,.2f} TFLOP/s.\n\n{_table([*header, 'loss'], lines)}\n"
    )


def measure_precision(settings: Settings, until: float) -> Figures:
    shape = settings.shape("gpu-short")
    longest = 0.0
    last = time.perf_counter()

    def out_of_time() -> bool:
        """True if a training as long as the longest so far would exceed the time limit."""
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        return now + longest > until

    return {
        "steps": settings.steps,
        "batch": [shape.batch_size, shape.length],
        "precisions": compare_precisions(shape, settings.device, settings.steps, out_of_time),
    }


def write_precision(figures: Figures) -> str:
    lines = []
    for name, own in figures["precisions"].items():
        if "skipped" in own:
            lines.append([name, own["skipped"], *[""] * 5])
            continue
        skipped = ", ".join(map(str, own["skipped steps"])) or "none"
        scale = "" if own["scale"] is None else f"{own['scale']:,.0f}"
        ends = [f"{own['losses'][0]:.4f}", f"{own['losses'][-1]:.4f}"]
        lines.append([name, *ends, f"{own['deviation']:.2%}", skipped, scale, "yes" if own["passes"] else "NO"])
    rows, length = figures["batch"]
    header = ["", "first loss", "last loss", "largest deviation", "skipped steps", "scale at the end", "passes"]
    return (
        f"The same training in each precision: {figures['steps']} steps of {rows} x {length} tokens, without dropout. "
        f"It passes if each loss\nis within {TOLERANCE:.0%} of the fp32 loss, and the gradient scaler skips no step in "
        f"the second half.\n\n{_table(header, lines)}\n"
    )


def measure_synchronisations(settings: Settings, until: float) -> Figures:
    if settings.device == "cpu":
        return {"skipped": NEEDS_CUDA}
    steps = 2 if settings.tiny else 10
    loops = count_synchronisations(settings.shape("gpu-short"), settings.device, steps)
    return {"steps": steps, "loops": loops}


def write_synchronisations(figures: Figures) -> str:
    lines = []
    for name, own in figures["loops"].items():
        places = ", ".join(f"`{place}` {number:g}" for place, number in list(own["where"].items())[:6])
        lines.append([name, f"{own['per step']:g}", places])
    return (
        f"Warnings of `torch.cuda.set_sync_debug_mode` in {figures['steps']} steps of a complete bf16 training loop, "
        f"after {WARM_UP} warm-up steps:\ncopies of a batch to the GPU, and each number that the host waits for.\n\n"
        f"{_table(['', 'synchronisations per step', 'where, per step'], lines)}\n"
    )


def measure_compile(settings: Settings, until: float) -> Figures:
    names = ["ours, bf16", "ours, bf16, traced" if settings.tiny else "ours, bf16, compiled"]
    return measure_steps("gpu", names)(settings, until)


SECTIONS = {
    "tests": Section("Tests marked `gpu`", measure_tests, write_tests),
    "steps": Section("A training step in bf16", measure_steps("gpu", MASKED_LM_SIDES), write_steps),
    "short steps": Section("A smaller step in bf16", measure_steps("gpu-short", MASKED_LM_SIDES), write_steps),
    "causal": Section("A causal language model, compared with TRL", measure_steps("gpt2", CAUSAL_SIDES), write_steps),
    "precision": Section("fp16 and its gradient scaler", measure_precision, write_precision),
    "synchronisations": Section("Synchronisations per step", measure_synchronisations, write_synchronisations),
    "compile": Section("`torch_compile`", measure_compile, write_steps),  # last: compiling cannot be interrupted
}


def about(settings: Settings) -> Figures:
    """Returns card, driver, versions and date."""
    on_gpu = settings.device == "cuda"
    versions = print_versions([*PACKAGES, "peft", "datasets"])
    for name in OPTIONAL_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else None
    return {
        "card": torch.cuda.get_device_name() if on_gpu else "none: on the CPU",
        "card memory": f"{memory / 2**30:.0f} GiB" if on_gpu else NEEDS_CUDA,
        "driver": _driver() if on_gpu else NEEDS_CUDA,
        "CUDA": torch.version.cuda if on_gpu else NEEDS_CUDA,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "versions": versions,
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"


def run(settings: Settings, output: Path, sections: Mapping[str, Section] = SECTIONS) -> Figures:
    """Measures section by section, and writes `gpu.md` and `gpu.json` after each.

    If a section fails, the report shows its error, and the other sections still run.
    """
    silence()
    start = time.perf_counter()
    report: Figures = {"about": about(settings), "command": _command(settings), "sections": {}}
    for name, section in sections.items():
        print(f"\n## {section.title}\n", flush=True)
        began = time.perf_counter()
        try:
            if began + ENOUGH > start + TOTAL:
                figures = {"skipped": "no time left"}
            else:
                figures = section.measure(settings, min(began + SECONDS[name], start + TOTAL))
        except Exception as error:
            figures = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        report["sections"][name] = figures | {"seconds": time.perf_counter() - began}
        report["seconds"] = time.perf_counter() - start
        print(_section_text(section, report["sections"][name]), flush=True)
        write_json(output / "gpu.json", report)
        (output / "gpu.md").write_text(text_of(report, sections))
        release_memory()
    return report


def text_of(report: Figures, sections: Mapping[str, Section] = SECTIONS) -> str:
    """Formats the report as Markdown."""
    on, done = report["about"], report["sections"]
    rows = [[name, on[name]] for name in ("card", "card memory", "driver", "CUDA", "date")]
    rows += [[name, number] for name, number in on["versions"].items()]
    title = f"# On a GPU\n\nMeasured in {report['seconds']:.0f} seconds by one command:\n\n    {report['command']}\n"
    parts = [title, f"{_table(['', ''], rows)}\n", READING]
    parts += [
        f"## {section.title}\n\n{_section_text(section, done[name])}"
        for name, section in sections.items()
        if name in done
    ]
    return "\n".join(parts)


def _section_text(section: Section, figures: Figures) -> str:
    for word in ("skipped", "failed"):
        if word in figures:
            return f"{word.capitalize()}: {figures[word]}.\n"
    return section.write(figures)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(header, [[cell.replace("|", "\\|") for cell in row] for row in rows])


def _command(settings: Settings) -> str:
    options = f" --device {settings.device}" if settings.device == "cpu" else ""
    return f"python -m recipes.benchmarks.gpu_report{options}{' --tiny' if settings.tiny else ''}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.benchmarks.gpu_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few rounds")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("docs"), help="folder for gpu.md and gpu.json"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device found: try --device cpu --tiny --output DIR.")
    if options.device == "cpu" and options.output == Path("docs"):
        parser.error("docs is for figures of a GPU: give another --output for --device cpu.")
    run(Settings(options.device, options.tiny), options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
