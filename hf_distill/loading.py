"""Loads models from a folder or the Hub: complete, from safetensors, and without running their code."""

from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel


def load_config(name: str | Path) -> PreTrainedConfig:
    """Loads the config of a model.

    Raises:
        ValueError: if the model does not exist.
    """
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
