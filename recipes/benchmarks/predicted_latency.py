"""`python -m recipes.benchmarks.predicted_latency`: is the latency that `hf-distill inspect` predicts the real one?

`inspect` adds up the matrix products of a student, measured with matrices of the same shapes. Here the students of
MiniLM are made, and all run in turn on one text of 128 tokens. Both sides are shares of the teacher's time. Times of
the real models are the processor's own, on one thread.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel

from hf_distill import make_student, product_seconds
from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.quickstart.fetch import fetch

TEACHER = "teacher"
NUM_TOKENS, WARM_UP = 128, 2


def students_of(teacher: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Students with half of the teacher in each direction."""
    config = teacher.config
    num_layers, inner = config.num_hidden_layers // 2, {"intermediate_size": config.intermediate_size // 2}
    hidden = {"num_attention_heads": config.num_attention_heads // 2, "hidden_size": config.hidden_size // 2}
    return {
        f"{num_layers} layers": make_student(teacher, num_layers),
        "half of the feed-forward width": make_student(teacher, **inner),
        "half of the heads and of the hidden width": make_student(teacher, **hidden),
        "both halves": make_student(teacher, **inner, **hidden),
        f"both halves and {num_layers} layers": make_student(teacher, num_layers, **inner, **hidden),
    }


@torch.inference_mode()
def measured_seconds(models: dict[str, PreTrainedModel], rounds: int) -> dict[str, float]:
    """Median processor time of one forward of each model. The models take turns."""
    inputs = {"input_ids": torch.full((1, NUM_TOKENS), 5)}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + WARM_UP):
        for name, model in models.items():
            start = time.process_time()
            model(**inputs)
            if number >= WARM_UP:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(own) for name, own in seconds.items()}


def run(model_folder: Path, output: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Prints the table and writes the figures: shares of the teacher's time, `predicted` and `measured`."""
    torch.set_num_threads(1)
    teacher = AutoModel.from_pretrained(model_folder).eval()
    models = {TEACHER: teacher, **students_of(teacher)}
    predicted = dict(zip(models, product_seconds(list(models.values()), NUM_TOKENS), strict=True))
    measured = measured_seconds(models, rounds)
    shares = {
        name: {"predicted": predicted[name] / predicted[TEACHER], "measured": measured[name] / measured[TEACHER]}
        for name in models
        if name != TEACHER
    }
    rows = [[name, f"{own['predicted']:.2f}", f"{own['measured']:.2f}"] for name, own in shares.items()]
    print(f"\nShares of the teacher's time, {rounds} rounds\n\n{table(['student', 'expected', 'measured'], rows)}\n")
    on, versions = print_machine("device", "threads"), print_versions(PACKAGES)
    write_json(output, {"machine": on, "versions": versions, "rounds": rounds, "shares": shares})
    return shares


@explains_fetch_errors
def main() -> int:
    parser = make_parser("predicted_latency", __doc__)
    parser.add_argument("--rounds", type=int, default=30)
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, _ = fetch(options.fetched)
    run(model_folder, options.output, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
