"""Rotates the hidden states to their principal components, so that the last ones can be cut.

A model whose layers read the hidden states through RMSNorm computes the same if all that is written to them is rotated
and all that reads them is rotated back, because RMSNorm does not change with the rotation once its weights are moved
into the matrices that read it.

Reference: Ashkboos et al., 2024, SliceGPT: Compress Large Language Models by Deleting Rows and Columns,
https://arxiv.org/abs/2401.15024; here with one rotation for all layers, so that the architecture stays the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.copies import plain_copy
from hf_distill.student.proof import evaluating
from hf_distill.student.width.cutting import width_of
from hf_distill.student.width.importance import inputs_of, kept_inputs, token_weights
from hf_distill.student.width.units import Place, UnitClass, canonical_names, layout_of

Batches = Iterable[Mapping[str, torch.Tensor]]


def hidden_states_of(teacher: PreTrainedModel, classes: Sequence[UnitClass]) -> UnitClass:
    """The units of the hidden states.

    Raises:
        ValueError: if the hidden states are not cut, or are what the model returns.
    """
    if teacher.base_model is teacher:
        raise ValueError(
            f"width='pca' rotates the hidden states, but these are what {type(teacher).__name__} returns: use "
            f"width='activation', or load the model with a head."
        )
    if (hidden := find_hidden_units(teacher, classes)) is None:
        raise ValueError("width='pca' chooses hidden units: give hidden_size= too, or use width='activation'.")
    return hidden


def find_hidden_units(model: PreTrainedModel, classes: Sequence[UnitClass]) -> UnitClass | None:
    """The units of the hidden states, which the norms read; None if they are not among the classes."""
    are_read_by_norm = (
        own for own in classes if any(_is_norm(model, name) for name in own.readers) and width_of(own) == 1
    )
    return next(are_read_by_norm, None)


def check_rotation(teacher: PreTrainedModel, hidden: UnitClass) -> dict[str, str]:
    """Checks that the model computes the same when its hidden states are rotated.

    Returns:
        For each matrix that reads the hidden states, the RMSNorm before it, both by module name.

    Raises:
        ValueError: if it does not.
    """
    norms = {name: place for name, place in hidden.readers.items() if _is_norm(teacher, name)}
    for name in norms:
        if not _is_rms_norm(teacher.get_submodule(name)):
            raise ValueError(
                f"width='pca' rotates the hidden states, which only RMSNorm allows, but {name} of "
                f"{type(teacher).__name__} is a {type(teacher.get_submodule(name)).__name__}: use width='activation'."
            )
    norm_of_place = {place: name for name, place in norms.items()}
    before: dict[str, str] = {}
    for name in hidden.readers.keys() - norms.keys():
        read = [norm_of_place.get(place) for place in hidden.writers[name]]
        if len(read) != 1 or read[0] is None:
            raise ValueError(
                f"width='pca' needs matrices that read the hidden states through one RMSNorm, but {name} of "
                f"{type(teacher).__name__} does not: use width='activation'."
            )
        before[name] = read[0]
    names = canonical_names(teacher)
    reading = {place for name, place in hidden.readers.items() if name not in norms}
    if tied := reading & set().union(*(hidden.writers[name] for name in norms)):
        raise ValueError(
            f"width='pca' rotates what is written and what is read in different ways, but {type(teacher).__name__} "
            f"uses {next(iter(tied))[0]} for both: use width='activation', or untie the embeddings first."
        )
    of_norms = {place for name in norms for place in ((f"{name}.weight", 0), (f"{name}.bias", 0))}
    vectors = dict(teacher.named_parameters(remove_duplicate=False))
    for name, dim in hidden.rows.keys() - reading - of_norms:
        if vectors[names.get(name, name)].ndim == 1 and not name.endswith("bias"):
            raise ValueError(
                f"width='pca' rotates the hidden states, but {name} of {type(teacher).__name__} scales each of them on "
                f"its own (dimension {dim}): use width='activation'."
            )
    return before


def rotated(
    teacher: PreTrainedModel, hidden: UnitClass, batches: Batches, num_kept: int
) -> tuple[PreTrainedModel, dict[str, float]]:
    """A copy of the teacher that computes the same, with the principal components of its hidden states in order.

    Args:
        teacher: the model; every token of the batches counts the same, whatever the size of its hidden states.
        hidden: the units of its hidden states.
        batches: data for the principal components.
        num_kept: how many components will be kept.

    Returns:
        The copy, and by name of each RMSNorm the scale that its output needs if only the first `num_kept` components
        are kept.
    """
    before = check_rotation(teacher, hidden)
    norms = list(dict.fromkeys(name for name in hidden.readers if name not in before))
    rotation, energies = _principal_components(teacher, norms, batches)
    model = plain_copy(teacher)
    weights = dict(model.named_parameters(remove_duplicate=False))
    of_norms = {hidden.readers[name] for name in norms}
    reading: dict[Place, str] = {hidden.readers[name]: norm for name, norm in before.items()}
    with torch.no_grad():
        for name, dim in hidden.rows:
            if (name, dim) in of_norms:
                continue
            weight = weights[name]
            turned = weight.double().movedim(dim, -1)
            if (name, dim) in reading:  # the weights of the normalisation move into the matrix that reads it
                turned = turned * weights[f"{reading[name, dim]}.weight"].double()
            turned = turned @ rotation.to(weight.device)
            weight.copy_(turned.movedim(-1, dim))
        for name, _ in of_norms:
            weights[name].fill_(1.0)
    size = hidden.num_units
    scales = {name: float((energies[name][:num_kept].sum() * size / num_kept).sqrt()) for name in norms}
    return model, scales


def _principal_components(
    teacher: PreTrainedModel, norms: list[str], batches: Batches
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`[hidden, components]`, largest first, and for each norm the share of each component in what it reads."""
    covariances: dict[str, Any] = {}
    with evaluating(teacher), kept_inputs(teacher, norms) as kept:
        for batch in batches:
            batch = inputs_of(teacher, batch)
            teacher(**batch)
            for name, reads in kept.items():
                for read in reads:
                    is_token = token_weights(read, batch).bool()
                    rows = nn.functional.normalize(read[is_token].double(), dim=-1)
                    covariances[name] = covariances.get(name, 0.0) + rows.T @ rows / len(rows)
                reads.clear()
    if not covariances:
        raise ValueError("calibration_data has no batches, so there are no principal components: give some.")
    total = torch.stack([own / own.trace() for own in covariances.values()]).sum(0)
    _, vectors = torch.linalg.eigh(total)
    rotation = vectors.flip(1)
    energies = {name: (rotation * (own @ rotation)).sum(0) / own.trace() for name, own in covariances.items()}
    return rotation, energies


def _is_norm(teacher: nn.Module, name: str) -> bool:
    return layout_of(teacher.get_submodule(name)) == (0, 0)


def _is_rms_norm(norm: nn.Module) -> bool:
    """Whether a module computes `weight * x / sqrt(mean(x^2))`, tried on random numbers."""
    own = cast(torch.Tensor, norm.weight).detach()
    weight = own.float()
    generator = torch.Generator().manual_seed(0)
    values = 100 * torch.randn(4, len(weight), generator=generator).to(weight.device)  # large, so that epsilon is not
    expected = weight * values * values.square().mean(-1, keepdim=True).rsqrt()
    with torch.no_grad():
        actual = norm(values.to(own.dtype)).float()
    tolerance = 10 * torch.finfo(own.dtype).eps
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
