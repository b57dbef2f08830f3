"""The card of a student that has not been trained yet."""

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_distill.hub.cards import layers_as_words, make_card

TEXT = """# {model_class} cut from {teacher}

This model has some of the layers of `{teacher}`{revision}, and every other weight as it was. **It has not been trained
since**: fine-tune it, or let it learn from its teacher, before you use it.

| | |
| --- | --- |
| teacher | {teacher} |
| revision | {revision_or_unknown} |
| layers kept | {layers} |
| how they were chosen | {method} |
| parameters | {parameters:,} |
| made with | hf_distill {version} |

```python
from transformers import {model_class}

student = {model_class}.from_pretrained("path/to/this/folder")
```
"""


def student_card(student: PreTrainedModel, teacher_on_hub: str | None = None) -> ModelCard:
    """What `make_student` wrote to the student's config, as a model card.

    Args:
        student: what `make_student` gave.
        teacher_on_hub: the teacher's name on the Hub, for the card's metadata; None if it is not there.
    """
    provenance = student.config.distilled_from
    data = ModelCardData(base_model=teacher_on_hub, library_name="transformers", tags=["hf_distill", "distillation"])
    revision = provenance["revision"]
    text = TEXT.format(
        model_class=type(student).__name__,
        teacher=provenance["teacher"],
        revision=f" at revision `{revision}`" if revision else "",
        revision_or_unknown=revision or "not known",
        layers=layers_as_words(provenance["layers"]),
        method=layers_as_words(provenance["method"]),
        parameters=student.num_parameters(),
        version=provenance["hf_distill_version"],
    )
    return make_card(data, text)
