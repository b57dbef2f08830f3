"""What is trained on what."""

from dataclasses import dataclass, field
from typing import get_args

from hf_distill.lengths import Truncation

PARTS = ("train", "validation", "test", "unlabelled")


@dataclass
class TaskArguments:
    """What is trained on what, for every task; how is for `DistillationTrainingArguments`.

    Raises:
        ValueError: if options contradict each other, are out of their range, or would have no effect.
    """

    # The model
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "What is trained, a name on the Hub or a folder. By default it is cut from the teacher."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Layers of a student that is cut from the teacher. By default half."}
    )
    layers: list[str] | None = field(
        default=None,
        metadata={"help": "Which layers that student has: alternate (the default), spread, first or last; or indices."},
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on all linear layers, and the head, in place of all weights; 8 "
            "to 16 is usual. What is saved at the end is the plain model that they amount to."
        },
    )

    # The teacher, which `teacher_model_name_or_path` names
    store_teacher_targets: bool | None = field(
        default=None,
        metadata={
            "help": "Have the teacher read each text once, before the training, and not in every epoch. It may then "
            "have another tokenizer. By default where alpha_cos is 0: hidden states take 2 bytes per token and unit of "
            "width."
        },
    )

    # The data
    train_file: str | None = field(
        default=None,
        metadata={"help": "CSV, JSON or Parquet, or a folder with a folder of .txt files for each class."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "As train_file; evaluated on while training, and at its end."}
    )
    test_file: str | None = field(default=None, metadata={"help": "As train_file; evaluated on once, at the end."})
    unlabelled_file: str | None = field(
        default=None,
        metadata={
            "help": "Texts without labels, which the student learns from the teacher alone: as train_file, or .txt "
            "with a text on each line, or a folder of .txt files."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, whose splits are read in place of files."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration, if it has several."})
    train_split: str | None = field(default=None, metadata={"help": "Its split to train on, such as train."})
    validation_split: str | None = field(default=None, metadata={"help": "In place of validation_file."})
    test_split: str | None = field(default=None, metadata={"help": "In place of test_file."})
    unlabelled_split: str | None = field(default=None, metadata={"help": "In place of unlabelled_file."})
    validation_share: float | None = field(
        default=None,
        metadata={"help": "Hold out this share of the training texts as validation set, the same with every seed."},
    )

    # Long texts
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens per text; kept with the model. By default as many as model and teacher take, or were "
            "trained with."
        },
    )
    truncation: Truncation | None = field(
        default=None,
        metadata={
            "help": "What is kept of longer texts: the head, the tail, or a quarter head and the rest tail "
            "(head_tail); kept with the model. By default as model or teacher were trained, or head."
        },
    )

    # What output_dir holds already
    resume: bool = field(
        default=False,
        metadata={
            "help": "Go on from the last checkpoint in output_dir with other options: for longer (num_train_epochs, "
            "max_steps), or with other evaluation. With the same options a training that was stopped goes on by itself."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Train anew, in place of what output_dir holds of another training."}
    )

    def __post_init__(self):
        if self.layers is not None and not isinstance(self.layers, list):
            self.layers = [self.layers]  # YAML: `layers: last`
        for part in PARTS:
            if getattr(self, f"{part}_file") and getattr(self, f"{part}_split"):
                raise ValueError(f"There are both {part}_file and {part}_split: give one of them.")
        splits = [f"{part}_split" for part in PARTS if getattr(self, f"{part}_split")]
        if splits and not self.dataset_name:
            raise ValueError(f"{splits[0]} is a split of dataset_name, which is not given: add it, or use files.")
        if not splits and (self.dataset_name or self.dataset_config_name):
            raise ValueError("dataset_name would have no effect without a split of it, such as train_split=train.")
        if self.validation_share is not None:
            if not 0 < self.validation_share < 1:
                raise ValueError(f"validation_share={self.validation_share} should be between 0 and 1.")
            if self.validation_file or self.validation_split:
                raise ValueError("There are both a validation set and validation_share: give one of them.")
        if self.model_name_or_path and (self.num_layers is not None or self.layers is not None):
            raise ValueError(
                "num_layers and layers would have no effect with model_name_or_path: a student is cut from the "
                "teacher where that is not given."
            )
        for name in ("max_length", "lora_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} should be 1 or more.")
        if self.truncation not in (None, *get_args(Truncation)):
            raise ValueError(f"truncation={self.truncation!r} should be one of {', '.join(get_args(Truncation))}.")
