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
from hf_distill.training.losses.layer_map import LayerPair, ModelLayers
from hf_distill.training.losses.precision import at_least_fp32
from hf_distill.training.scoring.scored import MASKED_LOGIT


def attention_scores(signals: Signals, padding: torch.Tensor, mean_of_heads: bool = False) -> torch.Tensor:
    """The products of queries and keys before the softmax, as the model scales them, in fp32.

    Args:
        signals: queries and keys. With grouped-query attention, several heads of queries share one of keys.
        padding: `[batch, length]`, True for padding. Its queries and keys count as 0, whatever they are.
        mean_of_heads: return the mean over heads, `[batch, 1, length, length]`.

    Returns:
        `[batch, heads, length, length]`.

    Example:
        >>> signals = Signals(queries=torch.ones(1, 4, 3, 2), keys=torch.ones(1, 2, 3, 2), scaling=0.5)
        >>> attention_scores(signals, padding=torch.zeros(1, 3, dtype=torch.bool)).shape
        torch.Size([1, 4, 3, 3])
    """
    queries, keys = (_without(padding, tensor) for tensor in (signals.queries, signals.keys))
    heads = queries.shape[1]
    keys = keys.repeat_interleave(heads // keys.shape[1], dim=1)
    if mean_of_heads:  # the sum over heads is one product of all of them
        queries, keys = (tensor.transpose(1, 2).flatten(2).unsqueeze(1) for tensor in (queries, keys))
    scores = queries @ keys.transpose(2, 3) * (signals.scaling / (heads if mean_of_heads else 1))
    if signals.position_bias is None:
        return scores
    bias = at_least_fp32(signals.position_bias)
    return scores + (bias.mean(1, keepdim=True) if mean_of_heads else bias)


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

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        padding = scored.state_weights.eq(0)
        student_scores, teacher_scores = (
            attention_scores(signals, padding, self.mean_of_heads) for signals in (student, teacher)
        )
        if student_scores.shape[1] != teacher_scores.shape[1]:
            raise ValueError(_unequal_heads(student_scores.shape[1], teacher_scores.shape[1]))
        difference = (student_scores - teacher_scores).masked_fill(~scored.visible, 0.0)
        of_position = difference.square().mean(1).sum(-1) / scored.visible.squeeze(1).sum(-1).clamp(min=1)
        return (scored.state_weights * of_position).sum()


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
        layers = []
        for name, stack in student.stacks.items():
            if name not in teacher.stacks:
                raise ValueError(
                    f"alpha_relation needs the same stacks in both models, but the student has {list(student.stacks)} "
                    f"and the teacher {list(teacher.stacks)}."
                )
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

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        padding = scored.state_weights.eq(0)
        hidden = ~scored.visible
        sums = []
        for name in ("queries", "keys", "values"):
            student_relation, teacher_relation = (
                self._log_relation(_without(padding, getattr(signals, name)), hidden) for signals in (student, teacher)
            )
            divergence = F.kl_div(student_relation, teacher_relation, reduction="none", log_target=True)
            of_position = divergence.sum(-1).mean(1)
            sums.append((scored.state_weights * of_position).masked_fill(padding, 0.0).sum())
        return torch.stack(sums).sum()

    def _log_relation(self, vectors: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The logarithm of a relation, `[batch, relation heads, length, length]`, in fp32.

        Args:
            vectors: `[batch, heads, length, head width]`.
            hidden: `[batch, 1, length, length]`, True for pairs that have no relation.
        """
        vectors = vectors.transpose(1, 2).flatten(2)
        if vectors.shape[-1] % self.relation_heads:
            raise ValueError(_no_divisor(self.relation_heads, {vectors.shape[-1]}))
        vectors = vectors.unflatten(-1, (self.relation_heads, -1)).transpose(1, 2)
        products = vectors @ vectors.transpose(2, 3) / math.sqrt(vectors.shape[-1])
        return products.masked_fill(hidden, MASKED_LOGIT).log_softmax(-1)


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
