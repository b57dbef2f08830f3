"""Default inputs for comparing and measuring models, by what the models read."""

from collections.abc import Sequence
from typing import Any

from hf_distill.deployment.parity_images import make_images
from hf_distill.deployment.parity_sounds import make_sounds
from hf_distill.deployment.parity_texts import TEXTS, with_questions


def built_in_inputs(reads: str) -> Sequence[Any]:
    """Inputs for a model that reads `"text"`, `"pair"` (of texts), `"image"` or `"audio"`."""
    if reads == "image":
        return make_images()
    if reads == "audio":
        return make_sounds()
    return with_questions(TEXTS) if reads == "pair" else TEXTS
