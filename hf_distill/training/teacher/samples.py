"""Tokens sampled from the teacher's distribution: drawn, stored with their counts, and read.

A position has `num_samples` draws with replacement. Its distinct tokens are stored in ascending order, each with how
often it was drawn. The positions of a row follow each other. The counts show where one ends: they sum to `num_samples`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from hf_distill.training.scoring.scored import MASKED_LOGIT
from hf_distill.training.scoring.top_k import TopK
from hf_distill.training.teacher.columns import SAMPLED_COUNTS, SAMPLED_IDS, changed_rows


def uniform_numbers(fingerprint: str, rows: Iterable[int], tokens: Iterable[int], num_samples: int) -> torch.Tensor:
    """The random numbers that choose the tokens of rows. They depend on nothing but teacher, row and token.

    Args:
        fingerprint: fingerprint of the teacher, a hexadecimal number.
        rows: `[batch]`, the positions of the rows in the dataset.
        tokens: `[batch]`, the number of tokens of each row.
        num_samples: draws per token.

    Returns:
        `[sum of tokens, num_samples]`, from 0 to below 1, in fp64.
    """
    teacher = int(fingerprint, 16)
    of_rows = [
        np.random.default_rng([teacher, row]).random((count, num_samples))
        for row, count in zip(rows, tokens, strict=True)
    ]
    return torch.from_numpy(np.concatenate(of_rows))


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws tokens with replacement, by inverting the cumulative distribution.

    Args:
        log_probs: `[positions, vocabulary]`.
        uniforms: `[positions, num_samples]`, from 0 to below 1.

    Returns:
        `[positions, num_samples]`, token ids in ascending order.
    """
    if log_probs.device.type == "mps":  # which has no fp64
        log_probs = log_probs.cpu()
    cumulative = log_probs.to(torch.float64, copy=True).exp_().cumsum_(1)
    wanted = uniforms.to(cumulative.device) * cumulative[:, -1:]
    # The first token whose cumulative probability is above the number, so never one of probability 0.
    ids = torch.searchsorted(cumulative, wanted, right=True).clamp(max=log_probs.shape[1] - 1)
    return ids.sort(1).values


def counted(ids: torch.Tensor, tokens: Iterable[int]) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The distinct tokens of each position, and how often each was drawn.

    Args:
        ids: `[positions, num_samples]`, in ascending order.
        tokens: `[batch]`, the number of positions of each row.

    Returns:
        The two columns, `[distinct, 1]` each, and how many values each row has in them.
    """
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = is_first.flatten().nonzero().squeeze(1)
    counts = torch.diff(starts, append=starts.new_tensor([ids.numel()]))
    of_rows = [int(part.sum()) for part in is_first.sum(1).cpu().split(list(tokens))]
    return {SAMPLED_IDS: ids[is_first].unsqueeze(1), SAMPLED_COUNTS: counts.unsqueeze(1)}, of_rows


def join_samples(
    ids: Sequence[Sequence], counts: Sequence[Sequence], present: torch.Tensor, num_samples: int
) -> dict[str, torch.Tensor]:
    """Joins the columns of rows into one tensor each, with the draws of each token at its position.

    Args:
        ids: `[batch]` flat arrays of token ids.
        counts: `[batch]` flat arrays, how often each was drawn.
        present: `[batch, length]`, True for tokens that have draws.
        num_samples: draws per token.

    Returns:
        The two columns, `[batch, length, num_samples]`. An unused slot has the count 0 and repeats the first id, which
        the student can predict if the teacher can.

    Raises:
        ValueError: if a row has a different number of tokens than when the teacher read it.
    """
    flat_counts = [np.asarray(row, dtype=np.int64).reshape(-1) for row in counts]
    for row, num_tokens in zip(flat_counts, present.sum(1).tolist(), strict=True):
        if row.sum() != num_tokens * num_samples:
            raise changed_rows(num_tokens, SAMPLED_COUNTS, row.sum() / num_samples)
    flat_ids = np.concatenate([np.asarray(row, dtype=np.int64).reshape(-1) for row in ids])
    values = np.concatenate(flat_counts)
    position = (np.cumsum(values) - 1) // num_samples
    num_positions = int(present.sum())
    first = np.searchsorted(position, np.arange(num_positions))
    slot = np.arange(len(values)) - first[position]
    of_ids = np.repeat(flat_ids[first][:, None], num_samples, axis=1)
    of_ids[position, slot] = flat_ids
    of_counts = np.zeros_like(of_ids)
    of_counts[position, slot] = values
    joined = {
        name: torch.zeros(*present.shape, num_samples, dtype=torch.long) for name in (SAMPLED_IDS, SAMPLED_COUNTS)
    }
    joined[SAMPLED_IDS][present] = torch.from_numpy(of_ids)
    joined[SAMPLED_COUNTS][present] = torch.from_numpy(of_counts)
    return joined


def targets_of_samples(ids: torch.Tensor, counts: torch.Tensor) -> TopK:
    """The shares of the draws as log-probabilities. Tokens that were not drawn have the probability 0.

    Args:
        ids: `[scored, num_samples]`.
        counts: `[scored, num_samples]`, 0 in unused slots.
    """
    log_probs = (counts / counts.shape[1]).log().clamp(min=MASKED_LOGIT)
    return TopK(log_probs, ids, torch.full_like(log_probs[:, 0], MASKED_LOGIT))
