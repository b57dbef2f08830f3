"""The losses of one batch, each summed over its items. Losses that read logits are computed in pieces."""

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from transformers import PreTrainedModel

from hf_distill.training.losses.base import Loss, ScoredItems, Signals
from hf_distill.training.losses.making import how_to_leave_out
from hf_distill.training.losses.whole_step import StepShare
from hf_distill.training.scoring import pieces
from hf_distill.training.scoring.capture import LayerOutput
from hf_distill.training.scoring.forward import ScoredOutput
from hf_distill.training.scoring.scored import Scored


class BatchLosses:
    """Computes the weighted sum of all losses from the student's outputs, and keeps the sum of each loss.

    Args:
        losses: losses by name.
        weights: `[losses]`, the factor of each sum: the weight of the loss, divided by its items in the step.
        teacher: the teacher's outputs for the batch; None without a teacher.
        scored: the scored positions of the batch, from `head.score`.
        model: the student.
        inputs: the batch.
        num_classes: logits per position, which limits how many positions fit into a chunk; None for a single chunk.
        loss_scale: the factor of the stored gradients.
        shares: for losses over the whole step, the batch's share in them, by name. A loss without a share compares the
            texts of the batch only.

    Attributes:
        sums: `[losses]`, each summed over its items in the batch.
    """

    sums: torch.Tensor

    def __init__(
        self,
        losses: Mapping[str, Loss],
        weights: torch.Tensor,
        teacher: ScoredOutput | None,
        scored: Scored,
        model: PreTrainedModel,
        inputs: Mapping[str, torch.Tensor],
        num_classes: int | None,
        loss_scale: torch.Tensor | float = 1.0,
        shares: Mapping[str, StepShare] | None = None,
    ):
        self.losses, self.weights = losses, dict(zip(losses, weights, strict=True))
        self.teacher, self.scored, self.model, self.inputs = teacher, scored, model, inputs
        self.num_classes, self.loss_scale, self.shares = num_classes, loss_scale, shares or {}
        for loss in losses.values():
            loss.train(model.training)

    def __call__(self, student: ScoredOutput) -> torch.Tensor:
        """The weighted sum of the losses, for the backward pass."""
        parts: list[torch.Tensor] = []
        sums: dict[str, torch.Tensor] = {}
        if of_logits := {name: loss for name, loss in self.losses.items() if loss.needs.logits}:
            part, own_sums = self._over_logits(student, of_logits)
            parts.append(part)
            sums.update(zip(of_logits, own_sums, strict=True))
        for name, loss in self.losses.items():
            if not loss.needs.logits:
                own_sum = self._over(loss)(student, name, loss)
                parts.append(self.weights[name] * own_sum)
                sums[name] = own_sum.detach()
        self.sums = torch.stack([sums[name] for name in self.losses])
        return reduce(torch.add, parts)

    def _over(self, loss: Loss) -> Callable[[ScoredOutput, str, Loss], torch.Tensor]:
        """The method that computes the sum of a loss that does not read logits."""
        if loss.needs.embeddings:
            return self._over_embeddings
        return self._over_layers if loss.needs.layers else self._over_states

    def _over_embeddings(self, student: ScoredOutput, name: str, loss: Loss) -> torch.Tensor:
        """The sum of a loss that reads embeddings."""
        embeddings = student.head_inputs
        if name in self.shares:
            return self.shares[name].of(embeddings)
        teacher = None
        if loss.reads_teacher and self.teacher is not None:
            teacher = Signals(embeddings=self.teacher.logits(slice(None)))
        return checked(name, loss(Signals(embeddings=embeddings), teacher, ScoredItems()))

    def _over_logits(self, student: ScoredOutput, losses: Mapping[str, Loss]) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of the losses that read logits, and `[losses]`, the sum of each.

        Both heads run on chunks of the scored positions, the losses on blocks of a chunk. A loss that reads groups gets
        the whole batch, so that no group is split.
        """
        weights = torch.stack([self.weights[name] for name in losses])
        teacher = self.teacher if any(loss.reads_teacher for loss in losses.values()) else None
        labels = self.scored.scored_labels
        is_whole = any(loss.needs.groups for loss in losses.values())
        candidates = self.scored.candidates if is_whole else None

        def of_chunk(student_inputs: torch.Tensor, chunk: slice) -> tuple[torch.Tensor, torch.Tensor]:
            student_logits = student.head(student_inputs)
            teacher_logits = None if teacher is None else teacher.logits(chunk)
            chunk_labels = None if labels is None else labels[chunk]

            def of_block(logits: torch.Tensor, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
                block_teacher = None if teacher_logits is None else Signals(logits=teacher_logits[block])
                block_labels = None if chunk_labels is None else chunk_labels[block]
                block_scored = ScoredItems(labels=block_labels, candidates=candidates)
                sums = torch.stack(
                    [
                        checked(name, loss(Signals(logits=logits), _read(loss, block_teacher), block_scored))
                        for name, loss in losses.items()
                    ]
                )
                return sums @ weights.to(sums.dtype), sums.detach()

            if is_whole:
                return of_block(student_logits, slice(None))
            block_size = max(1, pieces.elements_at_once(student_logits.device) // student_logits.shape[1])
            return pieces.sum_over_pieces(of_block, student_logits, block_size, self.loss_scale)

        head_inputs = student.head_inputs
        chunk_size = len(head_inputs)
        if self.num_classes is not None and not is_whole:
            chunk_size = pieces.chunk_elements(head_inputs.device) // self.num_classes
        return pieces.sum_over_pieces(of_chunk, head_inputs, max(1, chunk_size), self.loss_scale)

    def _over_states(self, student: ScoredOutput, name: str, loss: Loss) -> torch.Tensor:
        """The sum of a loss that reads the last hidden states."""
        hidden = known_states(student, "student", name, loss)
        weights = state_weights(self.model, self.inputs, self.scored.attended, hidden.shape[1], name, loss)
        teacher = None
        if loss.reads_teacher:
            teacher = Signals(last_hidden_state=known_states(self.teacher, "teacher", name, loss))
        return checked(name, loss(Signals(last_hidden_state=hidden), teacher, ScoredItems(state_weights=weights)))

    def _over_layers(self, student: ScoredOutput, name: str, loss: Loss) -> torch.Tensor:
        """The sum of a loss that reads mapped layers, over all pairs of layers."""
        total = self.weights[name].new_zeros(())
        for index, pair in enumerate(loss.layers):
            of_student = student.layers[pair.of_student]
            of_teacher = self.teacher.layers[pair.of_teacher] if self.teacher is not None else LayerOutput()
            attended = self.scored.attended_in(pair.stack)
            weights = state_weights(self.model, self.inputs, attended, of_student.length, name, loss)
            visible = None
            if loss.needs.of_layer.attention:
                visible = visible_to_both(weights.ne(0), of_student.visible, of_teacher.visible)
            items = ScoredItems(state_weights=weights, visible=visible, pair=index)
            signals = [_signals_of(output, loss) for output in (of_student, of_teacher)]
            total = total + checked(name, loss(signals[0], signals[1] if loss.reads_teacher else None, items))
        return total


def _signals_of(output: LayerOutput, loss: Loss) -> Signals:
    """What a loss needs of a layer. Other losses may need more of it."""
    wanted = {name: getattr(output, name) for name, is_wanted in vars(loss.needs.of_layer).items() if is_wanted}
    return Signals(**wanted, scaling=output.scaling, position_bias=output.position_bias)


def visible_to_both(attended: torch.Tensor, *visible: torch.Tensor | None) -> torch.Tensor:
    """True where a position attends to another in all models, and neither is padding: `[batch, 1, length, length]`.

    Args:
        attended: `[batch, length]`, False for padding.
        *visible: `[1 or batch, 1, length, length]` for each model; None if every position attends to every other.
    """
    both = attended[:, None, :, None] & attended[:, None, None, :]
    return reduce(torch.logical_and, (of_model for of_model in visible if of_model is not None), both)


def state_weights(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    attended: torch.Tensor,
    num_states: int,
    name: str,
    loss: Loss,
) -> torch.Tensor:
    """The weight of each hidden state: `[batch, num_states]`.

    A token's state is one item. An image or a recording is one item, shared equally by its states.

    Args:
        model: the student.
        inputs: the batch.
        attended: `[batch, length]`, False for padding; `[batch, 1]` for images and audio.
        num_states: hidden states per example.
        name: name of the loss that reads the states, for the error.
        loss: the loss that reads the states.

    Raises:
        ValueError: if the model reads tokens and does not have one hidden state per token.
    """
    if attended.shape[1] == num_states:
        return attended.float()
    if attended.shape[1] != 1:
        raise ValueError(
            f"{type(model).__name__} has {num_states} hidden states for {attended.shape[1]} tokens, so it is unknown "
            f"which states are padding: {how_to_leave_out(name, loss)}."
        )
    attended = attended.expand(-1, num_states)
    if "attention_mask" in inputs and hasattr(model, "_get_feature_vector_attention_mask"):  # speech models
        attended = attended & model._get_feature_vector_attention_mask(num_states, inputs["attention_mask"]).bool()
    return attended / attended.sum(1, keepdim=True).clamp(min=1)


def checked(name: str, value: torch.Tensor) -> torch.Tensor:
    """Returns the value of a loss after checking its shape.

    Raises:
        ValueError: if the value is not a scalar tensor.
    """
    if not isinstance(value, torch.Tensor) or value.ndim:
        returned = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"The loss {name!r} returned {returned}: return the sum over its items, a tensor of shape [].")
    return value


def _read(loss: Loss, teacher: Signals | None) -> Signals | None:
    return teacher if loss.reads_teacher else None


def known_states(output: ScoredOutput | None, of: str, name: str, loss: Loss) -> torch.Tensor:
    """Returns the last hidden states of a forward.

    Args:
        output: the outputs of the forward.
        of: "student" or "teacher", for the error.
        name: name of the loss that reads the states, for the error.
        loss: the loss that reads the states.

    Raises:
        ValueError: if the forward captured no hidden states.
    """
    if output is None or output.last_hidden_state is None:
        raise ValueError(
            f"The {of}'s forward calls no transformers model (PreTrainedModel), so its last hidden states cannot be "
            f"read: {how_to_leave_out(name, loss)}."
        )
    return output.last_hidden_state
