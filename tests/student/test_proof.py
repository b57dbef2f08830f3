"""Student and teacher are run once and compared, which reveals errors in the student."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, BertModel, LlavaConfig, LlavaForConditionalGeneration

from hf_distill import make_student
from hf_distill.student.architectures import find_layer_stacks
from hf_distill.student.cutting import cut
from hf_distill.student.proof import evaluating, prove, skipping
from tests.conftest import make_model
from tests.student.tiny_models import tiny_config, tiny_model

INPUTS = {"input_ids": torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "squeezebert", "longformer", "vit", "wav2vec2"])
def test_skipped_layers_give_back_what_they_get(model_type):
    """A skipped layer returns its input state, whatever form its output has."""
    model = tiny_model(model_type)
    inputs = {
        "vit": {"pixel_values": torch.ones(1, 3, 8, 8)},
        "wav2vec2": {"input_values": torch.linspace(-1, 1, 2000)[None]},
        "t5": {**INPUTS, "decoder_input_ids": INPUTS["input_ids"]},
    }.get(model_type, INPUTS)
    stack = next(iter(find_layer_stacks(model).values()))
    seen = {}
    layers = model.get_submodule(stack.path)
    for index, layer in enumerate(layers):
        own_forward = layer.forward
        layer.forward = lambda *args, index=index, own_forward=own_forward, **kwargs: (
            seen.update({index: args[0] if args else kwargs["hidden_states"]}),
            own_forward(*args, **kwargs),
        )[1]
    model(**inputs)
    before = dict(seen)
    with skipping([layers[1]]) as calls:
        model(**inputs)
    assert calls == {layers[1]: 1}
    assert not torch.equal(before[2], before[1])
    assert torch.equal(seen[2], before[1])


def test_skipping_ends():
    model = make_model("bert", "mlm")
    before = model(**INPUTS).logits
    hooked = model.bert.encoder.layer[1]
    hooked.forward = own_forward = lambda *args, **kwargs: type(hooked).forward(hooked, *args, **kwargs)
    with skipping(model.bert.encoder.layer):
        assert not torch.equal(model(**INPUTS).logits, before)
    assert hooked.forward is own_forward
    assert "forward" not in vars(model.bert.encoder.layer[0])
    assert torch.equal(model(**INPUTS).logits, before)


def test_evaluating_puts_each_module_back():
    model = make_model("bert", "mlm").train()
    model.bert.encoder.layer[1].eval()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("wrong", ["weight", "activation"])
def test_a_student_that_computes_something_else(wrong):
    teacher = make_model("bert", "mlm")
    stacks = find_layer_stacks(teacher)
    student = cut(teacher, stacks, {"layers": [0, 2]})
    prove(student, teacher, stacks, {"layers": [0, 2]})
    if wrong == "weight":
        student.bert.encoder.layer[1].output.dense.weight.data *= 1.1
    else:
        student.bert.encoder.layer[0].intermediate.intermediate_act_fn = torch.nn.ReLU()
    with pytest.raises(ValueError, match="The student's last_hidden_state does not match"):
        prove(student, teacher, stacks, {"layers": [0, 2]})


def test_layers_that_know_their_place():
    """PEGASUS-X shifts its attention blocks in every other layer, which does not show in its weights."""
    model = AutoModelForSeq2SeqLM.from_config(tiny_config("pegasus_x", block_size=4, num_global_tokens=2)).eval()
    with pytest.raises(ValueError, match=r"does not match PegasusXForConditionalGeneration without the removed layers"):
        make_student(model, layers={"encoder": [0, 2]})
    assert make_student(model, layers={"encoder": [0, 1]}).config.encoder_layers == 2


def test_inputs_that_do_not_reach_a_stack():
    """Tokens alone do not run an image model inside."""
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=tiny_config("llama").to_dict(), vision_config=tiny_config("clip_vision_model").to_dict()
        )
    ).eval()
    with pytest.raises(ValueError, match="The stack 'vision' is cut, but input_ids did not pass through it"):
        make_student(model)
    student = make_student(model, num_layers={"text": 1})
    assert student.config.text_config.num_hidden_layers == 1
    assert student.config.vision_config.num_hidden_layers == 4
    assert student.config.distilled_from["method"] == {"text": "alternate", "vision": "all"}


def test_a_model_that_takes_more_than_tokens():
    model = AutoModel.from_config(tiny_config("bros", hidden_size=64)).eval()
    with pytest.raises(ValueError, match=r"BrosModel does not run on the default inputs.*bbox.*Pass example_inputs="):
        make_student(model)
    boxes = {**INPUTS, "bbox": torch.rand(3, 9, 4)}
    assert make_student(model, example_inputs=boxes).config.num_hidden_layers == 2


def test_outputs_that_cannot_be_compared(monkeypatch):
    teacher, own_forward = make_model("bert", "mlm"), BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda *args, **kwargs: {"text": own_forward(*args, **kwargs)})
    with pytest.raises(ValueError, match="have no output tensor in common: the teacher returns text"):
        make_student(teacher)


def test_inputs_that_are_unknown():
    model = AutoModel.from_config(tiny_config("decision_transformer")).eval()
    with pytest.raises(ValueError, match="Cannot create states for DecisionTransformerModel"):
        make_student(model)


def test_big_bird_keeps_its_sparse_attention():
    """On a short text, BigBird would switch to full attention for good."""
    teacher = tiny_model("big_bird")
    assert make_student(teacher).bert.attention_type == teacher.bert.attention_type == "block_sparse"
