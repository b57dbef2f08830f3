"""Turns the token log-probabilities of another program into the most likely tokens of each position."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.find_head import HEADS
from hf_distill.training.scoring.scored import MASKED_LOGIT
from hf_distill.training.teacher.columns import (
    DTYPES,
    IMPORTED,
    LEAST_LOG_PROB,
    LOG_TAIL,
    TOP_IDS,
    TOP_LOG_PROBS,
    id_dtype,
    vocabulary_fingerprint,
)
from hf_distill.training.teacher.importing.distillkit import Decompressor
from hf_distill.training.teacher.importing.writing import Row

SUM_TOLERANCES = {"prompt_logprobs": 1e-3, "logprobs": 1e-3, "distillkit": 0.05}
"""For each format, how far the sum of a position's probabilities may exceed 1. DistillKit rounds to bfloat16."""


class Candidates(NamedTuple):
    """What is known of the distribution of one token: ids and log-probabilities, `[tokens]`."""

    ids: np.ndarray
    log_probs: np.ndarray


class Tokens(NamedTuple):
    """The tokens of a row that are not padding.

    Attributes:
        ids: `[tokens]`, token ids.
        needed: `[tokens]`, True if the next token has a label, so that its distribution is trained on.
    """

    ids: list[int]
    needed: list[bool]


class TokenReader:
    """Reads the distribution of the next token at each token of a row.

    Args:
        format: a key of `SUM_TOLERANCES`.
        tokenizer: the tokenizer of the rows.
        decompressor: decodes DistillKit's compressed columns; None if they are not compressed.
        top_k: how many tokens to keep per position; None for as many as every position has.
    """

    def __init__(
        self, format: str, tokenizer: PreTrainedTokenizerBase, decompressor: Decompressor | None, top_k: int | None
    ):
        self.format, self.tokenizer, self.decompressor = format, tokenizer, decompressor
        self.vocab_size = len(tokenizer)
        self.dtypes = {name: DTYPES[name] for name in (TOP_LOG_PROBS, TOP_IDS, LOG_TAIL)}
        self.dtypes[TOP_IDS] = id_dtype(self.vocab_size)
        self.top_k, self.complete = top_k, True
        self._smallest: int | None = top_k

    def prepare(self, dataset: Dataset, entries: Iterable[Any]) -> None:
        """Finds the smallest number of log-probabilities of a position, unless `top_k` is set.

        Raises:
            ValueError: as `read`.
        """
        if self.top_k is not None:
            return
        for row, (values, entry) in enumerate(zip(dataset, entries, strict=True)):
            tokens = tokens_of(values, row)
            for position, candidates in enumerate(self._distributions(tokens, entry, row)):
                if tokens.needed[position]:
                    given = 0 if candidates is None else len(candidates.ids)
                    if given == 0:
                        raise ValueError(_lacking(row, position, given, 1))
                    self._smallest = min(self._smallest or given, given)

    def read(self, dataset: Dataset, entries: Iterable[Any]) -> Iterator[Row]:
        """Reads the target columns of each row. Tokens without a distribution are NaN.

        Args:
            dataset: the tokenised rows.
            entries: one per row.

        Raises:
            ValueError: if a distribution is missing, has too few tokens, or belongs to other tokens.
        """
        top_k = self._smallest
        if top_k is None:
            raise ValueError("No token has a label, so no distribution would be trained on: check the column labels.")
        for row, (values, entry) in enumerate(zip(dataset, entries, strict=True)):
            tokens = tokens_of(values, row)
            num_tokens = len(tokens.ids)
            log_probs = np.full((num_tokens, top_k), np.nan)
            ids = np.zeros((num_tokens, top_k), dtype=np.int64)
            found = self._distributions(tokens, entry, row)
            for position, candidates in enumerate(found):
                if candidates is None or len(candidates.ids) < top_k:
                    if tokens.needed[position]:
                        given = 0 if candidates is None else len(candidates.ids)
                        raise ValueError(_lacking(row, position, given, top_k))
                    continue
                order = np.lexsort((candidates.ids, -candidates.log_probs))[:top_k]
                ids[position], log_probs[position] = candidates.ids[order], candidates.log_probs[order]
            self.complete &= not np.isnan(log_probs).any()
            log_probs, log_tail = _with_tail(log_probs, SUM_TOLERANCES[self.format], top_k == self.vocab_size, row)
            log_probs, log_tail = (np.maximum(values, LEAST_LOG_PROB) for values in (log_probs, log_tail))
            of_row = {TOP_LOG_PROBS: log_probs, TOP_IDS: ids, LOG_TAIL: log_tail}
            yield {name: values.reshape(-1).astype(self.dtypes[name]) for name, values in of_row.items()}

    def description(self) -> dict[str, Any]:
        """The entries of `Source` that depend on the format, after all rows were read."""
        head = next(own for own in HEADS if "CAUSAL_LM" in own.tasks)
        spec = HeadSpec(
            model=f"{IMPORTED} teacher",
            auto_class=head.auto_class,
            logits_per_token=self.vocab_size,
            distribution=head.distribution,
            num_labels=None,
            problem_type=None,
            labels=None,
            vocab_size=self.vocab_size,
            decoder_start_token_id=None,
            hidden_width=None,
        )
        described = {"head_spec": spec, "vocabulary": vocabulary_fingerprint(self.tokenizer), "reads_text": False}
        return {**described, "top_k": self._smallest, "temperature": 1.0, "complete": self.complete}

    def _distributions(self, tokens: Tokens, entry: Any, row: int) -> list[Candidates | None]:
        """For each token of a row, the distribution of the next token; None if it is unknown."""
        if isinstance(entry, str):  # JSON, because Arrow would give every row the keys of all rows
            try:
                entry = json.loads(entry)
            except json.JSONDecodeError as error:
                raise ValueError(f"Row {row} is text that is not JSON: {error}.") from None
        reading = {"prompt_logprobs": self._prompt_logprobs, "logprobs": self._logprobs, "distillkit": self._distillkit}
        found = reading[self.format](tokens, entry, row)
        for position, candidates in enumerate(found):
            if candidates is not None:
                self._check(candidates, row, position)
        return found

    def _check(self, candidates: Candidates, row: int, position: int) -> None:
        if not np.isfinite(candidates.log_probs).all():
            raise ValueError(
                f"Row {row} has log-probabilities that are not finite at token {position}: "
                f"{candidates.log_probs.tolist()}."
            )
        outside = (candidates.ids < 0) | (candidates.ids >= self.vocab_size)
        if outside.any():
            raise ValueError(
                f"Row {row} has the token id {candidates.ids[outside][0]} at token {position}, but the tokenizer has "
                f"{self.vocab_size} tokens: teacher and student need the same tokenizer."
            )

    def _prompt_logprobs(self, tokens: Tokens, entry: Any, row: int) -> list[Candidates | None]:
        """vLLM: item i is the distribution of token i, and always has token i itself."""
        if isinstance(entry, Mapping):
            entry = entry.get("prompt_logprobs", entry)
        if not isinstance(entry, Sequence):
            raise ValueError(
                f"Row {row} is a {type(entry).__name__}: format='prompt_logprobs' takes a list with one dict of "
                f"log-probabilities by token id for each token, and None for the first."
            )
        if len(entry) != len(tokens.ids):
            raise ValueError(
                f"Row {row} has {len(tokens.ids)} tokens, but log-probabilities for {len(entry)}: the prompt should be "
                f"the input_ids of the row."
            )
        found: list[Candidates | None] = [None] * len(tokens.ids)
        for position in range(1, len(entry)):
            own = entry[position] or {}
            values = {
                _as_id(id_, row, position): _log_prob(value, row) for id_, value in own.items() if value is not None
            }
            if not values:
                continue
            if tokens.ids[position] not in values:
                raise ValueError(
                    f"Row {row} has the id {tokens.ids[position]} at token {position}, which is not among the tokens "
                    f"of its log-probabilities: the prompt should be the input_ids of the row."
                )
            found[position - 1] = _candidates(values)
        return found

    def _logprobs(self, tokens: Tokens, entry: Any, row: int) -> list[Candidates | None]:
        """OpenAI: one item per token of the completion, which is where these tokens last occur in the row."""
        if isinstance(entry, Mapping):
            entry = entry.get("content", entry)
        if not isinstance(entry, Sequence) or not all(isinstance(own, Mapping) and "token" in own for own in entry):
            raise ValueError(
                f"Row {row} is not a list of dicts with 'token', 'logprob' and 'top_logprobs', as format='logprobs' "
                f"takes it."
            )
        possible = [self._ids_of(own["token"]) for own in entry]
        num_tokens = len(possible)
        starts = range(len(tokens.ids) - num_tokens, -1, -1)
        fits = (
            start
            for start in starts
            if all(id_ in ids for id_, ids in zip(tokens.ids[start : start + num_tokens], possible, strict=True))
        )
        if (start := next(fits, None)) is None:
            raise ValueError(
                f"Row {row} does not contain the {num_tokens} tokens of its log-probabilities, "
                f"{[own['token'] for own in entry][:5]}...: input_ids should be the prompt and the completion."
            )
        found: list[Candidates | None] = [None] * len(tokens.ids)
        for position, own in enumerate(entry, start=start):
            if position == 0:
                continue  # nothing comes before it
            values = {}
            for other in own.get("top_logprobs") or []:
                ids = self._ids_of(other["token"])
                if len(ids) == 1:  # the probability of a text of several tokens is left to the tail
                    values[ids[0]] = float(other["logprob"])
            if own.get("logprob") is not None:
                values[tokens.ids[position]] = float(own["logprob"])
            found[position - 1] = _candidates(values)
        return found

    def _distillkit(self, tokens: Tokens, entry: Any, row: int) -> list[Candidates | None]:
        """DistillKit: item i is the distribution of token i + 1. The last token may lack one."""
        if not isinstance(entry, Mapping):
            raise ValueError(f"Row {row} is a {type(entry).__name__}: format='distillkit' takes rows with columns.")
        given = entry.get("input_ids")
        if given is not None and list(given)[: len(tokens.ids)] != tokens.ids:
            raise ValueError(f"Row {row} has other input_ids in the dataset than in the targets.")
        if "compressed_logprobs" in entry and self.decompressor is not None:
            try:
                ids, log_probs = self.decompressor(entry["compressed_logprobs"], entry["bytepacked_indices"])
            except ValueError as error:
                raise ValueError(f"Row {row}: {error}") from None
        elif "token_ids" in entry and "top_values" in entry:
            ids, log_probs = _rectangle(entry["token_ids"]), _rectangle(entry["top_values"])
        else:
            raise ValueError(
                f"Row {row} has the columns {', '.join(entry)}: format='distillkit' takes token_ids and top_values, or "
                f"compressed_logprobs and bytepacked_indices with compression='compression_config.yaml'. The older "
                f"packed_indices, exact_values and coeffs cannot be imported, because they need not be "
                f"log-probabilities."
            )
        num_given = len(tokens.ids) if given is None else len(given)
        if ids.shape != log_probs.shape or ids.ndim != 2 or len(ids) not in (num_given, num_given - 1):
            raise ValueError(
                f"Row {row} has {num_given} tokens, but token ids {list(ids.shape)} and values "
                f"{list(log_probs.shape)}: both should have one list per token, which may lack the last token."
            )
        repeated = (np.diff(np.sort(ids, axis=1), axis=1) == 0).any(1)
        if repeated.any():
            raise ValueError(f"Row {row} has a token id twice at token {int(repeated.argmax())}.")
        found = [Candidates(*own) for own in zip(ids.astype(np.int64), log_probs, strict=True)][: len(tokens.ids)]
        return [*found, *[None] * (len(tokens.ids) - len(found))]

    def _ids_of(self, token: str) -> list[int]:
        """The ids of a token's text; several if the tokenizer decodes them alike."""
        if token.startswith("token_id:"):  # vLLM with return_tokens_as_token_ids
            return [int(token.removeprefix("token_id:"))]
        return self._ids_by_text.get(token, [])

    @cached_property
    def _ids_by_text(self) -> Mapping[str, list[int]]:
        texts = self.tokenizer.batch_decode(
            [[index] for index in range(self.vocab_size)], clean_up_tokenization_spaces=False
        )
        ids = defaultdict(list)
        for index, text in enumerate(texts):
            ids[text].append(index)
        return dict(ids)


def _rectangle(values: Any) -> np.ndarray:
    """An array of lists of one length; of another shape if the lengths differ."""
    lengths = {len(own) for own in values}
    return np.array(values) if len(lengths) == 1 else np.zeros((len(values), 0))


def tokens_of(values: Mapping[str, Any], row: int) -> Tokens:
    """The tokens of a row that are not padding.

    Raises:
        ValueError: if the row is not tokenised.
    """
    if "input_ids" not in values:
        raise ValueError(f"Row {row} has no input_ids, only {', '.join(values)}: tokenise the rows first.")
    ids = [int(id_) for id_ in values["input_ids"]]
    mask = values.get("attention_mask")
    attended = [True] * len(ids) if mask is None else [bool(own) for own in mask]
    labels = values.get("labels")
    has_label = attended if labels is None else [int(label) != IGNORE_INDEX for label in labels]
    needed = [*has_label[1:], False]
    kept = [index for index, own in enumerate(attended) if own]
    return Tokens([ids[index] for index in kept], [needed[index] for index in kept])


def _candidates(values: Mapping[int, float]) -> Candidates:
    return Candidates(np.array([*values], dtype=np.int64), np.array([*values.values()], dtype=np.float64))


def _as_id(id_: Any, row: int, position: int) -> int:
    """A token id, which JSON stores as text."""
    try:
        return int(id_)
    except ValueError:
        raise ValueError(f"Row {row} has {id_!r} instead of a token id at token {position}.") from None


def _log_prob(value: Any, row: int) -> float:
    """The number of vLLM's `Logprob`, of its JSON, or the number itself."""
    if isinstance(value, Mapping):
        value = value.get("logprob")
    value = getattr(value, "logprob", value)
    if not isinstance(value, Real):
        raise ValueError(f"Row {row} has a log-probability {value!r}, which is not a number.")
    return float(value)


def _with_tail(log_probs: np.ndarray, tolerance: float, is_whole: bool, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities `[tokens, top_k]`, and the log-probability of all other tokens, `[tokens]`.

    Args:
        log_probs: `[tokens, top_k]`, NaN where unknown.
        tolerance: how far the sum of the probabilities may exceed 1. It is scaled to 1 then.
        is_whole: whether there are no other tokens.
        row: the row, for errors.
    """
    total = np.exp(log_probs).sum(1)
    above = np.nan_to_num(total) > 1 + tolerance
    if above.any():
        position = int(above.argmax())
        raise ValueError(
            f"Row {row} has probabilities that sum to {total[position]:.4g} at token {position}: the values should be "
            f"natural logarithms of probabilities at temperature 1, not logits."
        )
    scaled = np.where(total > 1, total, 1.0)
    log_probs = log_probs - np.log(scaled)[:, None]
    rest = np.zeros_like(total) if is_whole else np.clip(1 - total / scaled, 0, None)
    tail = np.full_like(total, MASKED_LOGIT)
    np.log(rest, out=tail, where=rest > 0)
    return log_probs, np.where(np.isnan(total), np.nan, tail)


def _lacking(row: int, position: int, given: int, top_k: int) -> str:
    has = f"{given} log-probabilities, fewer than top_k={top_k}," if given else "no log-probabilities"
    return (
        f"Row {row} has {has} for the token after token {position}, which has a label: "
        + ("lower top_k, or set" if given else "set")
        + " labels to -100 there."
    )
