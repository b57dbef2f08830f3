"""Loads models from a folder, the Hub or a GGUF file: complete, and without running their code."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, load_peft_weights
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from hf_distill.optional import optional


def load_config(name: str | Path) -> PreTrainedConfig:
    """Loads the config of a model.

    Raises:
        ValueError: if the model does not exist.
    """
    if str(name).endswith(".gguf"):
        raise ValueError(f"{name} is a GGUF file: convert it with hf_distill.convert_gguf({str(name)!r}, 'folder').")
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"No model found at {name}, neither as a local folder nor on the Hub: {error}") from error


def load_pretrained(
    model_class: type[Any], name: str | Path, adapter: str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """Loads a trained model in evaluation mode.

    Args:
        model_class: class of transformers, such as `AutoModelForSequenceClassification`.
        name: Hub name or folder.
        adapter: Hub name or folder of a PEFT adapter, which is merged into the model.
        **options: passed to `from_pretrained`.

    Raises:
        ValueError: if model and adapter together lack weights, for example because the head was never trained.

    Example:
        >>> model = load_pretrained(AutoModelForSequenceClassification, "outputs/student", dtype=torch.float32)
    """
    model, info = model_class.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    missing = set(info["missing_keys"])
    if adapter is not None:
        missing -= {key.removeprefix("base_model.model.") for key in load_peft_weights(adapter, device="cpu")}
    if missing:
        raise ValueError(
            f"{adapter or name} has no weights for {', '.join(sorted(missing))}, so they would be random: fine-tune it "
            f"first, or give a model that was trained for this task."
        )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()


def convert_gguf(file: str | Path, folder: str | Path) -> Path:
    """Writes a language model in a GGUF file as a plain transformers model in float32, with its tokenizer.

    It can then be a teacher, a student, or be cut by `make_student`. Quantized weights stay as exact as they were.

    Args:
        file: the .gguf file.
        folder: the folder to write, which must not exist.

    Returns:
        The folder.

    Raises:
        ImportError: if the package gguf is missing.
        ValueError: if the file is not GGUF or has an architecture that transformers does not read, or if the folder
            exists.

    Example:
        >>> teacher = convert_gguf("SmolLM2-135M-Instruct.Q4_1.gguf", "outputs/smollm2")
    """
    file, folder = Path(file), Path(folder)
    optional("gguf", "gguf")
    if not file.is_file():
        raise ValueError(f"File not found: {file}.")
    if folder.exists():
        raise ValueError(f"{folder} exists: give a new folder.")
    where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    plain = getattr(transformers, "GgufConfig", None)  # without it, transformers always makes a plain model
    options = {} if plain is None else {"quantization_config": plain(dequantize=True)}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, **options, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise ValueError(
            f"transformers {transformers.__version__} cannot read {file}: {error} Take the model's safetensors instead."
        ) from error
    longest = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest or tokenizer.model_max_length)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder
