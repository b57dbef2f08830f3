"""Model card of a student that has not been trained yet."""

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_distill.hub.cards import layers_as_words, make_card

TEXT = """# {model_class} cut from {teacher}

This model keeps some of the layers of `{teacher}`{revision} and all its other weights, unchanged. **It has not been
trained since**: fine-tune it or distil it from its teacher before use.

| | |
| --- | --- |
| teacher | {teacher} |
| revision | {revision_or_unknown} |
| layers kept | {layers} |
| layer selection | {method} |
| parameters | {parameters:,} |
| made with | hf_distill {version} |

```python
from transformers import {model_class}

student = {model_class}.from_pretrained("path/to/this/folder")
```
"""


def student_card(student: PreTrainedModel, teacher_on_hub: str | None = None) -> ModelCard:
    """Makes a model card from the origin that `make_student` recorded in the student's config.

    Args:
        student: a model from `make_student`.
        teacher_on_hub: Hub name of the teacher, for the card's metadata; None for a local teacher.
    """
    provenance = student.config.distilled_from
    data = ModelCardData(base_model=teacher_on_hub, library_name="transformers", tags=["hf_distill", "distillation"])
    revision = provenance["revision"]
    text = TEXT.format(
        model_class=type(student).__name__,
        teacher=provenance["teacher"],
        revision=f" at revision `{revision}`" if revision else "",
        revision_or_unknown=revision or "unknown",
        layers=layers_as_words(provenance["layers"]),
        method=layers_as_words(provenance["method"]),
        parameters=student.num_parameters(),
        version=provenance["hf_distill_version"],
    )
    return make_card(data, text)
