"""What tasks share whose models write a text for each input: summarization, translation, speech recognition."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainer

from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.task import Reading, Task
from hf_distill.training import DistillationTrainer, DistillationTrainingArguments

Targets = Literal["given", "teacher", "both"]

WRITTEN_BY_TEACHER = ""
"""Target of a row without one: the teacher writes it."""


@dataclass
class GeneratingArguments(TaskArguments):
    """Model, teacher and data of a training whose models write texts."""

    max_target_length: int = field(
        default=128, metadata={"help": "Maximum number of tokens per target, given or generated. Saved with the model."}
    )
    targets: Targets = field(
        default="given",
        metadata={
            "help": "The targets to train on: given, those of the data; teacher, those that the teacher writes before "
            "the training; or both, a row for each. Rows of unlabelled_file always get the teacher's."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets={self.targets!r} must be one of {', '.join(get_args(Targets))}.")
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length={self.max_target_length} must be 1 or more.")


class GeneratingTask(Task):
    """A task whose models write a text for each input. Predictions are strings.

    Loaded rows have the column `target`; that of an unlabelled row is `""`.
    """

    lora_task_type = None  # PEFT's class for these models calls a method that transformers 5 does not have
    has_classes = False
    stores_targets = False
    has_own_head = False

    @abstractmethod
    def write(
        self, rows: Dataset, reading: Reading, teacher: PreTrainedModel, processor: Any, batch_size: int
    ) -> Dataset:
        """The rows, which have no target, with targets by the teacher. The arguments are those of `label`."""

    def prepare_model(
        self, model: PreTrainedModel, processor: Any, reading: Reading, training: DistillationTrainingArguments
    ) -> PreTrainedModel:
        """Sets the generation config that training, predictor and service generate with."""
        if training.generation_config is not None:
            model.generation_config = Seq2SeqTrainer.load_generation_config(training.generation_config)
            training.generation_config = None
        config = model.generation_config
        config.max_new_tokens = None
        config.max_length = training.generation_max_length or reading["max_target_length"] + 1  # the start of the text
        if training.generation_num_beams is not None:
            config.num_beams = training.generation_num_beams
        if (config.min_length or 0) >= config.max_length:
            raise ValueError(
                f"max_target_length={reading['max_target_length']} is below min_length={config.min_length} of the "
                f"generation config: raise it, or set a generation_config."
            )
        return model

    def is_labelled_by_teacher(self, reading: Reading, has_unlabelled: bool) -> bool:
        return has_unlabelled or reading["targets"] != "given"

    def label(self, rows, reading, teacher, processor, batch_size):
        is_given = [target != WRITTEN_BY_TEACHER for target in rows["target"]]
        given = rows.select([row for row, own in enumerate(is_given) if own and reading["targets"] != "teacher"])
        to_write = rows.select([row for row, own in enumerate(is_given) if not own or reading["targets"] != "given"])
        written = self.write(to_write.remove_columns("target"), reading, teacher, processor, batch_size)
        if not any(written["target"]):
            raise ValueError("The teacher wrote nothing for any row: is it trained for this task?")
        kept = self.kept(to_write["target"][:], written["target"][:], reading)
        return concatenate_datasets([given, written.select(kept).cast(given.features)])

    def kept(self, given: Sequence[str], written: Sequence[str], reading: Reading) -> list[int]:
        """The rows whose text by the teacher is trained on: those where it wrote one.

        Args:
            given: the given target of each row, `""` if there is none.
            written: the teacher's.
            reading: the options.
        """
        return [row for row, text in enumerate(written) if text]

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        tokenizer: PreTrainedTokenizerBase = getattr(processor, "tokenizer", processor)
        generated = np.where(evaluated.predictions < 0, tokenizer.pad_token_id, evaluated.predictions)  # -100: padding
        texts = [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
        return self.metrics(texts, rows, reading)

    def prepare(self, trainer: DistillationTrainer, reading: Reading) -> None:
        trainer.args.predict_with_generate = True

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return rows[row]["target"]
