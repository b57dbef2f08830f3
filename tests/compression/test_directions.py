"""What can be cut, and the shapes of students before they are made."""

import pytest

from hf_distill import make_student
from hf_distill.compression.directions import Direction, Directions
from hf_distill.student.axes import shapes_of
from tests.conftest import make_model
from tests.embedding.models import make_embedding_model


def names_of(model):
    return sorted(Directions.of(model).by_name)


@pytest.mark.parametrize(
    ("family", "head", "expected"),
    [
        ("bert", "classification", ["intermediate_size", "num_attention_heads", "num_layers"]),
        ("llama", "causal", ["hidden_size", "intermediate_size", "num_attention_heads", "num_layers"]),
        ("t5", "seq2seq", ["num_layers.decoder", "num_layers.encoder"]),
    ],
)
def test_directions(family, head, expected):
    assert set(expected) <= set(names_of(make_model(family, head)))


def test_embedding_model_is_cut_in_its_transformer():
    assert "num_layers" in names_of(make_embedding_model(num_layers=4))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_shape_is_that_of_the_student(family):
    model = make_model(family, "classification" if family == "bert" else "causal", num_hidden_layers=4)
    directions = Directions.of(model)
    for sizes in (directions.of_teacher(), directions.shares(0.5, 0.5, 0.5), directions.shares(0.0, 0.0, 0.0)):
        changed = {name: size for name, size in sizes.items() if size != directions.by_name[name].largest}
        made = make_student(model, **directions.arguments(changed)) if changed else model
        assert shapes_of(directions.shape(sizes)) == shapes_of(made)
        assert directions.num_layers(sizes) == made.config.num_hidden_layers


def test_encoder_decoder_has_a_number_of_layers_for_each_stack():
    directions = Directions.of(make_model("t5", "seq2seq"))
    depths = {name: 1 for name in directions.by_name if name.startswith("num_layers")}
    assert directions.arguments(depths) == {"num_layers": {"encoder": 1, "decoder": 1}}
    assert directions.num_layers(depths) == 2


def test_sizes_of_a_direction():
    inner = Direction("intermediate_size", 256, 1536, 256)
    assert list(inner.sizes()) == [256, 512, 768, 1024, 1280, 1536]
    assert [inner.share(share) for share in (0.0, 0.5, 0.7, 1.0)] == [256, 768, 1024, 1536]


def test_widths_are_all_combinations():
    directions = Directions.of(make_model("bert", "classification"))
    widths = list(directions.widths())
    own = [directions.by_name[name] for name in ("intermediate_size", "num_attention_heads")]
    assert len(widths) == len(own[0].sizes()) * len(own[1].sizes())
    assert all("num_layers" not in sizes for sizes in widths)
