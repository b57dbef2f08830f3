"""Keeps the documents of a packed row apart: masks and positions for a batch, checked by running the models."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from hf_distill.lengths import first_position

MASKED = ("sdpa", "eager")
"""Attention implementations of transformers that accept a mask `[batch, 1, length, length]`."""

SUPPORTED = "attn_implementation='sdpa', 'eager', 'flex_attention' or 'flash_attention_2'"

TRIED_LENGTH = 512
"""Length in tokens of the test row that checks that documents do not attend to each other."""

TRIED_WINDOW = 4
"""Window of the models while they run the test row: so small that a token more or less is noticed."""

LEAK = 0.02
"""Share of the effect within a document that a token of another document may have, by rounding."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""Layer types in the configs of transformers. A model with both accepts a mask for each."""


class SeparateDocuments:
    """Keeps attention within each document of a packed row, and restarts positions at each document.

    A model then computes the same for a packed row as for each of its documents alone. The constructor checks this for
    every model on a row of up to 512 tokens, and raises an error for a model whose documents would attend to each
    other. The batch depends on the attention implementation of the models:

    - "sdpa" and "eager" read a mask `[batch, 1, length, length]`. Models with sliding windows in some layers, such as
      ModernBERT and Gemma, read one mask for each layer type.
    - "flex_attention" and the versions of flash attention read rows without padding: all documents of the batch one
      after the other, in one row `[1, tokens]`. Flash attention also reads where each document starts.

    Args:
        *models: the models that will read the batches: student and teacher. No reference to them is kept. Models with
            flash attention must be on their GPU; weights in float32 are tried under bfloat16 autocast.

    Attributes:
        is_causal: True if the models attend only to earlier tokens.
        is_padding_free: True if a batch is one row without padding.

    Raises:
        ValueError: if attention cannot be kept within documents: the models have different attention implementations or
            one that is not listed above, a model accepts no `position_ids`, has layers of another type (such as linear
            or chunked attention), or attends in both directions with "flex_attention", or the models need different
            masks or positions.

    Example:
        >>> collator = DataCollatorForMaskedLM(tokenizer, attention=SeparateDocuments(student, teacher))
    """

    def __init__(self, *models: PreTrainedModel):
        implementation = _implementation_of(models)
        self.is_flash = is_flash_attention_requested(requested_attention_implementation=implementation)
        self.is_padding_free = implementation not in MASKED
        self.is_added = implementation == "eager"
        self.first_position = first_position(models[0])
        self.window, self.by_layer_type = (None, False) if self.is_padding_free else _windows_of(models)
        trials = [_Trial(model, self) for model in models]
        self.is_causal = not trials[0].reads_ahead
        if any(trial.reads_ahead == self.is_causal for trial in trials):
            classes = " and ".join(type(model).__name__ for model in models)
            raise ValueError(
                f"{classes} need different masks, because one attends in both directions and the other only to "
                f"earlier tokens: pack without SeparateDocuments."
            )
        for trial in trials:
            trial.check(self)

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Replaces the document numbers of a batch by what the models read to keep documents apart.

        Args:
            batch: `attention_mask` `[batch, length]` has the number of each token's document, 0 for padding.

        Returns:
            The batch with these entries:

            - "sdpa", "eager": `attention_mask`, `[batch, 1, length, length]`, True where one token attends to another;
              for eager attention, the values added to the scores. For models with sliding windows in some layers, one
              such mask for each layer type. `position_ids`, `[batch, length]`.
            - "flex_attention", flash attention: no `attention_mask`. `position_ids` and all entries `[batch, length]`
              become `[1, tokens]`, without padding. For flash attention, `cu_seq_lens_q` and `cu_seq_lens_k`
              `[documents + 1]`, where documents start and the last one ends, and `max_length_q` and `max_length_k`,
              the longest document in tokens. For flex attention, `use_cache=False`.
        """
        return self._inputs(batch, self.window)

    def _inputs(self, batch: Mapping[str, torch.Tensor], window: int | None) -> dict[str, Any]:
        """As `__call__`, for models with a sliding window of `window` tokens; None without."""
        rest = {name: value for name, value in batch.items() if name != "attention_mask"}
        numbers = batch["attention_mask"]
        places = torch.arange(numbers.shape[1]).expand_as(numbers)
        begins = numbers.diff(dim=1, prepend=torch.full_like(numbers[:, :1], -1)).ne(0)  # of documents and of padding
        positions = places - places.where(begins, 0).cummax(1).values
        rest["position_ids"] = positions + self.first_position
        if self.is_padding_free:
            return self._without_padding(rest, numbers.ne(0), begins)
        return {**rest, "attention_mask": self._masks(numbers, window)}

    def _masks(self, numbers: torch.Tensor, window: int | None) -> torch.Tensor | dict[str, torch.Tensor]:
        attended = numbers.ne(0)
        # Padding attends to the last document, because a softmax over no tokens would be NaN.
        documents = numbers.where(attended, numbers.amax(1, keepdim=True))
        full = (documents.unsqueeze(2) == documents.unsqueeze(1)) & attended.unsqueeze(1)
        places = torch.arange(numbers.shape[1])
        distance = places.unsqueeze(1) - places
        is_padding = ~attended.unsqueeze(2)
        if self.is_causal:
            full = full & ((distance >= 0) | is_padding)
        if window is None:
            return self._as_read(full)
        # As in transformers: a causal window includes the token itself, one of both sides does not.
        near = distance < window if self.is_causal else distance.abs() <= window
        sliding = self._as_read(full & (near | is_padding))
        return {FULL: self._as_read(full), SLIDING: sliding} if self.by_layer_type else sliding

    def _as_read(self, mask: torch.Tensor) -> torch.Tensor:
        """`[batch, 1, length, length]`, from a mask `[batch, length, length]`."""
        if self.is_added:
            # bfloat16 values can be added to scores of float32 and of bfloat16.
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
        return mask.unsqueeze(1)

    def _without_padding(
        self, batch: Mapping[str, torch.Tensor], attended: torch.Tensor, begins: torch.Tensor
    ) -> dict[str, Any]:
        flat: dict[str, Any] = {
            name: value[attended].unsqueeze(0) if value.shape[:2] == attended.shape else value
            for name, value in batch.items()
        }
        if not self.is_flash:  # transformers finds documents by their positions, but not with a cache
            return {**flat, "use_cache": False}
        starts = begins[attended].nonzero().flatten()
        bounds = torch.cat([starts, attended.sum().unsqueeze(0)]).int()
        longest = int(bounds.diff().max())
        of_documents: dict[str, Any] = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        of_documents |= {"max_length_q": longest, "max_length_k": longest}
        return {**flat, **of_documents}


class _Trial:
    """Two documents that a model reads alone and in one row, with short sliding windows.

    Attributes:
        reads_ahead: whether a token attends to later tokens.
    """

    def __init__(self, model: PreTrainedModel, separate: SeparateDocuments):
        self.model, config = model, model.config
        longest = (getattr(config, "max_position_embeddings", None) or TRIED_LENGTH) - separate.first_position
        self.lengths = [min(TRIED_LENGTH, longest) // 4, min(TRIED_LENGTH, longest) * 3 // 4]
        tokens = 1 + torch.arange(sum(self.lengths)).remainder(config.vocab_size - 1)
        self.tokens = tokens.where(tokens != config.pad_token_id, 0).unsqueeze(0)
        self.window = None if separate.window is None else min(separate.window, TRIED_WINDOW)
        # Flash attention computes in half precision only.
        self.is_autocast = separate.is_flash and model.dtype == torch.float32
        first, second = self.tokens.split(self.lengths, 1)
        self.alone = [self._states(input_ids=part) for part in (first, second)]
        # A change of some tokens has an effect on those that attend to them. The others keep their states, bit for bit
        # in most models, because they are computed with the same shapes.
        half = second.shape[1] // 2
        earlier, later = slice(half), slice(half, None)
        self.effect = self._effect(second, changed=earlier, seen=later)
        self.reads_ahead = self._effect(second, changed=later, seen=earlier) > LEAK * self.effect

    def _effect(self, document: torch.Tensor, changed: slice, seen: slice) -> float:
        states = self._states(input_ids=_flipped(document, changed))
        return _deviation(states[:, seen], self.alone[1][:, seen])

    def check(self, separate: SeparateDocuments) -> None:
        """Raises `ValueError` if the model does not compute the same for the row as for each document alone."""
        numbers = torch.repeat_interleave(torch.tensor([1, 2]), torch.tensor(self.lengths)).unsqueeze(0)
        first, second = slice(self.lengths[0]), slice(self.lengths[0], None)
        own, changed = (
            self._states(**separate._inputs({"input_ids": tokens, "attention_mask": numbers}, self.window))
            for tokens in (self.tokens, _flipped(self.tokens, first))
        )
        deviation = _deviation(own, torch.cat(self.alone, 1))
        leak = _deviation(changed[:, second], own[:, second])
        dtype = torch.bfloat16 if self.is_autocast else self.model.dtype
        if deviation <= torch.finfo(dtype).eps ** 0.5 and leak <= LEAK * self.effect:
            return
        how, instead = "although attention stays within documents and positions", ""
        if separate.is_padding_free:
            how = f"with attn_implementation={self.model.config._attn_implementation!r} and positions that"
            instead = f"load all models with attn_implementation={' or all with '.join(map(repr, MASKED))}, "
        raise ValueError(
            f"{type(self.model).__name__} computes different outputs for two documents in one row than for each alone "
            f"(relative deviation {max(deviation, leak):.2g}), {how} restart at {separate.first_position}: {instead}"
            f"pack without SeparateDocuments, or do not pack."
        )

    @torch.no_grad()
    def _states(self, **inputs: Any) -> torch.Tensor:
        model, device = self.model, self.model.device
        was_training = model.training
        model.eval()
        try:
            with (
                _window_set_to(self.window, model.config),
                torch.autocast(device.type, torch.bfloat16) if self.is_autocast else nullcontext(),
                torch.compiler.set_stance("force_eager"),  # flex attention would be compiled for each length
                warnings.catch_warnings(action="ignore", category=UserWarning),  # that it is not compiled
            ):
                return model.base_model(**send_to_device(inputs, device))[0].float()
        except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]  # errors of a compiler have many lines
            raise ValueError(
                f"{type(model).__name__} cannot read packed documents on {device} with "
                f"attn_implementation={model.config._attn_implementation!r}: {reason}"
            ) from error
        finally:
            model.train(was_training)


def _flipped(tokens: torch.Tensor, part: slice) -> torch.Tensor:
    """The tokens with a part in reverse order."""
    flipped = tokens.clone()
    flipped[:, part] = tokens[:, part].flip(1)
    return flipped


def _deviation(states: torch.Tensor, others: torch.Tensor) -> float:
    return ((states - others).norm() / others.norm()).item()


def _implementation_of(models: Sequence[PreTrainedModel]) -> str:
    names = {str(model.config._attn_implementation) for model in models}
    name, *others = sorted(names)
    is_supported = name in (*MASKED, "flex_attention") or "flash" in name
    if others or not is_supported:
        raise ValueError(
            f"The models use the attention implementation {' and '.join(sorted(names))}. To keep documents apart, load "
            f"all models with the same {SUPPORTED}; or leave SeparateDocuments out, so that a row is read as one text."
        )
    for model in models:
        if (chunk := getattr(model.config, "attention_chunk_size", None)) is not None:
            raise ValueError(
                f"{type(model).__name__} has layers that attend to chunks of {chunk} tokens, which cannot be kept "
                f"within documents: pack without SeparateDocuments, or do not pack."
            )
    return name


def _windows_of(models: Sequence[PreTrainedModel]) -> tuple[int | None, bool]:
    """The models' sliding window in tokens or None, and whether they read one mask for each layer type."""
    types = [getattr(model.config, "layer_types", None) for model in models]
    by_layer_type = any(SLIDING in (own or ()) for own in types)
    windows = set()
    for model, own in zip(models, types, strict=True):
        if own is None or SLIDING in own:
            windows.add(getattr(model.config, "sliding_window", None))
        elif not by_layer_type:  # a config may have a window that no layer has
            windows.add(None)
    if len(windows) > 1 or (by_layer_type and None in types):
        shown = " and ".join(f"{type(model).__name__} {_attention_of(model.config)}" for model in models)
        raise ValueError(
            f"The models need different masks, because they attend to different tokens ({shown}): use models with the "
            f"same sliding_window, or pack without SeparateDocuments."
        )
    return windows.pop(), by_layer_type


def _attention_of(config: PreTrainedConfig) -> str:
    types, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if window is None or (types is not None and SLIDING not in types):
        return "in all layers to all tokens"
    return f"in {'all' if types is None else 'some'} layers to a window of {window} tokens"


@contextmanager
def _window_set_to(window: int | None, config: PreTrainedConfig) -> Iterator[None]:
    """Gives a model another window while open. Masks for sdpa and eager attention are made from the config."""
    own = dict(vars(config))
    if window is not None:
        config.sliding_window = window
    try:
        yield
    finally:
        vars(config).clear()
        vars(config).update(own)
