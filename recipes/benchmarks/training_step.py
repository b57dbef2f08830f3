"""`python -m recipes.benchmarks.training_step`: seconds and memory of an optimizer step of masked language modelling.

Beside `DistillationTrainer`, in float32 and in bfloat16, are the common pattern (a `Trainer` whose `compute_loss` reads
all logits of both models) and TextBrewer; for causal language models also TRL's `GKDTrainer`. The tokens are random,
and so are the weights, the same for all, as is the dropout; all take the same step of AdamW. In a round each makes one
step, so a machine that slows down slows them all; a ratio is the median over the rounds of the ratio within a round.

The common pattern compares all positions with the teacher, as we do with `kl_positions="attended"`. With "labels" there
is a second one, which computes all logits too, but then compares those that have a label, as we do there.

The floor is the arithmetic that cannot be left out, over the rate at which this machine multiplies large matrices,
measured in the same rounds: the forward pass of the teacher and three times that of the student (forward, and backward
to inputs and to weights), with vocabulary logits for the positions that our losses read.
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
"""OpenWebText, about 9 billion tokens, three times."""

Figures = dict[str, float | list[float] | str]
"""Of one side: its figures, or the reason why there are none as `skipped`."""


@dataclass(frozen=True)
class Shape:
    """A teacher, of which the student gets every other layer, and a batch.

    Attributes:
        config: of the teacher.
        batch_size: in rows.
        length: of a row, in tokens.
        matrix_size: of the product whose speed is taken for the device's; by default as in `MATRIX_SIZES`.
    """

    config: PreTrainedConfig
    batch_size: int
    length: int
    matrix_size: int | None = None

    @property
    def is_causal(self) -> bool:
        return isinstance(self.config, GPT2Config)

    def model(self, config: PreTrainedConfig, **options) -> PreTrainedModel:
        """A model of the shape's kind, with random weights."""
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
    # name: how it is made, with what options, and which positions it compares, if always the same
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
"""The first is what the others are compared with."""
CAUSAL_SIDES = ["TRL, bf16", "ours, divergence alone, bf16"]
"""For causal language models: the common pattern here is for masked ones."""

PACKAGES_OF_PEERS = {"TextBrewer": "textbrewer", "TRL": "trl"}
"""By the first word of a side."""

OUT_OF_MEMORY = "out of memory"

MATRIX_SIZES = {"cpu": 2048, "cuda": 8192}
"""Of the product whose speed is taken for the device's."""

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
    """Whether the package of a side is there; of ours and the common pattern it is."""
    package = PACKAGES_OF_PEERS.get(name.split(",")[0])
    return package is None or find_spec(package) is not None


def make_batch(shape: Shape, device: str, num_batches: int = 1) -> dict[str, torch.Tensor]:
    """`[batch, length]` random tokens without padding; 15% have a label, in causal models all but the first.

    Several batches are in one, one after the other.
    """
    generator = torch.Generator().manual_seed(0)
    size = (num_batches * shape.batch_size, shape.length)
    input_ids = torch.randint(5, shape.config.vocab_size, size, generator=generator)
    has_label = torch.arange(shape.length) > 0 if shape.is_causal else torch.rand(size, generator=generator) < MASKED
    labels = input_ids.where(has_label, -100)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def floor_flops(teacher: PreTrainedConfig, student: PreTrainedConfig, shape: Shape, num_scored: int) -> float:
    """Floating-point operations that a step cannot do without, those of the optimizer apart."""
    flops = 0.0
    for config, passes in ((teacher, 1), (student, 3)):
        with torch.device("meta"):  # where nothing is computed; of fused attention nothing is counted
            model = shape.model(config, attn_implementation="eager")
            input_ids = torch.ones(shape.batch_size, shape.length, dtype=torch.long)
            with FlopCounterMode(display=False) as backbone:
                model.base_model(input_ids)
            with FlopCounterMode(display=False) as whole:
                model(input_ids)
        head = (whole.get_total_flops() - backbone.get_total_flops()) / input_ids.numel()
        flops += passes * (backbone.get_total_flops() + num_scored * head)
    return flops


def matmul_rate(dtype: torch.dtype, device: str, size: int | None = None) -> float:
    """Floating-point operations per second in the product of two large square matrices."""
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
    """Bytes of tensors at most, during a call, above those that were there before."""
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
    """Gives what nothing refers to any more back to the GPU."""
    gc.collect()
    torch.cuda.empty_cache()


def make_sides(
    shape: Shape, kl_positions: str, batch: dict[str, torch.Tensor], names: Sequence[str], folder: Path
) -> tuple[dict[str, TrainerSide | TextBrewerSide | str], float]:
    """The sides by name, which have made a step each, or why they cannot; and the floating-point operations of ours."""
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
            sides[name] = f"{type(error).__name__}: {error}".splitlines()[0]  # a peer may not go with our versions
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
    """The figures of each side.

    Args:
        shape: of the models and the batch.
        kl_positions: as of `DistillationTrainingArguments`.
        names: of the sides; the first that runs is what the others are compared with.
        rounds: how many at most.
        folder: for what the trainers write.
        device: "cuda" or "cpu"; by default the former if there is one.
        until: when to stop, as `time.perf_counter` tells it; there is one round at least.
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
            torch.manual_seed(number)  # the dropout of all is the same
            try:
                passes, loss = seconds_of(lambda side=side: side.forward_and_backward(batch))
                optimizer, _ = seconds_of(side.optimizer_step)
            except torch.OutOfMemoryError:
                made[name] = OUT_OF_MEMORY
                del sides[name], measured[name], side
                release_memory()
                continue
            if number > 0:  # the first round warms up
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
            print(f"{name}: {share:.0%} of that rate, {days:.1f} days for the full run")
    on = print_machine("device", "threads")
    peers = {PACKAGES_OF_PEERS[name.split(",")[0]] for name in names if name.split(",")[0] in PACKAGES_OF_PEERS}
    versions = print_versions([*PACKAGES, *sorted(peers)])
    write_json(output, {"of": title, "machine": on, "versions": versions, "rounds": rounds, "sides": measured})
    return measured


def _cells(name: str, own: Figures, reference: Figures) -> list[str]:
    if "skipped" in own:
        return [name, f"does not run here: {own['skipped']}", *[""] * (len(COLUMNS) - 2)]
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
        names = [name for name in names if name != "common pattern, same positions"]  # which is the common pattern
    run(options.shape, options.kl_positions, names, options.rounds, options.output)


if __name__ == "__main__":
    main()
