"""`add_teacher_targets`: computes a teacher's targets once and stores them as columns of the dataset."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.adapters import transformers_model
from hf_distill.data import SeparateDocuments
from hf_distill.embedding import as_embedding_model
from hf_distill.fingerprints import fingerprint
from hf_distill.hub.push import public_name
from hf_distill.training.scoring.alignment import head_spec
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.widths import hidden_width, vocab_size
from hf_distill.training.teacher.columns import (
    TARGET_COLUMNS,
    EmbeddingDtype,
    Source,
    default_top_k,
    vocabulary_fingerprint,
)
from hf_distill.training.teacher.mass import MIN_MASS, StoredMass
from hf_distill.training.teacher.reader import TargetReader
from hf_distill.training.teacher.store import TargetStore
from hf_distill.training.training_args import DEFAULT_TEMPERATURE, TeacherDtype

MOST_SAMPLES = 2**16 - 1
"""The limit of `num_samples`: a token may be drawn that often, and its count takes 2 bytes at most."""


def add_teacher_targets(
    dataset: Dataset | DatasetDict,
    teacher: PreTrainedModel | PeftModel,
    processing_class: object = None,
    *,
    text_columns: str | Sequence[str] | None = None,
    hidden_states: bool = False,
    top_k: int | None = None,
    num_samples: int | None = None,
    temperature: float | None = None,
    min_mass: float | None = None,
    batch_size: int = 64,
    dtype: TeacherDtype | None = None,
    embedding_dtype: EmbeddingDtype | None = None,
    attention: SeparateDocuments | None = None,
    output_dir: str | os.PathLike | None = None,
) -> Dataset | DatasetDict:
    """Runs the teacher once on a dataset, and returns the dataset with the teacher's outputs as additional columns.

    `DistillationTrainer` then needs no `teacher_model`. Each row carries its own targets, so they survive shuffling,
    filtering, epochs, several processes, `save_to_disk` and `push_to_hub`. A repeated call loads the stored targets. An
    interrupted call continues where it stopped. With `accelerate launch` or `torchrun`, each process takes a share
    of the rows.

    | column | content of a row, as a flat list | for |
    |---|---|---|
    | `teacher_logits` | logits, `[classes]` or `[tokens * classes]`, float32 | classification, question answering |
    | `teacher_top_log_probs` | log-probabilities, `[tokens * top_k]`, float16 | language models |
    | `teacher_top_ids` | token ids, `[tokens * top_k]`, uint16 or int32 | language models |
    | `teacher_log_tail` | log-probability of all other tokens, `[tokens]`, float16 | language models |
    | `teacher_embeddings` | the vector, `[width]`, float16, float32 or int8 | embedding models |
    | `teacher_embedding_scale` | what an int8 vector is multiplied by, `[1]`, float32 | embedding models |
    | `teacher_sampled_ids` | sampled token ids, `[distinct]`, uint16 or int32 | language models, `num_samples` |
    | `teacher_sampled_counts` | how often each was drawn, `[distinct]`, uint8 | the same; they sum to `num_samples` |
    | `teacher_hidden_states` | last hidden states, `[tokens * width]`, float16 | `alpha_cos` |
    | `teacher_source` | the teacher, a `ClassLabel` | all |

    `tokens` counts the tokens that are not padding; for a sequence-to-sequence model, the tokens of the target. Token
    ids take 2 bytes if the vocabulary has at most 65,536 entries, else 4. A log-probability in float16 is exact to 1
    part in 2,048; one of -65504 is a probability of 0.

    Args:
        dataset: rows as the trainer reads them (`input_ids` and so on), or text with `text_columns`. A function set by
            `set_transform` should pass on columns that it does not know.
        teacher: the teacher. It is not changed.
        processing_class: pads the batches; usually the teacher's tokenizer. The trainer checks that the student uses
            the same one.
        text_columns: one or two columns of text, which the teacher reads with its own tokenizer, `processing_class`.
            Teacher and student may then have different tokenizers. Only for heads with one distribution per text.
        hidden_states: also store the last hidden states, for `alpha_cos`. They take `2 * width` bytes per token.
        top_k: for language models, how many of the most likely tokens to store per position. Each takes 4 bytes, or 6
            if ids take 4, and the tail 2. By default as many as fit in 120 bytes: 29, or 19.
        num_samples: for language models, how many tokens to draw per position from the teacher's distribution, with
            replacement, instead of the `top_k` most likely. From 1 to 65,535; 40 fit in 120 bytes, or 24 if ids take 4,
            because each distinct one takes 3 bytes, or 5. Only for `divergence="forward_kl"`, whose gradient is then
            unbiased. The draws depend on the teacher's weights and on the position of a row in the dataset, not on the
            batch size or the number of processes.
        temperature: for language models, the temperature of the training; by default 2.
        min_mass: for language models, the least probability that the `top_k` tokens must hold, as a mean over all
            tokens, from 0 to 1; by default 0.5. The student learns only the total of the rest. The higher the
            temperature, the less they hold.
        batch_size: rows per forward. Rows of similar length share a batch.
        dtype: the dtype that the teacher computes in; by default its own.
        embedding_dtype: for embedding models, how their vectors are stored: `"float16"` (the default), `"float32"` or
            `"int8"`, which takes a quarter of float32.
        attention: for packed rows, `SeparateDocuments(teacher)` keeps documents apart, as the training's collator does.
            By default a row is read as one text.
        output_dir: the folder for the targets; by default one in the cache of `datasets`. For a `DatasetDict`, it gets
            a folder per split.

    Returns:
        The dataset, or the `DatasetDict`, with the additional columns.

    Raises:
        TypeError: if `teacher` is not a transformers model, or if `dataset` is not a `Dataset` (a stream, for example).
        ValueError: if the teacher's targets cannot be stored, as in masked language modelling; if columns are missing
            or exist already; if an option would have no effect, such as `top_k` with `num_samples`; if the `top_k`
            tokens hold less than `min_mass`; or if `output_dir` has targets of another teacher, tokenizer or dataset.
        FloatingPointError: if the teacher's outputs are not finite.
        OSError: if the targets cannot be written, for instance on a full disk. Finished shards are kept.

    Reference: Anshumann et al., 2025, Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs,
    https://arxiv.org/abs/2503.16870, for `num_samples`

    Example:
        >>> train = add_teacher_targets(train, teacher, tokenizer, dtype="bfloat16")
        >>> train["teacher_logits"][0]
        [-2.18, 2.53]
        >>> args = DistillationTrainingArguments(output_dir="student", alpha_cos=0)
        >>> DistillationTrainer(make_student(teacher), args, train_dataset=train, processing_class=tokenizer).train()
    """
    if isinstance(dataset, DatasetDict):
        options: dict[str, Any] = {"text_columns": text_columns, "hidden_states": hidden_states, "top_k": top_k}
        options |= {"num_samples": num_samples, "attention": attention}
        options |= {"temperature": temperature, "min_mass": min_mass, "batch_size": batch_size, "dtype": dtype}
        options["embedding_dtype"] = embedding_dtype
        folders = {split: None if output_dir is None else Path(output_dir, split) for split in dataset}
        return DatasetDict(
            {
                split: add_teacher_targets(rows, teacher, processing_class, output_dir=folders[split], **options)
                for split, rows in dataset.items()
            }
        )
    teacher = as_embedding_model(teacher)
    if not isinstance(teacher, PreTrainedModel | PeftModel):
        raise TypeError(
            f"teacher should be a transformers model, but is a {type(teacher).__name__}: load it with "
            f"AutoModelForSequenceClassification.from_pretrained(...) or a similar class."
        )
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset should be a datasets.Dataset, but is a {type(dataset).__name__}: load it without streaming, or "
            f"create one with Dataset.from_list(rows)."
        )
    if dtype not in (None, *get_args(TeacherDtype)):
        raise ValueError(f"dtype={dtype!r} should be one of {', '.join(map(repr, get_args(TeacherDtype)))}.")
    model = transformers_model(teacher)
    head = find_head(model)
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns or [])
    _check_columns(dataset, model, text_columns, processing_class)
    of_tokens = {"top_k": top_k, "num_samples": num_samples, "temperature": temperature, "min_mass": min_mass}
    _check_options(head, model, text_columns, hidden_states, of_tokens, embedding_dtype)

    if attention is not None and attention.is_padding_free:
        raise ValueError(
            f"attention joins all rows of a batch into one with attn_implementation="
            f"{model.config._attn_implementation!r}, so targets would fit no row: load the "
            f"teacher with 'sdpa' or 'eager'."
        )
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
        top_k=None if num_words is None or num_samples else min(top_k or default_top_k(num_words), num_words),
        temperature=(temperature or DEFAULT_TEMPERATURE) if head.over_vocabulary else None,
        embedding_dtype=(embedding_dtype or "float16") if head.has_embeddings else None,
        num_samples=num_samples,
        separate_documents=attention is not None,
    )
    store = TargetStore(output_dir, dataset, source, {"text_columns": text_columns, **_limits(processing_class)})
    reader = TargetReader(model, source, processing_class, text_columns, batch_size, target_dtype, attention)
    if source.top_k is None:
        store.fill(reader)
        return with_columns(dataset, store.load())
    least = MIN_MASS if min_mass is None else min_mass
    store.fill(reader, StoredMass(source, least))
    targets = store.load()
    StoredMass(source, least).report(targets)
    return with_columns(dataset, targets)


def with_columns(dataset: Dataset, targets: Dataset) -> Dataset:
    """Returns a dataset with the columns of `targets` in addition, in its own format."""
    both = concatenate_datasets([dataset.with_format(None), targets], axis=1)
    if dataset.format["type"] is not None:
        columns = None if dataset.format["type"] == "custom" else [*dataset.format["columns"], *targets.column_names]
        options = {"output_all_columns": dataset.format["output_all_columns"], **dataset.format["format_kwargs"]}
        both.set_format(dataset.format["type"], columns, **options)
    return both


def targets_of(dataset: Dataset) -> Dataset:
    """Only the columns of a dataset that store a teacher's targets."""
    return dataset.with_format(None).select_columns([name for name in TARGET_COLUMNS if name in dataset.column_names])


def _check_columns(dataset: Dataset, model: PreTrainedModel, text_columns: list[str], processing_class: object) -> None:
    if there := [name for name in TARGET_COLUMNS if name in dataset.column_names]:
        raise ValueError(f"The dataset already has targets: to compute new ones, call remove_columns({there}) first.")
    if text_columns and not isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(f"text_columns={text_columns} needs a tokenizer: pass the teacher's as processing_class.")
    if not text_columns and processing_class is None and model.main_input_name == "input_ids":
        raise ValueError("processing_class is missing: pass the tokenizer that the rows were tokenised with.")
    computed = dataset.format["type"] == "custom"  # set_transform may add columns
    read = text_columns or ([] if computed else [model.main_input_name])
    if missing := [name for name in read if name not in dataset.column_names]:
        hint = "" if text_columns else " Tokenise the rows first, or pass the names of text columns as text_columns."
        raise ValueError(
            f"The dataset has no column {', '.join(missing)}, only {', '.join(dataset.column_names)}.{hint}"
        )
    if len(dataset) == 0:
        raise ValueError("The dataset is empty: give it at least one row.")


def _check_options(
    head: Head,
    model: PreTrainedModel,
    text_columns: list[str],
    hidden_states: bool,
    of_tokens: dict[str, Any],
    embedding_dtype: str | None,
) -> None:
    name = type(model).__name__
    if embedding_dtype not in (None, *get_args(EmbeddingDtype)):
        allowed = ", ".join(map(repr, get_args(EmbeddingDtype)))
        raise ValueError(f"embedding_dtype={embedding_dtype!r} should be one of {allowed}.")
    if embedding_dtype is not None and not head.has_embeddings:
        raise ValueError(f"embedding_dtype={embedding_dtype!r} would have no effect for a {name}: leave it out.")
    if hidden_states and head.has_embeddings:
        raise ValueError("For embedding models only vectors are stored: leave hidden_states out.")
    if not head.has_logits and not head.has_embeddings:
        raise ValueError(
            f"A {name} has no head, so there are no logits to store: load it with a class such as "
            f"AutoModelForSequenceClassification, or pass it to the trainer as teacher_model."
        )
    if not head.can_be_stored:
        raise ValueError(
            f"The targets of a {name} cannot be stored, because other tokens are masked in every epoch: pass "
            f"teacher_model to the trainer. Targets can be stored for classification, token classification, question "
            f"answering, multiple choice, and causal and sequence-to-sequence language models."
        )
    set_ = {option: value for option, value in of_tokens.items() if value is not None}
    if set_ and not head.over_vocabulary:
        raise ValueError(f"{set_} would have no effect for a {name}, because all its logits are stored: leave it out.")
    if not 0 <= set_.get("min_mass", 0) <= 1:
        raise ValueError(f"min_mass={set_['min_mass']} should be from 0 to 1.")
    if (num_samples := set_.pop("num_samples", None)) is not None:
        if type(num_samples) is not int or not 0 < num_samples <= MOST_SAMPLES:
            raise ValueError(f"num_samples={num_samples!r} should be a whole number from 1 to {MOST_SAMPLES}.")
        if others := {option: value for option, value in set_.items() if option != "temperature"}:
            raise ValueError(
                f"{others} would have no effect with num_samples={num_samples}, which stores sampled tokens instead of "
                f"the most likely ones: leave out {' and '.join(others)}, or num_samples."
            )
    if any(value <= 0 for option, value in set_.items() if option != "min_mass"):
        raise ValueError(f"{set_} should be above 0.")
    if text_columns and (hidden_states or not head.takes_text_columns):
        what = "Hidden states" if hidden_states else f"The logits of a {name}"
        raise ValueError(
            f"{what} belong to the teacher's tokens, which may differ from the student's: tokenise the rows, and leave "
            f"out text_columns."
        )
    if hidden_states and (model.main_input_name != "input_ids" or hidden_width(model.config) is None):
        raise ValueError(
            f"Hidden states can only be stored for models that read text, not for a {name}: set hidden_states=False."
        )


def _limits(processing_class: object) -> dict[str, object]:
    """The tokenizer settings, other than the vocabulary, that change how it reads text."""
    return {name: getattr(processing_class, name, None) for name in ("model_max_length", "truncation_side")}
