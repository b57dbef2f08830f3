"""The teacher and the students: what each learns from, and how it is trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, __version__, make_student
from recipes.quickstart.data import LABELS
from recipes.quickstart.folders import written_whole

TEACHER_OPTIONS = {"learning_rate": 8e-5, "num_train_epochs": 2}
STUDENT_LEARNING_RATE = 1.5e-4
NUM_FEW_LABELS = 500


@dataclass(frozen=True)
class StudentRun:
    """What a student of half the teacher's layers learns from.

    Attributes:
        from_teacher: whether it is cut from the fine-tuned teacher and learns from it; else it is cut from the
            pretrained model and never meets the teacher.
        labels: what is said of its labels in the table.
        num_sentences: how many training sentences it reads; None for all.
        more_text: whether it also reads the sentences from elsewhere, which nobody has labelled.
        options: for `DistillationTrainingArguments`, or without a teacher for `TrainingArguments`.
    """

    from_teacher: bool
    labels: str
    num_sentences: int | None = None
    more_text: bool = False
    options: dict[str, float] = field(default_factory=dict)


STUDENTS = {
    "student": StudentRun(from_teacher=True, labels="all", options={"num_train_epochs": 2}),
    "student-no-labels": StudentRun(
        from_teacher=True,
        labels="none",
        options={"num_train_epochs": 2, "alpha_kl": 1.0, "alpha_task": 0.0, "alpha_cos": 0.0},
    ),
    "student-no-teacher": StudentRun(from_teacher=False, labels="all", options={"num_train_epochs": 2}),
    "student-no-teacher-few-labels": StudentRun(
        from_teacher=False, labels=str(NUM_FEW_LABELS), num_sentences=NUM_FEW_LABELS, options={"num_train_epochs": 6}
    ),
}
"""By the folder that each is saved in."""

NO_LABELS = STUDENTS["student-no-labels"]
MORE_TEXT = {
    "student-no-labels-more-text": replace(
        NO_LABELS,
        labels="none, more text",
        more_text=True,
        options=NO_LABELS.options | {"max_steps": 158},  # as many as two epochs of the 5,000 sentences
    )
}
"""What `--more-text` adds."""


def load_pretrained(model_folder: Path) -> PreTrainedModel:
    """The pretrained model under a new head for two labels."""
    return AutoModelForSequenceClassification.from_pretrained(
        model_folder, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )


def trained_teacher(
    folder: Path, model_folder: Path, train: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """The pretrained model fine-tuned on all labels; read from `folder` if it is there already."""

    options = {**common_options(seed), **TEACHER_OPTIONS}

    def make_trainer() -> Trainer:
        return Trainer(
            model=load_pretrained(model_folder),
            args=TrainingArguments(str(folder), **options),
            train_dataset=train,
            processing_class=tokenizer,
        )

    return _trained(folder, {"sentences": len(train), "options": options}, make_trainer)


def trained_student(
    run: StudentRun,
    folder: Path,
    model_folder: Path,
    teacher: PreTrainedModel,
    train: Dataset,
    unlabelled: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> PreTrainedModel:
    """The student of one row of the table; read from `folder` if it is there already."""
    if run.num_sentences is not None:
        train = train.select(range(run.num_sentences))
    if run.options.get("alpha_task") == 0:
        train = train.remove_columns("labels")
    if run.more_text:
        train = concatenate_datasets([train, unlabelled])
    options = {**common_options(seed), "learning_rate": STUDENT_LEARNING_RATE, **run.options}

    def make_trainer() -> Trainer:
        if not run.from_teacher:
            return Trainer(
                model=make_student(load_pretrained(model_folder)),
                args=TrainingArguments(str(folder), **options),
                train_dataset=train,
                processing_class=tokenizer,
            )
        return DistillationTrainer(
            model=make_student(teacher),
            teacher_model=teacher,
            args=DistillationTrainingArguments(str(folder), **options),
            train_dataset=train,
            processing_class=tokenizer,
        )

    settings = {"sentences": len(train), "options": options, "teacher": TEACHER_OPTIONS if run.from_teacher else None}
    return _trained(folder, settings, make_trainer)


def common_options(seed: int) -> dict[str, object]:
    """What all models are trained with."""
    return {
        "seed": seed,
        "per_device_train_batch_size": 64,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": bf16_is_fast(),
        "logging_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
    }


def bf16_is_fast() -> bool:
    """Whether this machine multiplies matrices in bfloat16 rather than emulating it."""
    if torch.accelerator.is_available():
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _trained(folder: Path, settings: dict[str, object], make_trainer: Callable[[], Trainer]) -> PreTrainedModel:
    """Trains and saves a model, unless one that was trained with the same settings is there."""
    settings_file = "quickstart.json"
    settings = {**settings, "hf_distill": __version__}
    if (folder / settings_file).exists() and json.loads((folder / settings_file).read_text()) == settings:
        print(f"\n{folder} is there already")
    else:
        print(f"\nTraining {folder}")
        set_seed(settings["options"]["seed"])
        trainer = make_trainer()
        trainer.train()
        with written_whole(folder) as unfinished:
            trainer.save_model(str(unfinished))
            (unfinished / settings_file).write_text(json.dumps(settings, indent=2))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()
