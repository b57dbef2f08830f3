"""`width="pca"`: hidden states are rotated to their principal components before they are cut."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaModel

from hf_distill import make_student
from tests.student.width.models import wide_model
from tests.student.width.test_make_student import INPUTS, WIDE

DATA = [{**INPUTS, "attention_mask": torch.ones_like(INPUTS["input_ids"])}]


def llama(**options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=61, num_hidden_layers=2, head_dim=8, initializer_range=0.2, **WIDE | options)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2.0)
    return model


def test_hidden_states_in_a_subspace_are_found():
    """All that is written lies in 16 of 32 directions that no axis shows. The student is exact; others are not."""
    teacher = llama()
    basis, _ = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))
    projection = basis[:, :16] @ basis[:, :16].T
    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight @ projection)
        for layer in teacher.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(projection @ linear.weight)
    expected = teacher(**INPUTS).logits
    student = make_student(teacher, hidden_size=16, width="pca", calibration_data=DATA)
    torch.testing.assert_close(student(**INPUTS).logits, expected, rtol=1e-3, atol=1e-3)
    other = make_student(teacher, hidden_size=16, width="activation", calibration_data=DATA)
    assert (other(**INPUTS).logits - expected).abs().max() > 0.1
    assert student.config.distilled_from["width"] == "pca"


def test_closer_than_by_activation():
    teacher = llama()
    expected = teacher(**INPUTS).logits.softmax(-1)
    errors = {}
    for width in ("pca", "activation"):
        student = make_student(teacher, hidden_size=28, width=width, calibration_data=DATA)
        errors[width] = (student(**INPUTS).logits.softmax(-1) - expected).abs().mean()
    assert errors["pca"] < errors["activation"]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "mixtral", "phi3"])
def test_with_heads_and_feed_forward_width(model_type, tmp_path):
    teacher = wide_model(model_type)
    before = copy.deepcopy(teacher.state_dict())
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    student = make_student(teacher, num_layers=2, **sizes, width="pca", calibration_data=DATA)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path)
    assert torch.equal(loaded(**INPUTS).logits, student(**INPUTS).logits)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("teacher", "sizes", "reason"),
    [
        (lambda: llama(tie_word_embeddings=True), {"hidden_size": 16}, "embed_tokens.weight for both"),
        (llama, {"intermediate_size": 24}, "give hidden_size= too"),
        (lambda: LlamaModel(llama().config), {"hidden_size": 16}, "these are what LlamaModel returns"),
        (
            lambda: BertForSequenceClassification(BertConfig(vocab_size=61, num_hidden_layers=1, **WIDE)),
            {"hidden_size": 16, "num_attention_heads": 2},
            "is a LayerNorm: use width='activation'",
        ),
    ],
    ids=["tied", "no hidden width", "no head", "LayerNorm"],
)
def test_what_cannot_be_rotated(teacher, sizes, reason):
    with pytest.raises(ValueError, match=reason):
        make_student(teacher(), **sizes, width="pca", calibration_data=DATA)
