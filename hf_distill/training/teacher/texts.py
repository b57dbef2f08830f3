"""`add_teacher_texts`: lets a teacher write target texts once and stores them as a column of the dataset."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.adapters import transformers_model
from hf_distill.data.languages import language_options
from hf_distill.fingerprints import fingerprint
from hf_distill.hub.push import public_name
from hf_distill.lengths import length_of_rows
from hf_distill.training.teacher.columns import vocabulary_fingerprint
from hf_distill.training.teacher.reader import placed
from hf_distill.training.teacher.shards import MOST_SHARDS, ShardStore
from hf_distill.training.teacher.targets import with_columns
from hf_distill.training.training_args import TeacherDtype

logger = logging.get_logger(__name__)

BATCHES_PER_SHARD = 8


class TextStore(ShardStore):
    """The folder with the texts that one teacher wrote for one dataset."""

    content = "texts"
    function = "add_teacher_texts"
    cache = "teacher_texts"


def add_teacher_texts(
    dataset: Dataset | DatasetDict,
    teacher: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source_column: str = "source",
    target_column: str = "target",
    source_prefix: str = "",
    max_length: int | None = None,
    max_target_length: int | None = None,
    num_beams: int = 5,
    batch_size: int = 16,
    dtype: TeacherDtype | None = None,
    output_dir: str | os.PathLike | None = None,
) -> Dataset | DatasetDict:
    """Lets a teacher write the target of each source text, for sequence-level knowledge distillation.

    The student is then trained on these texts (pseudo-labels), alone or together with given targets, like on any other
    targets. Teacher and student may have different tokenizers.

    The texts are the result of beam search. Sources of similar length share a batch. A repeated call loads the stored
    texts. An interrupted call continues where it stopped, and loses at most 8 batches. With `accelerate launch` or
    `torchrun`, each process takes a share of the rows.

    Reference: Kim and Rush, 2016, Sequence-Level Knowledge Distillation, https://arxiv.org/abs/1606.07947

    Args:
        dataset: rows with a column of source texts, such as the result of `load_text_pairs`.
        teacher: a sequence-to-sequence model that is trained for the task. It is not changed. Options that are not
            given here, such as the length penalty, come from its generation config.
        tokenizer: the teacher's tokenizer. If it has language tokens, set `tokenizer.src_lang` and
            `tokenizer.tgt_lang` first.
        source_column: column with the source texts.
        target_column: new column for the teacher's texts.
        source_prefix: text in front of each source, such as `"summarize: "` for T5.
        max_length: tokens per source. Longer sources are truncated at the end. By default the most that the teacher
            reads.
        max_target_length: the maximum number of tokens of a text. By default as in the teacher's generation config.
        num_beams: number of beams; 1 is greedy search.
        batch_size: sources per batch.
        dtype: the dtype that the teacher computes in; by default its own.
        output_dir: the folder for the texts; by default one in the cache of `datasets`. For a `DatasetDict`, it gets a
            folder per split.

    Returns:
        The dataset, or the `DatasetDict`, with the additional column.

    Raises:
        TypeError: if `teacher` is not a transformers model, or if `dataset` is not a `Dataset`.
        ValueError: if the teacher is not a sequence-to-sequence model; if the source column is missing or has an empty
            text; if the target column exists; if a number is out of range; if no maximum length is known; or if
            `output_dir` has texts of another teacher, dataset or option.
        OSError: if the texts cannot be written, for instance on a full disk. Finished shards are kept.

    Example:
        >>> articles = load_text_pairs("articles.txt", target_column=None)
        >>> train = add_teacher_texts(articles, teacher, tokenizer, max_target_length=128)
        >>> train[0]["target"]
        'A passer-by found the cat on a roof.'
        >>> rows = encode_text_pairs(train, student_tokenizer, max_length=1024, max_target_length=128)
    """
    if isinstance(dataset, DatasetDict):
        options: dict[str, Any] = {"source_column": source_column, "target_column": target_column}
        options |= {"source_prefix": source_prefix, "max_length": max_length, "max_target_length": max_target_length}
        options |= {"num_beams": num_beams, "batch_size": batch_size, "dtype": dtype}
        folders = {split: None if output_dir is None else Path(output_dir, split) for split in dataset}
        return DatasetDict(
            {
                split: add_teacher_texts(rows, teacher, tokenizer, output_dir=folders[split], **options)
                for split, rows in dataset.items()
            }
        )
    model = check_writer(dataset, teacher, source_column, target_column, dtype)
    _check_texts(dataset, source_column)
    longest = longest_text(model, max_target_length)
    check_numbers(longest, num_beams, batch_size)
    length = length_of_rows(max_length, tokenizer, model)
    target_dtype = model.dtype if dtype is None else getattr(torch, dtype)
    searching = {"num_beams": num_beams, "max_length": longest + 1, **language_options(tokenizer)}
    manifest = {
        "teacher": record_of(model, target_dtype),
        "tokenizer": {
            "vocabulary": vocabulary_fingerprint(tokenizer),
            **{name: getattr(tokenizer, name, None) for name in ("truncation_side", "src_lang", "tgt_lang")},
        },
        "dataset": {"fingerprint": dataset._fingerprint, "rows": len(dataset), "column": source_column},
        "options": {"source_prefix": source_prefix, "source_length": length, **searching},
    }
    writer = _Writer(model, tokenizer, source_column, source_prefix, length, batch_size, target_dtype, searching)
    return with_texts(dataset, target_column, manifest, writer, output_dir)


class TextWriter(ABC):
    """Generates the texts of a shard with a teacher.

    Args:
        model: the teacher.
        batch_size: rows per batch.
        dtype: the dtype that it computes in.
        searching: options of `generate`.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int, dtype: torch.dtype, searching: Mapping[str, Any]):
        self.model, self.batch_size, self.dtype = model, batch_size, dtype
        self.options = {**searching, "do_sample": False, "num_return_sequences": 1, "max_new_tokens": None}

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """While the context is open, `model` is on the device and computes in `dtype`."""
        given = self.model
        try:
            with placed(given, device, self.dtype) as self.model:
                yield
        finally:
            self.model = given

    @abstractmethod
    def __call__(self, rows: dict[str, list], done: Callable[[int], object]) -> pa.Table:
        """A table with the column `text`. Calls `done` with the number of rows after each batch."""

    @torch.inference_mode()
    def generate(self, decode: Callable[..., list[str]], **inputs: torch.Tensor) -> list[str]:
        """The texts of a batch."""
        generated = self.model.generate(**inputs, **self.options)
        return [text.strip() for text in decode(generated, skip_special_tokens=True)]


def with_texts(
    dataset: Dataset,
    column: str,
    manifest: Mapping[str, object],
    writer: TextWriter,
    output_dir: str | os.PathLike | None,
) -> Dataset:
    """The dataset with a new column of texts: those that are stored, and else those of the writer.

    Args:
        dataset: the rows.
        column: the new column.
        manifest: everything that the texts depend on.
        writer: writes the texts.
        output_dir: the folder for the texts; None for one in the cache of `datasets`.
    """
    rows_per_shard = max(BATCHES_PER_SHARD * writer.batch_size, -(-len(dataset) // MOST_SHARDS))
    store = TextStore(output_dir, dataset, manifest, rows_per_shard)
    store.fill_shards(lambda rows, _, done: writer(rows, done), writer.ready, "Writing with the teacher")
    texts = store.load()
    if num_empty := sum(not text for text in texts["text"]):
        logger.warning(f"The teacher wrote nothing for {num_empty} of {len(texts)} sources: remove these rows.")
    return with_columns(dataset, texts.rename_column("text", column))


class _Writer(TextWriter):
    """Writes the texts for source texts."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        column: str,
        prefix: str,
        max_length: int,
        batch_size: int,
        dtype: torch.dtype,
        searching: Mapping[str, Any],
    ):
        super().__init__(model, batch_size, dtype, searching)
        self.tokenizer, self.column, self.prefix, self.max_length = tokenizer, column, prefix, max_length

    def __call__(self, rows: dict[str, list], done: Callable[[int], object]) -> pa.Table:
        sources = [self.prefix + text for text in rows[self.column]]
        encoded = self.tokenizer(sources, max_length=self.max_length, truncation=True)["input_ids"]
        order = sorted(range(len(sources)), key=lambda index: -len(encoded[index]))  # most memory comes first
        texts = [""] * len(sources)
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = {"input_ids": [encoded[index] for index in indices]}
            inputs = self.tokenizer.pad(batch, return_tensors="pt", padding_side="right").to(self.model.device)
            for index, text in zip(indices, self.generate(self.tokenizer.batch_decode, **inputs), strict=True):
                texts[index] = text
            done(len(indices))
        return pa.table({"text": texts})


def check_writer(
    dataset: Dataset,
    teacher: PreTrainedModel | PeftModel,
    source_column: str,
    target_column: str,
    dtype: str | None,
    auto_class: str = "AutoModelForSeq2SeqLM",
    source: str = "source texts",
) -> PreTrainedModel:
    """The teacher without its wrapper, after all checks.

    Args:
        dataset, teacher, source_column, target_column, dtype: as in `add_teacher_texts`.
        auto_class: loads such teachers, for errors.
        source: what the source column has, for errors.
    """
    if not isinstance(teacher, PreTrainedModel | PeftModel):
        raise TypeError(
            f"teacher should be a transformers model, but is a {type(teacher).__name__}: load it with "
            f"{auto_class}.from_pretrained(...)."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset should be a datasets.Dataset, but is a {type(dataset).__name__}: load it without streaming, or "
            f"create one with Dataset.from_list(rows)."
        )
    model = transformers_model(teacher)
    if not (model.config.is_encoder_decoder and model.can_generate()):
        raise ValueError(
            f"A {type(model).__name__} does not write targets for {source}: load a sequence-to-sequence model with "
            f"{auto_class}."
        )
    if dtype not in (None, *get_args(TeacherDtype)):
        raise ValueError(f"dtype={dtype!r} should be one of {', '.join(map(repr, get_args(TeacherDtype)))}.")
    if source_column not in dataset.column_names:
        raise ValueError(f"The dataset has no column {source_column!r}, only {', '.join(dataset.column_names)}.")
    if target_column in dataset.column_names:
        raise ValueError(
            f"The dataset already has the column {target_column!r}: choose another target_column, or remove it first."
        )
    if len(dataset) == 0:
        raise ValueError("The dataset is empty: give it at least one row.")
    return model


def _check_texts(dataset: Dataset, column: str) -> None:
    texts = dataset[column][:]
    if bad := [number for number, text in enumerate(texts, start=1) if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"Row {bad[0]} has no text in the column {column!r}: remove it.")


def record_of(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
    """What texts depend on in the teacher that writes them."""
    return {
        "name": public_name(model.config._name_or_path),
        "fingerprint": fingerprint(model.named_parameters()),
        "dtype": str(dtype),
        "generation": _settings(model),
    }


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the generation config sets."""
    settings = model.generation_config.to_diff_dict()
    return {name: value for name, value in settings.items() if name != "transformers_version" and name[0] != "_"}


def longest_text(model: PreTrainedModel, given: int | None) -> int:
    """The most tokens of a text without the first, which starts the decoder: as given, or by the generation config.

    Raises:
        ValueError: if neither says it.
    """
    if given is not None:
        return given
    config = model.generation_config
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is None:
        raise ValueError(
            f"The generation config of {model.name_or_path or type(model).__name__} has no maximum length: set "
            f"max_target_length."
        )
    return config.max_length - 1


def check_numbers(max_target_length: int, num_beams: int, batch_size: int) -> None:
    numbers = {"max_target_length": max_target_length, "num_beams": num_beams, "batch_size": batch_size}
    if bad := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
        raise ValueError(f"{' and '.join(bad)} must be 1 or more.")
