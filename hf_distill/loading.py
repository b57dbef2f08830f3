"""Models from a folder or the Hub: with all their weights, from safetensors, and without code of their own."""

from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel


def load_config(name: str | Path) -> PreTrainedConfig:
    """The config of a model.

    Raises:
        ValueError: if there is no model of this name.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is no folder with a model, and none was found on the Hub: {error}") from error


def load_pretrained(
    model_class: type[Any], name: str | Path, adapter: str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """A model as it was trained, in evaluation mode.

    Args:
        model_class: a class of transformers, such as `AutoModelForSequenceClassification`.
        name: a name on the Hub or a folder.
        adapter: of a PEFT adapter for this model, which is merged into it.
        options: more for `from_pretrained`.

    Raises:
        ValueError: if neither the model nor the adapter has all weights, as where the head was never trained.

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
            f"{adapter or name} has no weights for {', '.join(sorted(missing))}, which would be random numbers: "
            f"fine-tune it first, or give a model that was trained for this task."
        )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval()
