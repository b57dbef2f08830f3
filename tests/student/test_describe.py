"""The description of a model: counts, folded layers, shared weights, sizes, and the table of students."""

import re
import sys

import pytest
import torch
from transformers import AlbertConfig, T5Config, XLMRobertaConfig

from hf_distill import describe, make_student
from hf_distill.student.axes import HEADS, Axis
from hf_distill.student.model_size import int8_bytes_of, operations_of
from tests.conftest import make_config, make_model
from tests.student.test_proposals import on_meta, proposals_of
from tests.student.tiny_models import tiny_model

module_of_describe = sys.modules["hf_distill.student.describe"]


def lines(model):
    return [re.sub(" +", " ", line.strip()) for line in describe(model).splitlines()]


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
    shown = lines(tiny_model("clip"))
    assert "Stack 'text': text_model.encoder.layers, 4 layers, `text_config.num_hidden_layers` in its config" in shown


def test_a_model_without_a_stack():
    shown = lines(make_model("resnet", "image"))
    assert any(line.startswith("ResNetForImageClassification has no stack of layers that can be cut") for line in shown)
    assert shown[-1].startswith("Sizes, which stay: ")


def test_sizes():
    shown = lines(make_model("bert", "mlm"))
    start = shown.index("Sizes")
    assert shown[start + 1 : start + 7] == [
        "in its config size kind made smaller by",
        "vocab_size 61 vocabulary trim_vocabulary",
        "hidden_size 16 hidden width hidden_size",
        "num_attention_heads 2 attention heads num_attention_heads and hidden_size: heads of 8",
        "intermediate_size 32 feed-forward width intermediate_size",
        "Other sizes, which stay: type_vocab_size 2, max_position_embeddings 40",
    ]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (
            tiny_model("llama", num_attention_heads=4, num_key_value_heads=2),
            "num_key_value_heads 2 key-value heads num_key_value_heads: for 2 heads each",
        ),
        (tiny_model("whisper"), "decoder_ffn_dim 32 feed-forward width intermediate_size, stack 'decoder'"),
        (tiny_model("clip"), "attention heads num_attention_heads, stack 'text' and"),
        (tiny_model("electra"), "hidden_size 16 hidden width hidden_size"),
        (on_meta("AlbertModel", AlbertConfig()), "16,384 feed-forward width intermediate_size"),
        (on_meta("AlbertModel", AlbertConfig()), "Other sizes, which stay: type_vocab_size 2, embedding_size 128"),
    ],
)
def test_sizes_of(model, line):
    assert any(line in shown for shown in lines(model)), "\n".join(lines(model))


def test_heads_without_a_hidden_width():
    shown = " ".join(module_of_describe._sizes([Axis(HEADS, "n_heads", (), 4, {})]))
    assert "nothing: heads would change their width" in shown


def test_columns():
    """The sizes of a table are those of the models that the calls make."""
    teacher = make_model("bert", "mlm")
    shown = describe(teacher)
    rows = shown[shown.index("Students\n") :].split("\n\n")[0].splitlines()[1:]
    assert re.split(" {2,}", rows[0].strip()) == [
        "parameters",
        "share",
        "MB",
        "MB in int8",
        "multiplications",
        "made by",
    ]
    parameters, share, megabytes, int8, operations, _ = re.split(" {2,}", rows[1].strip())
    assert (int(parameters.replace(",", "")), share) == (teacher.num_parameters(), "100%")
    assert float(megabytes) == round(4 * teacher.num_parameters() / 1e6, 1)
    assert float(int8) == round(int8_bytes_of(teacher) / 1e6, 1)
    assert operations == f"{operations_of(teacher) / 1e6:.1f} M"


def test_calls():
    """Each call of the table makes the student whose size is in its row."""
    teacher = make_model("bert", "mlm")
    shown = describe(teacher)
    rows = shown[shown.index("Students\n") :].split("\n\n")[0].splitlines()[3:]
    calls = [call for call in re.split(r"^ +(?=[\d,]+ +\d+%)", "\n".join(rows), flags=re.MULTILINE) if call]
    names = {"make_student": make_student, "teacher": teacher}
    for call in calls:
        parameters, *_, made_by = re.split(" {2,}", re.sub(r"\n +", " ", call.strip()))
        assert eval(made_by, names).num_parameters() == int(parameters.replace(",", "")), made_by
    assert len(calls) == len(proposals_of(teacher)) == 8
    assert sum("family='distilbert'" in call for call in calls) == 1


@pytest.mark.parametrize(
    "model",
    [tiny_model("clip"), tiny_model("whisper"), on_meta("XLMRobertaForMaskedLM", XLMRobertaConfig(vocab_size=250002))],
)
def test_lines_are_not_long(model):
    tables = describe(model).partition("\n\n")[2]
    assert "Students" in tables
    assert max(map(len, tables.splitlines())) <= 110


def test_latency(monkeypatch):
    """One more column, from one measurement for all students, and a note."""
    seconds = []

    def measured(models, num_tokens):
        seconds.extend(model.num_parameters() / 1e5 for model in models)
        return seconds

    monkeypatch.setattr(module_of_describe, "product_seconds", measured)
    teacher = make_model("bert", "mlm")
    with_latency, without = describe(teacher, latency=True), describe(teacher)
    assert len(seconds) == 1 + len(proposals_of(teacher))
    assert f" {1e3 * seconds[0]:.1f}   (the teacher)" in with_latency
    assert "ms: the matrix products alone of one text of 128 tokens" in with_latency
    assert " ms " not in without
    assert "make_student checks each student" in without
    assert with_latency.partition("Students")[0] == without.partition("Students")[0]


def test_operations_are_those_that_run():
    """Compared with PyTorch's count in a forward pass, without the products of queries, keys and values."""
    teacher = make_model("bert", "token_classification", width=32)
    for model in (teacher, make_student(teacher), make_student(teacher, intermediate_size=8)):
        total = 0

        def count(module, args, output):
            nonlocal total
            total += module.weight.numel() * args[0].shape[0] * args[0].shape[1]

        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(count)
        model(input_ids=torch.ones(2, 7, dtype=torch.long))
        assert operations_of(model) == total / 14


def test_bytes_in_int8():
    """Shared weights count once; biases and norms stay in fp32."""
    model = make_model("bert", "mlm")
    embeddings = (61 + 40 + 2) * 16 * (1 + 2 / 32)
    matrices = 4 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 16
    vectors = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert int8_bytes_of(model) == embeddings + matrices + 4 * vectors


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
