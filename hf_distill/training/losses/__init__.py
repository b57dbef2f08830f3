"""The losses, one class each. A loss returns the sum over its items; the trainer turns sums into means.

To add a loss: write a class in a file of this folder, and add a row to `LOSSES`, an `alpha_...` field to the arguments
and a row to the parametrised test.
"""

from hf_distill.training.losses.attention import AttentionLoss, RelationLoss
from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.divergences import DIVERGENCES, Divergence
from hf_distill.training.losses.embeddings import EMBEDDING_LOSSES, AnchorLoss, EmbeddingLoss, SimilarityLoss
from hf_distill.training.losses.hidden_states import HIDDEN_LOSSES, CosineLoss, HiddenLoss
from hf_distill.training.losses.logits import DivergenceLoss
from hf_distill.training.losses.ranking import ListwiseLoss, MarginLoss
from hf_distill.training.losses.task import TASK_LOSSES, TaskLoss

__all__ = [
    "DIVERGENCES",
    "EMBEDDING_LOSSES",
    "HIDDEN_LOSSES",
    "LOSSES",
    "TASK_LOSSES",
    "AnchorLoss",
    "AttentionLoss",
    "CosineLoss",
    "Divergence",
    "DivergenceLoss",
    "EmbeddingLoss",
    "HiddenLoss",
    "ListwiseLoss",
    "Loss",
    "MarginLoss",
    "Needs",
    "RelationLoss",
    "ScoredItems",
    "Setup",
    "Signals",
    "SimilarityLoss",
    "TaskLoss",
]

LOSSES: dict[str, type[Loss]] = {
    "kl": DivergenceLoss,
    "task": TaskLoss,
    "cos": CosineLoss,
    "hidden": HiddenLoss,
    "attention": AttentionLoss,
    "relation": RelationLoss,
    "embedding": EmbeddingLoss,
    "similarity": SimilarityLoss,
    "anchor": AnchorLoss,
    "margin": MarginLoss,
    "listwise": ListwiseLoss,
}
"""Loss classes by name: `alpha_<name>` is the weight, `loss_<name>` the log entry. `from_setup` creates an instance."""
