"""How well a student works as the draft model of its teacher in speculative decoding."""

import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.training.scoring.widths import vocab_size


@torch.no_grad()
def draft_metrics(
    draft: PreTrainedModel,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    rounds: int = 3,
) -> dict[str, float]:
    """Measures a student as the draft model of its teacher in speculative decoding.

    The draft model proposes tokens, and the larger model checks them in one forward. The text is that of the larger
    model. How often a proposed token is right decides how much faster it comes.

    Args:
        draft: the small model.
        model: the large model, with the same vocabulary.
        tokenizer: their tokenizer.
        prompts: texts that the models continue. One is generated at a time.
        max_new_tokens: the most tokens that are generated for a prompt.
        rounds: how many times speeds are measured. In each, the ways of generating take turns.

    Returns:
        `greedy_acceptance_rate`: share of the tokens where both models find the same token most likely.
        `acceptance_rate`: the mean of `sum(min(p, q))` over the tokens, the chance that a token that the draft model
        samples is accepted. Both are over the greedy texts of the large model.
        `tokens_per_second`, `draft_tokens_per_second` and `assisted_tokens_per_second`: speeds of the large model, the
        draft model, and the large model with `assistant_model=draft`, by greedy `generate`. Medians over the rounds.
        `speedup`: the median over the rounds of the third, divided by the first.

    Raises:
        ValueError: if there are no prompts, if a model cannot generate, or if the vocabularies differ.

    Reference:
        Leviathan et al., 2023, Fast Inference from Transformers via Speculative Decoding,
        https://arxiv.org/abs/2211.17192

    Example:
        >>> draft_metrics(student, teacher, tokenizer, ["The film begins with"])["greedy_acceptance_rate"]
    """
    if not prompts:
        raise ValueError("prompts is empty: give at least one text that the models continue.")
    for own in (draft, model):
        if not own.can_generate():
            raise ValueError(f"A {type(own).__name__} cannot generate: load it with AutoModelForCausalLM.")
    sizes = [vocab_size(own.config) for own in (draft, model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The draft model has a vocabulary of {sizes[0]} tokens and the model one of {sizes[1]}: speculative "
            f"decoding with assistant_model needs the same vocabulary."
        )
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}
    inputs = [tokenizer(prompt, return_tensors="pt").to(model.device) for prompt in prompts]
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "tokens_per_second": lambda **own: model.generate(**own, **greedy),
        "draft_tokens_per_second": lambda **own: draft.generate(**own, **greedy),
        "assisted_tokens_per_second": lambda **own: model.generate(**own, **greedy, assistant_model=draft),
    }
    rates = _acceptance(draft, model, inputs, ways["tokens_per_second"])
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first one warms up
        for name, generate in ways.items():
            start = perf_counter()
            num_tokens = sum(generate(**own).shape[1] - own["input_ids"].shape[1] for own in inputs)
            if number:
                speeds[name].append(num_tokens / (perf_counter() - start))
    pairs = zip(speeds["assisted_tokens_per_second"], speeds["tokens_per_second"], strict=True)
    return {
        **rates,
        **{name: statistics.median(own) for name, own in speeds.items()},
        "speedup": statistics.median(assisted / alone for assisted, alone in pairs),
    }


def _acceptance(
    draft: PreTrainedModel, model: PreTrainedModel, inputs: Sequence[Any], generate: Callable[..., torch.Tensor]
) -> dict[str, float]:
    equal, overlaps = [], []
    for own in inputs:
        tokens = generate(**own)
        first = own["input_ids"].shape[1] - 1  # predicts the first new token
        p, q = (m(input_ids=tokens).logits[0, first:-1].float().softmax(-1) for m in (model, draft))
        equal.append(p.argmax(-1) == q.argmax(-1))
        overlaps.append(torch.minimum(p, q).sum(-1))
    return {
        "greedy_acceptance_rate": torch.cat(equal).double().mean().item(),
        "acceptance_rate": torch.cat(overlaps).double().mean().item(),
    }
