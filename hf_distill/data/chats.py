"""Loads chats, and turns them into rows of tokens whose labels are the assistant's turns."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distill.data.corpus import load_rows
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.data.packing import check_length, end_of_document
from hf_distill.data.showing import listed_rows, short
from hf_distill.data.truncation import count_special_tokens

logger = logging.get_logger(__name__)

MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"

KINDS = ((MESSAGES,), (PROMPT, COMPLETION))
"""The columns of chats, either of these."""

ASSISTANT = "assistant"

TooLong = Literal["error", "truncate", "leave_out"]

Span = tuple[int, int]
"""Begin and end of a part of a text, in characters."""


def has_chats(columns: Sequence[str]) -> bool:
    """True for the columns of chats, and not of plain texts."""
    return any(set(kind) <= set(columns) for kind in KINDS)


def load_chats(source: str | Sequence[str], split: str = "train", **options) -> Dataset:
    """Loads chats, or prompts with their completions.

    | columns | a row |
    |---|---|
    | `messages` | a list of `{"role": "user", "content": "..."}`, with at least one turn of the role `assistant` |
    | `prompt`, `completion` | two texts, which are read one after the other without a chat template |
    | `prompt`, `completion` | two lists of messages |

    The column `tools`, if there is one, is passed to the chat template.

    Args:
        source: JSON, JSON Lines or Parquet files, or anything else that `load_corpus` reads.
        split: split to load, as in `datasets.load_dataset`. All files belong to `"train"`.
        **options: passed to `datasets.load_dataset`, such as `name` and `revision` of a Hub dataset.

    Returns:
        A dataset with these columns alone.

    Raises:
        ValueError: if columns are missing; or if a row has no messages, a message without role or content, or no turn
            of the assistant. Rows are counted from 1.

    Example:
        >>> chats = load_chats("HuggingFaceTB/smoltalk", split="train", name="everyday-conversations")
        >>> pairs = load_chats("instructions.jsonl")
    """
    name = source if isinstance(source, str) else ", ".join(source)
    rows = load_rows(source, split, **options)
    kind = next((kind for kind in KINDS if set(kind) <= set(rows.column_names)), None)
    if kind is None:
        raise ValueError(
            f"{name} has no column 'messages', and no columns 'prompt' and 'completion', only "
            f"{', '.join(rows.column_names)}."
        )
    if not len(rows):
        raise ValueError(f"{name} has no rows: give a dataset with at least one row.")
    rows = rows.select_columns([*kind, *(["tools"] if "tools" in rows.column_names else [])])
    without_answer = []
    for number, row in enumerate(rows, start=1):
        try:
            if not _check(row):
                without_answer.append(number)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
    if without_answer:
        raise ValueError(
            f"{name} has no turn of the role 'assistant', so nothing to learn, in {listed_rows(without_answer)}: "
            f"remove these rows. Other names of roles must be replaced by system, user and assistant."
        )
    return rows


def encode_chats(
    chats: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    assistant_only_loss: bool = True,
    too_long: TooLong = "error",
) -> Dataset:
    """Turns chats into rows of tokens. The loss reads only tokens with a label: those that the assistant writes.

    Messages are written by the tokenizer's chat template. If the template marks what the assistant writes
    (`{% generation %}`), these are the labels. Otherwise each turn of the assistant is what the template adds to the
    messages before it and the prompt for an answer, so the token that ends the turn has a label, but not the words
    that begin it. Of a prompt and its completion, the completion has labels. A completion that is a text ends with
    `tokenizer.eos_token`.

    Args:
        chats: rows from `load_chats`.
        tokenizer: the tokenizer of teacher and student.
        max_length: tokens per row.
        assistant_only_loss: whether only the assistant's tokens have labels. False gives every token a label.
        too_long: what happens to chats of more than `max_length` tokens: `"error"`; `"truncate"` cuts off their end;
            `"leave_out"` removes them.

    Returns:
        A dataset with `input_ids`, `attention_mask`, `labels` (-100 where there is none) and `length`. Batch it with
        `DataCollatorForCausalLM`, or pack it with `pack_chats`.

    Raises:
        ValueError: if the tokenizer has no chat template; if the template without marks writes the messages of a chat
            in another way when more follow, as some leave out earlier thoughts; if chats are too long; or if no chat
            is left.

    Example:
        >>> rows = encode_chats(load_chats("chats.jsonl"), tokenizer, max_length=2048)
    """
    rows, is_kept = encode_each_chat(
        chats, tokenizer, max_length, assistant_only_loss=assistant_only_loss, too_long=too_long
    )
    return rows if all(is_kept) else rows.select([row for row, kept in enumerate(is_kept) if kept])


def encode_each_chat(
    chats: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    assistant_only_loss: bool = True,
    too_long: TooLong = "error",
) -> tuple[Dataset, list[bool]]:
    """As `encode_chats`, but with a row for each chat, and whether it is kept."""
    check_length("max_length", max_length, tokenizer)
    if too_long not in get_args(TooLong):
        raise ValueError(f"too_long={too_long!r} must be one of {', '.join(get_args(TooLong))}.")
    rows = chats.map(
        _encode,
        with_indices=True,
        remove_columns=chats.column_names,
        fn_kwargs={"tokenizer": tokenizer, "assistant_only_loss": assistant_only_loss},
        desc="Tokenizing chats",
    )
    if unmarked := [row for row, labels in enumerate(rows["labels"], start=1) if not _has_label(labels)]:
        raise ValueError(
            f"The chat template marks nothing that the assistant writes, in {listed_rows(unmarked)}: correct its "
            f"{{% generation %}} marks, or set assistant_only_loss=False."
        )
    lengths = np.array(rows["length"][:])
    is_long = lengths > max_length
    if is_long.any() and too_long == "error":
        raise ValueError(
            f"Chats have up to {lengths.max():,} tokens, more than max_length={max_length}, in "
            f"{listed_rows([int(row) + 1 for row in is_long.nonzero()[0]])}: raise max_length; or set too_long to "
            f"truncate, which cuts off the ends of answers, or to leave_out."
        )
    if too_long == "truncate":
        rows = rows.map(_truncate, batched=True, fn_kwargs={"max_length": max_length}) if is_long.any() else rows
        is_kept = list(map(_has_label, rows["labels"]))
    else:
        is_kept = (~is_long).tolist()
    if not any(is_kept):
        raise ValueError(f"No chat has an answer within max_length={max_length} tokens: raise it.")
    if left_out := len(is_kept) - sum(is_kept):
        logger.warning(f"{left_out:,} of {len(is_kept):,} chats are too long for max_length={max_length}: left out.")
    return rows, is_kept


def pack_chats(rows: Dataset, block_size: int) -> Dataset:
    """Packs several chats into a row. No chat is split: each goes where the least room remains, long ones first.

    Args:
        rows: rows from `encode_chats`.
        block_size: the most tokens of a row.

    Returns:
        A dataset with `input_ids`, `labels`, and an `attention_mask` that numbers the chats of a row: 1, 2 and so on.
        `SeparateDocuments` keeps them apart.

    Raises:
        ValueError: if a chat has more than `block_size` tokens.

    Reference:
        Best-fit decreasing, as in Ding et al., 2024, Fewer Truncations Improve Language Modeling,
        https://arxiv.org/abs/2404.10830

    Example:
        >>> rows = pack_chats(encode_chats(chats, tokenizer, max_length=2048), block_size=2048)
    """
    longest = max(rows["length"])
    if longest > block_size:
        raise ValueError(f"A chat has {longest} tokens, more than block_size={block_size}: raise it.")
    options = {"batched": True, "remove_columns": rows.column_names, "desc": "Packing chats"}
    return rows.map(_pack, fn_kwargs={"block_size": block_size}, **options)


def _check(row: Mapping[str, Any]) -> bool:
    """Checks the messages or texts of a row. Returns whether it has something that the assistant writes."""
    if MESSAGES in row:
        return any(message["role"] == ASSISTANT for message in _messages(row[MESSAGES], MESSAGES))
    prompt, completion = row[PROMPT], row[COMPLETION]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise ValueError("the completion is empty.")
        return True
    _messages(prompt, PROMPT)
    return any(message["role"] == ASSISTANT for message in _messages(completion, COMPLETION))


def _messages(given: Any, column: str) -> list[dict[str, Any]]:
    """Messages without the empty fields that Arrow adds."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"{column!r} must be a list of messages, but is {short(given)}.")
    messages = []
    for own in given:
        if not isinstance(own, Mapping) or not isinstance(own.get("role"), str):
            raise ValueError(f"a message must have a role and a content, but is {short(own)}.")
        message = {name: value for name, value in own.items() if value is not None}
        if "content" not in message and "tool_calls" not in message:
            raise ValueError(f"the {message['role']}'s message has no content.")
        messages.append(message)
    return messages


def _encode(
    row: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase, assistant_only_loss: bool
) -> dict[str, Any]:
    try:
        ids, has_label = _tokens(row, tokenizer, assistant_only_loss)
    except ValueError as error:
        raise ValueError(f"Row {number + 1}: {error}") from None
    labels = [id_ if own else IGNORE_INDEX for id_, own in zip(ids, has_label, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": len(ids)}


def _tokens(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, assistant_only_loss: bool
) -> tuple[list[int], list[bool]]:
    """The tokens of a row, and whether each has a label."""
    if MESSAGES not in row and isinstance(row[PROMPT], str):
        text = row[PROMPT] + row[COMPLETION]
        ids, has_label = _with_labels(text, [(len(row[PROMPT]), len(text))], tokenizer, add_special_tokens=True)
        ids += end_of_document(tokenizer)
        _, after = count_special_tokens(tokenizer)
        num_ends = len(ids) - len(has_label) or after
        has_label = [*has_label[: len(ids) - num_ends], *[True] * num_ends]
    else:
        prompt = [] if MESSAGES in row else _messages(row[PROMPT], PROMPT)
        messages = _messages(row[MESSAGES], MESSAGES) if MESSAGES in row else _messages(row[COMPLETION], COMPLETION)
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        ids, has_label = _of_messages(prompt, messages, tools or None, tokenizer, assistant_only_loss)
    return ids, has_label if assistant_only_loss else [True] * len(ids)


def _of_messages(
    prompt: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    tools: Any,
    tokenizer: PreTrainedTokenizerBase,
    assistant_only_loss: bool,
) -> tuple[list[int], list[bool]]:
    template = tokenizer.get_chat_template(tools=tools) if tokenizer.chat_template else None
    if template is None:
        raise ValueError(
            "the tokenizer has no chat template: set tokenizer.chat_template, use the tokenizer of an instruct model, "
            "or give texts in the columns 'prompt' and 'completion'."
        )
    whole = prompt + messages
    if not prompt and re.search(r"\{%-?\s*generation\s*-?%\}", template):
        made: Any = tokenizer.apply_chat_template(
            whole, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        return made["input_ids"], [bool(own) for own in made["assistant_masks"]]

    def written(number: int, *, for_answer: bool) -> str:
        text = tokenizer.apply_chat_template(
            whole[:number], tools=tools, tokenize=False, add_generation_prompt=for_answer
        )
        assert isinstance(text, str)  # one chat that is not tokenized
        return text

    text = written(len(whole), for_answer=False)
    if not assistant_only_loss:
        spans = [(0, len(text))]
    elif prompt:
        spans = [_answer(text, written(len(prompt), for_answer=True), text)]
    else:
        spans = list(_turns(text, whole, written))
    return _with_labels(text, spans, tokenizer, add_special_tokens=False)


def _turns(text: str, messages: Sequence[Mapping[str, Any]], written: Callable[..., str]) -> Iterator[Span]:
    """Where the turns of the assistant are in the whole text."""
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        if number == 0:
            raise ValueError("the chat begins with the assistant, before any prompt: leave out this message.")
        yield _answer(text, written(number, for_answer=True), written(number + 1, for_answer=False))


def _answer(text: str, before: str, with_answer: str) -> Span:
    """What an answer adds, without the white space after the token that ends it."""
    if not with_answer.startswith(before) or not text.startswith(with_answer):
        raise ValueError(
            "the chat template writes messages in another way when more follow, so the turns of the assistant cannot "
            "be found: use a template that marks them with {% generation %} and {% endgeneration %}, or set "
            "assistant_only_loss=False."
        )
    return len(before), len(with_answer.rstrip())


def _with_labels(
    text: str, spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool
) -> tuple[list[int], list[bool]]:
    """The tokens of a text, and whether each lies in one of the spans."""
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    starts, ends = np.array(encoded["offset_mapping"]).reshape(-1, 2).T
    inside = np.zeros(len(starts), dtype=bool)
    for start, end in spans:
        inside |= (starts >= start) & (ends <= end) & (ends > starts)
    return encoded["input_ids"], inside.tolist()


def _has_label(labels: Sequence[int]) -> bool:
    """Whether a token has a label, other than the first one, which nothing predicts."""
    return any(label != IGNORE_INDEX for label in labels[1:])


def _truncate(batch: Mapping[str, list], max_length: int) -> dict[str, list]:
    cut = {name: [own[:max_length] for own in batch[name]] for name in ("input_ids", "attention_mask", "labels")}
    return {**cut, "length": [len(own) for own in cut["input_ids"]]}


def _pack(batch: Mapping[str, list], block_size: int) -> dict[str, list]:
    lengths = batch["length"]
    bins: list[list[int]] = []
    room: list[int] = []
    for chat in sorted(range(len(lengths)), key=lambda own: -lengths[own]):
        fitting = [(left, number) for number, left in enumerate(room) if left >= lengths[chat]]
        if fitting:
            _, number = min(fitting)
            bins[number].append(chat)
            room[number] -= lengths[chat]
        else:
            bins.append([chat])
            room.append(block_size - lengths[chat])
    joined = {
        name: [[token for chat in own for token in batch[name][chat]] for own in bins]
        for name in ("input_ids", "labels")
    }
    numbers = [[number for number, chat in enumerate(own, start=1) for _ in range(lengths[chat])] for own in bins]
    return {**joined, "attention_mask": numbers}
