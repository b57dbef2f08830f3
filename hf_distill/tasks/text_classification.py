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
    """Model, teacher and data of a text classification training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> TextClassificationArguments(train_file="train.csv", validation_share=0.1, num_layers=6)
    """

    text_column: str = field(default="text", metadata={"help": "Column with the texts."})
    label_column: str = field(
        default="label", metadata={"help": "Column with the labels: class names, or class numbers from 0."}
    )


def train_text_classifier(
    task: TextClassificationArguments, training: DistillationTrainingArguments
) -> DistillationTrainer | None:
    """Fine-tunes a text classifier, or distils one from a fine-tuned teacher, and saves it with its tokenizer.

    Without `teacher_model_name_or_path`, the model learns from the labels alone. With it, the student is either cut
    from the teacher's layers, or is `model_name_or_path`, for example a general student that was distilled before (the
    two steps of Sanh et al., 2019, https://arxiv.org/abs/1910.01108). If no hidden states are compared
    (`alpha_cos=0`), the teacher reads each text once and is released before training starts.

    With `task.stages`, such as TinyBERT's two steps (Jiao et al., 2020, https://arxiv.org/abs/1909.10351), each stage
    continues with the student of the stage before. See `make_stages`. A stage with `cut`, which has arguments of
    `make_student`, first cuts that student.

    `output_dir` receives the model, the tokenizer, `train_results.json`, and with validation or test data
    `eval_results.json` or `test_results.json`.

    Progress is shown on stderr. If `logging_steps` is left at its default, a short training logs about 20 times.

    A stopped training continues from the last checkpoint in `output_dir`, and a finished one is not repeated. A
    training counts as the same if the task's options, the training arguments that affect the result, and the content
    of models and data are the same; names, logging, saving and pushing may differ. Otherwise set `task.resume` or
    `task.overwrite`.

    Args:
        task: model, teacher and data.
        training: everything else. Without a teacher, the loss weights must be the defaults, or both 0.

    Returns:
        The trainer with the trained model, or None if `output_dir` already holds that model.

    Raises:
        ValueError: before the first step, if options, data and models are invalid or do not match, or if `output_dir`
            holds another training.
        ImportError: if there is validation or test data and scikit-learn is missing.

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
    """Measures a classifier on labelled texts, and compares it with its teacher.

    Args:
        model: Hub name or folder.
        data: a file, a folder or a Hub name, as in `load_labelled_texts`. The labels are the model's classes, by name
            or by number.
        teacher: Hub name or folder. It may be of another model family and use another tokenizer.
        text_column: column with the texts. Default: the column the model was trained on by `hf-distill train`, else
            `text`.
        label_column: column with the labels. Default: the column the model was trained on by `hf-distill train`, else
            `label`.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        max_length: tokens per text, as in `classify_texts`. Default: each model's own.
        truncation: which part of a long text is kept, as in `classify_texts`. Default: each model's own.
        batch_size: texts per forward pass.
        output: folder for `evaluation.json` and the plot `calibration.png`. Default: nothing is written.

    Returns:
        The metrics of `classification_metrics`, and `texts`, the number of texts.

    Raises:
        ValueError: if data or models are invalid or do not match.
        ImportError: if scikit-learn is missing or, with `output`, matplotlib.

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
    """Compares a classifier and its exports with the teacher, and writes a report.

    - Quality: accuracy, F1, Matthews correlation and calibration error, and the share of the teacher's quality that is
      retained.
    - Fidelity: how often a model predicts the teacher's class, how far its probabilities are from the teacher's (KL),
      and the texts on which student and teacher differ most.
    - Size and speed: `benchmark_models`, on texts of the data.

    Each model is run through `load_predictor`, with its own length and truncation.

    Args:
        teacher: folder or Hub name of a classifier with one label per text.
        student: folder or Hub name of a classifier with the same classes, in any order.
        data: labelled texts, as in `load_labelled_texts`. The labels are the teacher's classes, by name or by number.
        output: folder for `report.md`, `report.json`, `calibration.png` and `quality_against_latency.png`.
        exports: folders written by `export_model`. Each export is named after its folder.
        text_column: column with the texts. Default: the column that the student, else the teacher, was trained on by
            `hf-distill train`, else `text`.
        label_column: column with the labels. Default: found like `text_column`, else `label`.
        split: split of a Hub dataset.
        config_name: configuration of a Hub dataset.
        card: the student's `README.md`. The comparison replaces the results in it and, if the data is on the Hub, the
            student's metrics are added to its metadata. Default: no card is changed.
        num_examples: number of example texts shown.
        lengths: text lengths in tokens for the latency, as in `benchmark_models`.
        threads: threads per forward pass, as in `benchmark_models`.
        rounds: measured rounds, as in `benchmark_models`.

    Returns:
        The content of `report.json`: `data`; `models`, the measurements by model; `examples`; `published`, figures of
        other students; `settings`, `machine` and `versions`. Local paths are reduced to the name of the file or
        folder.

    Raises:
        ValueError: if a model is not a classifier with one label per text or has other classes, if there are no texts,
            if two exports have the same name, or if the card has no section for results.
        ImportError: if scikit-learn, matplotlib or a package that an export needs is missing.

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
    """Computes the logits of texts, in batches of similar length to save padding.

    Args:
        model: a classifier, on any device.
        tokenizer: the model's tokenizer.
        texts: the texts to classify.
        max_length: tokens per text. Default: the tokenizer's `model_max_length` (the training length, for models of
            `hf-distill train`), at most what the model accepts.
        truncation: which part of a long text is kept, as in `encode_texts`. Default: the part a model of
            `hf-distill train` was trained on, else `"head"`.
        batch_size: texts per forward pass.
        label_names: class names in the order wanted for the columns. Default: the model's own order.

    Returns:
        Logits `[texts, labels]`, in fp32 on the CPU.

    Raises:
        ValueError: if the model has other classes than `label_names`, or fewer positions than `max_length`.

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
