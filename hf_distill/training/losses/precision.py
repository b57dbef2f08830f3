"""The precision that losses compute in."""

import torch


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32; unchanged if it is in fp64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
