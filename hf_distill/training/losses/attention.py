"""The losses between what attention computes in student and teacher: attention maps, and relations of MiniLMv2."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import JIAO_2020, WANG_2021
from hf_distill.training.losses.hidden_states import state_of
from hf_distill.training.losses.layer_map import LayerPair, ModelLayers, check_same_stacks
from hf_distill.training.losses.precision import at_least_fp32, without_autocast
from hf_distill.training.scoring import pieces
from hf_distill.training.scoring.scored import MASKED_LOGIT


class AttentionLoss(Loss):
    """The squared difference between the attention maps of mapped layers: `alpha_attention`.

    The maps are the products of queries and keys before the softmax. The loss is the mean over the attended positions
    of all mapped layers; each position is the mean over its heads and over the positions that it attends to.

    Reference: Jiao et al., 2020, TinyBERT, https://arxiv.org/abs/1909.10351 (`L_attn` in the paper), which adds up the
    layers and divides by the padded length

    Args:
        layers: the pairs of layers to compare.
        mean_of_heads: compare the mean over heads, for models with different numbers of heads.

    Example:
        >>> keys = torch.ones(1, 2, 3, 4)
        >>> student, teacher = Signals(queries=keys, keys=keys), Signals(queries=-keys, keys=keys)
        >>> items = ScoredItems(state_weights=torch.ones(1, 3), visible=torch.ones(1, 1, 3, 3, dtype=torch.bool))
        >>> AttentionLoss()(student, teacher, items)
        tensor(192.)
    """

    needs = Needs(queries=True, keys=True)
    description = "the squared difference between the attention maps of mapped layers"
    citation = JIAO_2020
    options = ("attention_heads", "layer_map")

    def __init__(self, layers: Sequence[LayerPair] = (), mean_of_heads: bool = False):
        super().__init__()
        self.layers, self.mean_of_heads = tuple(layers), mean_of_heads

    @classmethod
    def from_setup(cls, setup: Setup) -> "AttentionLoss":
        loss = cls(setup.map_layers(), setup.args.attention_heads == "mean")
        for pair in () if loss.mean_of_heads else loss.layers:
            own, other = (_number(model.config_of(pair.stack), "num_attention_heads") for model in setup.layers)
            if own is not None and other is not None and own != other:
                raise ValueError(_unequal_heads(own, other))
        return loss

    def state(self) -> dict[str, object]:
        return {"layers": state_of(self.layers), "heads": "mean" if self.mean_of_heads else "each"}

    @without_autocast
    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        padding, hidden = scored.state_weights.eq(0), ~scored.visible.squeeze(1)
        own, other = (_queries_and_keys(signals, padding, self.mean_of_heads) for signals in (student, teacher))
        if len(own) != len(other):
            raise ValueError(_unequal_heads(len(own), len(other)))
        weights = scored.state_weights.to(own.dtype) / scored.visible.squeeze(1).sum(-1).clamp(min=1)
        bias = _bias_between(student, teacher, self.mean_of_heads)

        def of_heads(vectors: torch.Tensor, heads: slice) -> tuple[torch.Tensor, torch.Tensor]:
            difference = _products(*vectors.unbind(1)) - _products(*other[heads].unbind(1))
            if bias is not None:
                difference = difference + bias[heads]
            value = (weights * difference.masked_fill_(hidden, 0.0).square().sum(-1)).sum()
            return value, value.detach()

        heads_at_once = _heads_at_once(hidden) if bias is None else len(own)
        return pieces.sum_over_pieces(of_heads, own, heads_at_once)[0] / len(own)


class RelationLoss(Loss):
    """The KL divergence between the self-attention relations of one layer of student and teacher: `alpha_relation`.

    A relation is the softmax of the products of all pairs of positions: of their queries, of their keys, and of their
    values. These are first split into `relation_heads` heads, so student and teacher may differ in width and in heads.
    The loss is the mean over the attended positions; each position is the mean over relation heads, and the sum of the
    three relations.

    Reference: Wang et al., 2021, MiniLMv2, https://arxiv.org/abs/2012.15828

    Args:
        relation_heads: number of relation heads. It divides the width of queries, keys and values in both models.
        layers: the pairs of layers to compare: the student's last layer and a layer of the teacher.

    Example:
        >>> heads = torch.randn(2, 4, 7, 8)
        >>> signals = Signals(queries=heads, keys=heads, values=heads)
        >>> items = ScoredItems(state_weights=torch.ones(2, 7), visible=torch.ones(2, 1, 7, 7, dtype=torch.bool))
        >>> RelationLoss(relation_heads=8)(signals, signals, items)
        tensor(0.)
    """

    needs = Needs(queries=True, keys=True, values=True)
    description = "the KL divergence between the relations of queries, of keys and of values in one layer"
    citation = WANG_2021
    options = ("relation_layer", "relation_heads")

    def __init__(self, relation_heads: int, layers: Sequence[LayerPair] = ()):
        super().__init__()
        self.relation_heads, self.layers = relation_heads, tuple(layers)

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        if args.relation_heads is not None and args.relation_heads < 1:
            raise ValueError(f"relation_heads={args.relation_heads} should be 1 or more; leave it out for the default.")

    @classmethod
    def from_setup(cls, setup: Setup) -> "RelationLoss":
        student, teacher = setup.layers
        check_same_stacks(student, teacher)
        layers = []
        for name, stack in student.stacks.items():
            num_layers, layer = teacher.stacks[name].num_layers, setup.args.relation_layer
            if not -num_layers <= layer < num_layers:
                raise ValueError(
                    f"relation_layer={layer} is outside the teacher, which has {num_layers} layers in its stack "
                    f"{name!r}: use 0 to {num_layers - 1}, or -1 for the last layer."
                )
            layers.append(LayerPair(name, stack.num_layers - 1, layer % num_layers))
        widths = {width for pair in layers for model in setup.layers for width in _attention_widths(model, pair.stack)}
        heads = setup.args.relation_heads or _default_relation_heads(teacher, layers, widths)
        if any(width % heads for width in widths):
            raise ValueError(_no_divisor(heads, widths))
        return cls(heads, layers)

    def state(self) -> dict[str, object]:
        return {"layers": state_of(self.layers), "heads": self.relation_heads}

    @without_autocast
    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        padding, hidden = scored.state_weights.eq(0), ~scored.visible.squeeze(1)
        sums = []
        for name in ("queries", "keys", "values"):
            own, other = (self._relation_heads(getattr(signals, name), padding) for signals in (student, teacher))

            def of_heads(vectors: torch.Tensor, heads: slice, other=other) -> tuple[torch.Tensor, torch.Tensor]:
                relation, teacher_relation = (
                    _products(tensor, tensor).masked_fill_(hidden, MASKED_LOGIT).log_softmax(-1)
                    for tensor in (vectors, other[heads])
                )
                divergence = F.kl_div(relation, teacher_relation, reduction="none", log_target=True)
                value = (scored.state_weights * divergence.sum(-1)).sum()
                return value, value.detach()

            sums.append(pieces.sum_over_pieces(of_heads, own, _heads_at_once(hidden))[0])
        return torch.stack(sums).sum() / self.relation_heads

    def _relation_heads(self, vectors: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """`[relation heads, batch, length, width]` of `[batch, heads, length, head width]`, scaled for the products."""
        vectors = _without(padding, vectors).transpose(1, 2).flatten(2)
        if vectors.shape[-1] % self.relation_heads:
            raise ValueError(_no_divisor(self.relation_heads, {vectors.shape[-1]}))
        vectors = vectors.unflatten(-1, (self.relation_heads, -1))
        return (vectors * vectors.shape[-1] ** -0.25).permute(2, 0, 1, 3)


def _products(vectors: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The products of all pairs of positions, `[heads, batch, length, length]`."""
    return vectors @ others.transpose(-1, -2)


def _heads_at_once(pairs: torch.Tensor) -> int:
    """How many heads are computed at once, with their gradients, so that few products exist.

    Args:
        pairs: `[batch, length, length]`, the shape of the products of a head.
    """
    return max(1, pieces.elements_at_once(pairs.device) // pairs.numel())


def _queries_and_keys(signals: Signals, padding: torch.Tensor, mean_of_heads: bool) -> torch.Tensor:
    """Queries and keys whose products are the scores of attention, `[heads, 2, batch, length, width]`.

    With `mean_of_heads` there is one head: the mean of the products is one product of the heads side by side. With
    grouped-query attention, several heads of queries share one of keys.
    """
    queries, keys = (_without(padding, tensor) for tensor in (signals.queries, signals.keys))
    heads = queries.shape[1]
    both = torch.stack([queries * signals.scaling, keys.repeat_interleave(heads // keys.shape[1], dim=1)])
    if mean_of_heads:
        return both.permute(0, 1, 3, 2, 4).flatten(3).div(heads**0.5).unsqueeze(0)
    return both.permute(2, 0, 1, 3, 4)


def _bias_between(student: Signals, teacher: Signals, mean_of_heads: bool) -> torch.Tensor | None:
    """The student's position bias less the teacher's, `[heads, 1 or batch, length, length]`; None without any."""
    difference = None
    for signals, sign in ((student, 1), (teacher, -1)):
        if signals.position_bias is not None:
            bias = sign * at_least_fp32(signals.position_bias).transpose(0, 1)
            bias = bias.mean(0, keepdim=True) if mean_of_heads else bias
            difference = bias if difference is None else difference + bias
    return difference


def _without(padding: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`[batch, heads, length, head width]` in fp32, 0 for padding."""
    return at_least_fp32(tensor).masked_fill(padding[:, None, :, None], 0.0)


def _number(config: PreTrainedConfig, name: str) -> int | None:
    """A number in a config; None if it has none, or if it differs between layers."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers' way to say that layers differ
        return None
    return value if isinstance(value, int) else None


def _attention_widths(model: ModelLayers, stack: str) -> set[int]:
    """The widths of queries, keys and values; empty if the config does not tell."""
    config = model.config_of(stack)
    heads, width = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    head_width = _number(config, "head_dim") or _number(config, "d_kv") or (width and heads and width // heads)
    if heads is None or head_width is None:
        return set()
    return {heads * head_width, (_number(config, "num_key_value_heads") or heads) * head_width}


def _default_relation_heads(teacher: ModelLayers, layers: Sequence[LayerPair], widths: set[int]) -> int:
    """The teacher's number of attention heads, or the largest number below that divides all widths."""
    heads = _number(teacher.config_of(layers[0].stack), "num_attention_heads") or 1
    return max(number for number in range(1, heads + 1) if not any(width % number for width in widths))


def _no_divisor(heads: int, widths: set[int]) -> str:
    common = math.gcd(*widths)
    divisors = [str(number) for number in range(1, common + 1) if common % number == 0]
    return (
        f"relation_heads={heads} does not divide the widths of queries, keys and values of student and teacher "
        f"({', '.join(map(str, sorted(widths)))}): use one of {', '.join(divisors)}."
    )


def _unequal_heads(student_heads: int, teacher_heads: int) -> str:
    return (
        f"alpha_attention compares head with head, but the student has {student_heads} heads and the teacher "
        f"{teacher_heads}: set attention_heads='mean' to compare the mean over heads, or use alpha_relation."
    )
