"""The options that every task shares: model, teacher and data."""

from dataclasses import dataclass, field

PARTS = ("train", "validation", "test", "unlabelled")


@dataclass
class TaskArguments:
    """Model, teacher and data of a training, for every task. `DistillationTrainingArguments` holds everything else.

    The fields that a task adds say how its data is read. They are saved with the model.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.
    """

    task: str = field(
        default="text-classification", metadata={"help": "The task: a name that `hf-distill tasks` lists."}
    )

    # The model
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The model to train: a Hub name or a folder. Default: a student cut from the teacher."},
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "How many of the teacher's layers the student keeps. Default: half."}
    )
    layers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Which of the teacher's layers the student keeps: alternate (the default), spread, first, last, "
            "or layer indices."
        },
    )
    lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank on all linear layers, plus the head, instead of all weights. "
            "8 to 16 is usual. At the end the adapters are merged, and a plain model is saved."
        },
    )

    # The teacher, which `teacher_model_name_or_path` names
    store_teacher_targets: bool | None = field(
        default=None,
        metadata={
            "help": "Run the teacher once over all texts before training, instead of in every epoch. The teacher may "
            "then use a different tokenizer. Default: yes if alpha_cos is 0, because stored hidden states take "
            "2 bytes per token and hidden unit."
        },
    )

    # The data
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Labelled training texts: a CSV, JSON or Parquet file, or a folder with one subfolder of .txt "
            "files per class."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Same formats as train_file. Evaluated during training and at the end."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "Same formats as train_file. Evaluated once, at the end."}
    )
    unlabelled_file: str | None = field(
        default=None,
        metadata={
            "help": "Texts without labels, on which the student learns from the teacher alone. Same formats as "
            "train_file, or a .txt file with one text per line, or a folder of .txt files."
        },
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub. Its splits are used instead of files."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of dataset_name, if it has several."}
    )
    train_split: str | None = field(
        default=None, metadata={"help": "Split of dataset_name to train on, such as train. Replaces train_file."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of dataset_name that replaces validation_file."}
    )
    test_split: str | None = field(default=None, metadata={"help": "Split of dataset_name that replaces test_file."})
    unlabelled_split: str | None = field(
        default=None, metadata={"help": "Split of dataset_name that replaces unlabelled_file."}
    )
    validation_share: float | None = field(
        default=None,
        metadata={
            "help": "Hold out this share of the training texts for validation, between 0 and 1. The same texts are "
            "held out with every seed."
        },
    )

    # Several trainings, one after the other
    stages: list[dict] | None = field(
        default=None,
        metadata={
            "help": "In a YAML file: stages that continue with the student of the stage before, each with a name and "
            "the training options that differ, such as [{name: inner, alpha_kl: 0.0}, {name: predictions}]. A stage "
            "with a cut, such as cut: {num_layers: 4, hidden_size: 256}, first makes that student smaller."
        },
    )

    # What to do with an earlier training in output_dir
    resume: bool = field(
        default=False,
        metadata={
            "help": "Continue from the last checkpoint in output_dir with changed options, such as more "
            "num_train_epochs or max_steps, or another evaluation. With unchanged options a stopped training continues "
            "without this option."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again from scratch and replace the earlier training in output_dir."}
    )

    def __post_init__(self):
        if self.layers is not None and not isinstance(self.layers, list):
            self.layers = [self.layers]  # YAML: `layers: last`
        for part in PARTS:
            if getattr(self, f"{part}_file") and getattr(self, f"{part}_split"):
                raise ValueError(f"{part}_file and {part}_split are both given: give only one of them.")
        splits = [f"{part}_split" for part in PARTS if getattr(self, f"{part}_split")]
        if splits and not self.dataset_name:
            raise ValueError(f"{splits[0]} needs dataset_name: give the dataset's Hub name, or use files instead.")
        if not splits and (self.dataset_name or self.dataset_config_name):
            raise ValueError("dataset_name has no effect without a split: give one, such as train_split=train.")
        if self.validation_share is not None:
            if not 0 < self.validation_share < 1:
                raise ValueError(f"validation_share={self.validation_share} must be between 0 and 1, such as 0.1.")
            if self.validation_file or self.validation_split:
                raise ValueError("A validation set and validation_share are both given: give only one of them.")
        if self.model_name_or_path and (self.num_layers is not None or self.layers is not None):
            raise ValueError(
                "num_layers and layers have no effect with model_name_or_path: leave it out to cut a student from the "
                "teacher."
            )
        for name in ("max_length", "lora_rank"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more.")
