"""Translation: a text in another language for each text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hf_distill.evaluation.generation import translation_metrics
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.sequence_to_sequence import SequenceToSequenceArguments, SequenceToSequenceTask


@dataclass
class TranslationArguments(SequenceToSequenceArguments):
    """Model, teacher and data of a translation training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> TranslationArguments(train_file="train.jsonl", source_lang="eng_Latn", target_lang="deu_Latn")
    """

    task: str = field(default="translation", metadata={"help": "The task."})


class Translation(SequenceToSequenceTask):
    name = "translation"
    pipeline_tag = "translation"
    summary = "a text in another language for each text"
    data = "source, target, such as translation.en and translation.de; or source alone"
    example = """\
teacher_model_name_or_path: facebook/nllb-200-distilled-600M
dataset_name: wmt/wmt16
dataset_config_name: de-en
train_split: train
validation_split: validation
source_column: translation.en
target_column: translation.de
source_lang: eng_Latn
target_lang: deu_Latn
output_dir: outputs/student
"""
    arguments = TranslationArguments
    metric_packages = ("sacrebleu.metrics",)
    quality: ClassVar[Mapping[str, Metric]] = {
        "bleu": Metric("BLEU", ".2f"),
        "chrf": Metric("chrF", ".2f"),
        "words": Metric("words", ".1f", higher_is_better=False),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "chrf_to_teacher": Metric("chrF with the teacher", ".2f"),
        "bleu_to_teacher": Metric("BLEU with the teacher", ".2f"),
        "same_as_teacher": Metric("same text as the teacher"),
    }
    notes = (
        "BLEU and chrF are sacrebleu's, over all texts together, from 0 to 100; BLEU with its tokenizer 13a. Words is "
        "the mean length of the translations."
    )

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        return translation_metrics(predictions, None if rows is None else list(rows["target"]), teacher)

    def differences(self, predictions: Sequence, teacher: Sequence, reading) -> list[float]:
        """One minus chrF."""
        pairs = zip(predictions, teacher, strict=True)
        return [1 - self.metrics([own], None, reading, [other])["chrf_to_teacher"] / 100 for own, other in pairs]
