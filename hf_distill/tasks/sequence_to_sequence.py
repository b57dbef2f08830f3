"""What summarization and translation share: a model writes a target text for each source text."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.data import encode_text_pairs, load_text_pairs
from hf_distill.data.languages import force_target_language, set_languages
from hf_distill.deployment.predictor import Predictor
from hf_distill.lengths import most_tokens, reading_of
from hf_distill.tasks.data import noted_reading
from hf_distill.tasks.generating import WRITTEN_BY_TEACHER, GeneratingArguments, GeneratingTask
from hf_distill.tasks.task import Done, Reading
from hf_distill.training import DistillationTrainingArguments, add_teacher_texts


@dataclass
class SequenceToSequenceArguments(GeneratingArguments):
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

    def __post_init__(self):
        super().__post_init__()
        if self.source_column == self.target_column:
            raise ValueError(f"source_column and target_column are both {self.source_column!r}: they must differ.")


class SequenceToSequenceTask(GeneratingTask):
    """A task whose models generate a text for each text. Predictions are strings.

    Canonical rows have the columns `source` and `target`; the target of an unlabelled row is `""`.
    """

    auto_class = AutoModelForSeq2SeqLM
    head = "sequence-to-sequence"

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
        model = super().prepare_model(model, processor, reading, training)
        force_target_language(model, processor)
        return model

    def write(self, rows, reading, teacher, processor, batch_size):
        set_languages(processor, reading["source_lang"], reading["target_lang"])
        return add_teacher_texts(
            rows,
            teacher,
            processor,
            source_prefix=reading_of(teacher.config).get("source_prefix", reading["source_prefix"]),
            max_length=int(min(reading["max_length"], most_tokens(teacher))),
            max_target_length=reading["max_target_length"],
            batch_size=batch_size,
        )

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        lengths = reading["max_length"], reading["max_target_length"]
        return encode_text_pairs(rows, processor, *lengths, reading["source_prefix"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForSeq2Seq(processor, model=model)

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
