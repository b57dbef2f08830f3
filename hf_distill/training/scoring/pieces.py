"""A sum over scored positions in pieces: forward and backward of a piece run before the next piece, to save memory.

Losses over a vocabulary would otherwise keep a dozen tensors `[scored, vocabulary]` for the backward pass, 200 MB each
for a batch of 1,024 tokens. Here the gradient of a piece is computed right after its value, because later computation
can only scale it by a factor. The idea is from Hsu et al., 2024, Liger Kernel, https://arxiv.org/abs/2410.10989, here
for any head and any loss.
"""

from collections.abc import Callable
from typing import Any

import torch

CHUNK_ELEMENTS = 2**24
"""The most vocabulary logits that exist at once, for student and teacher each: 64 MiB in fp32. More on a large GPU."""

SHARE_OF_GPU = 1 / 512
"""The share of a GPU's memory that these logits may take in fp32, if that is more: 2**26 logits of 139 GiB."""

BLOCK_ELEMENTS_ON_CPU = 2**20
"""The most logits that a CPU computes losses on at once, chosen to fit its cache."""

OfPiece = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]


def chunk_elements(device: torch.device) -> int:
    """The most vocabulary logits that exist at once, for student and teacher each."""
    if device.type != "cuda":
        return CHUNK_ELEMENTS
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(CHUNK_ELEMENTS, int(SHARE_OF_GPU * memory / torch.float32.itemsize))


def elements_at_once(device: torch.device) -> int:
    """The most logits that losses are computed on at once."""
    return BLOCK_ELEMENTS_ON_CPU if device.type == "cpu" else chunk_elements(device)


def sum_over_pieces(
    of_piece: OfPiece, values: torch.Tensor, piece_size: int, loss_scale: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums `of_piece` over pieces of the values.

    Args:
        of_piece: takes values `[piece, ...]` and their slice of all values. Returns a scalar for the backward pass, and
            a tensor of any shape without gradients.
        values: `[scored, ...]`.
        piece_size: the most values per piece. A single piece is differentiated as usual.
        loss_scale: a factor of the stored gradients, so that small fp16 numbers survive.

    Returns:
        The sum of the scalars, and the sum of the tensors without gradients. Call the backward pass only once: it sends
        gradients to the values and to all parameters that the sum depends on.
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
        del own_gradients  # as large as the head: free it before the next piece
        total, total_figures = total + scalar.detach(), total_figures + own_figures
    # The gradient of a linear layer is a transposed view. Autograd adds another gradient in place only to what is no
    # view: without `data`, embeddings that are tied to the head would take a third tensor of their size.
    gradients = [gradient.data for gradient in (value_gradients, *gradients)]
    return _Differentiated.apply(total, gradients, loss_scale, values, *parameters), total_figures


class _Differentiated(torch.autograd.Function):
    """A value whose gradients with respect to `inputs` are already computed."""

    @staticmethod
    def forward(ctx, value, gradients, loss_scale, *inputs):
        ctx.gradients, ctx.loss_scale = gradients, loss_scale
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer_gradient):
        if ctx.gradients is None:
            raise RuntimeError(
                "The loss was differentiated twice, but its gradients are kept only once: compute it again."
            )
        gradients, ctx.gradients = ctx.gradients, None
        factor = outer_gradient / ctx.loss_scale
        return None, None, None, *(gradient.mul_(factor) for gradient in gradients)


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The leaf tensors of the graph of `value`, where gradients accumulate."""
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
