"""BERT becomes DistilBERT, head by head."""

import pytest
import torch
import transformers
from transformers import AutoModel, BertConfig, BertForPreTraining, BertLMHeadModel, DistilBertPreTrainedModel

from hf_distill import make_student
from hf_distill.student.distilbert import HEADS, POOLED_HEADS
from tests.conftest import make_config, make_model

INPUTS = {
    "input_ids": torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 2 + [0] * 7]),
}


def bert(head, **options):
    torch.manual_seed(0)
    return getattr(transformers, f"Bert{head}")(make_config("bert", **options)).eval()


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head, tmp_path):
    """With all layers, hidden states equal the teacher's, and so do the logits of heads that do not use a pooler."""
    teacher = bert(head, num_labels=2 if head == "ForQuestionAnswering" else 3)
    student = make_student(teacher, num_layers=4, family="distilbert")
    inputs = INPUTS if head != "ForMultipleChoice" else {name: ids[:, None] for name, ids in INPUTS.items()}
    assert type(student).__name__ == f"DistilBert{head}"
    student.save_pretrained(tmp_path)
    loaded, info = getattr(transformers, f"DistilBert{head}").from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for model in (student, loaded):
        expected = teacher(**inputs, output_hidden_states=True)
        actual = model(**inputs, output_hidden_states=True)
        for own, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)
        for name in [name for name in expected if "logits" in name and head not in POOLED_HEADS]:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", POOLED_HEADS)
def test_pooled_heads_begin_with_the_poolers_weights(head):
    teacher = bert(head)
    student = make_student(teacher, family="distilbert")
    assert torch.equal(student.pre_classifier.weight, teacher.bert.pooler.dense.weight)
    assert torch.equal(student.classifier.bias, teacher.classifier.bias)


def test_half_of_the_layers():
    teacher = bert("ForMaskedLM")
    student = make_student(teacher, family="distilbert", layers=[1, 3])
    plain = make_student(teacher, layers=[1, 3])
    torch.testing.assert_close(student(**INPUTS).logits, plain(**INPUTS).logits, rtol=1e-5, atol=1e-5)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert student.config.distilled_from["layers"] == [1, 3]


def test_no_memory_is_shared():
    teacher = bert("ForMaskedLM")
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = make_student(teacher, num_layers=4, family="distilbert")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_the_config_says_what_berts_did():
    teacher = bert(
        "ForSequenceClassification",
        dropout=0.2,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
        classifier_dropout=0.3,
        hidden_act="relu",
    )
    teacher.config.name_or_path = "google-bert/bert-base-uncased"  # what Trainer's card calls its base model
    config = make_student(teacher, family="distilbert").config
    assert config.name_or_path == make_student(teacher).config.name_or_path == "google-bert/bert-base-uncased"
    assert (config.dropout, config.attention_dropout, config.seq_classif_dropout) == (0.2, 0.2, 0.3)
    assert config.id2label == {0: "no", 1: "yes"}
    assert config.problem_type == "single_label_classification"
    assert config.activation == "relu"
    assert (config.n_layers, config.dim, config.hidden_dim, config.n_heads) == (2, 16, 32, 2)


def test_bfloat16():
    student = make_student(bert("Model").to(torch.bfloat16), family="distilbert")
    assert isinstance(student, DistilBertPreTrainedModel)
    assert student.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            lambda: make_model("roberta", "mlm"),
            "Cannot make a DistilBERT from RobertaForMaskedLM: the teacher must be one of BertModel, Bert",
        ),
        (lambda: BertForPreTraining(make_config("bert")), "Cannot make a DistilBERT from BertForPreTraining"),
        (
            lambda: BertLMHeadModel(make_config("bert", is_decoder=True)),
            "Cannot make a DistilBERT from BertLMHeadModel",
        ),
        (lambda: bert("Model", layer_norm_eps=1e-5), "layer_norm_eps=1e-05: its outputs would change"),
        (lambda: bert("Model", is_decoder=True), "is_decoder=True"),
    ],
)
def test_what_has_no_distilbert(teacher, message):
    with pytest.raises(ValueError, match=message):
        make_student(teacher(), family="distilbert")


def test_without_a_pooler():
    teacher = AutoModel.from_config(BertConfig(**make_config("bert").to_dict()), add_pooling_layer=False)
    student = make_student(teacher.eval(), num_layers=4, family="distilbert")
    torch.testing.assert_close(student(**INPUTS)[0], teacher(**INPUTS)[0], rtol=1e-5, atol=1e-6)
