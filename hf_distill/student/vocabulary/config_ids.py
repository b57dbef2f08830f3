"""Token ids and vocabulary sizes in configs."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from hf_distill.student.architectures import config_parts

SIZE = re.compile(r"(?!type_)(\w+_)?vocab_size(_\w+)?")
"""Names of numbers of tokens, such as `vocab_size`, `decoder_vocab_size` and `vocab_size_per_layer_input`."""

IDS = re.compile(
    r"(\w+_)?token_(id|ids|index)|(begin_)?suppress_tokens|bad_words_ids|force_words_ids|lang_to_id|task_to_id"
    r"|forced_decoder_ids|sequence_bias"
)
"""Names of token ids: a number, a list, a list of lists or a mapping whose values are ids."""


def vocabulary_size(config: PreTrainedConfig) -> int:
    """The number of tokens in the vocabulary of the text.

    Raises:
        ValueError: if the config has no such number, or several different ones.
    """
    try:
        size = getattr(config.get_text_config(), "vocab_size", None)
    except ValueError:  # several parts for text
        size = None
    if not isinstance(size, int):
        raise ValueError(
            f"The vocabulary of {config.model_type!r} cannot be trimmed: its config has no vocab_size. Models that "
            f"hash characters, or read no text, have none."
        )
    sizes = {
        ".".join((*path, name)): number
        for path, part in config_parts(config)
        for name, number in _sizes(part).items()
        if name.endswith("vocab_size")
    }
    if config.is_encoder_decoder and set(sizes.values()) != {size}:
        raise ValueError(
            f"{config.model_type!r} has several vocabularies, {sizes}, but one tokenizer has only one: trim models "
            f"whose encoder and decoder share a vocabulary."
        )
    return size


def with_vocabulary(config: PreTrainedConfig, size: int, new_size: int) -> PreTrainedConfig:
    """A copy of `config` in which every vocabulary of `size` tokens has `new_size`."""
    config = copy.deepcopy(config)
    for part in _parts(config, size):
        for name, number in _sizes(part).items():
            if number == size:
                setattr(part, name, new_size)
    return config


def token_ids(config: PreTrainedConfig, generation_config: GenerationConfig | None, size: int) -> set[int]:
    """All token ids that the configs refer to."""
    found: set[int] = set()

    def record(token_id: int) -> int:
        found.add(token_id)
        return token_id

    for part in [*_parts(config, size), *([] if generation_config is None else [generation_config])]:
        for name, value in vars(part).items():
            _mapped(name, value, record)
    return {token_id for token_id in found if 0 <= token_id < size}


def remap(config: PreTrainedConfig | GenerationConfig, new_ids: Mapping[int, int], size: int) -> None:
    """Replaces all token ids of the config in place. Numbers that are not ids of a token, such as -1, stay."""
    for part in _parts(config, size) if isinstance(config, PreTrainedConfig) else [config]:
        for name, value in list(vars(part).items()):
            mapped = _mapped(name, value, lambda token_id: new_ids.get(token_id, token_id))
            if mapped != value:
                setattr(part, name, mapped)


def _sizes(part: PreTrainedConfig) -> dict[str, int]:
    return {name: number for name, number in vars(part).items() if SIZE.fullmatch(name) and isinstance(number, int)}


def _parts(config: PreTrainedConfig, size: int) -> Iterator[PreTrainedConfig]:
    """The config and its nested configs, without the parts with another vocabulary."""
    others: list[tuple[str, ...]] = []
    for path, part in config_parts(config):
        sizes = _sizes(part)
        if (sizes and size not in sizes.values()) or any(path[: len(other)] == other for other in others if other):
            others.append(path)
        else:
            yield part


def _mapped(name: str, value: Any, new_id: Callable[[int], int]) -> Any:
    if isinstance(value, Mapping) and not IDS.fullmatch(name):  # such as task_specific_params
        return {key: _mapped(str(key), own, new_id) for key, own in value.items()}
    if not IDS.fullmatch(name) or value is None:
        return value
    if name == "forced_decoder_ids":
        return [[position, _all_mapped(token_id, new_id)] for position, token_id in value]
    if name == "sequence_bias" and isinstance(value, Mapping):
        return {_all_mapped(sequence, new_id): bias for sequence, bias in value.items()}
    if name == "sequence_bias":
        return [[_all_mapped(sequence, new_id), bias] for sequence, bias in value]
    return _all_mapped(value, new_id)


def _all_mapped(value: Any, new_id: Callable[[int], int]) -> Any:
    if isinstance(value, Mapping):
        return {key: _all_mapped(own, new_id) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_all_mapped(own, new_id) for own in value)
    return new_id(value) if isinstance(value, int) and not isinstance(value, bool) else value
