"""Every axis of many model types: cut exactly, and cut as the teacher with dead units computes."""

import copy

import pytest
import torch

from hf_distill import make_student
from hf_distill.student.architectures import example_inputs
from hf_distill.student.axes import FEED_FORWARD, HEADS, HIDDEN, axis_of, find_axes
from hf_distill.student.width.cutting import groups_of, plan_width
from hf_distill.student.width.sizes import sizes_by_axis
from tests.student.tiny_models import TYPES
from tests.student.width import models
from tests.student.width.models import wide_model

ALL = [model_type for types in TYPES.values() for model_type in types]

FEED_FORWARD_SIZE = {"intermediate_size": models.FEED_FORWARD // 2}
HEADS_ALONE = {"num_attention_heads": models.HEADS // 2}
HIDDEN_ALONE = {"hidden_size": models.HIDDEN // 2}
HEADS_AND_HIDDEN = HEADS_ALONE | HIDDEN_ALONE

NO_FEED_FORWARD = {
    "bloom": "no number",  # always 4 times the hidden width
    "dinov2": "no number",
    "gemma3n_text": "no number",  # a list with one for each layer
    "mamba": "does not fit",
    "squeezebert": "unknown which units",  # grouped convolutions
    **dict.fromkeys(["gpt_oss", "mixtral", "qwen3_moe"], "unknown which units"),  # experts
}
OWN_HEAD_WIDTH = {
    *("deepseek_v3", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gpt_oss", "llama", "mistral"),
    *("mixtral", "mt5", "qwen3", "t5"),
}
"""Models whose config has the width of a head."""
NO_HIDDEN = {
    "bloom": "does not match",  # the slopes of its attention bias depend on the number of heads
    "dinov2": "does not match",  # its head reads two hidden states as one
    "fnet": "has no number for the attention heads",
    "mamba": "has no number for the attention heads",
    "marian": "is not saved",  # positions that are computed from the width
    "mobilebert": "unknown which units",  # two widths that depend on each other
    "prophetnet": "unknown which units",
    **dict.fromkeys(["gemma", "gemma2", "gemma3_text", "gemma4_text"], "does not match"),  # embeddings x sqrt(width)
    **dict.fromkeys(["m2m_100", "speech_to_text"], "does not match"),  # embeddings x sqrt(width)
    "t5": "does not match",  # logits / sqrt(width)
    **dict.fromkeys(["convbert", "esm", "gemma3n_text", "led", "longformer", "siglip"], "unknown which units"),
    **dict.fromkeys(["hubert", "wav2vec2", "wavlm", "squeezebert"], "unknown which units"),  # grouped convolutions
}


def check_student(student, teacher, tmp_path):
    """It runs, learns, is saved and loaded, and its ties are ties."""
    inputs = example_inputs(teacher)
    before = student(**inputs, return_dict=True)
    first = next(values for values in before.values() if isinstance(values, torch.Tensor) and values.requires_grad)
    first.float().square().mean().backward()
    gradients = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    for name, weight in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    embeddings, head = teacher.get_input_embeddings, teacher.get_output_embeddings()
    if head is not None and head.weight is embeddings().weight:
        assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


FEED_FORWARD_ALONE = [
    pytest.param(name, marks=[] if name in NO_HIDDEN else pytest.mark.long)
    for name in ALL
    if name not in NO_FEED_FORWARD
]
"""The others are also cut in all widths at once, below."""


@pytest.mark.parametrize("model_type", FEED_FORWARD_ALONE)
def test_feed_forward_width(model_type):
    teacher = wide_model(model_type)
    inputs = example_inputs(teacher)
    dead = kill_half(teacher, FEED_FORWARD_SIZE)
    assert dead > 0
    student = make_student(teacher, **FEED_FORWARD_SIZE)
    assert student.num_parameters() < teacher.num_parameters()
    compare(student, teacher, inputs)


@pytest.mark.parametrize("model_type", sorted(OWN_HEAD_WIDTH))
def test_heads(model_type, tmp_path):
    teacher = wide_model(model_type)
    inputs = example_inputs(teacher)
    kill_half(teacher, HEADS_ALONE)
    student = make_student(teacher, **HEADS_ALONE)
    assert student.num_parameters() < teacher.num_parameters()
    compare(student, teacher, inputs)
    check_student(student, teacher, tmp_path)


@pytest.mark.parametrize("model_type", [name for name in ALL if name not in NO_HIDDEN])
def test_hidden_width_and_heads_with_half_of_the_layers(model_type, tmp_path):
    """The proof compares it with the silenced teacher."""
    teacher = wide_model(model_type)
    sizes = HEADS_AND_HIDDEN if model_type in NO_FEED_FORWARD else HEADS_AND_HIDDEN | FEED_FORWARD_SIZE
    student = make_student(teacher, num_layers=2, **sizes)
    assert student.num_parameters() < 0.6 * teacher.num_parameters()
    check_student(student, teacher, tmp_path)


@pytest.mark.parametrize("model_type", [*ALL[:45], *(pytest.param(name, marks=pytest.mark.long) for name in ALL[45:])])
def test_the_teachers_own_sizes_change_nothing(model_type):
    teacher = wide_model(model_type)
    axes = find_axes(teacher)
    sizes = {}
    for argument, kind in (
        ("intermediate_size", FEED_FORWARD),
        ("num_attention_heads", HEADS),
        ("hidden_size", HIDDEN),
    ):
        if len({axis.size for axis in axis_of(axes, kind)}) == 1:
            sizes[argument] = axis_of(axes, kind)[0].size
    student = make_student(teacher, **sizes)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("model_type", "sizes", "reason"),
    [(name, FEED_FORWARD_SIZE, reason) for name, reason in NO_FEED_FORWARD.items()]
    + [(name, HEADS_AND_HIDDEN, reason) for name, reason in NO_HIDDEN.items()],
)
def test_what_cannot_be_cut_says_why(model_type, sizes, reason):
    teacher = wide_model(model_type, **{"moe_intermediate_size": 48} if model_type == "qwen3_moe" else {})
    with pytest.raises(ValueError, match=reason):
        make_student(teacher, **sizes)


def test_how_many_there_are():
    """docs/narrower.md has these numbers."""
    assert len(ALL) == 71
    assert len(ALL) - len(NO_FEED_FORWARD) == 63
    assert len(ALL) - len(NO_HIDDEN) == 47
    assert len(OWN_HEAD_WIDTH) == 13


def kill_half(teacher, sizes) -> int:
    """Zeroes what reads the units with odd numbers, so that only the others matter. Returns how many are dead.

    Of heads that share keys, whole groups are dead.
    """
    axes, dead = find_axes(teacher), 0
    plan = plan_width(copy.deepcopy(teacher), sizes_by_axis(teacher, axes, sizes), example_inputs(teacher), axes)
    weights = dict(teacher.named_parameters(remove_duplicate=False))
    for own, (num_groups, per_group) in zip(plan.classes, plan.num_kept, strict=True):
        groups = groups_of(own)
        alive = {unit for group in groups[-num_groups:] for unit in group[-per_group:]}
        for name, dim in own.readers.values():
            if weights[name].ndim == 1:
                continue
            rows = [row for unit in range(own.num_units) if unit not in alive for row in own.rows[name, dim][unit]]
            with torch.no_grad():
                weights[name].index_fill_(dim, torch.tensor(rows), 0.0)
            dead += len(rows)
    return dead


def compare(student, teacher, inputs):
    outputs = []
    for model in (student, teacher):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(model(**inputs, return_dict=True))
    compared = 0
    for name, expected in outputs[1].items():
        if isinstance(expected, torch.Tensor) and outputs[0][name].shape == expected.shape:
            torch.testing.assert_close(outputs[0][name], expected, rtol=1e-3, atol=1e-4)
            compared += 1
    assert compared
