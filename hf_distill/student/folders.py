"""Makes a student from the name of a teacher, and saves it as a folder."""

import logging
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
    DataCollatorForLanguageModeling,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import find_adapter_config_file

from hf_distill.embedding import EmbeddingModel, is_sentence_transformer
from hf_distill.hub.cards import write_card
from hf_distill.student.layer_selection import Layers
from hf_distill.student.make_student import make_student
from hf_distill.student.model_card import student_card
from hf_distill.student.vocabulary import trim_vocabulary
from hf_distill.student.width.importance import WITH_LABELS, WITHOUT_DATA

logger = logging.getLogger(__name__)

CALIBRATION_BATCH_SIZE = 32


def make_student_folder(
    teacher: str | Path,
    output: str | Path,
    *,
    num_layers: int | Mapping[str, int] | None = None,
    layers: Layers | Mapping[str, Layers] | None = None,
    family: str | None = None,
    width: str = WITHOUT_DATA,
    calibration_file: str | Path | None = None,
    vocabulary_texts: str | Path | None = None,
    keep_tokens: int | None = None,
    **sizes: Any,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Makes a student from a teacher, and saves it with the teacher's tokenizer or processor and a model card.

    The folder is written under a temporary name and renamed at the end, so it is never incomplete.

    Args:
        teacher: folder or Hub name.
        output: a folder that does not exist yet.
        num_layers: number of layers, as in `make_student`.
        layers: which layers to keep, as in `make_student`.
        family: model family of the student, as in `make_student`.
        width: how the units that stay are chosen, as in `make_student`.
        calibration_file: text file with one example per line, for `layers="calibrated"` and `"influence"`, and for
            `width="activation"` and `"taylor"`. The last one makes labels from the texts, so it needs a model for
            masked or causal language modelling.
        vocabulary_texts: text file with one text per line. Only tokens that occur in it stay, see `trim_vocabulary`.
        keep_tokens: number of tokens to keep.
        **sizes: the sizes of `make_student`, such as `intermediate_size=768`.

    Returns:
        The student and the teacher.

    Raises:
        TypeError: if tokens are to be removed and the teacher has no tokenizer.
        ValueError: if `output` exists, if the teacher has no safetensors weights, is a PEFT adapter or has an unknown
            class, if `calibration_file` is given for a teacher that does not read text, if labels are needed that
            texts do not give, or as in `make_student` and `trim_vocabulary`.

    Example:
        >>> student, teacher = make_student_folder("FacebookAI/roberta-base", "student", num_layers=6)
        >>> student, teacher = make_student_folder("FacebookAI/roberta-base", "narrow", intermediate_size=1536)
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} already exists: choose another folder, or remove it first.")
    model = _load_teacher(teacher)
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if family == "distilbert" else {}
    processor = model.tokenizer if isinstance(model, EmbeddingModel) else _load_processor(teacher, **inputs)
    batches = None
    if calibration_file is not None:
        batches = _batches(Path(calibration_file), processor, model, with_labels=width == WITH_LABELS)
    trims = vocabulary_texts is not None or keep_tokens is not None
    if trims and all(option is None for option in (num_layers, layers, family, *sizes.values())):
        student = model
    else:
        student = make_student(
            model,
            num_layers=num_layers,
            layers=layers,
            family=family,
            width=width,
            calibration_data=batches,
            **sizes,
        )
    if trims:
        texts = None if vocabulary_texts is None else _lines(Path(vocabulary_texts))
        student, processor = _with_fewer_tokens(student, processor, texts, keep_tokens)
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
    """Makes a model without weights, on the meta device, from a config alone.

    Args:
        name: folder or Hub name.

    Raises:
        ValueError: if transformers does not have the model's class.
    """
    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):
        return _model_class(name, config)._from_config(config)


def _load_teacher(name: str | Path) -> PreTrainedModel:
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise ValueError(
            f"{name} has no .safetensors weights: give a folder written by save_pretrained(...), or a Hub name."
        )
    if find_adapter_config_file(name) is not None:
        raise ValueError(
            f"{name} is a PEFT adapter, which does not record the model's head: call make_student from Python with the "
            f"PeftModel (its adapters are merged), or save the merged model first."
        )
    if is_sentence_transformer(name):
        return EmbeddingModel.from_pretrained(name)
    config = AutoConfig.from_pretrained(name)
    return _model_class(name, config).from_pretrained(name, config=config, use_safetensors=True)


def _model_class(name: str | Path, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model class named in the config under `architectures`."""
    architecture = (config.architectures or [None])[0]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(
            f"{name} has the model class {architecture}, which transformers does not have: `architectures` in its "
            f"config must name a class of transformers, such as BertForMaskedLM."
        )
    return model_class


def _load_processor(name: str | Path, **options: object) -> Any:
    """The model's tokenizer, image processor or feature extractor, or the processor that combines them."""
    try:
        return AutoProcessor.from_pretrained(name, **options)
    except (OSError, TypeError, ValueError):  # for example Wav2Vec2 without a tokenizer
        return AutoFeatureExtractor.from_pretrained(name, **options)


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _with_fewer_tokens(
    student: PreTrainedModel, processor: Any, texts: list[str] | None, keep: int | None
) -> tuple[PreTrainedModel, Any]:
    """The student, and its tokenizer or processor, with only the tokens of these texts, or the most frequent ones."""
    has_parts = isinstance(processor, ProcessorMixin)
    trimmed = trim_vocabulary(student, processor.tokenizer if has_parts else processor, texts=texts, keep=keep)
    if trimmed.coverage is not None:
        logger.info("Kept %s tokens: %.2f%% of the tokens in the texts", len(trimmed.kept), 100 * trimmed.coverage)
    if not has_parts:
        return trimmed.model, trimmed.tokenizer
    processor.tokenizer = trimmed.tokenizer
    return trimmed.model, processor


def _batches(
    file: Path, tokenizer: object, teacher: PreTrainedModel, with_labels: bool
) -> list[dict[str, torch.Tensor]]:
    """Turns the lines of a text file into batches of the teacher's inputs, with the labels of a language model."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"--calibration-file holds text, but {type(teacher).__name__} does not read text: call make_student(..., "
            f"calibration_data=batches) from Python."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lines = _lines(file)
    max_length = min(tokenizer.model_max_length, getattr(teacher.config, "max_position_embeddings", 512), 512)
    options = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    batches = [
        dict(tokenizer(lines[start : start + CALIBRATION_BATCH_SIZE], **options))
        for start in range(0, len(lines), CALIBRATION_BATCH_SIZE)
    ]
    return _with_labels(batches, tokenizer, teacher) if with_labels else batches


def _with_labels(
    batches: list[dict[str, torch.Tensor]], tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel
) -> list[dict[str, torch.Tensor]]:
    """Adds the labels of a language model: the tokens themselves, or those that are masked."""
    name = type(teacher).__name__
    is_masked = name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    if not is_masked and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(
            f"width={WITH_LABELS!r} needs labels, and a file of texts has none for {name}: use width='activation', or "
            f"call make_student(..., width={WITH_LABELS!r}, calibration_data=batches) from Python, with labels in the "
            f"batches."
        )
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=is_masked, seed=0)
    labelled = []
    for batch in batches:
        rows = [{key: values[index] for key, values in batch.items()} for index in range(len(batch["input_ids"]))]
        labelled.append(dict(collate(rows)))
    return labelled
