"""The head runs only on scored positions, with the same results as on all positions."""

import pytest
import torch
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

from hf_distill.training.losses import CosineLoss
from hf_distill.training.losses.batch import known_states, state_weights
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from tests.conftest import collate, make_config, make_model, make_rows


def narrowed_and_whole(family, head):
    model, inputs = make_model(family, head), collate(make_rows(head))
    kind = find_head(model)
    scored, inputs = kind.score(inputs), kind.complete(inputs, model)
    inputs = {name: value for name, value in inputs.items() if name not in kind.label_names}
    output, _ = scored_forward(model, model, kind, inputs, scored)
    return model, inputs, scored, output


VOCABULARY_HEADS = [
    *[("mlm", family) for family in ("bert", "roberta", "distilbert")],
    *[("causal", family) for family in ("gpt2", "llama", "opt")],
    *[("seq2seq", family) for family in ("bart", "t5")],
]
OTHER_HEADS = [
    *[("classification", family) for family in ("bert", "roberta", "distilbert", "gpt2", "llama")],
    *[(head, "bert") for head in ("multi_label", "regression", "token_classification", "multiple_choice")],
    ("token_classification", "gpt2"),
    ("image", "vit"),
    ("audio", "wav2vec2"),
]


def last_hidden_state(output):
    return output.decoder_hidden_states[-1] if "decoder_hidden_states" in output else output.hidden_states[-1]


@pytest.mark.parametrize(("head", "family"), VOCABULARY_HEADS)
def test_logits_of_scored_positions(head, family):
    model, inputs, scored, output = narrowed_and_whole(family, head)
    whole = model(**inputs, output_hidden_states=True)
    positions = scored.positions
    assert 0 < len(output.head_inputs) == positions.sum() < positions.numel()
    torch.testing.assert_close(output.logits(slice(None)), whole.logits[positions])
    torch.testing.assert_close(output.logits(slice(3, 8)), whole.logits[positions][3:8])
    torch.testing.assert_close(output.last_hidden_state, last_hidden_state(whole))


@pytest.mark.parametrize(("head", "family"), OTHER_HEADS)
def test_logits_of_other_heads(head, family):
    model, inputs, scored, output = narrowed_and_whole(family, head)
    whole = model(**inputs, output_hidden_states=True)
    expected = whole.logits[scored.positions] if scored.per_token else whole.logits
    assert torch.equal(output.logits(slice(None)), expected)
    if head == "multiple_choice":
        inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}
    assert torch.equal(output.last_hidden_state, model.base_model(**inputs)[0])


def test_logits_of_question_answering(family):
    model, inputs, _, output = narrowed_and_whole(family, "question_answering")
    whole = model(**inputs, output_hidden_states=True)
    logits, length = output.logits(slice(None)), inputs["attention_mask"].sum(1)
    assert len(logits) == 32
    for index in range(16):
        for one, expected in (
            (logits[index], whole.start_logits[index]),
            (logits[16 + index], whole.end_logits[index]),
        ):
            assert torch.equal(one[: length[index]], expected[: length[index]])
            assert not one[length[index] :].softmax(-1).isnan().any()
            assert one.softmax(-1)[length[index] :].sum() == 0
    assert torch.equal(output.last_hidden_state, whole.hidden_states[-1])


def test_feature_maps_are_states_of_their_pixels():
    model, inputs, _, output = narrowed_and_whole("resnet", "image")
    feature_map = model(**inputs, output_hidden_states=True).hidden_states[-1]
    assert feature_map.shape == (16, 16, 1, 1)
    assert torch.equal(output.last_hidden_state, feature_map.flatten(2).transpose(1, 2))


def test_padding_is_no_part_of_a_recording():
    model = make_model("wav2vec2", "audio")
    inputs = collate(make_rows("audio"))
    scored = find_head(model).score(inputs)
    for row in range(16):
        alone = inputs["input_values"][row : row + 1, : inputs["attention_mask"][row].sum()]
        num_states = model.wav2vec2(alone).last_hidden_state.shape[1]
        weights = state_weights(model, inputs, scored.attended, num_states=24, name="cos", loss=CosineLoss())[row]
        torch.testing.assert_close(weights[:num_states], torch.full((num_states,), 1 / num_states))
        assert not weights[num_states:].any()


def test_states_that_are_not_those_of_the_tokens():
    model, inputs = make_model("bert", "mlm"), collate(make_rows("mlm"))
    scored = find_head(model).score(inputs)
    with pytest.raises(ValueError, match=r"BertForMaskedLM has 25 hidden states for \d+ tokens.*set alpha_cos=0"):
        state_weights(model, inputs, scored.attended, num_states=25, name="cos", loss=CosineLoss())


@pytest.mark.parametrize(("head", "family"), VOCABULARY_HEADS)
def test_head_computes_nothing_else(head, family):
    """The head runs on one position of the batch first, and then on the scored positions."""
    positions_seen = []
    model, inputs = make_model(family, head), collate(make_rows(head))
    model.get_output_embeddings().register_forward_hook(
        lambda m, args, output: positions_seen.append(output[..., 0].numel())
    )
    kind = find_head(model)
    scored, inputs = kind.score(inputs), kind.complete(inputs, model)
    inputs = {name: value for name, value in inputs.items() if name != "labels"}
    output, _ = scored_forward(model, model, kind, inputs, scored)
    output.logits(slice(None))
    assert positions_seen == [1, scored.positions.sum()]


@pytest.mark.parametrize(("head", "family"), VOCABULARY_HEADS + OTHER_HEADS)
def test_model_is_left_as_it_was(head, family):
    model, inputs, _, output = narrowed_and_whole(family, head)
    output.logits(slice(None))
    assert not hooks_of_ours(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert len(model(**inputs)[0]) == 16


def hooks_of_ours(model):
    hooks = [hook for m in model.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
    return [hook for hook in hooks if hook.__module__.startswith("hf_distill")]


def test_backbone_is_what_runs_whatever_it_is_called():
    model = make_model("bert", "mlm")
    model.base_model_prefix, model.elsewhere = "elsewhere", torch.nn.Identity()
    inputs = collate(make_rows("mlm"))
    scored = find_head(model).score(inputs)
    inputs.pop("labels")
    output, _ = scored_forward(model, model, find_head(model), inputs, scored)
    whole = model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(output.logits(slice(None)), whole.logits[scored.positions])
    torch.testing.assert_close(output.last_hidden_state, whole.hidden_states[-1])


@pytest.mark.parametrize("same_width", [True, False])
def test_decoder_with_a_head_of_its_own(same_width):
    """An encoder of images, and a language model that decodes."""
    encoder = make_config("vit", width=16 if same_width else 8)
    decoder = make_config("bert", is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = VisionEncoderDecoderModel(config).eval()
    labels = torch.tensor([[7, 8, 9, 2], [5, 2, -100, -100]])
    inputs = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": labels}
    head = find_head(model)
    scored, completed = head.score(inputs), dict(head.complete(inputs, model))
    completed.pop("labels")
    output, _ = scored_forward(model, model, head, completed, scored)
    whole = model(**inputs, output_hidden_states=True)
    assert head.runs_alone
    torch.testing.assert_close(output.logits(slice(None)), whole.logits[scored.positions])
    torch.testing.assert_close(output.last_hidden_state, whole.decoder_hidden_states[-1])


def test_values_that_are_not_those_of_the_tokens():
    scored = find_head(make_model("bert", "mlm")).score(collate(make_rows("mlm")))
    with pytest.raises(ValueError, match=r"returns values \[16, 40, 61\] for tokens \[16, \d+\].*pad the rows"):
        scored.select(torch.zeros(16, 40, 61))


def test_states_that_are_not_known():
    with pytest.raises(ValueError, match=r"The student's forward calls no transformers model.*set alpha_cos=0"):
        known_states(ScoredOutput(None, None, None), "student", "cos", CosineLoss())


def test_model_is_left_as_it_was_after_an_error():
    model = make_model("bert", "mlm")
    with pytest.raises(IndexError):
        scored_forward(model, model, find_head(model), {"input_ids": torch.tensor([[10**6]])}, None)
    assert not hooks_of_ours(model)


@pytest.mark.parametrize(("head", "family"), VOCABULARY_HEADS)
def test_no_scored_position(head, family):
    model, inputs = make_model(family, head), collate(make_rows(head))
    kind = find_head(model)
    inputs = dict(kind.complete(inputs, model))
    scored = kind.score({**inputs, "labels": torch.full_like(inputs.pop("labels"), -100)})
    output, _ = scored_forward(model, model, kind, inputs, scored)
    assert output.logits(slice(None)).shape == (0, model.config.vocab_size)
