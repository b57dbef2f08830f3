"""`python -m recipes.benchmarks.shared_encoder`: seconds of an optimizer step with an encoder that runs once for both.

Teacher and student are BARTs with the same encoder; the student has a part of the decoder's layers. Tokens and weights
are random, and rows have no padding. The first side freezes the student's encoder and runs both encoders; the second is
`share_encoder=True`; the third trains the encoder too. Losses are the three of the defaults.

Each side's step follows a step of the first side, and the two are compared. A ratio is the median over these pairs, so
a machine that slows down affects both.
"""

import copy
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedModel

from hf_distill import make_student
from recipes.benchmarks._common import (
    PACKAGES,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.benchmarks.loss_cost import step_costs
from recipes.benchmarks.peers import Batch, TrainerSide, ours

SHARED = "share_encoder=True"
APART, TRAINED = "both encoders run, frozen", "both encoders run, the student's is trained"
SIDES = (APART, SHARED, TRAINED)

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
TINY = {"vocab_size": 100, "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
TINY |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
BASE = {"d_model": 768, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_layers": 6, "decoder_layers": 6}
SHAPES = {
    "bart-base": BartConfig(**BASE, **NO_DROPOUT, encoder_attention_heads=12, decoder_attention_heads=12),
    "bart-large": BartConfig(**NO_DROPOUT),
    "tiny": BartConfig(**TINY, **NO_DROPOUT),
}
"""Configs of the teacher."""

COLUMNS = ["", "s per step", "of the first", "CPU s per step", "of the first", "loss"]


def make_batch(vocab_size: int, batch_size: int, length: int, target_length: int, device: str) -> Batch:
    """Makes random sources `[batch, length]` and labels `[batch, target_length]`, without padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, vocab_size, (batch_size, length), generator=generator)
    labels = torch.randint(5, vocab_size, (batch_size, target_length), generator=generator)
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
    return {name: values.to(device) for name, values in batch.items()}


def make_side(name: str, teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch, folder: Path) -> TrainerSide:
    student = copy.deepcopy(student)
    if name == APART:
        student.get_encoder().requires_grad_(False)
    return ours(teacher, student, batch, folder, "labels", share_encoder=name == SHARED)


def measure(shape: str, layers: int, batch_size: int, length: int, target_length: int, pairs: int) -> dict[str, dict]:
    """Measures each side in `pairs` pairs of steps with the first side, and in one more for warm-up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = SHAPES[shape]
    teacher = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config)).eval()
    student = make_student(teacher, num_layers={"decoder": layers})
    batch = make_batch(config.vocab_size, batch_size, length, target_length, device)
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: make_side(name, teacher, student, batch, Path(folder, name)) for name in SIDES}
        measured: dict[str, dict] = {name: {"costs": [], "costs of the first": []} for name in SIDES}
        for number in range(pairs + 1):
            for name, own in measured.items():
                first, costs = (step_costs(sides[side], batch) for side in (APART, name))
                if number > 0:
                    own["costs of the first"].append(first)
                    own["costs"].append(costs)
        for name, own in measured.items():
            own["loss"] = sides[name].forward_and_backward(batch)
    return measured


def run(
    shape: str, layers: int, batch_size: int, length: int, target_length: int, pairs: int, output: Path
) -> dict[str, dict]:
    """Measures, prints the table, and writes the figures to `output`."""
    silence()
    measured = measure(shape, layers, batch_size, length, target_length, pairs)
    config = SHAPES[shape]
    title = (
        f"{shape}: {config.encoder_layers} layers of the encoder, {config.decoder_layers} to {layers} of the decoder; "
        f"{batch_size} sources of {length} and targets of {target_length} tokens"
    )
    rows = []
    for name, own in measured.items():
        cells = [name]
        for cost in (0, 1):  # seconds and CPU seconds
            values, first = ([costs[cost] for costs in own[side]] for side in ("costs", "costs of the first"))
            cells += [f"{statistics.median(values):.3f}", f"{median_ratio(values, first):.2f}"]
        rows.append([*cells, f"{own['loss']:.6f}"])
    print(f"\n{title}\n\n{table(COLUMNS, rows)}\n\nMedians of {pairs} pairs of steps")
    on = print_machine("device", "threads")
    versions = print_versions(PACKAGES)
    write_json(output, {"of": title, "machine": on, "versions": versions, "pairs": pairs, "sides": measured})
    return measured


def main() -> None:
    parser = make_parser("shared_encoder", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bart-base")
    parser.add_argument("--layers", type=int, default=3, help="layers of the student's decoder")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=512, help="tokens per source")
    parser.add_argument("--target-length", type=int, default=64, help="tokens per target")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of steps per side")
    options = parser.parse_args()
    run(
        options.shape,
        options.layers,
        options.batch_size,
        options.length,
        options.target_length,
        options.pairs,
        options.output,
    )


if __name__ == "__main__":
    main()
