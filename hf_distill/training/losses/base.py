"""The contract of a loss: what it reads, how many items a batch has, and the sum over them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_distill.training.losses.layer_map import LayerMap, LayerPair, ModelLayers, map_layers
from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.capture import Wanted
from hf_distill.training.scoring.groups import in_groups
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.scored import Scored


@dataclass(frozen=True)
class Needs:
    """What a loss reads. The trainer computes and keeps nothing else.

    A loss reads either logits, or embeddings, or the last hidden states, or mapped layers. Logits are computed in
    pieces, and the loss is called once per piece. A loss that reads mapped layers is called once for each pair of a
    student layer and a teacher layer, see `Loss.layers`. The sums of the calls add up to the whole sum.

    Attributes:
        logits: logits of the scored positions, `[scored, classes]`.
        embeddings: the vectors of an embedding model, `[texts, width]`.
        whole_step: for a loss that reads embeddings, those of all texts of the optimizer step, over all micro-batches
            and processes, because it compares texts with each other. Each micro-batch then takes one more forward pass
            without gradients (Gao et al., 2021, GradCache, https://arxiv.org/abs/2101.06983), unless there is only one.
        last_hidden_state: last hidden states of all positions, `[batch, length, width]`.
        labels: hard labels, for a loss that reads logits. Every training batch must then have labels.
        groups: which logits belong to the same row, for a loss that reads logits. Rows must then be grouped, as those
            of `encode_rankings`, and the loss is called once for the whole batch.
        hidden_states: the output of each mapped layer, `[batch, length, width]`.
        queries: the queries of each mapped layer, `[batch, heads, length, head width]`.
        keys: the keys of each mapped layer, `[batch, key-value heads, length, head width]`.
        values: the values of each mapped layer, `[batch, key-value heads, length, head width]`.

    Example:
        >>> Needs(logits=True, labels=True).logits
        True
    """

    logits: bool = False
    embeddings: bool = False
    whole_step: bool = False
    last_hidden_state: bool = False
    labels: bool = False
    groups: bool = False
    hidden_states: bool = False
    queries: bool = False
    keys: bool = False
    values: bool = False

    @property
    def of_layer(self) -> Wanted:
        """What the loss reads of each mapped layer."""
        return Wanted(self.hidden_states, self.queries, self.keys, self.values)

    @property
    def layers(self) -> bool:
        """Whether the loss reads mapped layers."""
        return self.hidden_states or self.of_layer.attention


@dataclass(frozen=True)
class Signals:
    """What a loss reads from the student or from the teacher. Whatever it does not need is None.

    Attributes:
        logits: `[scored, classes]`; a `TopK` if only some tokens of the teacher are stored.
        embeddings: `[texts, width]`.
        last_hidden_state: `[batch, length, width]`; `[batch, states, width]` for images and audio.
        hidden_states: the output of the mapped layer, `[batch, length, width]`, before a final norm.
        queries: `[batch, heads, length, head width]`, as the attention function reads them, after rotary embeddings.
        keys: `[batch, key-value heads, length, head width]`.
        values: `[batch, key-value heads, length, head width]`.
        scaling: the factor of the products of queries and keys.
        position_bias: `[1 or batch, heads, length, length]`, which T5 adds to the products; None in most models.
    """

    logits: Any = None
    embeddings: Any = None
    last_hidden_state: Any = None
    hidden_states: Any = None
    queries: Any = None
    keys: Any = None
    values: Any = None
    scaling: float = 1.0
    position_bias: Any = None


@dataclass(frozen=True)
class ScoredItems:
    """The items that a loss sums over.

    Attributes:
        labels: for a loss that reads logits; None if the batch has no labels. One class: `[scored]` class indices, -100
            where there is no label. Multi-label: `[scored, classes]` of 0.0, 1.0, and -100 where unknown. Regression:
            `[scored, classes]` numbers, NaN where unknown.
        state_weights: for a loss that reads hidden states or mapped layers, `[batch, length]`: 1 for an attended
            position, 0 for padding. For images and audio, an example is one item and each state has its share of it.
        visible: for a loss that reads queries, keys or values, `[batch, 1, length, length]`: True where a position
            (row) attends to another (column) in both models, and neither is padding.
        pair: for a loss that reads mapped layers, the index of the pair in `Loss.layers`.
        candidates: for a loss that reads groups, `[groups, candidates]`: True where a row has a candidate. The logits
            and labels are those of these candidates, group by group.
    """

    labels: Any = None
    state_weights: Any = None
    visible: Any = None
    pair: int = 0
    candidates: Any = None

    def in_groups(self, values: torch.Tensor, padding: float) -> torch.Tensor:
        """Puts `[scored]` values into groups: `[groups, candidates]`, with `padding` where there is no candidate."""
        return in_groups(values, self.candidates, padding)


class LossArguments(Protocol):
    """The training arguments that the losses read."""

    temperature: float
    divergence: str
    standardize_logits: bool
    label_smoothing_factor: float
    project_hidden_states: bool
    hidden_loss: str
    hidden_embeddings: bool
    layer_map: LayerMap | None
    attention_heads: str
    relation_layer: int
    relation_heads: int | None
    embedding_loss: str
    project_embeddings: bool
    embedding_dims: list[int] | None
    similarity_temperature: float
    anchors: str | None
    seed: int


@dataclass(frozen=True)
class Setup:
    """What `Loss.from_setup` creates a loss from.

    Attributes:
        args: the training arguments.
        head: the student's head.
        student: a description of the student's outputs.
        teacher: a description of the teacher's outputs, a `HeadSpec`; None without a teacher.
        top_k: how many tokens per position are stored of the teacher's vocabulary; None if all logits are known.
        num_samples: how many tokens per position were sampled from the teacher, if such targets are stored.
        models: the student and the teacher, if the teacher is a live model.
        teacher_fingerprint: fingerprint of the teacher's weights; None if it is unknown, or without a single teacher.
    """

    args: LossArguments
    head: Head
    student: HeadSpec
    teacher: Any
    top_k: int | None
    models: tuple[PreTrainedModel, PreTrainedModel] | None = None
    teacher_fingerprint: str | None = None
    num_samples: int | None = None

    @cached_property
    def layers(self) -> tuple[ModelLayers, ModelLayers]:
        """The layers of student and teacher.

        Raises:
            ValueError: if the teacher is not a live model, or if a model has no stack of layers.
        """
        if self.models is None:
            raise ValueError(
                "The losses over layers need a live teacher, because only its last hidden states can be stored: pass "
                "teacher_model, without the columns of add_teacher_targets."
            )
        student, teacher = self.models
        return ModelLayers.of(student), ModelLayers.of(teacher)

    def map_layers(self, embeddings: bool = False) -> tuple[LayerPair, ...]:
        """The pairs of layers that `layer_map` gives, or the default map."""
        return map_layers(*self.layers, self.args.layer_map, embeddings)


class Loss(nn.Module):
    """Base class of losses. To add your own, subclass it and pass an instance to `DistillationTrainer(losses=...)`.

    `forward` returns the SUM over the loss's items. The trainer divides it by the number of items in the whole
    optimizer step, over all micro-batches and processes, so the loss does not depend on how a step is split. Test your
    own loss with `check_split_invariance`.

    A loss may have its own parameters, such as a projection. They are trained with the student and saved in
    checkpoints, but never saved with the student.

    Attributes:
        needs: what the loss reads.
        reads_teacher: whether the loss compares the student with a teacher.
        description: what the loss is, in half a sentence, for the model card.
        citation: BibTeX for the model card, or "".
        options: for a loss in `LOSSES`, the training arguments that it reads, except its weight. Setting one while the
            loss is off is an error.
        layers: for a loss that reads mapped layers, the pairs that it compares. By default those of `layer_map`, or one
            pair for each layer of the student.

    Example:
        >>> class ReverseKL(Loss):
        ...     needs = Needs(logits=True)
        ...     description = "the KL divergence from the student's distribution to the teacher's"
        ...
        ...     def forward(self, student, teacher, scored):
        ...         student_log_probs = student.logits.float().log_softmax(-1)
        ...         teacher_log_probs = teacher.logits.float().log_softmax(-1)
        ...         return (student_log_probs.exp() * (student_log_probs - teacher_log_probs)).sum()
        >>> losses = {"reverse_kl": (ReverseKL(), 0.5)}
        >>> trainer = DistillationTrainer(student, args, teacher_model=teacher, losses=losses)
    """

    needs: Needs = Needs()
    reads_teacher: ClassVar[bool] = True
    description: str = ""
    citation: str = ""
    options: ClassVar[tuple[str, ...]] = ()
    layers: tuple[LayerPair, ...] = ()

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        """Checks the values of `options`. Called with the training arguments if the loss is on.

        Raises:
            ValueError: if a value is out of range, or if an option would have no effect.
        """

    @classmethod
    def from_setup(cls, setup: Setup) -> "Loss":
        """Creates the loss from the training arguments. Only the losses in `LOSSES` need it."""
        return cls()

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        """Checks that student and teacher can be compared. Called when the trainer is created.

        Args:
            student: a description of the student's outputs.
            teacher: a description of the teacher's outputs; None if there is no teacher.

        Raises:
            ValueError: if they cannot be compared.
        """

    def state(self) -> Mapping[str, object]:
        """The settings of the loss, as JSON values. Resuming a checkpoint with other settings logs a warning."""
        return {}

    def items(self, scored: Scored) -> torch.Tensor:
        """Counts the items of a batch. Override it if `forward` sums over something else.

        By default the items are the groups if the loss needs groups, else the labelled positions if it needs labels,
        else the scored positions if it needs logits, the texts if it needs embeddings, else the attended positions,
        once for each pair of layers if it reads mapped layers.

        Args:
            scored: the positions and labels of the batch. The count must follow from these alone, not from a model's
                outputs.

        Returns:
            The number of items, a tensor of shape `[]`.
        """
        if self.needs.groups:
            return check_grouped(type(self).__name__, scored).any(1).sum()
        if self.needs.labels:
            return scored.labelled.sum()
        if self.needs.layers:
            return sum(
                (scored.attended_in(pair.stack).sum() for pair in self.layers), scored.attended.new_zeros(()).sum()
            )
        reads_positions = self.needs.logits or self.needs.embeddings
        return scored.positions.sum() if reads_positions else scored.attended.sum()

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        """Computes the sum of the loss over the items.

        Args:
            student: the student's signals that `needs` names.
            teacher: the teacher's signals that `needs` names; None if `reads_teacher` is False.
            scored: the items.

        Returns:
            The sum, an fp32 tensor of shape `[]`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no forward: define forward(student, teacher, scored) and return the sum over "
            f"the items."
        )


def check_grouped(name: str, scored: Scored) -> torch.Tensor:
    """The candidates of a batch of grouped rows, `[groups, candidates]`.

    Args:
        name: the loss or its argument, for the error.
        scored: the scored positions of the batch.

    Raises:
        ValueError: if rows are not grouped.
    """
    if scored.candidates is None:
        raise ValueError(
            f"{name} compares the candidates of a query, but each row has a single one: make grouped rows with "
            f"encode_rankings and data_collator=DataCollatorForRankings(tokenizer), or leave out the loss."
        )
    return scored.candidates
