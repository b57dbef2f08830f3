"""The training arguments that choose and describe the losses."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from hf_distill.training.losses import DIVERGENCES, LOSSES, Loss
from hf_distill.training.losses.generation import GenerationTrainingArguments
from hf_distill.training.losses.schedules import (
    Schedule,
    Scheduled,
    Value,
    check_temperature,
    check_weight,
    is_on,
    parse_schedule,
    value_at,
)

KLPositions = Literal["labels", "attended"]
HiddenDistance = Literal["mse", "cosine", "normalized_mse"]
AttentionHeads = Literal["each", "mean"]
EmbeddingDistance = Literal["cosine", "mse"]
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "mse", "dkd", "dist"]

CHOICES_OF_LOSSES: dict[str, tuple[str, ...]] = {
    "kl_positions": get_args(KLPositions),
    "hidden_loss": get_args(HiddenDistance),
    "attention_heads": get_args(AttentionHeads),
    "embedding_loss": get_args(EmbeddingDistance),
    "divergence": get_args(DivergenceName),
}
"""The allowed values of arguments."""


@dataclass
class LossTrainingArguments(GenerationTrainingArguments):
    """`TrainingArguments` with weights and options of the losses. `DistillationTrainingArguments` adds the teacher."""

    temperature: Scheduled = field(
        default=2.0,
        metadata={
            "help": "Softens both distributions in the KL loss: softmax(logits / temperature). Above 0. It may change "
            "during the training, as may every alpha: 'linear:4->1', 'cosine:4->1@0.1-0.6', 'piecewise:0=4,0.5=2'."
        },
    )
    alpha_kl: Scheduled = field(
        default=5.0,
        metadata={"help": "Weight of the KL divergence between the softened outputs of teacher and student. 0 is off."},
    )
    alpha_task: Scheduled = field(
        default=2.0,
        metadata={"help": "Weight of the task loss on hard labels. Set it to 0 to train on unlabelled data."},
    )
    alpha_cos: Scheduled = field(
        default=1.0,
        metadata={"help": "Weight of 1 - cosine between the last hidden states of teacher and student. 0 is off."},
    )
    alpha_hidden: Scheduled = field(
        default=0.0,
        metadata={"help": "Weight of the distance between the hidden states of mapped layers. 0 is off."},
    )
    alpha_attention: Scheduled = field(
        default=0.0,
        metadata={"help": "Weight of the squared difference between the attention maps of mapped layers. 0 is off."},
    )
    alpha_relation: Scheduled = field(
        default=0.0,
        metadata={
            "help": "Weight of the KL divergence between the relations of queries, of keys and of values in the "
            "student's last layer and a layer of the teacher, as in MiniLMv2. 0 is off."
        },
    )
    alpha_embedding: Scheduled = field(
        default=0.0,
        metadata={
            "help": "For embedding models: weight of the distance between the vectors of student and teacher. 0 is off."
        },
    )
    alpha_similarity: Scheduled = field(
        default=0.0,
        metadata={
            "help": "For embedding models: weight of the KL divergence between the similarities of a text to all other "
            "texts of the optimizer step. 0 is off."
        },
    )
    alpha_anchor: Scheduled = field(
        default=0.0,
        metadata={
            "help": "For embedding models: weight of the KL divergence between the similarities of a text to the texts "
            "of `anchors`. 0 is off."
        },
    )
    alpha_margin: Scheduled = field(
        default=0.0,
        metadata={
            "help": "For rerankers, weight of the squared difference between the margins of student and teacher, "
            "(relevant - not relevant), of each query (MarginMSE). 0 is off."
        },
    )
    alpha_listwise: Scheduled = field(
        default=0.0,
        metadata={
            "help": "For rerankers, weight of the KL divergence between softmax(scores / temperature) of teacher and "
            "student over the documents of each query. 0 is off."
        },
    )
    project_hidden_states: bool = field(
        default=False,
        metadata={
            "help": "Compare hidden states of different width: learn a linear map from the student's width to the "
            "teacher's. Checkpoints contain it, the saved student does not."
        },
    )
    layer_map: list | str | None = field(
        default=None,
        metadata={
            "help": "Which layers are compared, as pairs of student and teacher layer counted from 0, such as "
            "'[[0, 1], [1, 3]]', or such pairs by stack. By default each student layer with the teacher layer that its "
            "output stands for: where make_student cut, else evenly spaced."
        },
    )
    hidden_loss: HiddenDistance = field(
        default="mse",
        metadata={
            "help": "Distance between hidden states for alpha_hidden: 'mse' as in TinyBERT, 'cosine', or "
            "'normalized_mse' as in Patient Knowledge Distillation."
        },
    )
    hidden_embeddings: bool = field(
        default=False, metadata={"help": "Also compare the embeddings with alpha_hidden, as in TinyBERT."}
    )
    attention_heads: AttentionHeads = field(
        default="each",
        metadata={"help": "Compare the attention maps of 'each' head, or the 'mean' over heads."},
    )
    relation_layer: int = field(
        default=-1,
        metadata={
            "help": "The teacher's layer for alpha_relation, counted from 0; -1 is the last. In large teachers an "
            "upper middle layer is better: MiniLMv2 takes layer 20 of BERT-large's 24 (0 to 23)."
        },
    )
    relation_heads: int | None = field(
        default=None,
        metadata={
            "help": "Number of relation heads for alpha_relation. It must divide the widths of queries, keys and "
            "values in both models. By default the teacher's attention heads, or the next lower number that divides."
        },
    )
    embedding_loss: EmbeddingDistance = field(
        default="cosine",
        metadata={"help": "Distance between vectors for alpha_embedding: 'cosine', or 'mse', the squared error."},
    )
    project_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Compare vectors of different width: learn a linear map from the student's width to the teacher's. "
            "Checkpoints contain it, the saved student does not."
        },
    )
    embedding_dims: list[int] | None = field(
        default=None,
        metadata={
            "help": "Matryoshka: widths such as 384 128 64. The losses of embedding models also read only the "
            "first numbers of the vectors, so that vectors of the student can be cut to these widths."
        },
    )
    similarity_temperature: float = field(
        default=0.05,
        metadata={"help": "What cosines are divided by in alpha_similarity and alpha_anchor. Above 0."},
    )
    anchors: str | None = field(
        default=None,
        metadata={"help": "File of write_anchors: the teacher's vectors of a fixed set of texts, for alpha_anchor."},
    )
    kl_positions: KLPositions = field(
        default="labels",
        metadata={
            "help": "For models with one distribution per token, which tokens the KL loss compares: 'labels' for those "
            "with a label (about one in seven in masked language modelling), 'attended' for all except padding."
        },
    )

    # The divergence of the KL loss
    divergence: DivergenceName = field(
        default="forward_kl",
        metadata={
            "help": "What the KL loss minimises; docs/losses.md describes each divergence. 'dkd' needs labels, and "
            "'dkd' and 'dist' need three or more classes."
        },
    )
    divergence_beta: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the teacher in divergence='jsd': near 0 it is like forward KL, near 1 like reverse KL."
        },
    )
    divergence_skew: float = field(
        default=0.1,
        metadata={
            "help": "Share of the teacher in the student's side of divergence='skew_kl', and of the student in the "
            "teacher's side of 'skew_reverse_kl'. Between 0 and 1."
        },
    )
    dkd_alpha: float = field(
        default=1.0,
        metadata={"help": "Weight of the labelled class against all others in divergence='dkd'."},
    )
    dkd_beta: float = field(
        default=8.0,
        metadata={"help": "Weight of the distribution over the other classes in divergence='dkd'."},
    )
    standardize_logits: bool = field(
        default=False,
        metadata={
            "help": "Standardise the logits of each position, in student and teacher: subtract their mean and divide "
            "by their standard deviation, before the temperature. Needs three or more classes."
        },
    )
    log_gradient_norms: int = field(
        default=0,
        metadata={
            "help": "In every N-th optimizer step, log the gradient norm of each loss by itself, without its weight. "
            "Such a step takes one more forward and backward pass for each loss. 0 is off."
        },
    )

    def __setattr__(self, name: str, value: object) -> None:
        if callable(value) and (name == "temperature" or name.startswith("alpha_")):
            value = Schedule.of_function(value)
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        """As in `TrainingArguments`. A function is written as its name."""
        return {name: str(value) if isinstance(value, Schedule) else value for name, value in super().to_dict().items()}

    @property
    def loss_weights(self) -> dict[str, Value]:
        """The weights of the losses by name: `{"kl": alpha_kl, ...}`, each a number or a `Schedule`."""
        return {name: self._value_of(f"alpha_{name}") for name in LOSSES}

    @property
    def loss_temperature(self) -> Value:
        """The temperature, a number or a `Schedule`."""
        return self._value_of("temperature")

    def at(self, progress: float) -> Self:
        """A copy with the value of each schedule at a moment of the training, from 0 to 1."""
        copied = copy.copy(self)
        copied.temperature = value_at(self.loss_temperature, progress)
        for name, weight in self.loss_weights.items():
            setattr(copied, f"alpha_{name}", value_at(weight, progress))
        return copied

    @property
    def reads_teacher(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        return any(loss.reads_teacher for loss in self._losses_in_use)

    @property
    def reads_hidden_states(self) -> bool:
        """Whether any loss compares hidden states."""
        return any(loss.needs.last_hidden_state for loss in self._losses_in_use)

    @property
    def reads_layers(self) -> bool:
        """Whether any loss compares mapped layers, which only a live teacher has."""
        return any(loss.needs.layers for loss in self._losses_in_use)

    @property
    def reads_groups(self) -> bool:
        """Whether any loss compares the scores of a row's candidates, so that rows must be grouped."""
        return any(loss.needs.groups for loss in self._losses_in_use)

    @property
    def reads_temperature_of_groups(self) -> bool:
        """Whether a loss over groups reads the temperature, even if the logits are plain numbers."""
        return any(loss.needs.groups and "temperature" in loss.options for loss in self._losses_in_use)

    @property
    def reads_labels(self) -> bool:
        """Whether any loss reads hard labels."""
        return self._divergence_reads_labels or any(loss.needs.labels for loss in self._losses_in_use)

    def _value_of(self, name: str) -> Value:
        """The value of the temperature or of a weight, checked."""
        given = getattr(self, name)
        try:
            value = parse_schedule(given)
            (check_temperature if name == "temperature" else check_weight)(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={given!r} {error}") from None
        return value

    @property
    def _alphas(self) -> dict[str, object]:
        """The weights of the losses as given, by field: `{"alpha_kl": alpha_kl, ...}`."""
        return {f"alpha_{name}": getattr(self, f"alpha_{name}") for name in LOSSES}

    @property
    def _divergence_reads_labels(self) -> bool:
        return is_on(self.loss_weights["kl"]) and DIVERGENCES[self.divergence].reads_labels

    @property
    def _losses_in_use(self) -> list[type[Loss]]:
        return [LOSSES[name] for name, weight in self.loss_weights.items() if is_on(weight)]

    @property
    def _unread_by_losses(self) -> list[str]:
        """The options that only losses of the `alpha_...` arguments read, and none that is on."""
        read = {option for loss in self._losses_in_use for option in loss.options}
        return sorted({option for loss in LOSSES.values() for option in loss.options} - read - {"layer_map"})

    def _refuse(self, unread: dict[str, object]) -> None:
        if unread:
            raise ValueError(
                f"{as_text(unread)} would have no effect with {as_text(self._alphas)}: leave it out, or raise the "
                f"weight of the loss that reads it."
            )

    def _set_by_user(self, *names: str) -> dict[str, object]:
        fields = self.__dataclass_fields__
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}


def as_text(values: Mapping[str, object]) -> str:
    """Arguments as written in the user's code."""
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
