"""Splits contexts into overlapping windows of tokens, and finds the best answers to a question over all windows.

Training, evaluation and predictions all use this file, so that they read the same tokens and decide in the same way. It
needs neither PyTorch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tokenizers import Encoding

MAX_ANSWER_TOKENS = 30
"""Longest answer in tokens, as in the question-answering pipeline of transformers 4."""

NO_ANSWER = 0
"""Token of each window whose start and end logits say that the window has no answer: the first, such as `[CLS]`.

It is never part of the context, also if the tokenizer adds no special tokens: then it is the question's first token.
"""


@dataclass(frozen=True)
class ContextWindow:
    """The tokens of a question and of a part of its context, with the attributes of `Encoding` that are used here.

    Attributes:
        first: index of the first token of the context in this window.
        size: number of tokens of the context in this window.
        skipped: number of tokens of the context before this window.
    """

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    offsets: list[tuple[int, int]]
    first: int
    size: int
    skipped: int

    overflowing: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.ids)


COPIED = ("ids", "type_ids", "attention_mask", "special_tokens_mask", "offsets")


def split_context(encoding: Encoding, max_length: int, stride: int) -> list[ContextWindow]:
    """Splits a tokenized question and context into windows of at most `max_length` tokens.

    Each window has the whole question, the special tokens, and a part of the context. The windows are those of a
    transformers tokenizer with `truncation="only_second"`, `stride` and `return_overflowing_tokens`.

    Args:
        encoding: question and context in one encoding, not truncated.
        max_length: tokens per window.
        stride: tokens of the context that are in both of two neighbouring windows. At most half of the context's
            tokens in a window overlap.

    Raises:
        ValueError: if the context has no tokens; or if it needs several windows, and the question takes more than
            three quarters of each.
    """
    context = [token for token, sequence in enumerate(encoding.sequence_ids) if sequence == 1]
    if not context:
        raise ValueError("The context gives no tokens.")
    room = min(len(context), max_length - len(encoding) + len(context))
    if room < len(context) and 4 * room < max_length:
        raise ValueError(
            f"The question takes {len(encoding) - len(context)} of {max_length} tokens with its special tokens and "
            f"leaves too little room for its context: shorten the question."
        )
    step = room - min(stride, room // 2)
    before, after = context[0], context[-1] + 1
    values = {name: getattr(encoding, name) for name in COPIED}  # each is a copy
    windows = []
    for skipped in range(0, len(context) - room + step, step):
        part = slice(before + skipped, min(before + skipped + room, after))
        tokens: dict[str, Any] = {name: own[:before] + own[part] + own[after:] for name, own in values.items()}
        windows.append(ContextWindow(**tokens, first=before, size=part.stop - part.start, skipped=skipped))
    return windows


def tokens_of_answer(windows: Sequence[ContextWindow], start: int, end: int) -> list[tuple[int, int] | None]:
    """Finds the first and the last token of an answer in each window.

    Args:
        windows: all windows of a context.
        start: first character of the answer in the context.
        end: the character after its last one.

    Returns:
        For each window, the two tokens; None if the window has only a part of the answer, or nothing of it.

    Raises:
        ValueError: if no token of the context overlaps with the answer.
    """
    offsets = _offsets(windows)
    inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start) & (offsets[:, 0] < offsets[:, 1]))
    if not len(inside):
        raise ValueError("The tokenizer gives no tokens for the answer.")
    first, last = int(inside[0]), int(inside[-1])
    return [
        (window.first + first - window.skipped, window.first + last - window.skipped)
        if window.skipped <= first and last < window.skipped + window.size
        else None
        for window in windows
    ]


def best_answers(
    windows: Sequence[ContextWindow],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    context: str,
    max_tokens: int = MAX_ANSWER_TOKENS,
    threshold: float | None = None,
    top_k: int | None = 1,
) -> list[dict[str, Any]]:
    """Finds the most likely answers to a question in all windows of its context.

    The logit of an answer is that of its start plus that of its end, in the window that gives it the highest one. The
    logit of no answer is that of the first token, in the window that gives it the lowest one, as in Devlin et al.,
    2018, https://arxiv.org/abs/1810.04805, section 4.3, and in the example scripts of transformers.

    Args:
        windows: all windows of the context.
        start_logits: `[tokens]`, for the windows one after the other.
        end_logits: `[tokens]`, the same for the ends.
        context: the context.
        max_tokens: longest answer in tokens.
        threshold: the best answer is that there is none if its logit is more than this above that of the best answer
            in the context. None if there always is an answer.
        top_k: number of answers, most likely first; None for all.

    Returns:
        `{"answer", "score", "start", "end"}` for each answer. The score is P(start) * P(end). No answer is the empty
        string from 0 to 0; it comes before the answers whose logit plus the threshold is below its own.

    Raises:
        ValueError: if no token of the context has text.
    """
    starts, ends, spans, no_answer = _logits(windows, start_logits, end_logits, context, max_tokens)
    normalizer = _log_sum_exp(starts) + _log_sum_exp(ends)
    if threshold is not None:
        normalizer = np.logaddexp(normalizer, no_answer)
    logits = spans.reshape(-1)
    order = [logits.argmax()] if top_k == 1 else np.argsort(-logits, kind="stable")
    offsets = _offsets(windows)
    none = {"answer": "", "score": float(np.exp(no_answer - normalizer)), "start": 0, "end": 0}
    answers: list[dict[str, Any]] = []
    places = set()
    needed = -np.inf if threshold is None else no_answer - threshold
    has_none = threshold is None
    for index in order:
        if not has_none and logits[index] < needed:
            answers.append(none)
            has_none = True
        if len(answers) == top_k or logits[index] == -np.inf:
            break
        first, longer = divmod(int(index), max_tokens)
        start, end = int(offsets[first, 0]), int(offsets[first + longer, 1])
        answer = context[start:end].strip()  # some tokens begin with a space
        start = context.index(answer, start)
        if (start, len(answer)) not in places:  # several tokens may stand for one character
            places.add((start, len(answer)))
            score = float(np.exp(logits[index] - normalizer))
            answers.append({"answer": answer, "score": score, "start": start, "end": start + len(answer)})
    return answers if has_none or len(answers) == top_k else [*answers, none]


def _logits(
    windows: Sequence[ContextWindow], start_logits: np.ndarray, end_logits: np.ndarray, context: str, max_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Logits over all windows: `[tokens]` of starts and of ends, `[tokens, max_tokens]` of answers, and of no answer.

    Answers are numbered by their first token in the context, and by their number of tokens less 1.
    """
    is_text = np.array([bool(context[start:end].strip()) for start, end in _offsets(windows)])
    if not is_text.any():
        raise ValueError("The context gives no tokens.")
    starts, ends = np.full(len(is_text), -np.inf), np.full(len(is_text), -np.inf)
    spans = np.full((len(is_text), max_tokens), -np.inf)
    no_answer, position = np.inf, 0
    for window in windows:
        here = slice(window.skipped, window.skipped + window.size)
        own = slice(position + window.first, position + window.first + window.size)
        own_starts = np.where(is_text[here], start_logits[own].astype(np.float64), -np.inf)
        own_ends = np.where(is_text[here], end_logits[own].astype(np.float64), -np.inf)
        np.maximum(starts[here], own_starts, out=starts[here])
        np.maximum(ends[here], own_ends, out=ends[here])
        for longer in range(min(max_tokens, window.size)):
            known = spans[here][: window.size - longer, longer]
            np.maximum(known, own_starts[: window.size - longer] + own_ends[longer:], out=known)
        null = position + NO_ANSWER
        no_answer = min(no_answer, float(start_logits[null]) + float(end_logits[null]))
        position += len(window)
    return starts, ends, spans, no_answer


def _offsets(windows: Sequence[ContextWindow]) -> np.ndarray:
    """`[tokens, 2]`: characters of each token of the context."""
    offsets = np.zeros((windows[-1].skipped + windows[-1].size, 2), np.int64)
    for window in windows:
        offsets[window.skipped : window.skipped + window.size] = window.offsets[window.first :][: window.size]
    return offsets


def _log_sum_exp(logits: np.ndarray) -> float:
    largest = logits.max()
    return float(largest + np.log(np.exp(logits - largest).sum()))
