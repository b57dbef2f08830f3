"""`python -m recipes.benchmarks.teacher_dtype`: how the teacher's dtype affects the time and the losses of a step.

The teacher is the fine-tuned teacher of `make quickstart`, the student is cut from it, and the batch contains real
sentences. A step is the teacher's forward pass and the student's forward and backward pass, without the optimizer.
"""

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import is_bitsandbytes_available

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
    all_exist,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    silence,
    synchronise,
    table,
    train_quietly,
    write_json,
)
from recipes.quickstart.data import load_corpus, tokenize

BATCH_SIZE = 64
TEACHERS = {
    "float32": {"teacher_dtype": "float32"},
    "bfloat16": {"teacher_dtype": "bfloat16"},
    "float16": {"teacher_dtype": "float16"},
    "8bit": {"teacher_quantization": "8bit"},
    "4bit": {"teacher_quantization": "4bit"},
}
AUTOCAST = {"bf16": True, "off": False}
"""Whether teacher and student multiply matrices in bfloat16, independent of the dtype of their weights."""

COLUMNS = ["autocast", "teacher", "ms per step", "ratio", "loss_kl", "deviation", "loss_cos", "deviation"]

Figures = dict[str, float | str]
"""Figures of one teacher; or, as `skipped`, the reason why there are none."""


def make_trainer(teacher_folder: Path, rows: Dataset, autocast: str, teacher: str, folder: str) -> DistillationTrainer:
    """Makes a trainer that has run one step with a learning rate of 0. Its state holds the losses of that step."""
    args = DistillationTrainingArguments(
        output_dir=folder,
        teacher_model_name_or_path=str(teacher_folder),
        per_device_train_batch_size=len(rows),
        bf16=AUTOCAST[autocast],
        max_steps=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
        use_cpu=not torch.accelerator.is_available(),
        logging_steps=1,
        **QUIET,
        **TEACHERS[teacher],
    )
    student = make_student(AutoModelForSequenceClassification.from_pretrained(teacher_folder))
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    trainer = DistillationTrainer(student, args, train_dataset=rows, processing_class=tokenizer)
    set_seed(0)  # the same dropout of the student for every teacher
    train_quietly(trainer)
    return trainer


def make_trainers(teacher_folder: Path, rows: Dataset, autocast: str) -> dict[str, DistillationTrainer | str]:
    """Makes a trainer for each teacher, or gives the reason why it does not run on this machine."""
    trainers = {}
    with tempfile.TemporaryDirectory() as folder:
        for teacher in TEACHERS:
            try:
                trainers[teacher] = make_trainer(teacher_folder, rows, autocast, teacher, folder)
            except (ImportError, RuntimeError, ValueError) as error:  # bitsandbytes missing, or not supported here
                trainers[teacher] = str(error).splitlines()[0]
    return trainers


def step_seconds(trainer: DistillationTrainer, batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    loss = trainer.compute_loss(trainer.model_wrapped, batch)
    trainer.accelerator.backward(loss)
    synchronise()
    seconds = time.perf_counter() - start
    trainer.model.zero_grad()
    return seconds


def measure(teacher_folder: Path, rows: Dataset, rounds: int = 7) -> dict[str, dict[str, Figures]]:
    """Measures each teacher, with and without autocast.

    In each round every trainer runs one step, so a machine that slows down affects all of them. The ratio to the
    float32 teacher is computed within each round; the median over the rounds is reported.
    """
    made = {autocast: make_trainers(teacher_folder, rows, autocast) for autocast in AUTOCAST}
    running = {
        (autocast, teacher): trainer
        for autocast, trainers in made.items()
        for teacher, trainer in trainers.items()
        if not isinstance(trainer, str)
    }
    batch = next(iter(running["off", "float32"].get_train_dataloader()))
    seconds = {key: [] for key in running}
    for number in range(rounds + 1):
        for key, trainer in running.items():
            taken = step_seconds(trainer, batch)
            if number > 0:  # the first round is for warm-up
                seconds[key].append(taken)

    measured = {autocast: {} for autocast in AUTOCAST}
    for autocast, trainers in made.items():
        for teacher, trainer in trainers.items():
            if isinstance(trainer, str):
                measured[autocast][teacher] = {"skipped": trainer}
                continue
            own, reference = seconds[autocast, teacher], seconds[autocast, "float32"]
            logged, expected = (running[autocast, name].state.log_history[0] for name in (teacher, "float32"))
            measured[autocast][teacher] = {
                "ms per step": 1000 * statistics.median(own),
                "ratio": median_ratio(own, reference),
                **{name: logged[name] for name in ("loss_kl", "loss_task", "loss_cos")},
                **{f"deviation of {name}": logged[name] / expected[name] - 1 for name in ("loss_kl", "loss_cos")},
            }
    return measured


def run(teacher_folder: Path, rows: Dataset, rounds: int, output: Path) -> dict[str, dict[str, Figures]]:
    """Measures, prints the table, and writes the figures to `output`."""
    measured = measure(teacher_folder, rows, rounds)
    print(
        table(
            COLUMNS,
            [
                [autocast, name, *_cells(own)]
                for autocast, teachers in measured.items()
                for name, own in teachers.items()
            ],
        )
    )
    print(
        f"\nOne step of {len(rows)} rows, median of {rounds} rounds. Ratios and deviations: relative to float32 teacher"
    )
    on = print_machine("device", "threads")
    versions = print_versions([*PACKAGES, *(["bitsandbytes"] if is_bitsandbytes_available() else [])])
    write_json(output, {"machine": on, "versions": versions, "rounds": rounds, "teachers": measured})
    return measured


def _cells(own: Figures) -> list[str]:
    if "skipped" in own:
        return [f"not measured: {own['skipped']}", *[""] * (len(COLUMNS) - 3)]
    losses = [(f"{own[name]:.5f}", f"{own[f'deviation of {name}']:+.3%}") for name in ("loss_kl", "loss_cos")]
    return [f"{own['ms per step']:.0f}", f"{own['ratio']:.2f}", *losses[0], *losses[1]]


def main() -> int:
    parser = make_parser("teacher_dtype", __doc__)
    parser.add_argument(
        "--quickstart", type=Path, default=Path("outputs/quickstart"), help="output folder of the quickstart"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measured steps per teacher")
    options = parser.parse_args()
    teacher, sentences = options.quickstart / "teacher", options.quickstart.parent / "quickstart-fetched" / "sentences"
    if not all_exist(teacher, sentences):
        return 1
    silence()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about each cast to float16 in each layer
    rows = tokenize(load_corpus(sentences).train.select(range(BATCH_SIZE)), AutoTokenizer.from_pretrained(teacher))
    run(teacher, rows, options.rounds, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
