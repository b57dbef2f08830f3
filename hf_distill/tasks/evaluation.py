"""From a model to its figures: `hf-distill evaluate`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.data import encode_texts, load_labelled_texts
from hf_distill.data.truncation import Truncation
from hf_distill.evaluation import classification_metrics, plot_calibration
from hf_distill.files import write_json
from hf_distill.lengths import length_of_rows, truncation_of
from hf_distill.loading import load_config
from hf_distill.tasks.data import (
    columns_by_name,
    data_columns,
    has_classification_head,
    label_names_of,
)
from hf_distill.tasks.models import load_classifier, with_padding


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
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    names = {"model": model} | ({} if teacher is None else {"teacher": teacher})
    configs = {role: load_config(name) for role, name in names.items()}
    for role, config in configs.items():
        if config.architectures and not has_classification_head(config):
            raise ValueError(f"{names[role]} has no head that was trained to classify texts: fine-tune it first.")
    label_names = label_names_of(configs["model"])
    if teacher is not None:
        columns_by_name(label_names_of(configs["teacher"]), label_names, teacher)  # what does not fit is said at once
    text_column, label_column = data_columns([*configs.values()], text_column, label_column)
    texts, _ = load_labelled_texts(data, text_column, label_column, label_names, split, config_name)
    classifiers = {role: load_classifier(name) for role, name in names.items()}
    logits, read = {}, {}
    for role, name in names.items():
        tokenizer, classifier = AutoTokenizer.from_pretrained(name), classifiers[role].to(device)
        part = truncation or truncation_of(classifier.config)
        read[role] = {"max_length": length_of_rows(max_length, tokenizer, classifier), "truncation": part}
        logits[role] = classify_texts(
            classifier, tokenizer, texts["text"], **read[role], batch_size=batch_size, label_names=label_names
        )
    labels = list(texts["labels"])
    metrics = {"texts": len(labels), **classification_metrics(logits["model"], labels, logits.get("teacher"))}
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        plot_calibration(
            {names[role]: (own.softmax(-1), labels) for role, own in logits.items()}, Path(output, "calibration.png")
        )
        settings = {"model": model, "teacher": teacher, "data": data}
        settings |= {"text_column": text_column, "label_column": label_column, "read": read}
        content = settings | {"metrics": metrics}
        write_json(Path(output, "evaluation.json"), content)
    return metrics


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
    for start in range(0, len(rows), batch_size):
        indices = order[start : start + batch_size]
        batch = collate([rows[index] for index in indices])
        logits[indices] = model(**batch.to(model.device)).logits.float().cpu()
    model.train(was_training)
    return logits[:, columns]


def _columns(model: PreTrainedModel, label_names: Sequence[str] | None) -> list[int]:
    own = label_names_of(model.config)
    return columns_by_name(own, own if label_names is None else label_names, model.name_or_path)
