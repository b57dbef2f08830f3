"""`python -m recipes.benchmarks.loss_cost`: seconds and memory of an optimizer step with each loss.

Every side trains on the three losses of the defaults (`alpha_kl`, `alpha_task`, `alpha_cos`) plus what its name says.
Tokens and weights are random; the student has half of the teacher's layers. Rows have no padding, so that the losses
compare as many pairs of positions as the batch has.

A side's step follows a step with the three losses alone, and the two are compared. A ratio is the median over these
pairs, so a machine that slows down affects both. Prefer CPU seconds on a machine that does other work too. Memory is
the peak of the tensors of a step above weights and optimizer state.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from hf_distill import make_student
from recipes.benchmarks._common import (
    PACKAGES,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    silence,
    synchronise,
    table,
    write_json,
)
from recipes.benchmarks.peers import Batch, TrainerSide, ours
from recipes.benchmarks.training_step import peak_memory

MASKED = 0.15
NUM_LABELS = 4

MINILM = {"hidden_size": 384, "intermediate_size": 1536}
TINY = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SHAPES = {
    "minilm": BertConfig(**MINILM, num_labels=NUM_LABELS),
    "bert-base": BertConfig(num_labels=NUM_LABELS),
    "tiny": BertConfig(**TINY, num_labels=NUM_LABELS),
}
"""Configs of the teacher."""
MODELS = {"mlm": AutoModelForMaskedLM, "classification": AutoModelForSequenceClassification}

BASELINE = "the three losses"
HIDDEN, ATTENTION, RELATION = ({f"alpha_{name}": 1.0} for name in ("hidden", "attention", "relation"))
DIVERGENCES = ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "mse", "dkd", "dist"]
TWO_TEACHERS = "two teachers"
SIDES: dict[str, dict[str, object]] = {
    BASELINE: {},
    "+ hidden": HIDDEN,
    "+ attention": ATTENTION,
    "+ relation": RELATION,
    "+ hidden + relation": HIDDEN | RELATION,
    "+ hidden + attention + relation": HIDDEN | ATTENTION | RELATION,
    "hidden + relation instead of the cosine": HIDDEN | RELATION | {"alpha_cos": 0.0},
    **{f"divergence={name!r}": {"divergence": name} for name in DIVERGENCES},
    "standardize_logits": {"standardize_logits": True},
    TWO_TEACHERS: {},
}
"""The training arguments of each side."""

COLUMNS = ["", "s per step", "of the first", "CPU s per step", "of the first", "memory, MB", "of the first"]

Figures = dict[str, float | list[float]]


def make_batch(task: str, vocab_size: int, batch_size: int, length: int, device: str) -> dict[str, torch.Tensor]:
    """Makes `[batch, length]` random tokens without padding, with a label for 15% of them or for each row."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, vocab_size, (batch_size, length), generator=generator)
    if task == "mlm":
        labels = input_ids.where(torch.rand(input_ids.shape, generator=generator) < MASKED, -100)
    else:
        labels = torch.randint(NUM_LABELS, (batch_size,), generator=generator)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def make_side(
    name: str, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch, folder: Path, bf16: bool
) -> TrainerSide:
    teachers = [teacher, copy.deepcopy(teacher)] if name == TWO_TEACHERS else teacher
    options = {"bf16": True, "teacher_dtype": "bfloat16"} if bf16 else {}
    return ours(teachers, copy.deepcopy(student), batch, folder, "labels", **SIDES[name], **options)


def step_costs(side: TrainerSide, batch: Batch) -> tuple[float, float]:
    """Runs a step. Returns its seconds and CPU seconds."""
    synchronise()
    start, cpu_start = time.perf_counter(), time.process_time()
    side.forward_and_backward(batch)
    side.optimizer_step()
    synchronise()
    return time.perf_counter() - start, time.process_time() - cpu_start


def measure(
    task: str, config: BertConfig, batch_size: int, length: int, bf16: bool, names: Sequence[str], pairs: int
) -> dict[str, Figures]:
    """Measures each side in `pairs` pairs of steps with the three losses, and in one more for warm-up.

    Args:
        task: key of `MODELS`.
        config: config of the teacher.
        batch_size: rows per batch.
        length: tokens per row.
        bf16: autocast in bfloat16, with a teacher in bfloat16.
        names: keys of `SIDES`.
        pairs: pairs of steps per side.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    teacher = MODELS[task].from_config(copy.deepcopy(config)).eval()
    student = make_student(teacher)
    batch = make_batch(task, config.vocab_size, batch_size, length, device)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            name: make_side(name, teacher, student, batch, Path(folder, str(number)), bf16)
            for number, name in enumerate([BASELINE, *names])
        }
        costs = ("seconds", "seconds of the first", "CPU seconds", "CPU seconds of the first")
        measured: dict[str, Figures] = {name: {cost: [] for cost in costs} for name in sides}
        for number in range(pairs + 1):
            for name, own in measured.items():
                torch.manual_seed(number)
                first = step_costs(sides[BASELINE], batch)
                torch.manual_seed(number)
                seconds, cpu_seconds = step_costs(sides[name], batch)
                if number > 0:
                    for cost, value in zip(costs, (seconds, first[0], cpu_seconds, first[1]), strict=True):
                        own[cost].append(value)
        for name, own in measured.items():
            side = sides[name]
            own["memory"] = peak_memory(lambda side=side: side.forward_and_backward(batch), device)
            side.optimizer_step()
            for cost in ("seconds", "CPU seconds"):
                own[f"{cost}, ratio"] = median_ratio(own[cost], own[f"{cost} of the first"])
    return measured


def run(
    shape: str, task: str, batch_size: int, length: int, bf16: bool, names: Sequence[str], pairs: int, output: Path
) -> dict[str, Figures]:
    """Measures, prints the table, and writes the figures to `output`."""
    silence()
    config = SHAPES[shape]
    measured = measure(task, config, batch_size, length, bf16, names, pairs)
    title = (
        f"{task}, {shape}: {config.num_hidden_layers} layers of {config.hidden_size} to half of them, "
        f"{batch_size} x {length} tokens, {'bfloat16' if bf16 else 'float32'}"
    )
    rows = [
        [
            name,
            f"{statistics.median(own['seconds']):.3f}",
            f"{own['seconds, ratio']:.2f}",
            f"{statistics.median(own['CPU seconds']):.3f}",
            f"{own['CPU seconds, ratio']:.2f}",
            f"{own['memory'] / 1e6:,.0f}",
            f"{own['memory'] / measured[BASELINE]['memory']:.2f}",
        ]
        for name, own in measured.items()
    ]
    print(f"\n{title}\n\n{table(COLUMNS, rows)}\n\nMedians of {pairs} pairs of steps")
    on = print_machine("device", "threads")
    versions = print_versions(PACKAGES)
    write_json(output, {"of": title, "machine": on, "versions": versions, "pairs": pairs, "sides": measured})
    return measured


def main() -> None:
    parser = make_parser("loss_cost", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--task", choices=MODELS, default="mlm")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens per row")
    parser.add_argument("--bf16", action="store_true", help="autocast and teacher in bfloat16")
    names = [name for name in SIDES if name != BASELINE]
    parser.add_argument("--sides", nargs="+", choices=names, default=names, help="by default all")
    parser.add_argument("--pairs", type=int, default=9, help="pairs of steps per side")
    options = parser.parse_args()
    run(
        options.shape,
        options.task,
        options.batch_size,
        options.length,
        options.bf16,
        options.sides,
        options.pairs,
        options.output,
    )


if __name__ == "__main__":
    main()
