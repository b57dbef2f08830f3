"""The head runs on the scored rows alone, and gives there what it gives everywhere."""

import pytest
import torch
from transformers import AutoModelForTokenClassification

from hf_distill.training import scoring
from hf_distill.training.scoring import find_head, score, scored_forward, sum_over_chunks
from tests.conftest import collate, make_config, make_model, make_rows


def narrowed_and_whole(family, head):
    model, inputs = make_model(family, head), collate(make_rows(head))
    positions = score(inputs, find_head(model)).positions
    inputs.pop("labels")
    scored, _ = scored_forward(model, model, inputs, positions)
    return model, inputs, positions, scored


def test_logits_of_scored_rows(family):
    model, inputs, positions, scored = narrowed_and_whole(family, "mlm")
    whole = model(**inputs, output_hidden_states=True)
    assert 0 < scored.num_rows == positions.sum() < positions.numel()
    torch.testing.assert_close(scored.logits(slice(None)), whole.logits[positions])
    torch.testing.assert_close(scored.logits(slice(3, 8)), whole.logits[positions][3:8])
    torch.testing.assert_close(scored.last_hidden_state, whole.hidden_states[-1])


def test_rows_of_sequences(family):
    model, inputs, _, scored = narrowed_and_whole(family, "classification")
    whole = model(**inputs, output_hidden_states=True)
    assert torch.equal(scored.logits(slice(None)), whole.logits)
    assert torch.equal(scored.last_hidden_state, whole.hidden_states[-1])


def test_head_computes_nothing_else(family):
    rows_seen = []
    model, inputs = make_model(family, "mlm"), collate(make_rows("mlm"))
    model.get_output_embeddings().register_forward_hook(
        lambda m, args, output: rows_seen.append(output[..., 0].numel())
    )
    positions = inputs.pop("labels").ne(-100)
    scored, _ = scored_forward(model, model, inputs, positions)
    scored.logits(slice(None))
    assert rows_seen == [0, positions.sum()]


def test_model_is_left_as_it_was(family, head):
    model, inputs, _, _ = narrowed_and_whole(family, head)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert model(**inputs).logits.shape[0] == len(inputs["input_ids"])


def test_model_is_left_as_it_was_after_an_error():
    model = make_model("bert", "mlm")
    with pytest.raises(IndexError):
        scored_forward(model, model, {"input_ids": torch.tensor([[10**6]])}, torch.ones(1, 1, dtype=torch.bool))
    assert not any(module._forward_hooks for module in model.modules())


def test_no_scored_row(family):
    model, inputs = make_model(family, "mlm"), collate(make_rows("mlm"))
    nothing = torch.zeros_like(inputs.pop("labels"), dtype=torch.bool)
    scored, _ = scored_forward(model, model, inputs, nothing)
    assert scored.logits(slice(None)).shape == (0, model.config.vocab_size)


@pytest.mark.parametrize("chunk_rows", [1, 5, 1000])
def test_chunks(monkeypatch, family, chunk_rows):
    """The sum and its gradient do not depend on the size of the chunks, and no chunk is larger than it may be."""
    model, inputs = make_model(family, "mlm"), collate(make_rows("mlm"))
    vocab_size, attended = model.config.vocab_size, inputs["attention_mask"].bool()
    inputs.pop("labels")
    model(**inputs).logits[attended].square().sum().backward()
    expected = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()

    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", chunk_rows * vocab_size)
    sizes = []

    def of_rows(rows):
        logits = scored.logits(rows)
        sizes.append(len(logits))
        return logits.square().sum()

    scored, _ = scored_forward(model, model, inputs, attended)
    sum_over_chunks(of_rows, scored.num_rows, vocab_size).backward()
    times_computed = 2 if chunk_rows < attended.sum() else 1  # once more in the backward pass
    assert sum(sizes) == times_computed * attended.sum()
    assert max(sizes) <= chunk_rows
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-4)


def test_without_attention_mask_everything_is_attended():
    scored = score({"input_ids": torch.ones(2, 3, dtype=torch.long)}, find_head(make_model("bert", "classification")))
    assert scored.attended.all()
    assert scored.labels is None
    assert not scored.labelled.any()


def test_only_the_first_sequences():
    for head in ("classification", "mlm"):
        inputs = collate(make_rows(head))
        head = find_head(make_model("bert", head))
        everything, first = score(inputs, head), score(inputs, head, num_sequences=4)
        assert first.attended[:4].equal(everything.attended[:4])
        assert not first.attended[4:].any()
        assert first.labelled.sum() == everything.labelled[:4].sum()
        assert first.positions.sum() == everything.positions[:4].sum()


def test_labels_are_missing():
    with pytest.raises(ValueError, match="DataCollatorForLanguageModeling"):
        score({"input_ids": torch.ones(2, 3, dtype=torch.long)}, find_head(make_model("bert", "mlm")))


def test_head_of_a_subclass():
    class MyModel(type(make_model("bert", "mlm"))):
        pass

    assert find_head(MyModel(make_config("bert"))).name == "ForMaskedLM"


def test_head_of_another_kind():
    model = AutoModelForTokenClassification.from_config(make_config("bert"))
    with pytest.raises(ValueError, match=r"BertForTokenClassification.*ForSequenceClassification or ForMaskedLM"):
        find_head(model)
