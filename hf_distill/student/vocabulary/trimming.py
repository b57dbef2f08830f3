"""`trim_vocabulary`: a model and its tokenizer with fewer tokens."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_distill.embedding import EmbeddingModel
from hf_distill.student.vocabulary.config_ids import vocabulary_size
from hf_distill.student.vocabulary.kinds import Kind
from hf_distill.student.vocabulary.rebuilding import rebuild
from hf_distill.student.vocabulary.tokens import (
    NUM_SAMPLES,
    Texts,
    check_counts,
    choose_tokens,
    read_kind,
    required_tokens,
)
from hf_distill.student.vocabulary.weights import config_ids, cut_vocabulary, prove_vocabulary


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A model and its tokenizer with fewer tokens.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        kept: the old id of each new id.
        coverage: share of the counted tokens that stay; None if nothing was counted.
    """

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    kept: list[int] = field(repr=False)
    coverage: float | None


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    texts: Iterable[str] | None = None,
    counts: Mapping[str | int, int] | None = None,
    keep: int | None = None,
) -> TrimmedVocabulary:
    """Removes tokens from a model and its tokenizer.

    Text whose tokens all stay has the same tokens and the same outputs as before. In other text, a token that was
    removed becomes several shorter ones, or the unknown token. Special and added tokens, the unknown token, single
    bytes, and every token that the configs refer to always stay. A token stays together with what it needs: the tokens
    that merge into it (BPE) and its characters. The kept tokens keep their order.

    Both models are run once on a few kept tokens, the tokenizer is saved and loaded once, and an error is raised unless
    both compute the same as before. Neither the model nor the tokenizer changes.

    Args:
        model: any transformers model whose vocabulary belongs to one tokenizer. Embeddings, heads, biases and configs
            are cut. Rows of the embeddings without a token are removed.
        tokenizer: its fast tokenizer: WordPiece, BPE, Unigram or WordLevel.
        texts: texts like the ones that the model will read. Every token that occurs stays.
        counts: how often each token or id occurs, in place of `texts`. Every token with a count above 0 stays.
        keep: number of tokens to keep: the most frequent ones, then the first ones in the tokenizer's own order, which
            is the order of the merges (BPE), of the scores (Unigram) or of the ids (WordPiece, WordLevel). Without
            `texts` and `counts`, this order alone decides.

    Returns:
        The model, the tokenizer, the ids that were kept, and the share of the counted tokens that stay.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the vocabulary cannot be trimmed, if the tokenizer does not belong to the model, if no tokens are
            counted, if `keep` is too low or too high, or if the results differ from before.

    Example:
        >>> trimmed = trim_vocabulary(model, tokenizer, texts=my_texts)
        >>> trimmed = trim_vocabulary(model, tokenizer, texts=my_texts, keep=8000)
        >>> print(f"{len(trimmed.kept)} tokens, {trimmed.coverage:.1%} of the text")
        >>> trimmed.model.save_pretrained("smaller")
        >>> trimmed.tokenizer.save_pretrained("smaller")
    """
    if isinstance(model, EmbeddingModel):
        part = trim_vocabulary(model.transformer, tokenizer, texts=texts, counts=counts, keep=keep)
        whole = model.with_transformer(part.model)
        whole.tokenizer = part.tokenizer
        return replace(part, model=whole)
    _check_model(model)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"tokenizer must be a tokenizer of transformers, but is a {type(tokenizer).__name__}. For a processor, "
            f"pass processor.tokenizer."
        )
    state, kind = read_kind(tokenizer)
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= (size := vocabulary_size(model.config)):
        raise ValueError(
            f"The tokenizer has the ids 0 to {max(ids.values())}, but {type(model).__name__} has only {size} tokens: "
            f"they do not belong together, or tokens were added without model.resize_token_embeddings(...)."
        )
    if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool)):
        raise TypeError(f"keep must be a whole number, but is {keep!r}.")
    if keep is not None and keep > len(ids):
        raise ValueError(f"keep={keep} is higher than the {len(ids)} tokens of the tokenizer.")
    if keep is None and texts is None and counts is None:
        raise ValueError("Nothing says which tokens stay: pass texts, counts or keep.")

    counted, sample = _count(tokenizer, kind, texts, counts)
    required = required_tokens(tokenizer, state, kind) | config_ids(model)
    chosen = choose_tokens(kind, required, counted, keep)
    kept = _in_order(chosen, kind, ids)
    trimmed = cut_vocabulary(model, kept)
    prove_vocabulary(trimmed, model, kept)
    known = set(ids.values())
    new_ids = {old: new for new, old in enumerate(kept) if old in known}
    smaller = rebuild(tokenizer, state, kind, new_ids, [*sample, *_decoded(tokenizer, list(new_ids))])
    coverage = None if counted is None else sum(counted[old] for old in kept) / sum(counted.values())
    return TrimmedVocabulary(trimmed, smaller, kept, coverage)


def _check_model(model: object) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers model, but is a {type(model).__name__}. For a PEFT model, pass "
            f"model.merge_and_unload()."
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(f"This {type(model).__name__} is quantized: load it without quantization_config.")
    if is_deepspeed_zero3_enabled():
        raise ValueError("DeepSpeed ZeRO-3 is on and shards the weights: call trim_vocabulary before it is turned on.")
    if any(weight.is_meta for weight in model.state_dict().values()):
        raise ValueError(
            f"Weights of this {type(model).__name__} are on the meta device: load it with from_pretrained(...), "
            f"without device_map."
        )


def _count(
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    texts: Iterable[str] | None,
    counts: Mapping[str | int, int] | None,
) -> tuple[Counter[int] | None, list[str]]:
    """How often each id occurs, and the first texts."""
    sample: list[str] = []
    if texts is not None and counts is not None:
        raise ValueError("texts and counts are both given: pass one of them.")
    if texts is not None:
        read = Texts(tokenizer.backend_tokenizer, texts)
        counted, sample = read.counts, read.sample
    elif counts is not None:
        counted = check_counts(counts, tokenizer.get_vocab())
    else:
        return None, sample
    if counted.keys() <= {kind.ids.get(kind.unknown or "")}:
        raise ValueError(
            f"{'texts' if counts is None else 'counts'} has no token of the vocabulary: pass text in the languages of "
            f"the tokenizer."
        )
    return counted, sample


def _in_order(chosen: set[int], kind: Kind, ids: Mapping[str, int]) -> list[int]:
    """The old order, as in a loaded tokenizer: added tokens after all others. Rows without a token are last."""
    tokens = chosen & set(kind.ids.values())
    added = (chosen & set(ids.values())) - tokens
    return [*sorted(tokens), *sorted(added), *sorted(chosen - tokens - added)]


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Some of the tokens as texts."""
    step = len(tokens) // NUM_SAMPLES + 1
    return [tokenizer.backend_tokenizer.decode([token]) for token in tokens[::step]]
