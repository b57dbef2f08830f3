"""The description of a model: counts, folded layers, shared weights, possible students."""

import re

import pytest
import torch
import transformers
from transformers import BertConfig, DistilBertConfig, RobertaConfig, T5Config

from hf_distill import describe, make_student
from hf_distill.student.architectures import find_layer_stacks, skeleton
from hf_distill.student.describe import possible_students
from tests.conftest import make_config, make_model
from tests.student.tiny_models import AUTO_CLASS_OF_TYPE, tiny_config, tiny_model


def lines(model):
    return [re.sub(" +", " ", line.strip()) for line in describe(model).splitlines()]


def on_meta(model_class, config):
    with torch.device("meta"):
        return getattr(transformers, model_class)._from_config(config)


ROBERTA_BASE = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)


def test_tree():
    shown = lines(make_model("bert", "classification"))
    assert shown[0] == f"BertForSequenceClassification {make_model('bert', 'classification').num_parameters():,}"
    assert "word_embeddings: Embedding [61, 16] 976" in shown
    assert "0-3: BertLayer x 4 8,896" in shown
    assert shown.count("query: Linear [16, 16] 272") == 1
    assert not any("Dropout" in line for line in shown)


def test_counts_add_up():
    """The count of each line is the sum of the lines one level below, where folded layers count in full."""
    parents, sums, checked = [], {}, 0
    for number, line in enumerate(describe(make_model("bert", "classification")).split("\n\n")[0].splitlines()):
        indent, text = len(line) - len(line.lstrip()), line.strip()
        times = int(match[1]) if (match := re.search(r" x (\d+)  ", text)) else 1
        count = int(re.search(r"  ([\d,]+)", text)[1].replace(",", "")) // times
        parents = [parent for parent in parents if parent[0] < indent]
        if parents:
            sums[parents[-1][1]] = sums.get(parents[-1][1], 0) + count * times
        parents.append((indent, number, count))
        sums[("count", number)] = count
    for number, total in sums.items():
        if not isinstance(number, tuple):
            checked += 1
            assert total == sums["count", number], number
    assert checked > 8


def test_layers_of_two_kinds_are_two_folds():
    shown = lines(on_meta("T5Model", T5Config()))
    assert sum(line.startswith("0: T5Block") for line in shown) == 2
    assert sum(line.startswith("1-5: T5Block x 5") for line in shown) == 2


def test_ties_are_marked():
    shown = lines(make_model("bert", "mlm"))
    decoder = next(line for line in shown if line.startswith("decoder: Linear"))
    assert decoder.endswith("weight is bert.embeddings.word_embeddings.weight, bias is cls.predictions.bias")
    assert not any(" is " in line for line in lines(make_model("bert", "classification")))


def test_stacks_are_named():
    shown = lines(tiny_model("whisper"))
    assert "Stack 'encoder': model.encoder.layers, 4 layers, `encoder_layers` in its config" in shown
    assert "Stack 'decoder': model.decoder.layers, 4 layers, `decoder_layers` in its config" in shown
    assert any(line.startswith("encoder + decoder parameters of the teacher") for line in shown)
    shown = lines(tiny_model("clip"))
    assert "Stack 'text': text_model.encoder.layers, 4 layers, `text_config.num_hidden_layers` in its config" in shown


def test_a_model_without_a_stack():
    shown = lines(make_model("resnet", "image"))
    assert shown[-1].startswith("ResNetForImageClassification has no stack of layers that can be cut")


@pytest.mark.parametrize("model_type", AUTO_CLASS_OF_TYPE)
def test_students_are_as_large_as_said(model_type):
    teacher = tiny_model(model_type)
    students = possible_students(teacher, find_layer_stacks(teacher))
    assert len(students) >= 3
    half = next(student for student in students if set(student.num_layers.values()) == {2})
    assert half.parameters == make_student(teacher).num_parameters()
    assert describe(teacher).count("make_student(") == len(students)


def test_students_that_cannot_be_made_are_left_out():
    """Jamba's config has a period for its kinds of layers, which every other layer would break."""
    config = tiny_config("jamba", attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, num_experts=2)
    model = skeleton(transformers.JambaForCausalLM, config)
    shown = [student.num_layers["layers"] for student in possible_students(model, find_layer_stacks(model))]
    assert 1 <= len(shown) < 3
    model = tiny_model("qwen2_moe")
    assert len(possible_students(model, find_layer_stacks(model))) == 3


def test_what_the_model_was_made_without():
    whole, without = (transformers.BertModel(make_config("bert"), add_pooling_layer=with_) for with_ in (True, False))
    sizes = [possible_students(model, find_layer_stacks(model))[0].parameters for model in (whole, without)]
    assert sizes[0] - sizes[1] == 16 * 16 + 16


def test_how_a_student_is_made():
    shown = [line for line in lines(make_model("bert", "mlm")) if "make_student(" in line]
    for line in shown:
        _, parameters, _, _, call = line.split(" ", maxsplit=4)
        student = eval(call, {"make_student": make_student, "teacher": make_model("bert", "mlm")})
        assert student.num_parameters() == int(parameters.replace(",", ""))
    assert sum("family='distilbert'" in line for line in shown) == 1


def test_multiplications_are_those_that_run():
    """Compared with PyTorch's count in a forward pass, without the products of queries, keys and values."""
    teacher = make_model("bert", "token_classification", width=32)
    counted = {}
    for model in (teacher, make_student(teacher)):
        total = 0

        def count(module, args, output):
            nonlocal total
            total += module.weight.numel() * args[0].shape[0] * args[0].shape[1]

        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(count)
        model(input_ids=torch.ones(2, 7, dtype=torch.long))
        counted[model.config.num_hidden_layers] = total / 14
    (half,) = [
        size for size in possible_students(teacher, find_layer_stacks(teacher))[:2] if size.num_layers["layers"] == 2
    ]
    assert half.operations == counted[2]
    assert f"{counted[4] / counted[2]:.2f}" in describe(teacher)


@pytest.mark.parametrize(
    ("model_class", "config", "teacher", "student"),
    [
        # Published and, as in docs/students.md, counted. Sanh et al., 2019, table 3; DistilRoBERTa's card.
        ("BertModel", BertConfig(), (110, 109.5), (66, 66.4)),
        ("RobertaForMaskedLM", ROBERTA_BASE, (125, 124.7), (82, 82.2)),
    ],
)
def test_published_numbers(model_class, config, teacher, student):
    """Only the configs are read."""
    model = on_meta(model_class, config)
    sizes = possible_students(model, find_layer_stacks(model))
    family = "distilbert" if model_class == "BertModel" else None
    (half,) = [size for size in sizes if size.num_layers == {"layers": 6} and size.family == family]
    for parameters, (published, counted) in ((model.num_parameters(), teacher), (half.parameters, student)):
        assert abs(parameters / 1e6 - published) < 0.6
        assert round(parameters / 1e6, 1) == counted


def test_distilbert_by_its_own_config():
    model = on_meta("BertModel", BertConfig())
    distilbert = next(size for size in possible_students(model, find_layer_stacks(model)) if size.family)
    assert distilbert.parameters == skeleton(transformers.DistilBertModel, DistilBertConfig()).num_parameters()


def test_nothing_is_touched():
    model = make_model("bert", "mlm").train()
    config, state = model.config.to_dict(), torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    describe(model)
    assert model.training
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("model", [make_config("bert"), "bert-base-uncased", torch.nn.Linear(2, 2)])
def test_not_a_model(model):
    with pytest.raises(TypeError, match="describe needs a transformers model, but got"):
        describe(model)
