"""`join_teacher_targets`: one dataset with the stored targets of several teachers."""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset, DatasetDict, Features, concatenate_datasets

from hf_distill.training.teacher.columns import (
    LOGITS,
    SOURCE,
    TARGET_COLUMNS,
    JoinedSource,
    Source,
    source_of,
)
from hf_distill.training.teacher.ensemble import check_labels_agree
from hf_distill.training.teacher.targets import with_columns


def join_teacher_targets(datasets: Sequence[Dataset] | Sequence[DatasetDict]) -> Dataset | DatasetDict:
    """Joins the stored targets of several teachers, so that `DistillationTrainer` learns from all of them.

    The logits of all teachers are kept side by side, and averaged when a batch is read: at any temperature, with
    `teacher_mean`, `teacher_weights` and `teacher_weights_column` as for live teachers. The student learns what it
    would learn from `teacher_model=[a, b]`.

    Args:
        datasets: the same rows with the targets of one teacher each, from `add_teacher_targets` for instance. The first
            gives the other columns and the hidden states, if stored. A dataset may have joined targets already.

    Returns:
        The first dataset with the targets of all teachers, or a `DatasetDict` if `datasets` are such.

    Raises:
        TypeError: if `datasets` is not a list of `Dataset` or of `DatasetDict`.
        ValueError: if a dataset has no targets or other rows, if two have the same teacher, if the teachers differ in
            head or labels, or if they are language models: only their most likely tokens are stored, and the mean
            needs what each teacher says about the other's tokens.

    Example:
        >>> of_each = [add_teacher_targets(train, teacher, tokenizer) for teacher in (large, small)]
        >>> train = join_teacher_targets(of_each)
        >>> args = DistillationTrainingArguments(output_dir="student", alpha_cos=0, teacher_weights=[2, 1])
        >>> DistillationTrainer(student, args, train_dataset=train, processing_class=tokenizer).train()
    """
    if not isinstance(datasets, list | tuple) or len({type(dataset) for dataset in datasets}) != 1:
        raise TypeError("datasets should be a list of Dataset, or a list of DatasetDict.")
    if isinstance(datasets[0], DatasetDict):
        splits = [[*dataset] for dataset in datasets]
        if any(sorted(own) != sorted(splits[0]) for own in splits):
            raise ValueError(f"The datasets have different splits, {' and '.join(map(str, splits))}: give the same.")
        return DatasetDict({split: join_teacher_targets([own[split] for own in datasets]) for split in splits[0]})
    if not isinstance(datasets[0], Dataset):
        raise TypeError(
            f"datasets should be a list of Dataset, or a list of DatasetDict, but has a {type(datasets[0]).__name__}."
        )
    if len(datasets) < 2:
        raise ValueError("There is only one dataset: give one for each teacher.")
    sources = [_sources_of(index, dataset) for index, dataset in enumerate(datasets)]
    _check_sources([(f"datasets[{index}]", source) for index, own in enumerate(sources) for source in own])
    for index, other in enumerate(datasets[1:], start=1):
        _check_rows(datasets[0], other, index)
    joined = JoinedSource(tuple(source for own in sources for source in own))
    return _joined(datasets, [len(own) for own in sources], joined)


def _sources_of(index: int, dataset: Dataset) -> tuple[Source, ...]:
    source = source_of(dataset)
    if source is None:
        raise ValueError(f"datasets[{index}] has no targets: call add_teacher_targets on it first.")
    return source.sources if isinstance(source, JoinedSource) else (source,)


def _check_sources(sources: Sequence[tuple[str, Source]]) -> None:
    """Checks that the teachers differ, and that their logits can be averaged class by class."""
    for position, (name, source) in enumerate(sources):
        if source.embedding_dtype is not None:
            raise ValueError(
                f"{name} has vectors of {source}. Vectors of different models cannot be averaged, because each model "
                f"has its own space: use one teacher."
            )
        if source.is_of_some_tokens:
            samples = source.num_samples
            tokens = f"the {source.top_k} most likely" if samples is None else f"{samples} sampled"
            raise ValueError(
                f"{name} has {tokens} tokens of {source}. Such targets cannot be joined, because "
                f"the mean needs the probability that each teacher gives to the other's tokens: pass the teachers to "
                f"the trainer as teacher_model=[...]."
            )
        for other_name, other in sources[:position]:
            if other == source:
                raise ValueError(
                    f"{other_name} and {name} have targets of the same teacher {source}: leave out one of them, and "
                    f"set teacher_weights to give the other more weight."
                )
        first_name, first = sources[0]
        _check_heads(first_name, first, name, source)
    check_labels_agree({name: source.head_spec for name, source in sources})


def _check_heads(first_name: str, first: Source, name: str, source: Source) -> None:
    one, other = first.vocabulary, source.vocabulary
    if not first.reads_text and not source.reads_text and None not in (one, other) and one != other:
        raise ValueError(
            f"{first_name} and {name} have targets of teachers with different tokenizers, which read the same "
            f"input_ids: let each teacher read the text, with add_teacher_targets(..., text_columns=...)."
        )
    specs = first.head_spec, source.head_spec
    kinds = [(spec.auto_class, spec.distribution, spec.num_labels) for spec in specs]
    if kinds[0] != kinds[1]:
        described = [
            f"a {spec.model} with num_labels={spec.num_labels} and problem_type={spec.problem_type!r}" for spec in specs
        ]
        raise ValueError(
            f"{first_name} has targets of {described[0]}, and {name} of {described[1]}: join targets of teachers with "
            f"the same kind of head and the same labels."
        )


def _check_rows(first: Dataset, other: Dataset, index: int) -> None:
    """Checks that two datasets have the same rows, by the columns that both have."""
    if len(first) != len(other):
        raise ValueError(f"datasets[0] has {len(first)} rows and datasets[{index}] {len(other)}: give the same rows.")
    shared = [name for name in first.column_names if name in other.column_names and name not in TARGET_COLUMNS]
    if not shared:
        raise ValueError(
            f"datasets[0] and datasets[{index}] have no column in common, so it is unknown whether their rows are the "
            f"same: keep at least one, such as the text."
        )
    parts = [dataset.with_format("arrow").select_columns(shared).iter(batch_size=1000) for dataset in (first, other)]
    for number, (one, two) in enumerate(zip(*parts, strict=True)):
        for name in shared:
            # A missing number, NaN, is not equal to itself, but its text is.
            if not one[name].equals(two[name]) and str(one[name].to_pylist()) != str(two[name].to_pylist()):
                raise ValueError(
                    f"Rows {1000 * number:,} to {1000 * number + len(one):,} of datasets[0] and datasets[{index}] "
                    f"differ in the column {name}: add the targets of all teachers to the same rows in the same order."
                )


def _joined(datasets: Sequence[Dataset], counts: Sequence[int], joined: JoinedSource) -> Dataset:
    """The first dataset with the logits of all.

    Args:
        datasets: datasets with the same rows.
        counts: the number of teachers of each dataset.
        joined: all teachers.
    """
    parts = [dataset.with_format(None).select_columns(LOGITS) for dataset in datasets]
    parts = [part.rename_column(LOGITS, f"{LOGITS} {index}") for index, part in enumerate(parts)]
    names = [part.column_names[0] for part in parts]
    width = joined.head_spec.logits_per_token
    targets = concatenate_datasets(parts, axis=1).with_format("numpy")
    targets = targets.map(
        _join_batch,
        batched=True,
        remove_columns=names,
        features=Features({name: joined.features[name] for name in (LOGITS, SOURCE)}),
        fn_kwargs={"widths": {name: width and width * count for name, count in zip(names, counts, strict=True)}},
        desc="Joining targets",
    )
    return with_columns(datasets[0].remove_columns([LOGITS, SOURCE]), targets.with_format(None))


def _join_batch(batch: Mapping[str, Sequence], widths: Mapping[str, int | None]) -> dict[str, list]:
    """The logits of all teachers for each row: one after the other, or one after the other for each token.

    Args:
        batch: the logits of each dataset by column.
        widths: the number of logits per token by column; None if the logits belong to the whole example.
    """
    shapes = [(1, -1) if width is None else (-1, width) for width in widths.values()]
    logits = []
    for row in zip(*(batch[name] for name in widths), strict=True):
        of_teachers = [np.reshape(own, shape) for own, shape in zip(row, shapes, strict=True)]
        logits.append(np.concatenate(of_teachers, axis=1).reshape(-1))
    return {LOGITS: logits, SOURCE: [0] * len(logits)}
