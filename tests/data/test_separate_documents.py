"""Documents of a packed row stay apart in models with sliding windows."""

from dataclasses import dataclass

import pytest
import torch
import transformers

from hf_distill import SeparateDocuments
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.known_indices import KnownIndices
from tests.conftest import PAD, collate
from tests.data.test_packing import packed
from tests.training.test_split_invariance import LOSS_NAMES, TOLERANCE, KeepGradient

FULL, SLIDING = "full_attention", "sliding_attention"
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
MODELS = {
    "ModernBertForMaskedLM": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "ModernBertDecoderForCausalLM": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "Gemma3ForCausalLM": {**GROUPED, "sliding_window": 4, "layer_types": [SLIDING, FULL, SLIDING]},
    "Qwen3ForCausalLM": {**GROUPED, "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "MistralForCausalLM": {**GROUPED, "sliding_window": 4},
}
"""Models with a window in all layers or in some."""

NUMBERS = torch.tensor([[1] * 9 + [2] * 14 + [3], [1] * 13 + [2] * 7 + [0] * 4])
"""Documents with 1 to 14 tokens, and padding."""


def make(name, attention="sdpa", seed=0, **options):
    """A tiny model whose attention has a large effect."""
    cls = getattr(transformers, name)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], PAD)
    torch.manual_seed(seed)
    config = cls.config_class(
        **{"vocab_size": 61, "initializer_range": 0.5, **sizes, **special, **MODELS.get(name, {}), **options}
    )
    model = cls(config).eval()
    model.config._attn_implementation = attention
    return model


def make_batch(numbers=NUMBERS):
    tokens = torch.randint(5, 61, numbers.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens.masked_fill(numbers.eq(0), PAD), "attention_mask": numbers}


@torch.no_grad()
def states_alone(model, batch):
    """The hidden states of each document alone, `[tokens, width]`."""
    states = []
    for tokens, own in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        states += [model.base_model(tokens[own == number].unsqueeze(0))[0][0] for number in range(1, own.max() + 1)]
    return torch.cat(states)


@torch.no_grad()
def states_packed(model, batch):
    attended = batch["attention_mask"].ne(0)
    given = SeparateDocuments(model)(batch)
    states = model.base_model(**given)[0]
    return states[0] if len(states) < len(attended) else states[attended]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_windows_within_documents(name, attention, side):
    model = make(name, attention)
    before = model.config.to_dict()
    batch = make_batch(NUMBERS if side == "right" else NUMBERS.roll(4, 1) * torch.tensor([[0], [1]]))
    alone = states_alone(model, batch)
    torch.testing.assert_close(states_packed(model, batch), alone, rtol=1e-5, atol=1e-5)
    assert model.config.to_dict() == before
    attended = batch["attention_mask"].ne(0)
    with torch.no_grad():
        as_one_text = model.base_model(batch["input_ids"], attention_mask=attended.long())[0][attended]
    assert (as_one_text - alone).norm() / alone.norm() > 0.05


def test_window_masks_by_hand():
    numbers = torch.tensor([[1, 2, 2, 2, 0]])
    x, o = True, False
    masks = SeparateDocuments(make("ModernBertForMaskedLM", local_attention=2))({"attention_mask": numbers})
    assert masks["attention_mask"].keys() == {FULL, SLIDING}
    assert masks["attention_mask"][FULL].tolist() == [
        [[[x, o, o, o, o], [o, x, x, x, o], [o, x, x, x, o], [o, x, x, x, o], [o, x, x, x, o]]]
    ]
    # Each token sees one neighbour on either side.
    assert masks["attention_mask"][SLIDING].tolist() == [
        [[[x, o, o, o, o], [o, x, x, o, o], [o, x, x, x, o], [o, o, x, x, o], [o, x, x, x, o]]]
    ]
    masks = SeparateDocuments(make("MistralForCausalLM", sliding_window=2))({"attention_mask": numbers})
    # Each token sees itself and the token before it.
    assert masks["attention_mask"].tolist() == [
        [[[x, o, o, o, o], [o, x, o, o, o], [o, x, x, o, o], [o, o, x, x, o], [o, x, x, x, o]]]
    ]
    assert masks["position_ids"][0, :4].tolist() == [0, 0, 1, 2]


def with_a_token_too_many(self, numbers, window, masks=SeparateDocuments._masks):
    return masks(self, numbers, window + 1)


def without_windows(self, numbers, window, masks=SeparateDocuments._masks):
    mask = masks(self, numbers, window)
    return dict.fromkeys(mask, mask[FULL]) if self.by_layer_type else masks(self, numbers, None)


def without_documents(self, numbers, window, masks=SeparateDocuments._masks):
    return masks(self, numbers.ne(0).long(), window)


@pytest.mark.parametrize("wrong", [with_a_token_too_many, without_windows, without_documents])
@pytest.mark.parametrize("range_", [0.5, 0.02], ids=["large weights", "small weights"])
@pytest.mark.parametrize("name", MODELS)
def test_wrong_masks_are_noticed(monkeypatch, name, range_, wrong):
    model = make(name, initializer_range=range_)
    monkeypatch.setattr(SeparateDocuments, "_masks", wrong)
    with pytest.raises(ValueError, match=f"{name} computes different outputs for two documents in one row than"):
        SeparateDocuments(model)


def test_a_window_longer_than_the_test_row():
    """The models are tried with a short window, so a wrong one is noticed, whatever its length."""
    model = make("MistralForCausalLM", sliding_window=4096)
    separate = SeparateDocuments(model)
    assert separate.window == model.config.sliding_window == 4096
    numbers = torch.ones(1, 4100, dtype=torch.long)
    mask = separate({"attention_mask": numbers})["attention_mask"]
    assert mask[0, 0, -1].sum() == 4096
    model.base_model.forward = lambda input_ids, attention_mask=None, position_ids=None, own=model.base_model.forward: (
        own(input_ids, attention_mask=torch.ones(1, 1, *[input_ids.shape[1]] * 2, dtype=torch.bool).tril())
        if attention_mask is None
        else own(input_ids, attention_mask=attention_mask, position_ids=position_ids)
    )
    with pytest.raises(ValueError, match="computes different outputs"):  # alone, it uses no window
        SeparateDocuments(model)


def test_models_with_different_windows():
    modern, other = make("ModernBertForMaskedLM"), make("ModernBertForMaskedLM", local_attention=8)
    with pytest.raises(ValueError, match=r"to a window of 3 tokens .* to a window of 4 tokens\): use models with the"):
        SeparateDocuments(modern, other)
    with pytest.raises(ValueError, match=r"BertForMaskedLM in all layers to all tokens and ModernBertForMaskedLM in"):
        SeparateDocuments(make("BertForMaskedLM"), modern)
    with pytest.raises(ValueError, match=r"MistralForCausalLM in all layers to a window of 4 tokens and Llama"):
        SeparateDocuments(make("MistralForCausalLM"), make("LlamaForCausalLM", **GROUPED))


def test_a_student_with_layers_of_one_type():
    """A student may have kept only layers that attend to all tokens. Its config still has the window."""
    teacher = make("ModernBertForMaskedLM")
    student = make("ModernBertForMaskedLM", num_hidden_layers=1, layer_types=[FULL])
    batch, separate = make_batch(), SeparateDocuments(student, teacher)
    attended = NUMBERS.ne(0)
    for model in (student, teacher):
        with torch.no_grad():
            states = model.base_model(**separate(batch))[0][attended]
        torch.testing.assert_close(states, states_alone(model, batch), rtol=1e-5, atol=1e-5)
    assert isinstance(SeparateDocuments(student)(batch)["attention_mask"], torch.Tensor)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_layers_that_attend_to_chunks(attention):
    model = make("LlamaForCausalLM", attention)
    model.config.attention_chunk_size = 16
    with pytest.raises(ValueError, match="chunks of 16 tokens, which cannot be kept within documents"):
        SeparateDocuments(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_scored_with_a_mask_per_layer_type(attention):
    model = make("ModernBertForMaskedLM", attention)
    batch = make_batch() | {"labels": make_batch()["input_ids"].masked_fill(NUMBERS.ne(1), -100)}
    expected = find_head(model).score(batch | {"attention_mask": NUMBERS.ne(0).long()})
    given = SeparateDocuments(model)(batch)
    scored = find_head(model).score(given)
    for name in ("attended", "positions", "labelled"):
        assert torch.equal(getattr(scored, name), getattr(expected, name)), name
    known = KnownIndices(scored.indices, given)
    assert known.fit({**given, "attention_mask": dict(given["attention_mask"])})
    assert not known.fit({**given, "attention_mask": None})
    assert not KnownIndices(scored.indices, {**given, "attention_mask": None}).fit(given)
    given["attention_mask"][SLIDING].zero_()
    assert not known.fit(given)


def make_documents(num_documents=12, every=3):
    """Documents with 3 to 14 tokens, and labels on some tokens, but not on the first."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(3, 15, (num_documents,), generator=generator).tolist():
        tokens = torch.randint(5, 61, (length,), generator=generator).tolist()
        labels = [token if place % every == every - 1 else -100 for place, token in enumerate(tokens)]
        rows.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": labels})
    return rows


@dataclass
class Separated:
    """Pads rows with labels and keeps their documents apart."""

    attention: SeparateDocuments

    def __call__(self, rows):
        return self.attention(collate(rows))


def one_step(make_trainer, student, teacher, rows, collator, batch_size, num_batches, losses=(), **arguments):
    keeper = KeepGradient()
    trainer = make_trainer(
        student,
        teacher,
        rows,
        data_collator=collator,
        trainer_options={"callbacks": [keeper]},
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=num_batches,
        **arguments,
    )
    keeper.trainer = trainer
    trainer.train()
    return [trainer.state.log_history[0][name] for name in (*LOSS_NAMES, *losses)], keeper.gradient


def check_a_step(make_trainer, name, attention, splits, tolerance, losses=(), **arguments):
    """A step on packed rows has the losses and the gradient of a step on their documents, however it is split."""
    documents = make_documents()

    def models(attention):
        return make(name, attention, num_hidden_layers=2, layer_types=None, seed=1), make(name, attention)

    expected, expected_gradient = one_step(
        make_trainer, *models("sdpa"), documents, collate, len(documents), 1, losses, **arguments
    )
    of_splits = []
    for split in splits:
        student, teacher = models(attention)
        collator = Separated(SeparateDocuments(student, teacher))
        found, gradient = one_step(
            make_trainer, student, teacher, packed(documents), collator, *split, losses, **arguments
        )
        assert found == pytest.approx(expected, rel=tolerance)
        assert (gradient - expected_gradient).norm() / expected_gradient.norm() < tolerance
        of_splits.append((found, gradient))
    (whole, whole_gradient), *others = of_splits
    for found, gradient in others:
        assert found == pytest.approx(whole, rel=TOLERANCE)
        assert (gradient - whole_gradient).norm() / whole_gradient.norm() < TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["ModernBertForMaskedLM", "Gemma3ForCausalLM"])
def test_a_step_with_windows_is_that_on_the_documents(make_trainer, name, attention):
    losses = {"alpha_hidden": 1.0, "alpha_attention": 1.0, "alpha_relation": 1.0}
    names = [name.replace("alpha", "loss") for name in losses]
    check_a_step(make_trainer, name, attention, ((4, 1), (1, 4)), 2e-5, names, **losses)
