"""Speech recognition: the text that is spoken in a recording."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datasets import Dataset
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from hf_distill.data import collate_speech, encode_transcripts, load_transcribed_sounds
from hf_distill.data.media import input_of
from hf_distill.data.speech import load_speech_processor, set_speech_language
from hf_distill.deployment.predictor import Predictor
from hf_distill.evaluation.report import Metric
from hf_distill.evaluation.transcription import error_rate, transcription_metrics
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import noted_reading
from hf_distill.tasks.generating import WRITTEN_BY_TEACHER, GeneratingArguments, GeneratingTask
from hf_distill.tasks.task import Done, Reading
from hf_distill.training import DistillationTrainingArguments, add_teacher_transcripts

logger = logging.get_logger(__name__)


@dataclass
class SpeechRecognitionArguments(GeneratingArguments):
    """Model, teacher and data of a speech recognition training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> SpeechRecognitionArguments(train_file="calls.csv", text_column="transcript", language="en")
    """

    task: str = field(
        default="speech-recognition", metadata={"help": "The task: a name that `hf-distill tasks` lists."}
    )
    audio_column: str = field(
        default="audio",
        metadata={
            "help": "Column with the recordings: names of files, relative to the folder of the table; bytes of files; "
            "or an Audio column of a dataset on the Hub. A recording that is longer than the model reads, 30 s for "
            "Whisper, is an error."
        },
    )
    text_column: str = field(
        default="text", metadata={"help": "Column with the transcripts, such as sentence in Common Voice."}
    )
    language: str | None = field(
        default=None,
        metadata={
            "help": "Language of the speech, such as de, which a multilingual Whisper needs. Saved with the model. "
            "Default: what model or teacher was trained with. An English Whisper takes none."
        },
    )
    max_wer: float | None = field(
        default=None,
        metadata={
            "help": "Leave out the teacher's transcripts whose word error rate, measured against the given ones after "
            "normalization, is larger than this: 0.1 in Distil-Whisper. Rows without a given transcript stay."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_wer is not None and not self.max_wer >= 0:
            raise ValueError(f"max_wer={self.max_wer} must be 0 or more, such as 0.1.")
        if self.max_wer is not None and self.targets == "given":
            raise ValueError("max_wer has no effect without the teacher's transcripts: set targets=teacher.")
        if self.audio_column == self.text_column:
            raise ValueError(f"audio_column and text_column are both {self.audio_column!r}: they must differ.")


class SpeechRecognition(GeneratingTask):
    name = "speech-recognition"
    pipeline_tag = "automatic-speech-recognition"
    summary = "the text that is spoken in a recording, by Whisper"
    data = "audio, text; or recordings alone"
    example = """\
teacher_model_name_or_path: openai/whisper-small.en
dataset_name: openslr/librispeech_asr
dataset_config_name: clean
train_split: train.100
validation_split: validation
targets: teacher
max_wer: 0.1
alpha_cos: 0.0
output_dir: outputs/student
"""
    arguments = SpeechRecognitionArguments
    auto_class = AutoModelForSpeechSeq2Seq
    head = "speech recognition"
    metric_packages = ("jiwer",)
    reads_text = False
    quality: ClassVar[Mapping[str, Metric]] = {
        "wer_normalized": Metric("word error rate, normalized", higher_is_better=False),
        "wer": Metric("word error rate", higher_is_better=False),
        "cer": Metric("character error rate", higher_is_better=False),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "wer_to_teacher": Metric("word error rate with the teacher's as right", higher_is_better=False),
        "same_as_teacher": Metric("same text as the teacher"),
    }
    notes = (
        "An error rate is the number of words, or characters, that are wrong, missing or too many, over all texts, "
        "divided by the number in the given transcripts. Normalized texts have no capital letters and no punctuation."
    )

    def complete(self, reading: Reading, configs: Sequence[PreTrainedConfig]) -> Reading:
        return reading | {"language": reading["language"] or noted_reading(configs).get("language")}

    def load(self, source, reading, classes, *, split="train", config_name=None):
        columns = reading["audio_column"], reading["text_column"]
        return load_transcribed_sounds(source, *columns, split, config_name), None

    def load_unlabelled(self, source, reading, classes, *, split="train", config_name=None):
        rows = load_transcribed_sounds(source, reading["audio_column"], None, split, config_name)
        return rows.add_column("target", [WRITTEN_BY_TEACHER] * len(rows))

    def load_processor(self, name: str, model: PreTrainedModel) -> Any:
        return load_speech_processor(name)

    def gives_same_inputs(self, processor: Any, other: Any) -> bool:
        extractors = processor.feature_extractor.to_dict(), other.feature_extractor.to_dict()
        return extractors[0] == extractors[1] and processor.tokenizer.get_vocab() == other.tokenizer.get_vocab()

    def check_live_teacher(self, processor: Any, teacher: str) -> None:
        if not self.gives_same_inputs(processor, load_speech_processor(teacher)):
            raise ValueError(
                f"The teacher {teacher} reads other spectrograms or tokens than the student: set alpha_kl=0 and "
                f"alpha_cos=0 with targets=teacher, so that the student learns from its transcripts alone."
            )

    def check(self, arguments: TaskArguments, training: DistillationTrainingArguments) -> None:
        if self.reading_of(arguments)["max_wer"] is not None:
            self.check_packages()  # before the teacher transcribes for hours

    def prepare_model(
        self, model: PreTrainedModel, processor: Any, reading: Reading, training: DistillationTrainingArguments
    ) -> PreTrainedModel:
        """Sets the language, and the generation config that training, predictor and service generate with."""
        model = super().prepare_model(model, processor, reading, training)
        most = model.config.max_target_positions
        if model.generation_config.max_length > most:
            raise ValueError(
                f"max_target_length={reading['max_target_length']} is more than the model can write: set at most "
                f"{most - 1}."
            )
        set_speech_language(model, processor, reading["language"])
        return model

    def write(self, rows, reading, teacher, processor, batch_size):
        return add_teacher_transcripts(
            rows,
            teacher,
            processor,
            language=reading["language"],
            max_target_length=reading["max_target_length"],
            batch_size=batch_size,
        )

    def kept(self, given: Sequence[str], written: Sequence[str], reading: Reading) -> list[int]:
        rows = super().kept(given, written, reading)
        if reading["max_wer"] is None:
            return rows
        rates = {row: error_rate(given[row], written[row]) for row in rows if given[row] != WRITTEN_BY_TEACHER}
        wrong = {row for row, rate in rates.items() if rate > reading["max_wer"]}
        if wrong and len(wrong) == len(rows):
            raise ValueError(
                f"All {len(rows)} transcripts by the teacher have a word error rate above "
                f"max_wer={reading['max_wer']}; the best has {min(rates.values()):.2f}: raise max_wer, or use another "
                f"teacher."
            )
        logger.warning(
            f"{len(wrong):,} of {len(rows):,} transcripts by the teacher are left out, because their word error rate "
            f"is above max_wer={reading['max_wer']}."
        )
        return [row for row in rows if row not in wrong]

    def encode(self, rows: Dataset, processor: Any, reading: Reading) -> Dataset:
        return encode_transcripts(rows, processor, reading["max_target_length"])

    def collator(self, processor: Any, model: Any) -> Callable:
        return collate_speech

    def inputs(self, rows: Dataset) -> list:
        return [input_of(file) for file in rows["audio"]]

    def predict(
        self,
        predictor: Predictor,
        rows: Dataset,
        reading: Reading,
        classes: Sequence[str] | None,
        done: Done | None = None,
    ) -> list[str]:
        texts: list[str] = []
        for _, encodings in predictor.encoder.in_parts(self.inputs(rows)):
            for outputs, encoding in zip(predictor.run(encodings, done), encodings, strict=True):
                read: Any = predictor.read(outputs, encoding, None)
                texts.append(read["text"])
        return texts

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        return transcription_metrics(predictions, None if rows is None else rows["target"][:], teacher)

    def words_of_input(self, rows: Dataset, row: int) -> str:
        return rows[row]["audio"]["path"] or f"row {row + 1}"
