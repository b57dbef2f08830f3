"""Narrower students are exported as any other: the export checks itself against the student."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_distill import export_model, make_student
from tests.conftest import make_text_tokenizer
from tests.deployment.conftest import texts_for
from tests.student.width.models import SIZES

SIZES_OF = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")}

OTHERS = ["modernbert", "distilbert", "albert", "deberta-v2"]
FAMILIES = ["bert", *(pytest.param(own, marks=pytest.mark.long) for own in OTHERS)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_narrower_encoder_in_onnx(model_type, tmp_path):
    head = "sequence classification"
    tokenizer = make_text_tokenizer()
    options = {"distilbert": {"hidden_dim": 48}, "albert": {"embedding_size": 8}}.get(model_type, {})
    config = AutoConfig.for_model(model_type, **SIZES_OF, num_hidden_layers=1, pad_token_id=0, **options)
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_config(config).eval()
    student = make_student(teacher, hidden_size=16, num_attention_heads=2, intermediate_size=24)
    assert student.num_parameters() < 0.6 * teacher.num_parameters()
    export = export_model(student, tmp_path / "onnx", "onnx", tokenizer=tokenizer, texts=texts_for(head), max_length=30)
    assert export.parity.largest_difference < 1e-4
    assert export.parity.agreement == 1.0
