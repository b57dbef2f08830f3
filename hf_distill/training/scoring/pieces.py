"""A sum over scored positions, a piece at a time, forward and backward: what a piece needs is gone before the next.

Losses over a vocabulary would otherwise keep a dozen tensors `[scored, vocabulary]` for the backward pass, 200 MB each
for a batch of 1,024 tokens. Here the gradient of a piece is computed right after its value, as nothing that comes later
can change it but by a factor: the idea of Hsu et al., 2024, Liger Kernel, https://arxiv.org/abs/2410.10989, for
whatever head and losses there are.
"""

from collections.abc import Callable
from typing import Any

import torch

CHUNK_ELEMENTS = 2**24
"""Vocabulary logits that exist at one time, in each of student and teacher: 64 MiB in fp32."""

BLOCK_ELEMENTS_ON_CPU = 2**20
"""Logits that losses are computed of at one time on a CPU: as many as its cache holds."""

OfPiece = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


def sum_over_pieces(
    of_piece: OfPiece, values: torch.Tensor, piece_size: int, loss_scale: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums `of_piece` over pieces of the values.

    Args:
        of_piece: gives for `[piece, ...]` values, and the slice of all values that they are, a scalar to be
            differentiated, and `[...]` figures that are not.
        values: `[scored, ...]`
        piece_size: how many values a piece has at most. Where one piece is enough, it is differentiated as usual.
        loss_scale: what the gradient is multiplied by while it is kept, for numbers that are small in fp16.

    Returns:
        The sum of the scalars, which can be differentiated once, by the values and by all parameters that it depends
        on; and the sum of the figures.
    """
    pieces = [slice(start, start + piece_size) for start in range(0, len(values), piece_size)]
    if len(pieces) <= 1:
        return of_piece(values, slice(None))
    if not torch.is_grad_enabled():
        scalars, figures = zip(*(of_piece(values[piece], piece) for piece in pieces), strict=True)
        return sum(scalars), sum(figures)

    total: Any = 0.0
    total_figures: Any = 0.0
    parameters: list[torch.Tensor] = []
    gradients: list[torch.Tensor] = []
    value_gradients = torch.empty_like(values)
    for piece in pieces:
        own_values = values[piece].detach().requires_grad_()
        scalar, own_figures = of_piece(own_values, piece)
        if piece is pieces[0]:
            parameters = [leaf for leaf in _leaves(scalar) if leaf is not own_values]
        value_gradients[piece], *own_gradients = torch.autograd.grad(
            scalar, [own_values, *parameters], torch.ones_like(scalar) * loss_scale
        )
        gradients = [a.add_(b) for a, b in zip(gradients, own_gradients, strict=True)] if gradients else own_gradients
        del own_gradients  # as large as the head: the next piece needs the room
        total, total_figures = total + scalar.detach(), total_figures + own_figures
    gradients = [value_gradients, *gradients]
    return _Differentiated.apply(total, gradients, loss_scale, values, *parameters), total_figures


class _Differentiated(torch.autograd.Function):
    """A value whose gradients by `inputs` are there already."""

    @staticmethod
    def forward(ctx, value, gradients, loss_scale, *inputs):
        ctx.gradients, ctx.loss_scale = gradients, loss_scale
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer_gradient):
        if ctx.gradients is None:
            raise RuntimeError("The loss was differentiated before, and its gradients are used up: compute it again.")
        gradients, ctx.gradients = ctx.gradients, None
        factor = outer_gradient / ctx.loss_scale
        return None, None, None, *(gradient.mul_(factor) for gradient in gradients)


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that `value` was computed from and that gradients end in."""
    leaves, seen, stack = [], set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves
