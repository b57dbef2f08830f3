"""One mechanism for every architecture: with all layers, the student equals its teacher; cut, it works as a model."""

import pytest
import torch
import transformers
from transformers import PreTrainedConfig

from hf_distill import make_student
from hf_distill.student.architectures import (
    FIRST_LAYERS,
    LAST_LAYERS,
    LAYER_INDICES,
    PER_LAYER,
    LayerStack,
    example_inputs,
    find_layer_stacks,
    with_layers,
)
from tests.conftest import make_config
from tests.student.tiny_models import AUTO_CLASS_OF_TYPE, NUM_LAYERS, tiny_model


def outputs(model, inputs):
    """The output tensors of `model`, except its cache."""
    given = model(**inputs, return_dict=True)
    return {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}


def shared_weights(model):
    """The groups of names that share one weight."""
    names = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        names.setdefault(id(weight), []).append(name)
    return sorted(group for group in names.values() if len(group) > 1)


@pytest.mark.parametrize("model_type", AUTO_CLASS_OF_TYPE)
def test_every_type(model_type, tmp_path):
    teacher = tiny_model(model_type)
    inputs = example_inputs(teacher)
    teacher_outputs = outputs(teacher, inputs)
    assert teacher_outputs

    # With all layers it is the teacher.
    whole = make_student(teacher, num_layers=NUM_LAYERS)
    whole_outputs = outputs(whole, inputs)
    assert whole_outputs.keys() == teacher_outputs.keys()
    for name, expected in teacher_outputs.items():
        assert torch.equal(whole_outputs[name], expected), name

    # With half of them it is smaller, tied like the teacher, and shares no memory with it.
    student = make_student(teacher)
    stacks, teacher_stacks = find_layer_stacks(student), find_layer_stacks(teacher)
    assert [stack.num_layers for stack in stacks.values()] == [NUM_LAYERS // 2] * len(teacher_stacks)
    assert student.num_parameters() < teacher.num_parameters()
    tied = shared_weights(teacher)
    in_a_dropped_layer = [group for group in tied if not set(group) <= set(student.state_dict())]
    assert shared_weights(student) == [group for group in tied if group not in in_a_dropped_layer]
    memory = {weight.data_ptr() for weight in teacher.parameters()}
    assert not any(weight.data_ptr() in memory for weight in student.parameters())

    # It can be saved and loaded.
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    before, after = student.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    for name, expected in outputs(student, inputs).items():
        torch.testing.assert_close(outputs(loaded, inputs)[name], expected, rtol=1e-4, atol=1e-5)

    # It trains.
    student.train()
    (name, expected), *_ = teacher_outputs.items()
    torch.manual_seed(0)
    loss = (outputs(student, inputs)[name] - expected.detach()).square().mean()
    loss.backward()
    gradients = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert len(gradients) > 10
    # A step that should reduce the loss by a twentieth.
    rate = 0.05 * loss.item() / sum(gradient.square().sum().item() for gradient in gradients)
    torch.optim.SGD(student.parameters(), lr=rate).step()
    torch.manual_seed(0)
    assert (outputs(student, inputs)[name] - expected.detach()).square().mean() < loss


STACK = LayerStack("layers", (), "num_hidden_layers", 6)


@pytest.mark.parametrize("name", PER_LAYER)
def test_lists_of_layers_are_cut(name):
    kinds = ["full_attention", "sliding_attention", "chunked_attention"] * 2
    config = PreTrainedConfig(num_hidden_layers=6, **{name: kinds})
    cut = with_layers(config, {STACK: [1, 2, 3, 5]})
    assert getattr(cut, name) == ["sliding_attention", "chunked_attention", "full_attention", "chunked_attention"]
    assert cut.num_hidden_layers == 4
    assert getattr(config, name) == kinds


@pytest.mark.parametrize("name", LAYER_INDICES)
def test_indices_of_layers_are_renumbered(name):
    config = PreTrainedConfig(num_hidden_layers=6, **{name: [0, 2, 5]})
    assert getattr(with_layers(config, {STACK: [1, 2, 3, 5]}), name) == [1, 3]


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_first_layers_are_counted(name):
    config = PreTrainedConfig(num_hidden_layers=6, **{name: 3})
    assert getattr(with_layers(config, {STACK: [1, 2, 5]}), name) == 2


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_last_layers_are_counted(name):
    config = PreTrainedConfig(num_hidden_layers=6, **{name: 2})
    assert getattr(with_layers(config, {STACK: [1, 2, 5]}), name) == 1


@pytest.mark.parametrize(
    ("layers", "expected"), [([0, 2], [1, 2]), ([1, 2], [0, 2]), ([2, 3], [0, 2]), ([0, 1, 2, 3], [1, 4])]
)
def test_outputs_of_a_backbone(layers, expected):
    """The second output is that of the whole stack. The first is that of layer 0, or of the stem without layer 0."""
    teacher = tiny_model("dinov2")
    assert teacher.config.out_indices == [1, 4]
    config = make_student(teacher, layers=layers).config
    assert config.out_indices == expected
    assert config.out_features == [config.stage_names[index] for index in expected]
    assert len(config.stage_names) == len(layers) + 1


def test_lists_for_the_encoder_are_not_cut_with_the_decoder():
    student = make_student(tiny_model("led"), num_layers={"decoder": 2})
    assert student.config.attention_window == [4, 4, 8, 8]


def test_a_layer_of_each_kind():
    """Mixture-of-experts models that also have layers without experts."""
    teacher = tiny_model("qwen2_moe")
    student = make_student(teacher, layers=[1, 3])
    assert student.config.mlp_only_layers == [1]
    assert hasattr(student.model.layers[0].mlp, "experts")
    assert not hasattr(student.model.layers[1].mlp, "experts")


@pytest.mark.parametrize(
    ("model_class", "encoder"), [("EncoderDecoderModel", "bert"), ("VisionEncoderDecoderModel", "vit")]
)
def test_a_model_made_of_two(model_class, encoder):
    decoder = make_config("gpt2", is_decoder=True, add_cross_attention=True)
    model_class = getattr(transformers, model_class)
    config = model_class.config_class.from_encoder_decoder_configs(make_config(encoder), decoder)
    torch.manual_seed(0)
    teacher = model_class(config).eval()
    student = make_student(teacher, num_layers={"decoder": 1})
    assert student.config.encoder.num_hidden_layers == 4
    assert student.config.decoder.num_hidden_layers == 1
    inputs = example_inputs(teacher)
    whole = make_student(teacher, num_layers=4)
    assert torch.equal(whole(**inputs).logits, teacher(**inputs).logits)
    assert student(**inputs).logits.shape == teacher(**inputs).logits.shape


def test_there_are_many_types():
    assert len(AUTO_CLASS_OF_TYPE) >= 60
