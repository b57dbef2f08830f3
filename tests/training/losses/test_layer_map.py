"""Which layers are compared."""

import pytest

from hf_distill import make_student
from hf_distill.training.losses.layer_map import ModelLayers, map_layers
from tests.conftest import make_model
from tests.families.tiny import build


def pairs_of(student, teacher, given=None, embeddings=False):
    pairs = map_layers(ModelLayers.of(student), ModelLayers.of(teacher), given, embeddings)
    return [(pair.stack, pair.student, pair.teacher) for pair in pairs]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("alternate", [1, 3, 5]),  # 0, 2 and 4 were copied: TinyBERT's uniform map
        ("first", [0, 1, 5]),
        ("last", [3, 4, 5]),
        ([0, 4, 5], [3, 4, 5]),
    ],
)
def test_by_origin(layers, expected):
    teacher = make_model("bert", "mlm", num_layers=6)
    student = make_student(teacher, 3, layers)
    assert pairs_of(student, teacher) == [("layers", index, layer) for index, layer in enumerate(expected)]


def test_is_uniform_for_another_origin():
    student = make_model("bert", "mlm", num_layers=4)
    assert pairs_of(student, make_model("bert", "mlm", num_layers=12)) == [
        ("layers", 0, 2),
        ("layers", 1, 5),
        ("layers", 2, 8),
        ("layers", 3, 11),
    ]
    other = make_student(make_model("bert", "mlm", num_layers=6), 3, "last")  # cut from a model of another depth
    assert [layer for *_, layer in pairs_of(other, make_model("bert", "mlm", num_layers=12))] == [3, 7, 11]
    deeper = make_model("bert", "mlm", num_layers=4)
    assert [layer for *_, layer in pairs_of(deeper, make_model("bert", "mlm", num_layers=2))] == [0, 0, 0, 1]


def test_of_an_encoder_decoder():
    teacher = make_model("bart", "seq2seq")
    student = make_student(teacher, {"decoder": 2})
    assert pairs_of(student, teacher, embeddings=True) == [
        ("encoder", -1, -1),
        ("encoder", 0, 0),
        ("encoder", 1, 1),
        ("decoder", -1, -1),
        ("decoder", 0, 1),
        ("decoder", 1, 3),
    ]
    assert pairs_of(student, teacher, '{"decoder": [[1, 2]]}', embeddings=True) == [
        ("decoder", -1, -1),
        ("decoder", 1, 2),
    ]


def test_given():
    student, teacher = make_model("bert", "mlm", num_layers=2), make_model("bert", "mlm")
    assert pairs_of(student, teacher, [[1, 2], [0, 0]]) == [("layers", 1, 2), ("layers", 0, 0)]
    assert pairs_of(student, teacher, "[[0, 1]]") == [("layers", 0, 1)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0, 4]], r"\[0, 4\] is outside the stack 'layers'. The student's layers are 0 to 1, the teacher's 0 to 3\.$"),
        ([[2, 3]], r"\[2, 3\] is outside"),
        ([[0, 0], [1, 2], [2, 4]], r"\[2, 4\] is outside .* The embeddings are not a layer.*hidden_embeddings=True"),
        ([[-1, -1], [0, 1]], r"\[-1, -1\] is outside .* The embeddings are not a layer"),
        ([[0, 1], [0, 3]], r"student layer 0 is repeated"),
        ([[0, 1, 2]], r"must be a list of pairs \[student layer, teacher layer\]: \[\[0, 1\], \[1, 3\]\]"),
        ([0, 1], r"must be a list of pairs"),
        ([[0, 1.5]], r"must be a list of pairs"),
        ([], r"has no pairs: give at least one"),
        ("0-1", r"layer_map='0-1' is not JSON: write for example layer_map='\[\[0, 1\], \[1, 3\]\]'"),
        ({"decoder": [[0, 1]]}, r"layer_map has the stacks 'decoder', but the student has 'layers'"),
    ],
)
def test_bad_maps(given, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(make_model("bert", "mlm", num_layers=2), make_model("bert", "mlm"), given)


def test_stacks_that_differ():
    with pytest.raises(ValueError, match="the student has the stacks layers and the teacher encoder, decoder"):
        pairs_of(make_model("bert", "mlm"), make_model("bart", "seq2seq"))
    bart = make_model("bart", "seq2seq")
    with pytest.raises(ValueError, match=r"must name the stack of each pair: layer_map=\{\"encoder\": \[\[0, 1\]"):
        pairs_of(bart, bart, [[0, 1]])


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="The layers of a ResNetForImageClassification cannot be compared"):
        ModelLayers.of(make_model("resnet", "image"))


def test_stacks_with_names_of_their_own():
    """SeamlessM4T names its stacks after text, and T5Gemma 2 has an image encoder too."""
    seamless = ModelLayers.of(build("SeamlessM4TForTextToText", 0))
    assert seamless.paths == {"encoder": "text_encoder.layers", "decoder": "text_decoder.layers"}
    gemma = ModelLayers.of(build("T5Gemma2ForConditionalGeneration", 0))
    assert gemma.paths == {"encoder": "model.encoder.text_model.layers", "decoder": "model.decoder.layers"}
    assert ModelLayers.of(build("LlavaForConditionalGeneration", 0)).stacks.keys() == {"text"}
