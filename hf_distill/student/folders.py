"""Students as folders: a teacher by its name in, a folder with a student out."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from hf_distill.hub.cards import write_card
from hf_distill.student.layer_selection import Layers
from hf_distill.student.make_student import make_student
from hf_distill.student.model_card import student_card

CALIBRATION_BATCH_SIZE = 32


def make_student_folder(
    teacher: str | Path,
    output: str | Path,
    *,
    num_layers: int | Mapping[str, int] | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    family: str | None = None,
    calibration_file: str | Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Makes a student of a teacher that is named, and saves it with the teacher's tokenizer or processor and a card.

    The folder is complete or does not exist: it gets its name at the end.

    Args:
        teacher: a folder or a name on the Hub.
        output: a folder that does not exist yet.
        num_layers: as in `make_student`, as are the next two.
        layers: which layers to keep.
        family: of the student.
        calibration_file: a text file with one example per line, for `layers="calibrated"`.

    Returns:
        The student and its teacher.

    Raises:
        ValueError: if `output` exists, if the teacher has no weights in safetensors, is a PEFT adapter or is of an
            unknown class, or if it does not read texts but there is a `calibration_file`.

    Example:
        >>> student, teacher = make_student_folder("FacebookAI/roberta-base", "student", num_layers=6)
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} exists already: choose another folder, or remove it first.")
    model = _load_teacher(teacher)
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if family == "distilbert" else {}
    processor = _load_processor(teacher, **inputs)
    batches = None if calibration_file is None else _batches(Path(calibration_file), processor, model)
    student = make_student(model, num_layers=num_layers, layers=layers, family=family, calibration_data=batches)
    name_on_hub = None if Path(teacher).is_dir() else str(teacher)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        student.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        write_card(student_card(student, name_on_hub), unfinished / "README.md")
        unfinished.rename(output)
    return student, model


def load_skeleton(name: str | Path) -> PreTrainedModel:
    """A model without weights, on the meta device. Only its config is read.

    Args:
        name: a folder or a name on the Hub.

    Raises:
        ValueError: if transformers does not have its class.
    """
    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):
        return _model_class(name, config)._from_config(config)


def _load_teacher(name: str | Path) -> PreTrainedModel:
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise ValueError(
            f"{name} has no weights in safetensors: give a folder that save_pretrained(...) wrote, or a name on the "
            f"Hub."
        )
    if find_adapter_config_file(name) is not None:
        raise ValueError(
            f"{name} is a PEFT adapter, which does not say what head it belongs to: call make_student from Python with "
            f"the PeftModel, which it merges, or save the merged model first."
        )
    config = AutoConfig.from_pretrained(name)
    return _model_class(name, config).from_pretrained(name, config=config, use_safetensors=True)


def _model_class(name: str | Path, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that the config names under `architectures`."""
    architecture = (config.architectures or [None])[0]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(
            f"{name} is of the class {architecture}, which transformers does not have: its config should name one "
            f"under `architectures`, such as BertForMaskedLM."
        )
    return model_class


def _load_processor(name: str | Path, **options: object) -> Any:
    """The model's tokenizer, image processor or feature extractor, or the processor that unites them."""
    try:
        return AutoProcessor.from_pretrained(name, **options)
    except (OSError, TypeError, ValueError):  # as for Wav2Vec2 without a tokenizer
        return AutoFeatureExtractor.from_pretrained(name, **options)


def _batches(file: Path, tokenizer: object, teacher: PreTrainedModel) -> list[dict[str, torch.Tensor]]:
    """The lines of a text file as batches of the teacher's inputs."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"--calibration-file is for texts, but {type(teacher).__name__} does not read any: call make_student(..., "
            f"layers='calibrated', calibration_data=batches) from Python."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    max_length = min(tokenizer.model_max_length, getattr(teacher.config, "max_position_embeddings", 512), 512)
    options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    return [
        dict(tokenizer(lines[start : start + CALIBRATION_BATCH_SIZE], **options))
        for start in range(0, len(lines), CALIBRATION_BATCH_SIZE)
    ]
