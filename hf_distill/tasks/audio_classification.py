"""Audio classification: a class, several classes or a number for each recording."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoModelForAudioClassification, PreTrainedModel

from hf_distill.data import encode_sounds, load_labelled_sounds, load_unlabelled_sounds
from hf_distill.data.sounds import load_extractor
from hf_distill.tasks.classification import LabelArguments
from hf_distill.tasks.file_classification import FileClassification
from hf_distill.tasks.task import Reading


@dataclass
class AudioClassificationArguments(LabelArguments):
    """Model, teacher and data of an audio classification training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> AudioClassificationArguments(train_file="commands/train", test_file="commands/test", max_seconds=1.0)
    """

    task: str = field(
        default="audio-classification", metadata={"help": "The task: a name that `hf-distill tasks` lists."}
    )
    audio_column: str = field(
        default="audio",
        metadata={
            "help": "Column with the recordings: names of files, relative to the folder of the table; bytes of files; "
            "or an Audio column of a dataset on the Hub. Not used for a folder with one subfolder per class."
        },
    )
    max_seconds: float = field(
        default=10.0,
        metadata={
            "help": "Length that a model of waveforms reads: a longer recording is cut at the end, a shorter one is "
            "padded. Saved with the model. Models of spectrograms have a length of their own."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds={self.max_seconds} must be above 0.")


class AudioClassification(FileClassification):
    name = "audio-classification"
    pipeline_tag = "audio-classification"
    summary = "a class, several classes or a number for each recording"
    data = "a folder with one subfolder of recordings per class; or audio, label"
    example = """\
teacher_model_name_or_path: superb/hubert-base-superb-ks
train_file: commands/train
test_file: commands/test
max_seconds: 1.0
alpha_cos: 0.0
output_dir: outputs/student
"""
    arguments = AudioClassificationArguments
    auto_class = AutoModelForAudioClassification
    head = "audio classification"
    file_column = "audio"

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns, problem_type = (reading["audio_column"], reading["label_column"]), reading["problem_type"]
        return load_labelled_sounds(source, *columns, classes, split, config_name, problem_type)

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        num_classes = None if classes is None else len(classes)
        return load_unlabelled_sounds(
            source, reading["audio_column"], split, config_name, reading["problem_type"], num_classes
        )

    def load_processor(self, name: str, model: PreTrainedModel) -> Any:
        return load_extractor(name)

    def gives_same_inputs(self, processor: Any, other: Any) -> bool:
        return processor.to_dict() == other.to_dict()

    def check_live_teacher(self, processor: Any, teacher: str) -> None:
        if not self.gives_same_inputs(processor, load_extractor(teacher)):
            raise ValueError(
                f"The teacher {teacher} prepares recordings in another way than the student: set "
                f"store_teacher_targets=True and alpha_cos=0, so that each hears them in its own way."
            )

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_sounds(rows, processor, reading["max_seconds"])
