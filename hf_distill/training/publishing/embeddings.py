"""What the card of an embedding model says: how to load it, and whether its vectors fit the teacher's."""

from transformers import Trainer

from hf_distill.embedding import EmbeddingModel
from hf_distill.training.losses import EmbeddingLoss

LOADING = """\
With sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{place}")
vectors = model.encode(["..."])
```"""

TEACHERS_SPACE = (
    "Its vectors are trained to be those of {teacher}, so both can be used together: embed the documents once with the "
    "teacher, and the queries with this model (asymmetric retrieval, Vujanic and Rueckstiess, 2025, LEAF, "
    "https://arxiv.org/abs/2509.12539)."
)


def loading_of(place: str) -> str:
    """How to load an embedding model from a folder or the Hub."""
    return LOADING.format(place=place)


def in_teachers_space(trainer: Trainer, student: object, teacher: str) -> str | None:
    """A sentence on the use of student and teacher together; None if their vectors cannot be compared."""
    losses = [loss for loss in trainer.losses.values() if isinstance(loss, EmbeddingLoss)]
    fits = isinstance(student, EmbeddingModel) and any(loss.projection is None for loss in losses)
    return TEACHERS_SPACE.format(teacher=teacher) if fits else None
