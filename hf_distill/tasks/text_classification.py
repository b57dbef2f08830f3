"""Text classification: one label for each text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_distill.data import encode_texts, load_labelled_texts, load_unlabelled_texts
from hf_distill.evaluation import classification_metrics, plot_calibration
from hf_distill.evaluation.benchmark import Json
from hf_distill.lengths import Truncation, length_of_rows, truncation_of
from hf_distill.progress import track
from hf_distill.tasks.arguments import TaskArguments
from hf_distill.tasks.data import columns_by_name, label_names_of
from hf_distill.tasks.evaluation import evaluate
from hf_distill.tasks.models import with_padding
from hf_distill.tasks.report import make_report
from hf_distill.tasks.task import Task
from hf_distill.tasks.training import train
from hf_distill.training import DistillationTrainer, DistillationTrainingArguments


@dataclass
class TextClassificationArguments(TaskArguments):
    """What is trained on what; how is for `DistillationTrainingArguments`.

    Raises:
        ValueError: if options contradict each other, are out of their range, or would have no effect.
    """

    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    label_column: str = field(
        default="label", metadata={"help": "The column with the labels: names, or numbers from 0."}
    )


def train_text_classifier(
    task: TextClassificationArguments, training: DistillationTrainingArguments
) -> DistillationTrainer | None:
    """Fine-tunes a text classifier, or distils one from a fine-tuned teacher, and saves it with its tokenizer.

    Without `teacher_model_name_or_path` the labels alone are learned. With it, a student is cut from the teacher's
    layers, or is `model_name_or_path`, such as a general student that was distilled before (the two steps of Sanh et
    al., 2019, https://arxiv.org/abs/1910.01108). Where no hidden states are compared (`alpha_cos=0`), the teacher reads
    each text once and is gone before the training. In `output_dir`, beside model and tokenizer, are then
    `train_results.json`, with validation data `eval_results.json`, and with test data `test_results.json`.

    Progress is shown on stderr. If `logging_steps` is left at its default, a short training logs about 20 times.

    A training that was stopped goes on from the last checkpoint in `output_dir`, and a finished one is left alone.
    Compared are the task's options, the training arguments on which the result depends, and what is in the models and
    in the data, but not their names, logging, saving or pushing. If they differ, `resume` or `overwrite` has to say
    what to do.

    Args:
        task: what is trained on what.
        training: how. Without a teacher its loss weights have to be the defaults, or both 0.

    Returns:
        The trainer, with the trained model; None if `output_dir` has that model already.

    Raises:
        ValueError: before the first step, if options or data are not as they should be, or do not fit each other, or if
            `output_dir` has another training.
        ImportError: with validation or test data, without scikit-learn.

    Example:
        >>> task = TextClassificationArguments(train_file="train.csv", test_file="test.csv")
        >>> training = DistillationTrainingArguments("student", teacher_model_name_or_path="outputs/teacher")
        >>> trainer = train_text_classifier(task, training)
    """
    return train(TEXT_CLASSIFICATION, task, training)


def evaluate_text_classifier(
    model: str,
    data: str,
    teacher: str | None = None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "test",
    config_name: str | None = None,
    max_length: int | None = None,
    truncation: Truncation | None = None,
    batch_size: int = 32,
    output: str | Path | None = None,
) -> dict[str, float]:
    """How good a classifier is on labelled texts, and how near to its teacher.

    Args:
        model: a name on the Hub or a folder.
        data: a file, a folder or a name on the Hub, as in `load_labelled_texts`; the labels are the model's, by name or
            by number.
        teacher: a name or a folder too; it may be of another family, with another tokenizer.
        text_column: the column with the texts; by default the one that the model was trained on, if `hf-distill train`
            trained it, else `text`.
        label_column: the column with the labels, by default likewise, or `label`.
        split: of a data set on the Hub.
        config_name: of a data set on the Hub.
        max_length: as in `classify_texts`, as are the next two; by default each model's own.
        truncation: which part of long texts is read.
        batch_size: texts that are read at one time.
        output: a folder for `evaluation.json` and the plot `calibration.png`; by default nothing is written.

    Returns:
        `texts`, their number, and what `classification_metrics` returns.

    Raises:
        ValueError: if data or models are not as they should be, or do not fit each other.
        ImportError: without scikit-learn or, with `output`, without matplotlib.

    Example:
        >>> evaluate_text_classifier("outputs/student", "test.csv", teacher="outputs/teacher")["accuracy"]
    """
    return evaluate(
        TEXT_CLASSIFICATION,
        model,
        data,
        teacher=teacher,
        columns={"text_column": text_column, "label_column": label_column},
        split=split,
        config_name=config_name,
        max_length=max_length,
        truncation=truncation,
        batch_size=batch_size,
        output=output,
    )


def write_report(
    teacher: str | Path,
    student: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    exports: Sequence[str | Path] = (),
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "test",
    config_name: str | None = None,
    card: str | Path | None = None,
    num_examples: int = 10,
    lengths: Sequence[int] | None = None,
    threads: int | None = None,
    rounds: int = 10,
) -> Json:
    """Compares a classifier with its teacher, and its exports with both.

    - Quality: accuracy, F1, Matthews correlation and calibration error, and which share of the teacher's is retained.
    - Fidelity: on how many texts a model says what the teacher says, how far its probabilities are from the teacher's
      (KL), and the texts on which student and teacher part most.
    - Size and speed: `benchmark_models`, on texts of the data.

    Each model reads of a text what it was trained to read, or as much as it has room for, through `load_predictor`.

    Args:
        teacher: a folder or a name on the Hub; a classifier with one label per text.
        student: the same, with the same classes, in another order maybe.
        data: labelled texts, as in `load_labelled_texts`; the labels are the teacher's, by name or by number.
        output: a folder for `report.md`, `report.json`, `calibration.png` and `quality_against_latency.png`.
        exports: folders that `export_model` wrote; each is called as its folder.
        text_column: the column with the texts; by default the one that the student was trained on, if `hf-distill
            train` trained it, else the teacher, else `text`.
        label_column: the column with the labels, by default likewise, or `label`.
        split: of a data set on the Hub.
        config_name: of a data set on the Hub.
        card: the student's `README.md`, to put the comparison into, in the place of the results that are there; and, if
            the data is on the Hub, the student's metrics into its metadata. By default no card is changed.
        num_examples: how many texts are shown.
        lengths: as in `benchmark_models`, as are the next two.
        threads: of a forward.
        rounds: how many are counted.

    Returns:
        What is in `report.json`: `data`; by model what was measured; `examples`; `published`, what is known of others;
        `settings`, `machine` and `versions`. Of local files and folders, only their own names.

    Raises:
        ValueError: if a model is no classifier with one label per text or has other classes, if there are no texts, if
            two exports are called the same, or if the card has no place for results.
        ImportError: without scikit-learn or matplotlib, or without what an export needs.

    Example:
        >>> report = write_report("outputs/teacher", "outputs/student", "test.csv", "report", exports=["outputs/int8"])
        >>> report["models"]["student"]["retained"]["accuracy"]
    """
    return make_report(
        TEXT_CLASSIFICATION,
        teacher,
        student,
        data,
        output,
        exports=exports,
        columns={"text_column": text_column, "label_column": label_column},
        split=split,
        config_name=config_name,
        card=card,
        num_examples=num_examples,
        lengths=lengths,
        threads=threads,
        rounds=rounds,
    )


@torch.inference_mode()
def classify_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int | None = None,
    truncation: Truncation | None = None,
    batch_size: int = 32,
    label_names: Sequence[str] | None = None,
) -> torch.Tensor:
    """The logits of texts, in batches of like length.

    Args:
        model: a classifier, on whatever device.
        tokenizer: the model's.
        texts: what it reads.
        max_length: tokens per text; by default as many as the tokenizer says, which are those that a model of
            `hf-distill train` was trained with, and as the model takes.
        truncation: as in `encode_texts`; by default as a model of `hf-distill train` was trained, else `"head"`.
        batch_size: texts that are read at one time.
        label_names: the order of the columns, by the names of the classes; by default the model's own.

    Returns:
        `[texts, labels]`, in fp32 on the CPU.

    Raises:
        ValueError: if the model has other classes, or has fewer positions than `max_length`.

    Example:
        >>> classify_texts(model, tokenizer, ["A warm film."]).softmax(-1)
    """
    columns = _columns(model, label_names)
    length = length_of_rows(max_length, tokenizer, model)
    rows = encode_texts(
        Dataset.from_dict({"text": list(texts)}), tokenizer, length, truncation or truncation_of(model.config)
    )
    order = sorted(range(len(rows)), key=[len(ids) for ids in rows["input_ids"]].__getitem__)
    collate = DataCollatorWithPadding(with_padding(tokenizer, model))
    was_training = model.training
    model.eval()
    logits = torch.empty(len(rows), model.config.num_labels)
    for start in track(range(0, len(rows), batch_size), "Classifying", "batches", only_if_long=True):
        indices = order[start : start + batch_size]
        batch = collate([rows[index] for index in indices])
        logits[indices] = model(**batch.to(model.device)).logits.float().cpu()
    model.train(was_training)
    return logits[:, columns]


def _columns(model: PreTrainedModel, label_names: Sequence[str] | None) -> list[int]:
    own = label_names_of(model.config)
    return columns_by_name(own, own if label_names is None else label_names, model.name_or_path)


def _load_unlabelled(source: str, text_column: str, label_column: str, **options: Any) -> Dataset:
    return load_unlabelled_texts(source, text_column, **options)


def _predict(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, **options: Any) -> torch.Tensor:
    return classify_texts(model, tokenizer, rows["text"], **options)


def _plot(logits: Mapping[str, torch.Tensor], labels: Sequence[int], folder: Path) -> None:
    plot_calibration({name: (own.softmax(-1), labels) for name, own in logits.items()}, folder / "calibration.png")


TEXT_CLASSIFICATION = Task(
    auto_class=AutoModelForSequenceClassification,
    head="sequence classification",
    problem_type="single_label_classification",
    lora_task_type=TaskType.SEQ_CLS,
    purpose="to classify texts",
    models="classifiers with one label per text",
    columns={"text_column": "text", "label_column": "label"},
    text_columns=["text"],
    load=load_labelled_texts,
    load_unlabelled=_load_unlabelled,
    encode=encode_texts,
    collator=DataCollatorWithPadding,
    predict=_predict,
    metrics=classification_metrics,
    metric_packages=("sklearn.metrics",),
    plot=_plot,
)
