"""What is captured inside a model, against what the model itself returns."""

import pytest
import torch

from hf_distill.student.architectures import find_layer_stacks
from hf_distill.training.scoring.attention import attention_given_to
from hf_distill.training.scoring.capture import EMBEDDINGS, LayerCapture, Wanted
from tests.conftest import collate, make_model, make_rows

FAMILIES = {
    "bert": "mlm",
    "roberta": "mlm",
    "distilbert": "mlm",
    "gpt2": "causal",
    "llama": "causal",
    "opt": "causal",
    "t5": "seq2seq",
    "bart": "seq2seq",
    "vit": "image",
    "wav2vec2": "audio",
}
FINAL_NORM = {"gpt2", "llama", "opt", "t5"}
"""Their last entry of `hidden_states` is the output of the last layer after a norm."""

OUTPUTS = {
    "layers": ("hidden_states", "attentions"),
    "encoder": ("encoder_hidden_states", "encoder_attentions"),
    "decoder": ("decoder_hidden_states", "decoder_attentions"),
}
EVERYTHING = Wanted(hidden_states=True, queries=True, keys=True, values=True)


def make_capture(model, wanted=EVERYTHING):
    stacks = find_layer_stacks(model)
    paths = {name: stack.path for name, stack in stacks.items()}
    layers = [(name, index) for name, stack in stacks.items() for index in range(EMBEDDINGS, stack.num_layers)]
    return LayerCapture(
        model, paths, {layer: Wanted(hidden_states=True) if layer[1] == EMBEDDINGS else wanted for layer in layers}
    )


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_is_what_the_model_computes(family, implementation):
    """Queries and keys give the model's own attention, and capturing changes no bit of the output."""
    model = make_model(family, FAMILIES[family])
    batch = collate(make_rows(FAMILIES[family], 4))
    batch["use_cache"] = False
    batch = {name: value for name, value in batch.items() if name != "use_cache" or "use_cache" in model.config}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation(implementation)
    capture = make_capture(model)
    with torch.no_grad():
        plain = model(**batch).logits
        with capture.open():
            captured = model(**batch).logits
        outputs = capture.take()
        assert torch.equal(captured, plain)
        assert torch.equal(model(**batch).logits, plain)
    assert outputs.keys() == capture.wanted.keys()
    for (stack, index), output in outputs.items():
        hidden_states, attentions = (expected[name] for name in OUTPUTS[stack])
        is_last = index + 2 == len(hidden_states)
        if not (is_last and family in FINAL_NORM):
            torch.testing.assert_close(output.hidden_states, hidden_states[index + 1], rtol=1e-5, atol=1e-5)
        if index == EMBEDDINGS:
            assert output.queries is None
            continue
        keys = output.keys.repeat_interleave(output.queries.shape[1] // output.keys.shape[1], 1)
        scores = output.queries @ keys.transpose(2, 3) * output.scaling
        scores = scores if output.position_bias is None else scores + output.position_bias
        scores = scores if output.visible is None else scores.masked_fill(~output.visible, -1e30)
        seen = attentions[index].sum(-1) > 0.5
        torch.testing.assert_close(scores.softmax(-1)[seen], attentions[index][seen], rtol=1e-5, atol=1e-5)


def test_keeps_only_what_is_wanted():
    model = make_model("bert", "mlm")
    capture = LayerCapture(model, {"layers": "bert.encoder.layer"}, {("layers", 1): Wanted(keys=True)})
    with capture.open():
        model(**collate(make_rows("mlm", 2)))
    outputs = capture.take()
    assert outputs.keys() == {("layers", 1)}
    kept = {name for name, value in vars(outputs["layers", 1]).items() if isinstance(value, torch.Tensor)}
    assert kept == {"keys", "visible"}
    assert capture._outputs == {}


def test_closed_capture_keeps_nothing_and_leaves_no_hooks():
    model = make_model("bert", "mlm")
    capture = make_capture(model)
    batch = collate(make_rows("mlm", 2))
    with capture.open():
        model(**batch)
        first = capture.take()
        model(**batch)  # as gradient checkpointing does in the backward pass
        with pytest.raises(ValueError, match="BertForMaskedLM gave no hidden states of layer -1 in its stack 'layers'"):
            capture.take()
    assert first
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_functions_are_put_back_after_an_error():
    from transformers.modeling_utils import AttentionInterface

    before = dict(AttentionInterface._global_mapping)
    with pytest.raises(ZeroDivisionError), attention_given_to(print):
        raise ZeroDivisionError
    assert before == AttentionInterface._global_mapping
