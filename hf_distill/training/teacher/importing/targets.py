"""`import_teacher_targets`: targets that another program computed, as columns of the dataset."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_distill.hub.push import public_name
from hf_distill.training.teacher.columns import IMPORTED, TARGET_COLUMNS, EmbeddingDtype, Source
from hf_distill.training.teacher.importing.classes import PROBLEM_TYPES, SMOOTHED, ClassReader
from hf_distill.training.teacher.importing.distillkit import CONFIG_FILE, Decompressor
from hf_distill.training.teacher.importing.rows import TargetRows, Targets
from hf_distill.training.teacher.importing.tokens import TokenReader
from hf_distill.training.teacher.importing.vectors import VectorReader
from hf_distill.training.teacher.importing.writing import combined, load, write
from hf_distill.training.teacher.mass import StoredMass
from hf_distill.training.teacher.targets import with_columns

Format = Literal[
    "probabilities",
    "logits",
    "votes",
    "multi_label_probabilities",
    "multi_label_logits",
    "regression",
    "prompt_logprobs",
    "logprobs",
    "distillkit",
    "embeddings",
]


def import_teacher_targets(
    dataset: Dataset | DatasetDict,
    targets: Targets | Mapping[str, Targets] = None,
    *,
    format: Format,
    teacher: str,
    column: str | None = None,
    on: str | None = None,
    labels: Sequence[str] | None = None,
    smoothing: float | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    top_k: int | None = None,
    compression: Mapping[str, Any] | str | os.PathLike | None = None,
    embedding_dtype: EmbeddingDtype | None = None,
    revision: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Dataset | DatasetDict:
    """Returns the dataset with targets that another program computed, in the columns of `add_teacher_targets`.

    `DistillationTrainer` then needs no `teacher_model`. The targets may come from a pipeline, an API, a zero-shot
    model, human votes, vLLM or DistillKit. All rows are checked before the dataset is returned.

    | `format` | an entry, one per row | the student learns |
    |---|---|---|
    | `"probabilities"` | a probability per class, sum 1 | `softmax(log p / T)`, at temperature 1 the probabilities |
    | `"logits"` | a logit per class | `softmax(logits / T)` |
    | `"votes"` | a number of votes per class, or the label of each vote | as with probabilities |
    | `"multi_label_probabilities"` | an independent probability per class | `sigmoid(logit(p) / T)` |
    | `"multi_label_logits"` | a logit per class | `sigmoid(logits / T)` |
    | `"regression"` | a number, or one per output | the numbers |
    | `"prompt_logprobs"` | vLLM's `prompt_logprobs` for the `input_ids` of the row | the most likely next tokens |
    | `"logprobs"` | `logprobs.content` of an OpenAI-compatible server | the same, in the completion |
    | `"distillkit"` | a row that DistillKit wrote | the most likely next tokens |
    | `"embeddings"` | the vector of a text, a list of numbers | the vectors, as with `embedding_dtype` |

    Numbers per class may be a list in the order of `labels`, `{"NEGATIVE": 0.1, "POSITIVE": 0.9}`,
    `[{"label": "NEGATIVE", "score": 0.1}, ...]` as a pipeline returns it with `top_k=None`, or
    `{"labels": [...], "scores": [...]}` as a zero-shot pipeline returns it.

    Probabilities that were already softened at temperature T are imported as logits, `T * log(p)`, for a training with
    `temperature=T`.

    Token log-probabilities are natural logarithms at temperature 1, of some tokens only, so the training needs
    `temperature=1.0`. A token needs a distribution if the next token has a label: `labels` other than -100, or without
    that column every token. Other tokens may lack one, as the last does; the training then needs
    `kl_positions="labels"`.

    Args:
        dataset: the rows that the student trains on. For token log-probabilities they need `input_ids`, for the others
            they may still be text.
        targets: a list with one entry per row, a `Dataset`, or a Parquet, JSON or JSON Lines file, a glob or a folder
            of such files. None if they are in a column of `dataset`. For a `DatasetDict`, a mapping from split to
            targets.
        format: what an entry is, see the table.
        teacher: the model or program that the targets come from. A name on the Hub (`owner/model`) is linked in the
            model card.
        column: the column or key of `targets` that holds the entries. None if an entry is a whole row, or if there is
            only one column.
        on: the column of `dataset` and `targets` that says which row a target is for. By default both have the same
            order.
        labels: for classes, their names, as in the student's config. By default the names of the dataset's
            `ClassLabel` column `labels` or `label`; for regression `["LABEL_0"]`. The trainer matches them with the
            student's by name.
        smoothing: added to each probability or number of votes, because the logarithm of 0 is infinite. By default 0,
            and a class without any is an error. For votes 1.0 is Laplace's rule; for probabilities that were rounded
            to 0, use about half a unit of the last digit.
        processing_class: for token log-probabilities, the tokenizer of student and teacher. The trainer checks that the
            student uses the same one.
        top_k: for token log-probabilities, how many of the most likely tokens to keep per position; by default the
            smallest number that a position has.
        compression: for DistillKit's compressed columns, its `logprob_compressor` config or the YAML file; by default
            `compression_config.yaml` in the folder `targets`.
        embedding_dtype: for vectors, how they are stored, as in `add_teacher_targets`; by default `"float16"`.
        revision: the version of the teacher, for the model card.
        settings: how the teacher was asked (prompt, sampling and so on), for the model card. JSON values.

    Returns:
        The dataset, or the `DatasetDict`, with the additional columns. Import the splits that one trainer uses in one
        call, because the fingerprint of the teacher is a hash of all targets.

    Raises:
        FileNotFoundError: if there are no files of targets.
        TypeError: if an argument has the wrong type.
        ValueError: if targets are missing, not finite, or do not fit the labels, the vocabulary or the rows; if an
            option would have no effect; or if the dataset has targets already.
        OSError: if the targets cannot be written to the cache of `datasets`.

    Example:
        >>> scores = [[{"label": "pos", "score": 0.9}, {"label": "neg", "score": 0.1}]]
        >>> train = Dataset.from_dict({"text": ["good"], "labels": [1]})
        >>> train = import_teacher_targets(
        ...     train, scores, format="probabilities", teacher="a pipeline", labels=["neg", "pos"]
        ... )
        >>> [round(logit, 3) for logit in train[0]["teacher_logits"]]
        [-2.303, -0.105]
    """
    splits = dict(dataset) if isinstance(dataset, DatasetDict) else {"": dataset}
    targets_of = _targets_of_splits(dataset, targets)
    for rows in splits.values():
        _check_dataset(rows)
    _check_options(format, teacher, labels, smoothing, processing_class, top_k, compression, embedding_dtype)
    settings = None if settings is None else _as_json(settings)
    entries: dict[str, TargetRows] = {}
    for name, rows in splits.items():
        with _naming(name):
            entries[name] = TargetRows(rows, targets_of[name], column, on)

    reader: ClassReader | TokenReader | VectorReader
    if format == "embeddings":
        reader = VectorReader(embedding_dtype or "float16")
    elif format in PROBLEM_TYPES:
        reader = ClassReader(format, _names_of_classes(splits, format, labels), smoothing or 0.0)
    else:
        assert processing_class is not None  # checked above
        decompressor = _decompressor(compression, targets_of) if format == "distillkit" else None
        reader = TokenReader(format, processing_class, decompressor, top_k)
    for name, rows in splits.items():
        with _naming(name):
            reader.prepare(rows, entries[name])
    files = {}
    for name, rows in splits.items():
        with _naming(name):
            files[name] = write(reader.read(rows, entries[name]), reader.dtypes)
    source = Source(
        teacher=os.path.basename(os.path.normpath(teacher)) if os.path.isabs(teacher) else public_name(teacher),
        fingerprint=combined(fingerprint for _, fingerprint in files.values()),
        dtype=IMPORTED,
        hidden_states=False,
        revision=revision,
        settings=settings,
        **reader.description(),
    )
    added = {name: load(file, source) for name, (file, _) in files.items()}
    if source.top_k is not None:
        StoredMass(source, min_mass=0.0).report(concatenate_datasets([*added.values()]))
    both = {name: with_columns(rows, added[name]) for name, rows in splits.items()}
    return DatasetDict(both) if isinstance(dataset, DatasetDict) else both[""]


@contextmanager
def _naming(split: str) -> Iterator[None]:
    """Names the split in errors about its rows."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Split {split!r}: {error}" if split else str(error)) from None


def _targets_of_splits(dataset: Dataset | DatasetDict, targets: Any) -> dict[str, Targets]:
    """The targets of each split; of a `Dataset`, under the name ""."""
    if not isinstance(dataset, DatasetDict):
        if isinstance(targets, Mapping):
            raise TypeError(
                f"targets is a {type(targets).__name__} with {', '.join(map(repr, targets))}, but dataset is a "
                f"Dataset: pass the targets of these rows, such as targets['train']."
            )
        return {"": targets}
    if targets is None:
        return dict.fromkeys(dataset)
    if not isinstance(targets, Mapping) or targets.keys() != dataset.keys():
        given = ", ".join(map(repr, targets)) if isinstance(targets, Mapping) else f"a {type(targets).__name__}"
        raise ValueError(
            f"dataset has the splits {', '.join(map(repr, dataset))}, but targets is {given}: pass a mapping with the "
            f"targets of each split."
        )
    return dict(targets)


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset should be a datasets.Dataset, but is a {type(dataset).__name__}: load it without streaming, or "
            f"create one with Dataset.from_list(rows)."
        )
    if there := [name for name in TARGET_COLUMNS if name in dataset.column_names]:
        raise ValueError(f"The dataset already has targets: to import others, call remove_columns({there}) first.")
    if len(dataset) == 0:
        raise ValueError("The dataset is empty: give it at least one row.")


def _check_options(
    format: str,
    teacher: str,
    labels: Sequence[str] | None,
    smoothing: float | None,
    processing_class: object,
    top_k: int | None,
    compression: object,
    embedding_dtype: str | None,
) -> None:
    if format not in get_args(Format):
        raise ValueError(f"format={format!r} should be one of {', '.join(map(repr, get_args(Format)))}.")
    if not isinstance(teacher, str) or not teacher.strip():
        raise ValueError(f"teacher={teacher!r} should be the name of the model or program that the targets come from.")
    of_classes, of_texts = format in PROBLEM_TYPES, format == "embeddings"
    of_tokens = not of_classes and not of_texts
    useful = {
        "labels": of_classes,
        "smoothing": format in SMOOTHED,
        "processing_class": of_tokens,
        "top_k": of_tokens,
        "compression": format == "distillkit",
        "embedding_dtype": of_texts,
    }
    given = {"labels": labels, "smoothing": smoothing, "processing_class": processing_class}
    given |= {"top_k": top_k, "compression": compression, "embedding_dtype": embedding_dtype}
    if useless := [name for name, value in given.items() if value is not None and not useful[name]]:
        raise ValueError(f"{' and '.join(useless)} would have no effect with format={format!r}: leave it out.")
    if smoothing is not None and not (math.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing={smoothing} should be 0 or above.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} should be above 0.")
    if embedding_dtype not in (None, *get_args(EmbeddingDtype)):
        allowed = ", ".join(map(repr, get_args(EmbeddingDtype)))
        raise ValueError(f"embedding_dtype={embedding_dtype!r} should be one of {allowed}.")
    if of_tokens and not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"format={format!r} needs a tokenizer: pass the one that the rows were tokenised with as processing_class."
        )
    if labels is not None and (isinstance(labels, str) or len(set(labels)) != len(labels) or not labels):
        raise ValueError(f"labels={labels!r} should be a list of different names.")


def _names_of_classes(splits: Mapping[str, Dataset], format: str, labels: Sequence[str] | None) -> list[str]:
    """The names given, after a comparison with the dataset's, or the dataset's own."""
    for rows in splits.values():
        features = [rows.features.get(name) for name in ("labels", "label")]
        for feature in features:
            if not isinstance(feature, ClassLabel):
                continue
            if labels is not None and {*labels} != {*feature.names}:
                raise ValueError(
                    f"labels is {list(labels)}, but the dataset's ClassLabel column has {feature.names}: use the same "
                    f"names, for instance with cast_column."
                )
            labels = feature.names if labels is None else labels
    if labels is None and format == "regression":
        return ["LABEL_0"]
    if labels is None:
        raise ValueError(
            f"labels is missing: format={format!r} needs the names of the classes, as in the student's config."
        )
    return list(labels)


def _decompressor(compression: Any, targets_of: Mapping[str, Targets]) -> Decompressor | None:
    """DistillKit's decoder, by the config given or in a folder of targets; None if the columns need none."""
    if compression is None:
        folders = [Path(own) for own in targets_of.values() if isinstance(own, str | os.PathLike)]
        compression = next((file for folder in folders if (file := folder / CONFIG_FILE).is_file()), None)
    return None if compression is None else Decompressor(compression)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"settings should have only JSON values: {error}.") from None
