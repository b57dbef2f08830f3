"""Model card of a student that has not been trained yet."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_distill.embedding import EmbeddingModel
from hf_distill.hub.cards import cut_as_words, make_card

TEXT = """# {model_class} cut from {teacher}

This model keeps some of the {parts} of `{teacher}`{revision}, and all its other weights, unchanged. **It has not been
trained since**: fine-tune it or distil it from its teacher before use.

| | |
| --- | --- |
| teacher | {teacher} |
| revision | {revision_or_unknown} |
{rows}
| parameters | {parameters:,} |
| made with | hf_distill {version} |

```python
{loading}
```
"""

LOADING = """from transformers import {model_class}

student = {model_class}.from_pretrained("path/to/this/folder")"""

LOADING_EMBEDDINGS = """from sentence_transformers import SentenceTransformer

student = SentenceTransformer("path/to/this/folder")"""


def student_card(student: PreTrainedModel, teacher_on_hub: str | None = None) -> ModelCard:
    """Makes a model card from the origin that `make_student` recorded in the student's config.

    Args:
        student: a model from `make_student`.
        teacher_on_hub: Hub name of the teacher, for the card's metadata; None for a local teacher.
    """
    provenance = student.config.distilled_from
    returns_vectors = isinstance(student, EmbeddingModel)
    model_class = type(student.transformer if isinstance(student, EmbeddingModel) else student).__name__
    library = "sentence-transformers" if returns_vectors else "transformers"
    data = ModelCardData(base_model=teacher_on_hub, library_name=library, tags=["hf_distill", "distillation"])
    revision = provenance["revision"]
    text = TEXT.format(
        model_class=model_class,
        loading=LOADING_EMBEDDINGS if returns_vectors else LOADING.format(model_class=model_class),
        teacher=provenance["teacher"],
        revision=f" at revision `{revision}`" if revision else "",
        revision_or_unknown=revision or "unknown",
        parts=_parts(provenance),
        rows="\n".join(f"| {name} | {value} |" for name, value in cut_as_words(provenance).items()),
        parameters=student.num_parameters(),
        version=provenance["hf_distill_version"],
    )
    return make_card(data, text)


def _parts(provenance: Mapping[str, Any]) -> str:
    """What some of was kept."""
    method = provenance.get("method", "all")
    methods = set(method.values()) if isinstance(method, Mapping) else {method}
    are_cut = {
        "layers": bool(methods - {"all"}),
        "units": "sizes" in provenance,
        "tokens": "vocabulary" in provenance,
    }
    cut = [part for part, is_cut in are_cut.items() if is_cut] or ["weights"]
    return ", ".join(cut[:-1]) + " and " + cut[-1] if len(cut) > 1 else cut[0]
