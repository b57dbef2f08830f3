"""`python -m recipes.benchmarks.training_step`: seconds and memory of an optimizer step of masked language modelling.

Compares `DistillationTrainer`, in float32 and bfloat16, with the common pattern (a `Trainer` whose `compute_loss`
computes all logits of both models) and TextBrewer; for causal language models also with TRL's `GKDTrainer`. Tokens and
weights are random. Weights, dropout and the AdamW step are the same for all. In each round every side runs one step, so
a machine that slows down affects all of them. Ratios are computed within a round; the median over the rounds is
reported.

The common pattern compares all positions with the teacher, as `DistillationTrainer` does with
`kl_positions="attended"`. With "labels" there is a second variant, which also computes all logits but compares only
positions with a label, as `DistillationTrainer` does then.

The floor is the minimal arithmetic of a step at the rate at which this machine multiplies large matrices, measured in
the same rounds: one forward pass of the teacher, and three times that of the student (forward, and backward to inputs
and to weights), with vocabulary logits for the positions that our losses read.
"""

import copy
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from hf_distill import make_student
from recipes.benchmarks._common import (
    PACKAGES,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    synchronise,
    table,
    write_json,
)
from recipes.benchmarks.peers import (
    DIVERGENCE_ALONE,
    TextBrewerSide,
    TrainerSide,
    common,
    ours,
    scored_positions,
    trl,
)

MASKED = 0.15

TOKENS_OF_THE_FULL_RUN = 27e9
"""Three epochs of OpenWebText, which has about 9 billion tokens."""

Figures = dict[str, float | list[float] | str]
"""Figures of one side; or, as `skipped`, the reason why there are none."""


@dataclass(frozen=True)
class Shape:
    """A teacher and a batch. The student gets every other layer of the teacher.

    Attributes:
        config: config of the teacher.
        batch_size: rows per batch.
        length: tokens per row.
        matrix_size: size of the matrix product that measures the speed of the device. Default: from `MATRIX_SIZES`.
    """

    config: PreTrainedConfig
    batch_size: int
    length: int
    matrix_size: int | None = None

    @property
    def is_causal(self) -> bool:
        return isinstance(self.config, GPT2Config)

    def model(self, config: PreTrainedConfig, **options) -> PreTrainedModel:
        """Makes a model of this shape with random weights."""
        auto_class = AutoModelForCausalLM if self.is_causal else AutoModelForMaskedLM
        return auto_class.from_config(config, **options)


ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
SHAPES = {
    "roberta-base": Shape(RobertaConfig(**ROBERTA), 8, 128),
    "minilm": Shape(BertConfig(**MINILM), 8, 128),
    "gpu": Shape(RobertaConfig(**ROBERTA), 64, 512),
    "gpu-short": Shape(RobertaConfig(**ROBERTA), 32, 128),
    "gpt2": Shape(GPT2Config(**NO_DROPOUT), 16, 512),
    "tiny": Shape(BertConfig(**TINY), 4, 32, 64),
    "tiny-gpt2": Shape(GPT2Config(n_embd=32, n_layer=2, n_head=2, **NO_DROPOUT), 4, 32, 64),
}

BF16 = {"bf16": True, "teacher_dtype": "bfloat16"}
SIDES = {
    # name: function that makes it, options, and the positions that it compares if they are fixed
    "common pattern": (common, {}, "attended"),
    "common pattern, same positions": (common, {}, None),
    "TextBrewer": (TextBrewerSide, {}, None),
    "ours": (ours, {}, None),
    "ours, bf16": (ours, BF16, None),
    "ours, bf16, compiled": (ours, BF16 | {"torch_compile": True}, None),
    "common pattern, bf16": (common, BF16, "attended"),
    "common pattern, same positions, bf16": (common, BF16, None),
    "TextBrewer, bf16": (TextBrewerSide, BF16, None),
    "ours, bf16, traced": (ours, BF16 | {"torch_compile": True, "torch_compile_backend": "eager"}, None),
    "TRL, bf16": (trl, BF16, None),
    "ours, divergence alone, bf16": (ours, BF16 | DIVERGENCE_ALONE, None),
}
BY_DEFAULT = list(SIDES)[:6]
"""The sides to compare. The first is the baseline."""
CAUSAL_SIDES = ["TRL, bf16", "ours, divergence alone, bf16"]
"""Sides for causal language models. The common pattern here works only for masked language models."""

PACKAGES_OF_PEERS = {"TextBrewer": "textbrewer", "TRL": "trl"}
"""Package by first word of a side's name."""

OUT_OF_MEMORY = "out of memory"

MATRIX_SIZES = {"cpu": 2048, "cuda": 8192}
"""Size of the matrix product that measures the speed of a device."""

COLUMNS = [
    "",
    "s per step",
    "times as fast",
    "both passes, s",
    "of the floor",
    "tokens per s",
    "memory, MB",
    "loss",
]


def is_installed(name: str) -> bool:
    """True if the package of a side is installed. Ours and the common pattern need none."""
    package = PACKAGES_OF_PEERS.get(name.split(",")[0])
    return package is None or find_spec(package) is not None


def make_batch(shape: Shape, device: str, num_batches: int = 1) -> dict[str, torch.Tensor]:
    """Makes `[batch, length]` random tokens without padding. 15% have a label; for causal models, all but the first.

    Several batches are concatenated.
    """
    generator = torch.Generator().manual_seed(0)
    size = (num_batches * shape.batch_size, shape.length)
    input_ids = torch.randint(5, shape.config.vocab_size, size, generator=generator)
    has_label = torch.arange(shape.length) > 0 if shape.is_causal else torch.rand(size, generator=generator) < MASKED
    labels = input_ids.where(has_label, -100)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def floor_flops(teacher: PreTrainedConfig, student: PreTrainedConfig, shape: Shape, num_scored: int) -> float:
    """Minimal floating-point operations of a step, without the optimizer."""
    flops = 0.0
    for config, passes in ((teacher, 1), (student, 3)):
        with torch.device("meta"):  # counts without computing; fused attention is not counted
            model = shape.model(copy.deepcopy(config), attn_implementation="eager")
            input_ids = torch.ones(shape.batch_size, shape.length, dtype=torch.long)
            with FlopCounterMode(display=False) as backbone:
                model.base_model(input_ids)
            with FlopCounterMode(display=False) as whole:
                model(input_ids)
        head = (whole.get_total_flops() - backbone.get_total_flops()) / input_ids.numel()
        flops += passes * (backbone.get_total_flops() + num_scored * head)
    return flops


def matmul_rate(dtype: torch.dtype, device: str, size: int | None = None) -> float:
    """Measures floating-point operations per second in the product of two large square matrices."""
    size = size or MATRIX_SIZES[device]
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    a @ b
    synchronise()
    start = time.perf_counter()
    repeats = 2 if device == "cpu" else 20
    for _ in range(repeats):
        a @ b
    synchronise()
    return repeats * 2 * size**3 / (time.perf_counter() - start)


def seconds_of(call) -> tuple[float, object]:
    synchronise()
    start = time.perf_counter()
    value = call()
    synchronise()
    return time.perf_counter() - start, value


def peak_memory(call, device: str) -> int:
    """Peak memory of tensors during a call, in bytes, above the memory before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak


def release_memory() -> None:
    """Releases unused memory of the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


def make_sides(
    shape: Shape, kl_positions: str, batch: dict[str, torch.Tensor], names: Sequence[str], folder: Path
) -> tuple[dict[str, TrainerSide | TextBrewerSide | str], float]:
    """Makes each side and runs one step, or gives the reason why not; and counts our floating-point operations."""
    torch.manual_seed(0)
    teacher = shape.model(shape.config).eval()
    student = make_student(teacher)
    num_scored = int(scored_positions(batch, kl_positions).sum())
    sides = {}
    for name in names:
        make, options, positions = SIDES[name]
        pair = copy.deepcopy(teacher), copy.deepcopy(student)
        place = folder / name.replace(" ", "_")
        try:
            sides[name] = make(*pair, batch, place, positions or kl_positions, **options)
        except torch.OutOfMemoryError:
            sides[name] = OUT_OF_MEMORY
        except Exception as error:
            if make is ours:
                raise
            sides[name] = f"{type(error).__name__}: {error}".splitlines()[0]  # a peer may not support our versions
        if isinstance(sides[name], str):
            release_memory()
    return sides, floor_flops(teacher.config, student.config, shape, num_scored)


def measure(
    shape: Shape,
    kl_positions: str,
    names: Sequence[str],
    rounds: int,
    folder: Path,
    device: str | None = None,
    until: float = math.inf,
) -> dict[str, Figures]:
    """Measures each side.

    Args:
        shape: shape of the models and the batch.
        kl_positions: as in `DistillationTrainingArguments`.
        names: names of the sides. The first one that runs is the baseline.
        rounds: most rounds.
        folder: folder for output of the trainers.
        device: "cuda" or "cpu". Default: "cuda" if available.
        until: time to stop, on the clock of `time.perf_counter`. At least one round is run.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    batch = make_batch(shape, device)
    made, flops = make_sides(shape, kl_positions, batch, names, folder)
    sides = {name: side for name, side in made.items() if not isinstance(side, str)}
    measured: dict[str, Figures] = {name: {"passes": [], "steps": [], "rates": []} for name in sides}
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() > until:
            break
        for name, side in list(sides.items()):
            dtype = torch.bfloat16 if SIDES[name][1].get("bf16") else torch.float32
            rate = matmul_rate(dtype, device, shape.matrix_size)
            torch.manual_seed(number)  # the same dropout for all sides
            try:
                passes, loss = seconds_of(lambda side=side: side.forward_and_backward(batch))
                optimizer, _ = seconds_of(side.optimizer_step)
            except torch.OutOfMemoryError:
                made[name] = OUT_OF_MEMORY
                del sides[name], measured[name], side
                release_memory()
                continue
            if number > 0:  # the first round is for warm-up
                own = measured[name]
                own["rates"].append(rate)
                own["passes"].append(passes)
                own["steps"].append(passes + optimizer)
                own["loss"] = loss - (side.entropy(batch) if isinstance(side, TextBrewerSide) else 0.0)
    for name, own in measured.items():
        side = sides[name]
        own |= {
            "times as fast": median_ratio(next(iter(measured.values()))["steps"], own["steps"]),
            "times the floor": median_ratio(own["passes"], [flops / rate for rate in own["rates"]]),
            "tokens per second": batch["input_ids"].numel() / statistics.median(own["steps"]),
            "memory": peak_memory(lambda side=side: side.forward_and_backward(batch), device),
        }
        own["days of the full run"] = TOKENS_OF_THE_FULL_RUN / own["tokens per second"] / 86_400
        side.optimizer_step()
    return {name: measured.get(name) or {"skipped": made[name]} for name in names}


def run(shape_name: str, kl_positions: str, names: Sequence[str], rounds: int, output: Path) -> dict[str, Figures]:
    """Measures, prints the table, and writes the figures to `output`."""
    transformers.logging.set_verbosity_error()
    shape = SHAPES[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(shape, kl_positions, names, rounds, Path(folder))
    title = f"{shape_name}, {shape.batch_size} x {shape.length} tokens, kl_positions={kl_positions!r}"
    ran = {name: own for name, own in measured.items() if "skipped" not in own}
    reference = next(iter(ran.values()))
    print(f"\n{title}\n\n{table(COLUMNS, [_cells(name, own, reference) for name, own in measured.items()])}")
    rates = {SIDES[name][1].get("bf16", False): statistics.median(own["rates"]) for name, own in ran.items()}
    matmul = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {'bf16' if bf16 else 'fp32'}" for bf16, rate in rates.items())
    print(f"\nMedians of {rounds} rounds; matrix products: {matmul}")
    if shape_name == "gpu":
        for name, own in ran.items():
            share, days = 1 / own["times the floor"], own["days of the full run"]
            print(f"{name}: {share:.0%} of the matrix rate, {days:.1f} days for the full run")
    on = print_machine("device", "threads")
    peers = {PACKAGES_OF_PEERS[name.split(",")[0]] for name in names if name.split(",")[0] in PACKAGES_OF_PEERS}
    versions = print_versions([*PACKAGES, *sorted(peers)])
    write_json(output, {"of": title, "machine": on, "versions": versions, "rounds": rounds, "sides": measured})
    return measured


def _cells(name: str, own: Figures, reference: Figures) -> list[str]:
    if "skipped" in own:
        return [name, f"not measured: {own['skipped']}", *[""] * (len(COLUMNS) - 2)]
    return [
        name,
        f"{statistics.median(own['steps']):.3f}",
        f"{own['times as fast']:.2f}",
        f"{statistics.median(own['passes']):.3f}",
        f"{own['times the floor']:.2f}",
        f"{own['tokens per second']:,.0f}",
        f"{own['memory'] / 1e6:,.0f} ({own['memory'] / reference['memory']:.2f})",
        f"{own['loss']:.5f}",
    ]


def main() -> None:
    parser = make_parser("training_step", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="gpu" if torch.cuda.is_available() else "roberta-base")
    parser.add_argument("--kl-positions", choices=["labels", "attended"], default="labels")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help=f"by default {', '.join(BY_DEFAULT)}")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    by_default = CAUSAL_SIDES if SHAPES[options.shape].is_causal else BY_DEFAULT
    names = options.sides or [name for name in by_default if is_installed(name)]
    if options.kl_positions == "attended" and not options.sides:
        names = [name for name in names if name != "common pattern, same positions"]  # same as the common pattern
    run(options.shape, options.kl_positions, names, options.rounds, options.output)


if __name__ == "__main__":
    main()
