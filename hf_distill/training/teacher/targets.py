"""What a teacher says of a data set, computed once and kept as columns of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.adapters import transformers_model
from hf_distill.hub.push import public_name
from hf_distill.training.scoring.alignment import head_spec
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.widths import hidden_width, vocab_size
from hf_distill.training.teacher.columns import TARGET_COLUMNS, Source, vocabulary_fingerprint
from hf_distill.training.teacher.live import fingerprint
from hf_distill.training.teacher.mass import MIN_MASS, StoredMass
from hf_distill.training.teacher.reader import TargetReader
from hf_distill.training.teacher.store import TargetStore
from hf_distill.training.training_args import DistillationTrainingArguments, TeacherDtype

TOP_K = 64


def add_teacher_targets(
    dataset: Dataset | DatasetDict,
    teacher: PreTrainedModel | PeftModel,
    processing_class: object = None,
    *,
    text_columns: str | Sequence[str] | None = None,
    hidden_states: bool = False,
    top_k: int | None = None,
    temperature: float | None = None,
    min_mass: float | None = None,
    batch_size: int = 64,
    dtype: TeacherDtype | None = None,
    output_dir: str | os.PathLike | None = None,
) -> Dataset | DatasetDict:
    """Runs the teacher once, and returns the data set with what it said of each row as further columns.

    `DistillationTrainer` then needs no `teacher_model`. As each row carries its own targets, they stay with it through
    shuffling, filtering, epochs, processes, `save_to_disk` and `push_to_hub`. A repeated call reads what is there, and
    one that was interrupted goes on. With `accelerate launch` or `torchrun`, each process takes a share of the rows.

    | column | of each row, flat | for |
    |---|---|---|
    | `teacher_logits` | `[classes]`, or `[tokens * classes]`; float32 | classification, question answering, ... |
    | `teacher_top_log_probs` | `[tokens * top_k]`; float32 | language models |
    | `teacher_top_ids` | `[tokens * top_k]`; int32 | language models |
    | `teacher_log_tail` | `[tokens]`, of the probability of all other tokens; float32 | language models |
    | `teacher_hidden_states` | `[tokens * width]`, the last ones; float16 | `alpha_cos` |
    | `teacher_source` | a `ClassLabel` that says which teacher | all |

    Tokens are those that are not padding; of a sequence-to-sequence model, those of the target.

    Args:
        dataset: rows as the trainer gets them, `input_ids` and so on; or, with `text_columns`, text. A function that is
            set by `set_transform` should pass on the columns that are new to it.
        teacher: the model. It is left as it is.
        processing_class: what pads its batches, most often its tokenizer. The trainer checks that it is the student's.
        text_columns: one column of text, or two, which the teacher reads with its own tokenizer, the
            `processing_class`. Teacher and student may then be of different families. For heads that give one
            distribution for a text.
        hidden_states: also store the last hidden states, for `alpha_cos`. They take `2 * width` bytes per token.
        top_k: for language models, how many of the likeliest tokens to store; by default 64. They take 8 bytes each.
        temperature: for language models, that of the training; by default 2.
        min_mass: for language models, how much of the teacher's probability the `top_k` tokens should hold, as a mean
            over all tokens; by default 0.5. Of the rest the student learns only the total. The higher the temperature,
            the less they hold.
        batch_size: rows that the teacher reads at a time. Those of like length share a batch.
        dtype: what the teacher computes in; by default its own.
        output_dir: a folder for the targets; by default one in the cache of `datasets`. For a `DatasetDict`, one with a
            folder for each split.

    Raises:
        TypeError: if the teacher is no transformers model, or the data set has no rows to add to, as a stream.
        ValueError: if the teacher's targets cannot be stored, as in masked language modelling; if columns are missing
            or there already; if an option would have no effect; if the `top_k` tokens hold less than `min_mass`; or if
            `output_dir` has targets of another teacher, tokenizer or data set.
        FloatingPointError: if the teacher's outputs are not finite.
        OSError: if the targets cannot be written, as on a full disk. Those that were are kept.

    Example:
        >>> train = add_teacher_targets(train, teacher, tokenizer, dtype="bfloat16")
        >>> train["teacher_logits"][0]
        [-2.18, 2.53]
        >>> args = DistillationTrainingArguments(output_dir="student", alpha_cos=0)
        >>> DistillationTrainer(make_student(teacher), args, train_dataset=train, processing_class=tokenizer).train()
    """
    if isinstance(dataset, DatasetDict):
        options: dict[str, Any] = {"text_columns": text_columns, "hidden_states": hidden_states, "top_k": top_k}
        options |= {"temperature": temperature, "min_mass": min_mass, "batch_size": batch_size, "dtype": dtype}
        folders = {split: None if output_dir is None else Path(output_dir, split) for split in dataset}
        return DatasetDict(
            {
                split: add_teacher_targets(rows, teacher, processing_class, output_dir=folders[split], **options)
                for split, rows in dataset.items()
            }
        )
    if not isinstance(teacher, PreTrainedModel | PeftModel):
        raise TypeError(
            f"teacher should be a transformers model, but is a {type(teacher).__name__}: pass what "
            f"AutoModelForSequenceClassification.from_pretrained(...) or the like returns."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset should be a datasets.Dataset, but is a {type(dataset).__name__}: columns are added to rows that "
            f"are there, so load it without streaming, or make it with Dataset.from_list(rows)."
        )
    if dtype not in (None, *get_args(TeacherDtype)):
        raise ValueError(f"dtype={dtype!r} should be one of {', '.join(map(repr, get_args(TeacherDtype)))}.")
    model = transformers_model(teacher)
    head = find_head(model)
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns or [])
    _check_columns(dataset, model, text_columns, processing_class)
    _check_options(head, model, text_columns, hidden_states, top_k, temperature, min_mass)

    target_dtype = model.dtype if dtype is None else getattr(torch, dtype)
    num_words = vocab_size(model.config) if head.over_vocabulary else None
    source = Source(
        teacher=public_name(model.config._name_or_path),
        fingerprint=fingerprint(model.named_parameters()),
        dtype=str(target_dtype),
        head_spec=head_spec(model),
        vocabulary=vocabulary_fingerprint(processing_class),
        reads_text=bool(text_columns),
        hidden_states=hidden_states,
        top_k=None if num_words is None else min(top_k or TOP_K, num_words),
        temperature=(temperature or DistillationTrainingArguments.temperature) if head.over_vocabulary else None,
    )
    store = TargetStore(output_dir, dataset, source, {"text_columns": text_columns, **_limits(processing_class)})
    reader = TargetReader(model, source, processing_class, text_columns, batch_size, target_dtype)
    if source.top_k is None:
        store.fill(reader)
        return _beside(dataset, store.load())
    least = MIN_MASS if min_mass is None else min_mass
    store.fill(reader, StoredMass(source, least))
    targets = store.load()
    StoredMass(source, least).report(targets)
    return _beside(dataset, targets)


def _beside(dataset: Dataset, targets: Dataset) -> Dataset:
    """The columns of both, in the format of the first."""
    both = concatenate_datasets([dataset.with_format(None), targets], axis=1)
    if dataset.format["type"] is not None:
        columns = None if dataset.format["type"] == "custom" else [*dataset.format["columns"], *targets.column_names]
        options = {"output_all_columns": dataset.format["output_all_columns"], **dataset.format["format_kwargs"]}
        both.set_format(dataset.format["type"], columns, **options)
    return both


def _check_columns(dataset: Dataset, model: PreTrainedModel, text_columns: list[str], processing_class: object) -> None:
    if there := [name for name in TARGET_COLUMNS if name in dataset.column_names]:
        raise ValueError(f"The data set has targets already: to make others, call remove_columns({there}) first.")
    if text_columns and not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(f"text_columns={text_columns} need the teacher's tokenizer as processing_class.")
    if not text_columns and processing_class is None and model.main_input_name == "input_ids":
        raise ValueError("processing_class should be the tokenizer that the rows were made with: it pads the batches.")
    computed = dataset.format["type"] == "custom"  # set_transform makes columns that are not there yet
    read = text_columns or ([] if computed else [model.main_input_name])
    if missing := [name for name in read if name not in dataset.column_names]:
        hint = "" if text_columns else " Tokenise the rows first, or name the columns of text as text_columns."
        raise ValueError(
            f"The data set has no column {', '.join(missing)}, only {', '.join(dataset.column_names)}.{hint}"
        )
    if len(dataset) == 0:
        raise ValueError("The data set is empty: give it at least one row.")


def _check_options(
    head: Head,
    model: PreTrainedModel,
    text_columns: list[str],
    hidden_states: bool,
    top_k: int | None,
    temperature: float | None,
    min_mass: float | None,
) -> None:
    name = type(model).__name__
    if not head.can_be_stored:
        raise ValueError(
            f"What a {name} says of masked tokens cannot be stored, as other tokens are masked in every epoch: give "
            f"the trainer teacher_model. Stored can be what classification, token classification, question answering, "
            f"multiple choice, causal and sequence-to-sequence language models say."
        )
    options = {"top_k": top_k, "temperature": temperature, "min_mass": min_mass}
    set_ = {option: value for option, value in options.items() if value is not None}
    if set_ and not head.over_vocabulary:
        raise ValueError(f"{set_} would have no effect for a {name}, of which all logits are stored: leave it out.")
    if min_mass is not None and not 0 <= min_mass <= 1:
        raise ValueError(f"min_mass={min_mass} should be from 0 to 1.")
    if any(value <= 0 for option, value in set_.items() if option != "min_mass"):
        raise ValueError(f"{set_} should be above 0.")
    if text_columns and (hidden_states or not head.takes_text_columns):
        what = "Hidden states" if hidden_states else f"The logits of a {name}"
        raise ValueError(
            f"{what} belong to the teacher's tokens, which need not be the student's: tokenise the rows, and leave out "
            f"text_columns."
        )
    if hidden_states and (model.main_input_name != "input_ids" or hidden_width(model.config) is None):
        raise ValueError(f"Hidden states can be stored of models that read text, and not of a {name}.")


def _limits(processing_class: object) -> dict[str, object]:
    """What of a tokenizer changes how it reads text, beside its words."""
    return {name: getattr(processing_class, name, None) for name in ("model_max_length", "truncation_side")}
