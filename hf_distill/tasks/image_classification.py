"""Image classification: a class, several classes or a number for each image."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_distill.data import encode_images, load_labelled_images, load_unlabelled_images
from hf_distill.data.image_processors import ProcessorReader, check_channels, image_reader, load_image_processor
from hf_distill.tasks.classification import LabelArguments
from hf_distill.tasks.file_classification import FileClassification
from hf_distill.tasks.task import Reading


@dataclass
class ImageClassificationArguments(LabelArguments):
    """Model, teacher and data of an image classification training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> ImageClassificationArguments(train_file="photos/train", test_file="photos/test", num_layers=6)
    """

    task: str = field(
        default="image-classification", metadata={"help": "The task: a name that `hf-distill tasks` lists."}
    )
    image_column: str = field(
        default="image",
        metadata={
            "help": "Column with the images: names of files, relative to the folder of the table; bytes of files; or "
            "an Image column of a dataset on the Hub. Not used for a folder with one subfolder per class."
        },
    )


class ImageClassification(FileClassification):
    name = "image-classification"
    pipeline_tag = "image-classification"
    summary = "a class, several classes or a number for each image"
    data = "a folder with one subfolder of images per class; or image, label"
    example = """\
teacher_model_name_or_path: nateraw/food
dataset_name: ethz/food101
train_split: train
test_split: validation
alpha_cos: 0.0
dataloader_num_workers: 8
output_dir: outputs/student
"""
    arguments = ImageClassificationArguments
    auto_class = AutoModelForImageClassification
    head = "image classification"
    file_column = "image"

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns, problem_type = (reading["image_column"], reading["label_column"]), reading["problem_type"]
        return load_labelled_images(source, *columns, classes, split, config_name, problem_type)

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        num_classes = None if classes is None else len(classes)
        return load_unlabelled_images(
            source, reading["image_column"], split, config_name, reading["problem_type"], num_classes
        )

    def load_processor(self, name: str, model: PreTrainedModel) -> Any:
        processor = load_image_processor(name)
        check_channels(processor, model.config)
        return processor

    def gives_same_inputs(self, processor: Any, other: Any) -> bool:
        one, two = image_reader(processor), image_reader(other)
        if isinstance(one, ProcessorReader) and isinstance(two, ProcessorReader):
            return processor.to_dict() == other.to_dict()
        return one == two

    def check_live_teacher(self, processor: Any, teacher: str) -> None:
        if not self.gives_same_inputs(processor, load_image_processor(teacher)):
            raise ValueError(
                f"The teacher {teacher} prepares images in another way than the student, for example in another size: "
                f"set store_teacher_targets=True and alpha_cos=0, so that each reads images in its own way."
            )

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_images(rows, processor)
