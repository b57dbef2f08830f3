"""Summarization: a short text for each long one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hf_distill.evaluation.generation import summarization_metrics
from hf_distill.evaluation.report import Metric
from hf_distill.tasks.sequence_to_sequence import SequenceToSequenceArguments, SequenceToSequenceTask


@dataclass
class SummarizationArguments(SequenceToSequenceArguments):
    """Model, teacher and data of a summarization training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> SummarizationArguments(train_file="train.jsonl", source_column="article", target_column="highlights")
    """

    task: str = field(default="summarization", metadata={"help": "The task."})


class Summarization(SequenceToSequenceTask):
    name = "summarization"
    pipeline_tag = "summarization"
    summary = "a short text for each long text"
    data = "source, target; or source alone"
    example = """\
teacher_model_name_or_path: facebook/bart-large-cnn
dataset_name: abisee/cnn_dailymail
dataset_config_name: 3.0.0
train_split: train
validation_split: validation
source_column: article
target_column: highlights
max_target_length: 142
output_dir: outputs/student
"""
    arguments = SummarizationArguments
    metric_packages = ("rouge_score.rouge_scorer",)
    quality: ClassVar[Mapping[str, Metric]] = {
        "rouge1": Metric("ROUGE-1", ".2f"),
        "rouge2": Metric("ROUGE-2", ".2f"),
        "rougeL": Metric("ROUGE-L", ".2f"),
        "rougeLsum": Metric("ROUGE-Lsum", ".2f"),
        "words": Metric("words", ".1f", higher_is_better=False),
    }
    fidelity: ClassVar[Mapping[str, Metric]] = {
        "rougeL_to_teacher": Metric("ROUGE-L with the teacher", ".2f"),
        "same_as_teacher": Metric("same text as the teacher"),
    }
    notes = (
        "ROUGE is the mean F-measure with stemming, from 0 to 100; ROUGE-Lsum splits a text at its line breaks, or "
        "into sentences. Words is the mean length of the summaries."
    )

    def metrics(self, predictions, rows, reading, teacher=None) -> dict[str, float]:
        return summarization_metrics(predictions, None if rows is None else list(rows["target"]), teacher)

    def differences(self, predictions: Sequence, teacher: Sequence, reading) -> list[float]:
        """One minus ROUGE-L."""
        pairs = zip(predictions, teacher, strict=True)
        return [1 - self.metrics([own], None, reading, [other])["rougeL_to_teacher"] / 100 for own, other in pairs]
