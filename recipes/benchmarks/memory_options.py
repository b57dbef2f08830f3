"""`python -m recipes.benchmarks.memory_options`: how much memory each training option saves.

BERT-base (random weights) teaches classification to a student with half its layers, in one step of 16 rows of up to 512
tokens, with lengths as in film reviews. Each line of the table is a training in a separate process: first a step with
short rows, in which AdamW allocates its state, then the measured step. On a GPU, the memory of tensors is measured; on
the CPU, the memory of the whole process, including PyTorch.
"""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset, load_from_disk
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, add_teacher_targets, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
    make_parser,
    print_machine,
    print_versions,
    silence,
    table,
    train_quietly,
    write_json,
)
from recipes.benchmarks.corpus_streaming import peak_of_process

ROWS_PER_STEP, SHORT = 16, 8
ENOUGH = 8e9
"""Memory of a small GPU in bytes."""

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPES = {"bert-base": BertConfig(), "tiny": BertConfig(vocab_size=100, **TINY)}


@dataclass(frozen=True)
class Line:
    """A training: one line of the table.

    Attributes:
        num_batches: number of accumulated batches per step.
        options: options for the trainer's arguments.
        trains: the student; or the teacher before distillation, either completely or with LoRA adapters.
        attention_dropout: dropout rate; on the CPU, PyTorch stores a number per pair of tokens and head for it.
        padding: pad rows to the full length, or to the longest row of the batch.
        cut: divide the length of each row by this number, keeping the first tokens.
        stored: True if the teacher's outputs are columns of the dataset.
    """

    num_batches: int = 1
    options: dict[str, object] = field(default_factory=dict)
    trains: Literal["student", "teacher", "adapters"] = "student"
    attention_dropout: float = 0.1
    padding: Literal["full", "longest"] = "full"
    cut: int = 1
    stored: bool = False


BF16 = {"bf16": True}
BF16_BOTH = BF16 | {"teacher_dtype": "bfloat16"}
CHECKPOINTING = {"gradient_checkpointing": True}

LINES = {
    "nothing: float32, a batch of 16": Line(),
    "padded to the longest of the batch": Line(padding="longest"),
    "cut at half the length": Line(cut=2),
    "no dropout in the attention": Line(attention_dropout=0.0),
    "4 batches of 4": Line(4),
    "16 batches of 1": Line(16),
    "gradient checkpointing": Line(options=CHECKPOINTING),
    "the teacher's outputs stored": Line(stored=True),
    "bf16": Line(options=BF16),
    "bf16, teacher in bfloat16": Line(options=BF16_BOTH),
    "the same, 4 batches of 4": Line(4, BF16_BOTH),
    "the same, gradient checkpointing": Line(4, BF16_BOTH | CHECKPOINTING),
    "the same, 16 batches of 1": Line(16, BF16_BOTH | CHECKPOINTING),
    "the same, the teacher's outputs stored": Line(16, BF16 | CHECKPOINTING, stored=True),
    "fine-tuning the teacher, 4 batches of 4": Line(4, trains="teacher"),
    "fine-tuning LoRA adapters, 4 batches of 4": Line(4, trains="adapters"),
    "fine-tuning the teacher, bf16, 4 batches of 4, gradient checkpointing": Line(4, BF16 | CHECKPOINTING, "teacher"),
    "fine-tuning LoRA adapters, the same": Line(4, BF16 | CHECKPOINTING, "adapters"),
}
"""The lines of the table. The first is the baseline."""

COLUMNS = ["", "GB at most", "of the first", "weights and optimizer, GB", "under 8 GB"]

Figures = dict[str, float]


def make_rows(config: BertConfig, length: int, line: Line) -> Dataset:
    """Makes random tokens for a step with short rows and a step with long rows.

    Lengths of the long rows come from a log-normal distribution with a median of 0.45 times the full length. Longer
    rows are truncated, and one row has the full length, as in nearly every batch of 16 reviews.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(ROWS_PER_STEP - 1, generator=generator).mul(0.65).exp().mul(0.45 * length)
    rows = []
    for index, size in enumerate([SHORT] * ROWS_PER_STEP + [length, *drawn.long().clamp(SHORT, length).tolist()]):
        size = min(size, length // line.cut)
        tokens = torch.randint(5, config.vocab_size, (size,), generator=generator).tolist()
        is_padded = line.padding == "full" and index >= ROWS_PER_STEP
        padding = [0] * (length // line.cut - size) if is_padded else []
        mask = [1] * size + padding
        rows.append({"input_ids": tokens + padding, "attention_mask": mask, "labels": index % 2})
    return Dataset.from_list(rows)


def save_models(config: BertConfig, folder: Path) -> None:
    """Makes the teacher, its student, and a tokenizer for padding."""
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(config)
    teacher.save_pretrained(folder / "teacher")
    make_student(teacher).save_pretrained(folder / "student")
    words = Tokenizer(WordLevel({"[PAD]": 0}, "[PAD]"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder / "teacher")


def save_rows(line: Line, length: int, models: Path, rows_folder: Path) -> None:
    """The training data of a line, with the teacher's outputs if they are stored."""
    rows = make_rows(AutoConfig.from_pretrained(models / "teacher"), length, line)
    if line.stored:
        teacher = AutoModelForSequenceClassification.from_pretrained(models / "teacher")
        tokenizer = AutoTokenizer.from_pretrained(models / "teacher")
        targets = rows_folder.with_suffix(".targets")
        rows = add_teacher_targets(rows, teacher, tokenizer, hidden_states=True, output_dir=targets)
    rows.save_to_disk(rows_folder)


def make_trainer(line: Line, models: Path, rows_folder: Path, output: str) -> Trainer:
    """Makes the trainer of the student, or of the teacher."""
    options = {
        "output_dir": output,
        "per_device_train_batch_size": ROWS_PER_STEP // line.num_batches,
        "gradient_accumulation_steps": line.num_batches,
        "max_steps": 2,
        "train_sampling_strategy": "sequential",
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": 1,
        **QUIET,
        **line.options,
    }
    model = AutoModelForSequenceClassification.from_pretrained(
        models / ("student" if line.trains == "student" else "teacher"),
        attention_probs_dropout_prob=line.attention_dropout,
    )
    data = {
        "train_dataset": load_from_disk(rows_folder),
        "processing_class": AutoTokenizer.from_pretrained(models / "teacher"),
    }
    if line.trains == "student":
        if not line.stored:
            options["teacher_model_name_or_path"] = str(models / "teacher")
        return DistillationTrainer(model, DistillationTrainingArguments(**options), **data)
    if line.trains == "adapters":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS"))
    return Trainer(model, TrainingArguments(**options), **data)


def measure(line: Line, models: Path, rows_folder: Path) -> Figures:
    """Measures the peak memory of a training, and the memory of all weights and the optimizer state, in bytes."""
    silence()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer(line, models, rows_folder, output)
        train_quietly(trainer)
    has_teacher = line.trains == "student" and not line.stored
    trained_and_teacher = [trainer.model, trainer.teacher.model] if has_teacher else [trainer.model]
    weights = [parameter for model in trained_and_teacher for parameter in model.parameters()]
    state = [value for values in trainer.optimizer.state.values() for value in values.values()]
    return {
        "at most": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_of_process(),
        "weights and optimizer": sum(tensor.nbytes for tensor in [*weights, *state]),
    }


def measure_alone(line: Line, models: Path, rows_folder: Path) -> Figures | None:
    """Measures in a new process, so that peaks do not mix. Returns None if the training does not fit."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(measure, line, models, rows_folder).result()
        except (BrokenProcessPool, torch.OutOfMemoryError):  # the system kills a process that takes too much memory
            return None


def run(shape: str, length: int, names: list[str], output: Path) -> dict[str, Figures | None]:
    """Measures, prints the table, and writes the figures to `output`. None marks a training that did not fit."""
    measured: dict[str, Figures | None] = {}
    title = f"{shape}, steps of {ROWS_PER_STEP} rows of up to {length} tokens"
    print(f"\n{title}\n\n{table(COLUMNS, [])}")
    with tempfile.TemporaryDirectory() as folder:
        save_models(SHAPES[shape], Path(folder))
        for name in names:
            models, rows_folder = Path(folder), Path(folder, f"rows-{len(measured)}")
            save_rows(LINES[name], length, models, rows_folder)
            measured[name] = measure_alone(LINES[name], models, rows_folder)
            print(f"| {' | '.join(_cells(name, measured[name], measured[names[0]]))} |", flush=True)
    print()
    on = print_machine("device", "threads")
    versions = print_versions([*PACKAGES, "peft"])
    write_json(output, {"of": title, "machine": on, "versions": versions, "lines": measured})
    return measured


def _cells(name: str, own: Figures | None, reference: Figures | None) -> list[str]:
    if own is None:
        return [name, "out of memory", "", "", ""]
    ratio = f"{own['at most'] / reference['at most']:.2f}" if reference else ""
    held = f"{own['weights and optimizer'] / 1e9:.2f} ({own['weights and optimizer'] / own['at most']:.0%})"
    return [name, f"{own['at most'] / 1e9:.2f}", ratio, held, "yes" if own["at most"] < ENOUGH else ""]


def main() -> None:
    parser = make_parser("memory_options", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--length", type=int, default=512, help="most tokens per row")
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES), help="by default all")
    options = parser.parse_args()
    silence()
    run(options.shape, options.length, options.lines, options.output)


if __name__ == "__main__":
    main()
