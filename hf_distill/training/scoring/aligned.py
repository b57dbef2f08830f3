"""A vocabulary head whose weight is padded to a multiple of 8 rows, so that a GPU multiplies with it at full speed.

In half precision, matrix products on tensor cores are fastest if all sizes are multiples of 8. The vocabularies of BERT
(30,522), GPT-2 (50,257) and RoBERTa (50,265) are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

MULTIPLE = 8


@contextmanager
def aligned(head: nn.Module | None) -> Iterator[None]:
    """While open, a linear head computes its logits with a padded weight if that is faster.

    The logits are the same up to rounding, and gradients reach the head's own parameters.

    Args:
        head: the output embeddings of a model. Other modules than `nn.Linear`, such as adapters and quantised layers,
            stay as they are.
    """
    if type(head) is not nn.Linear or "forward" in vars(head) or head.weight.shape[0] % MULTIPLE == 0:
        yield
        return
    plain = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        dtype = product_dtype(hidden)
        return padded_linear(hidden, head.weight, head.bias, dtype) if is_faster(hidden, dtype) else plain(hidden)

    vars(head)["forward"] = forward  # not a hook: the plain product must not run
    try:
        yield
    finally:
        del vars(head)["forward"]


def product_dtype(hidden: torch.Tensor) -> torch.dtype:
    """The data type in which a linear layer multiplies `hidden`."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def is_faster(hidden: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether the padded product is faster: on a GPU in half precision."""
    return hidden.is_cuda and dtype in (torch.float16, torch.bfloat16)


def padded_linear(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """`F.linear(hidden, weight, bias)`, of shape `[..., rows of weight]`, computed in `dtype` with a padded weight."""
    rows = weight.shape[0]
    missing = -rows % MULTIPLE
    padded_bias = None if bias is None else F.pad(bias.to(dtype), (0, missing))
    return F.linear(hidden.to(dtype), F.pad(weight.to(dtype), (0, 0, 0, missing)), padded_bias)[..., :rows]
