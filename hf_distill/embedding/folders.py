"""Reads and writes the folders of sentence-transformers, and checks the modules in them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from hf_distill.files import MODULES, write_json
from hf_distill.loading import load_config
from hf_distill.optional import optional
from hf_distill.version import __version__

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SETTINGS = "config_sentence_transformers.json"
"""In the folder of a `SentenceTransformer`: prompts and other settings."""

AFTER_POOLING = ("Dense", "Normalize", "LayerNorm", "Dropout")
"""The modules that may follow the pooling. Each reads one vector per text and returns one."""


def is_sentence_transformer(name: str | Path) -> bool:
    """Whether a folder or a Hub repository has the format of sentence-transformers."""
    return _file(name, MODULES) is not None


def load(
    name: str, pooling: str | Sequence[str] | None, normalize: bool, options: Mapping[str, Any]
) -> "SentenceTransformer":
    """Loads a `SentenceTransformer`, or makes one from a transformers model and a pooling.

    Raises:
        ImportError: if sentence-transformers is not installed.
        ValueError: see `EmbeddingModel.from_pretrained`.
    """
    library = optional("sentence_transformers", "embeddings")
    model_kwargs = {**options, "use_safetensors": True}
    for name_of_option in ("trust_remote_code", "config"):  # never, and it is in the folder
        model_kwargs.pop(name_of_option, None)
    if is_sentence_transformer(name):
        if pooling is not None or normalize:
            raise ValueError(
                f"pooling={pooling!r} and normalize={normalize} would have no effect: {name} is a SentenceTransformer, "
                f"which has its own pooling. Leave them out."
            )
        check_listed(name)
        return library.SentenceTransformer(name, device="cpu", model_kwargs=model_kwargs)
    load_config(name)  # a clear error if there is no model
    modules = optional("sentence_transformers.sentence_transformer.modules", "embeddings")
    if pooling is None:
        raise ValueError(
            f"{name} is not a SentenceTransformer, so it is unknown how its hidden states become one vector: name the "
            f"pooling that it was trained with, {', '.join(map(repr, modules.Pooling.POOLING_MODES))}."
        )
    transformer = modules.Transformer(name, model_kwargs=model_kwargs)
    parts = [transformer, modules.Pooling(transformer.get_embedding_dimension(), pooling)]
    return library.SentenceTransformer(modules=[*parts, *([modules.Normalize()] if normalize else [])], device="cpu")


def check_listed(name: str | Path) -> None:
    """Checks the modules that a folder lists, before any is loaded.

    Raises:
        ValueError: if a module is of an unknown kind, or if its weights are not safetensors.
    """
    file = _file(name, MODULES)
    assert file is not None
    listed = json.loads(Path(file).read_text(encoding="utf-8"))
    kinds = [module["type"].rpartition(".")[-1] for module in listed]
    ours = [module["type"].startswith("sentence_transformers.") for module in listed]
    _check_kinds([kind if own else module["type"] for kind, own, module in zip(kinds, ours, listed, strict=True)], name)
    for kind, module in zip(kinds, listed, strict=True):
        has_weights = kind in ("Dense", "LayerNorm")
        if has_weights and _file(name, f"{module['path']}/{SAFE_WEIGHTS_NAME}") is None:
            raise ValueError(
                f"{name} has no {module['path']}/{SAFE_WEIGHTS_NAME}. Only safetensors are loaded: save the model "
                f"again with a current sentence-transformers."
            )


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Checks that modules are a transformer, a pooling, and modules that map one vector to one.

    Raises:
        ValueError: if they are not.
    """
    _check_kinds([type(module).__name__ for module in modules], "The SentenceTransformer")
    first: Any = modules[0]
    if not isinstance(getattr(first, "model", None), PreTrainedModel):
        raise ValueError(
            f"The model runs by {type(getattr(first, 'model', first)).__name__}, not by PyTorch: load it with "
            f"backend='torch'."
        )
    if getattr(first, "module_output_name", "token_embeddings") != "token_embeddings":
        raise ValueError(
            f"The Transformer module returns {first.module_output_name}, not one vector per token: only models of text "
            f"that are pooled are supported."
        )
    pooling: Any = modules[1]
    if not pooling.include_prompt:
        raise ValueError(
            "The pooling leaves out the tokens of the prompt (include_prompt=False), which is not supported: use a "
            "model that pools all tokens."
        )


def _check_kinds(kinds: Sequence[str], name: str | Path) -> None:
    known = kinds[:1] == ["Transformer"] and kinds[1:2] == ["Pooling"] and set(kinds[2:]) <= set(AFTER_POOLING)
    if not known:
        raise ValueError(
            f"{name} has the modules {', '.join(kinds)}. Supported are a Transformer, a Pooling, and then any of "
            f"{', '.join(AFTER_POOLING)}."
        )


def settings_of(model: "SentenceTransformer") -> dict[str, Any]:
    """The arguments of `SentenceTransformer` that keep prompts, similarity and truncation."""
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    return {name: value for name in names if (value := getattr(model, name)) is not None}


def width_of(modules: Sequence[Any]) -> int:
    """The width of the vectors that modules return."""
    widths = [module.get_embedding_dimension() for module in modules if hasattr(module, "get_embedding_dimension")]
    return widths[-1]


def save(model: Any, folder: Path, state_dict: Mapping[str, torch.Tensor], options: Mapping[str, Any]) -> None:
    """Writes a model in the format of sentence-transformers.

    Args:
        model: the `EmbeddingModel`.
        folder: where to.
        state_dict: its weights.
        options: options of `PreTrainedModel.save_pretrained` for the transformer.
    """
    library = optional("sentence_transformers", "embeddings")
    first: Any = model.modules_in_order[0]
    folder.mkdir(parents=True, exist_ok=True)
    model.transformer.save_pretrained(folder, state_dict=_under(state_dict, "transformer"), **options)
    first.processor.save_pretrained(folder)
    first.save_config(str(folder))
    listed = [{"idx": 0, "name": "0", "path": "", "type": _type_of(first)}]
    for index, module in enumerate(model.modules_in_order[1:], 1):
        path = f"{index}_{type(module).__name__}"
        (folder / path).mkdir(exist_ok=True)
        module.save_config(str(folder / path))
        if weights := _under(state_dict, f"head.{index - 1}"):
            save_file(
                {name: weight.contiguous() for name, weight in weights.items()}, folder / path / SAFE_WEIGHTS_NAME
            )
        listed.append({"idx": index, "name": str(index), "path": path, "type": _type_of(module)})
    write_json(folder / MODULES, listed)
    versions = {"sentence_transformers": library.__version__, "hf_distill": __version__}
    write_json(folder / SETTINGS, {"model_type": "SentenceTransformer", "__version__": versions, **model.settings})


def _type_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _under(state_dict: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights of a part, under its own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): weight for name, weight in state_dict.items() if name.startswith(start)}


def _file(name: str | Path, file: str) -> str | None:
    """The path of a file of a folder or a Hub repository; None if it has none."""
    if Path(name).is_dir():
        path = Path(name, file)
        return str(path) if path.is_file() else None
    try:
        return cached_file(str(name), file)
    except OSError:  # no such file, no such repository, or no connection
        return None
