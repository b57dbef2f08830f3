"""A student as the draft model of its teacher."""

import numpy as np
import pytest
import torch

from hf_distill import draft_metrics
from tests.conftest import make_model, make_text_tokenizer

PROMPTS = ["w5 w6 w7", "w8"]


@pytest.fixture
def tokenizer():
    tokenizer = make_text_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def make(**options):
    model = make_model("llama", "causal", **options)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def test_the_teacher_as_its_own_draft(tokenizer):
    model = make()
    measured = draft_metrics(model, model, tokenizer, PROMPTS, max_new_tokens=6, rounds=1)
    assert measured["greedy_acceptance_rate"] == 1
    assert measured["acceptance_rate"] == pytest.approx(1, abs=1e-6)
    assert min(measured.values()) > 0


def test_rates_by_hand(tokenizer):
    """Token after token, in NumPy."""
    model, draft = make(initializer_range=0.5), make(seed=1, num_layers=2, initializer_range=0.5)
    measured = draft_metrics(draft, model, tokenizer, PROMPTS, max_new_tokens=6, rounds=1)

    def probabilities(own, tokens):
        with torch.no_grad():
            logits = own(input_ids=torch.tensor([tokens])).logits[0, -1].double().numpy()
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    equal, overlaps = [], []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt)["input_ids"]
        for _ in range(6):
            p, q = probabilities(model, tokens), probabilities(draft, tokens)
            equal.append(p.argmax() == q.argmax())
            overlaps.append(np.minimum(p, q).sum())
            tokens = [*tokens, int(p.argmax())]
    assert measured["greedy_acceptance_rate"] == pytest.approx(np.mean(equal))
    assert measured["acceptance_rate"] == pytest.approx(np.mean(overlaps), rel=1e-5)
    assert 0 < np.mean(overlaps) < 0.99


def test_errors(tokenizer):
    model = make()
    with pytest.raises(ValueError, match="prompts is empty"):
        draft_metrics(model, model, tokenizer, [])
    with pytest.raises(ValueError, match=r"a vocabulary of 99 tokens and the model one of \d+"):
        draft_metrics(make(vocab_size=99), model, tokenizer, PROMPTS)
    with pytest.raises(ValueError, match="BertModel cannot generate: load it with AutoModelForCausalLM"):
        draft_metrics(make_model("bert", "mlm").bert, model, tokenizer, PROMPTS)
