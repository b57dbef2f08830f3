"""How a teacher is loaded from a name: its dtype, its quantisation, its devices, its adapters."""

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, is_bitsandbytes_available

from hf_distill.training.heads import auto_class_of
from hf_distill.training.teacher import check_tokenizers


def load_teacher(
    name_or_path: str,
    student: PreTrainedModel,
    tokenizer: object = None,
    dtype: torch.dtype | str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """Loads a teacher with the student's kind of head, from safetensors.

    Args:
        name_or_path: a name on the Hub or a folder, of a model or of a PEFT adapter, which is merged into its base.
        student: the model that says which head to load.
        tokenizer: the student's; the teacher's must map the same words to the same ids. Not checked if it is something
            else, or None.
        dtype: by default the one that the weights are stored in.
        quantization: "8bit" or "4bit", with bitsandbytes. The head stays as it is.
        device_map: how to spread it over the devices, as in `from_pretrained`.

    Raises:
        ImportError: if quantisation is asked for and bitsandbytes is not installed.
        ValueError: if weights are missing, as for a teacher whose head was never trained, or if the tokenizers differ.
    """
    options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if device_map is not None:
        options["device_map"] = device_map
    if quantization is not None:
        options["quantization_config"] = _quantization_config(quantization, student)

    if find_adapter_config_file(name_or_path) is None:
        teacher, loading_info = auto_class_of(student).from_pretrained(name_or_path, **options)
        saved = set()
    else:
        base = PeftConfig.from_pretrained(name_or_path).base_model_name_or_path
        # An adapter does not say how many labels its head has.
        teacher, loading_info = auto_class_of(student).from_pretrained(
            base, num_labels=student.config.num_labels, **options
        )
        saved = {key.removeprefix("base_model.model.") for key in load_peft_weights(name_or_path, device="cpu")}
        teacher = PeftModel.from_pretrained(teacher, name_or_path).merge_and_unload()

    if missing := sorted(set(loading_info["missing_keys"]) - saved):
        raise ValueError(
            f"The teacher {name_or_path!r} has no weights for {', '.join(missing)}: they would be random numbers, and "
            f"the student would learn those. Use a teacher that was trained for this task, or fine-tune it first."
        )
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(name_or_path), name_or_path)
    return teacher


def _quantization_config(quantization: str, student: PreTrainedModel) -> BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise ImportError(
            f"teacher_quantization={quantization!r} needs bitsandbytes: pip install 'hf_distill[quant]'. Or pass a "
            f"teacher_model that is quantised already."
        )
    # The head is small, and what it gives is what the student learns from.
    backbone = {student.base_model_prefix, "encoder", "decoder", "shared"}
    head = [name for name, _ in student.named_children() if name not in backbone]
    return BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit", llm_int8_skip_modules=head
    )
