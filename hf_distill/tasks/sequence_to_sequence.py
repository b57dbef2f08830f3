"""What summarization and translation share: a model writes a target text for each source text."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)

from hf_distill.data import encode_text_pairs, load_text_pairs
from hf_distill.data.languages import force_target_language, set_languages
from hf_distill.deployment.predictor import Predictor
from hf_distill.lengths import most_tokens, reading_of
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import noted_reading
from hf_distill.tasks.task import Done, Reading, Task
from hf_distill.training import DistillationTrainer, DistillationTrainingArguments, add_teacher_texts

Targets = Literal["given", "teacher", "both"]

WRITTEN_BY_TEACHER = ""
"""Target of a row without one: the teacher writes it."""


@dataclass
class SequenceToSequenceArguments(TaskArguments):
    """Model, teacher and data of a training that turns source texts into target texts."""

    source_column: str = field(
        default="source",
        metadata={
            "help": "Column with the source texts. A dot names a field of a column, such as translation.en in the WMT "
            "datasets."
        },
    )
    target_column: str = field(default="target", metadata={"help": "Column with the target texts."})
    source_prefix: str | None = field(
        default=None,
        metadata={
            "help": "Text in front of each source, such as 'summarize: ' for T5. Saved with the model. Default: what "
            "model or teacher was trained with, else nothing."
        },
    )
    source_lang: str | None = field(
        default=None,
        metadata={
            "help": "Language of the sources, for a model with a token for it: en_XX for mBART, eng_Latn for NLLB."
        },
    )
    target_lang: str | None = field(
        default=None, metadata={"help": "Language of the targets, as source_lang. The model then generates in it."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens per source; longer ones are truncated at the end. Saved with the model. "
            "Default: what model and teacher were trained with, else the most that both accept."
        },
    )
    max_target_length: int = field(
        default=128, metadata={"help": "Maximum number of tokens per target, given or generated. Saved with the model."}
    )
    targets: Targets = field(
        default="given",
        metadata={
            "help": "The targets to train on: given, those of the data; teacher, those that the teacher writes by beam "
            "search before the training; or both, a row for each. Rows of unlabelled_file always get the teacher's."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.targets not in get_args(Targets):
            raise ValueError(f"targets={self.targets!r} must be one of {', '.join(get_args(Targets))}.")
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length={self.max_target_length} must be 1 or more.")
        if self.source_column == self.target_column:
            raise ValueError(f"source_column and target_column are both {self.source_column!r}: they must differ.")


class SequenceToSequenceTask(Task):
    """A task whose models generate a text for each text. Predictions are strings.

    Canonical rows have the columns `source` and `target`; the target of an unlabelled row is `""`.
    """

    auto_class = AutoModelForSeq2SeqLM
    head = "sequence-to-sequence"
    lora_task_type = None  # PEFT's class for these models calls a method that transformers 5 does not have
    has_classes = False
    stores_targets = False
    has_own_head = False

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        noted = {"source_prefix": "", **noted_reading(configs)}
        options = ("source_prefix", "source_lang", "target_lang")
        return reading | {name: noted.get(name) for name in options if reading[name] is None}

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = reading["source_column"], reading["target_column"]
        return load_text_pairs(source, *columns, split, config_name), None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        rows = load_text_pairs(source, reading["source_column"], None, split, config_name)
        return rows.add_column("target", [WRITTEN_BY_TEACHER] * len(rows))

    def prepare_model(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        reading: Reading,
        training: DistillationTrainingArguments,
    ) -> PreTrainedModel:
        """Sets the languages, and the generation config that training, predictor and service generate with."""
        set_languages(processor, reading["source_lang"], reading["target_lang"])
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
        force_target_language(model, processor)
        return model

    def is_labelled_by_teacher(self, reading: Reading, has_unlabelled: bool) -> bool:
        return has_unlabelled or reading["targets"] != "given"

    def label(self, rows, reading, teacher, processor, batch_size):
        set_languages(processor, reading["source_lang"], reading["target_lang"])
        is_given = [target != WRITTEN_BY_TEACHER for target in rows["target"]]
        given = rows.select([row for row, own in enumerate(is_given) if own and reading["targets"] != "teacher"])
        to_write = rows.select([row for row, own in enumerate(is_given) if not own or reading["targets"] != "given"])
        written = add_teacher_texts(
            to_write.remove_columns("target"),
            teacher,
            processor,
            source_prefix=reading_of(teacher.config).get("source_prefix", reading["source_prefix"]),
            max_length=int(min(reading["max_length"], most_tokens(teacher))),
            max_target_length=reading["max_target_length"],
            batch_size=batch_size,
        )
        written = written.select([row for row, target in enumerate(written["target"]) if target])
        if not len(written):
            raise ValueError("The teacher wrote nothing for any source: is it trained for this task?")
        return concatenate_datasets([given, written.cast(given.features)])

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        lengths = reading["max_length"], reading["max_target_length"]
        return encode_text_pairs(rows, processor, *lengths, reading["source_prefix"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForSeq2Seq(processor, model=model)

    def compute_metrics(self, evaluated: EvalPrediction, rows, processor, reading) -> dict[str, float]:
        generated = np.where(evaluated.predictions < 0, processor.pad_token_id, evaluated.predictions)  # -100: padding
        texts = [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]
        return self.metrics(texts, rows, reading)

    def prepare(self, trainer: DistillationTrainer, reading: Reading) -> None:
        trainer.args.predict_with_generate = True

    def inputs(self, rows: Dataset) -> list:
        return list(rows["source"])

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[str]:
        encoder = predictor.encoder
        if not encoder.prefix:  # a model of another training does not say its own
            encoder = dataclasses.replace(encoder, prefix=reading["source_prefix"])
        encodings, texts = encoder.encode(self.inputs(rows)), self.inputs(rows)
        read: list[Any] = [
            predictor.read(outputs, encoding, text)
            for outputs, encoding, text in zip(predictor.run(encodings, done), encodings, texts, strict=True)
        ]
        return [own["text"] for own in read]

    def words_of_label(self, rows: Dataset, row: int, reading: Reading, classes: Sequence[str] | None) -> str:
        return rows[row]["target"]
