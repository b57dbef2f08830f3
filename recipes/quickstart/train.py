"""How the teacher and the student are trained."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
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
from recipes.quickstart.progress import Advance, show_steps

SETTINGS = "quickstart.json"
"""In the folder of a trained model: the settings that it was trained with."""


def train_teacher(
    folder: Path,
    pretrained: Path,
    train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, object],
    advance: Advance,
) -> None:
    """Fine-tunes the pretrained model on the labels."""
    with trained(folder, settings) as unfinished:
        trainer = Trainer(
            model=load_pretrained(pretrained),
            args=TrainingArguments(str(unfinished), **settings["options"]),
            train_dataset=train,
            processing_class=tokenizer,
        )
        run_training(trainer, advance)


def train_student(
    folder: Path,
    teacher: PreTrainedModel,
    train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, object],
    advance: Advance,
) -> None:
    """Cuts a student of half the layers out of the teacher, and trains it on the labels and the teacher's outputs."""
    with trained(folder, settings) as unfinished:
        trainer = DistillationTrainer(
            model=make_student(teacher),
            teacher_model=teacher,
            args=DistillationTrainingArguments(str(unfinished), **settings["options"]),
            train_dataset=train,
            processing_class=tokenizer,
        )
        run_training(trainer, advance)


def load_pretrained(model_folder: Path) -> PreTrainedModel:
    """The pretrained model under a new head for two labels."""
    return AutoModelForSequenceClassification.from_pretrained(
        model_folder, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )


def load_trained(folder: Path) -> PreTrainedModel:
    """A trained model, on the accelerator if there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()


def common_options(seed: int) -> dict[str, object]:
    """The training arguments that all models share."""
    return {
        "seed": seed,
        "per_device_train_batch_size": 64,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": bf16_is_fast(),
        "dataloader_pin_memory": torch.cuda.is_available(),
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


def settings_of(train: Dataset, options: dict[str, object], **more: object) -> dict[str, object]:
    """Everything that a model depends on: the training arguments, how much text, and more such as the teacher's own."""
    return {"sentences": len(train), "options": options, "hf_distill": __version__, **more}


def is_trained(folder: Path, settings: dict[str, object]) -> bool:
    """Whether a folder holds a model that was trained with these settings."""
    file = folder / SETTINGS
    return file.exists() and json.loads(file.read_text(encoding="utf-8")) == settings


@contextmanager
def trained(folder: Path, settings: dict[str, object]) -> Iterator[Path]:
    """Gives a folder to train in, which becomes `folder` when the training is finished."""
    set_seed(settings["options"]["seed"])
    with written_whole(folder) as unfinished:
        yield unfinished
        (unfinished / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def run_training(trainer: Trainer, advance: Advance) -> None:
    """Trains and saves the model."""
    show_steps(trainer, advance)
    trainer.train()
    trainer.save_model()
