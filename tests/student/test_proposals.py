"""The students that are proposed: they can be made, and have the sizes that are said."""

import pytest
import torch
import transformers
from transformers import BertConfig, DistilBertConfig, GPT2Config, LlamaConfig, RobertaConfig, XLMRobertaConfig

from hf_distill import make_student, trim_vocabulary
from hf_distill.student import proposals
from hf_distill.student.architectures import find_layer_stacks, skeleton
from hf_distill.student.axes import find_axes
from hf_distill.student.proposals import possible_students
from tests.conftest import make_config, make_model, make_text_tokenizer
from tests.student.tiny_models import AUTO_CLASS_OF_TYPE, CLIP, tiny_config, tiny_model

ROBERTA_BASE = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)


def proposals_of(model):
    return possible_students(model, find_layer_stacks(model), find_axes(model))


def on_meta(model_class, config):
    with torch.device("meta"):
        return getattr(transformers, model_class)._from_config(config)


@pytest.mark.parametrize("model_type", AUTO_CLASS_OF_TYPE)
def test_fewer_layers(model_type):
    teacher = tiny_model(model_type)
    students = possible_students(teacher, find_layer_stacks(teacher), [])
    assert len(students) >= 3
    half = next(own for own in students if own.arguments == {"num_layers": 2})
    assert half.student.num_parameters() == make_student(teacher).num_parameters()


@pytest.mark.parametrize(
    "model_type",
    ["bert", "deberta-v2", "modernbert", "falcon", "gpt2", "llama", "opt", "bart", "vit", "clip"],
)
def test_half_of_each_width(model_type):
    teacher = tiny_model(model_type)
    shown = [own for own in proposals_of(teacher) if not own.arguments.keys() <= {"num_layers", "family"}]
    assert len(shown) >= 3
    assert ["num_layers" in own.arguments for own in shown] == [False] * (len(shown) - 1) + [True]
    for own in (shown[0], shown[-1]):
        assert make_student(teacher, **own.arguments).num_parameters() == own.student.num_parameters()


def test_what_is_proposed():
    arguments = [own.arguments for own in proposals_of(on_meta("BertModel", BertConfig()))]
    heads = {"num_attention_heads": 6, "hidden_size": 384}
    assert arguments == [
        *({"num_layers": number} for number in (9, 8, 6)),
        {"num_layers": 6, "family": "distilbert"},
        *({"num_layers": number} for number in (4, 2)),
        {"intermediate_size": 1536},
        heads,
        {"intermediate_size": 1536} | heads,
        {"num_layers": 6, "intermediate_size": 1536} | heads,
    ]


@pytest.mark.parametrize(
    ("model_class", "config", "arguments"),
    [
        # The feed-forward width follows the hidden width.
        ("GPT2Model", GPT2Config(), {"num_attention_heads": 6, "hidden_size": 384}),
        # Three groups of three heads share keys and values: one group stays.
        (
            "LlamaModel",
            LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536),
            {"intermediate_size": 768, "num_attention_heads": 3, "hidden_size": 288},
        ),
    ],
)
def test_narrowest(model_class, config, arguments):
    model = on_meta(model_class, config)
    narrowest = next(own for own in reversed(proposals_of(model)) if own.keep is None)
    assert narrowest.arguments == {"num_layers": config.num_hidden_layers // 2} | arguments


def test_sizes_by_stack():
    vision = CLIP["vision_config"] | {"hidden_size": 32, "num_attention_heads": 4}
    sizes = proposals_of(tiny_model("clip", vision_config=vision))[-1].arguments
    assert sizes["hidden_size"] == {"text": 8, "vision": 16}
    assert sizes["num_attention_heads"] == {"text": 1, "vision": 2}
    assert sizes["intermediate_size"] == 16


def test_fewer_tokens(monkeypatch):
    model = on_meta("XLMRobertaForMaskedLM", XLMRobertaConfig(vocab_size=250002))
    whole, smallest = (own for own in proposals_of(model) if own.keep is not None)
    assert whole.keep == smallest.keep == 30_000
    saved = model.num_parameters() - whole.student.num_parameters()
    assert saved == (250002 - 30_000) * (768 + 1)  # the head is tied, and has a bias
    assert whole.call == "trim_vocabulary(teacher, tokenizer, keep=30000)"
    assert smallest.call.startswith("trim_vocabulary(make_student(teacher, num_layers=6, intermediate_size=1536, ")
    assert not any(own.keep for own in proposals_of(on_meta("BertModel", BertConfig())))
    # Ids above the new size, such as the last one for padding, are no error.
    assert any(own.keep for own in proposals_of(on_meta("GPT2Model", GPT2Config(pad_token_id=50256))))

    monkeypatch.setattr(proposals, "FEWER_TOKENS", 20)
    monkeypatch.setattr(proposals, "MANY_TOKENS", 30)
    teacher = make_model("bert", "mlm")
    for own in (own for own in proposals_of(teacher) if own.keep):
        student = make_student(teacher, **own.arguments) if own.arguments else teacher
        trimmed = trim_vocabulary(student, make_text_tokenizer(), keep=20).model
        assert trimmed.num_parameters() == own.student.num_parameters()


def test_students_that_cannot_be_made_are_left_out():
    """Jamba's config has a period for its kinds of layers, which every other layer would break."""
    config = tiny_config("jamba", attn_layer_period=4, attn_layer_offset=2, expert_layer_period=2, num_experts=2)
    model = skeleton(transformers.JambaForCausalLM, config)
    assert 1 <= len(possible_students(model, find_layer_stacks(model), [])) < 3
    model = tiny_model("qwen2_moe")
    assert len(possible_students(model, find_layer_stacks(model), [])) == 3


def test_what_the_model_was_made_without():
    whole, without = (transformers.BertModel(make_config("bert"), add_pooling_layer=with_) for with_ in (True, False))
    for ours, other in zip(proposals_of(whole), proposals_of(without), strict=True):
        if "family" not in ours.arguments:  # DistilBERT has no pooler
            width = ours.student.config.hidden_size
            assert ours.student.num_parameters() - other.student.num_parameters() == width * width + width


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
    arguments = {"num_layers": 6} | ({"family": "distilbert"} if model_class == "BertModel" else {})
    (half,) = [own.student for own in proposals_of(model) if own.arguments == arguments]
    for shown, (published, counted) in ((model, teacher), (half, student)):
        assert abs(shown.num_parameters() / 1e6 - published) < 0.6
        assert round(shown.num_parameters() / 1e6, 1) == counted


def test_distilbert_by_its_own_config():
    model = on_meta("BertModel", BertConfig())
    distilbert = next(own.student for own in proposals_of(model) if "family" in own.arguments)
    assert distilbert.num_parameters() == skeleton(transformers.DistilBertModel, DistilBertConfig()).num_parameters()
