"""A tiny student that is exported once, and functions that make more students."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hf_distill import export_model
from tests.conftest import make_text_tokenizer, make_texts
from tests.student.tiny_models import tiny_config

CLASSES = {
    "sequence classification": "AutoModelForSequenceClassification",
    "token classification": "AutoModelForTokenClassification",
    "question answering": "AutoModelForQuestionAnswering",
    "masked language modelling": "AutoModelForMaskedLM",
    "causal language modelling": "AutoModelForCausalLM",
}


def tiny_student(model_type: str, head: str, **options) -> PreTrainedModel:
    """A model with one layer, because each layer takes the exporter half a second. Sizes as in `tiny_models`."""
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "n_layer": 1, "n_layers": 1, **options}
    known = transformers.CONFIG_MAPPING[model_type]().to_dict()
    config = tiny_config(model_type, **{name: value for name, value in sizes.items() if name in known})
    return getattr(transformers, CLASSES[head]).from_config(config).eval()


def texts_for(head: str, num_texts: int = 6) -> list:
    if head == "question answering":
        return list(zip(make_texts(num_texts, 1, 4), make_texts(num_texts, 2, 15), strict=True))
    if head == "masked language modelling":
        return [f"{text} [MASK]" for text in make_texts(num_texts)]
    return make_texts(num_texts)


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """A classifier of two classes, in a folder with its tokenizer."""
    folder = tmp_path_factory.mktemp("student") / "bert"
    model = tiny_student("bert", "sequence classification", id2label={0: "bad", 1: "good"})
    model.save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def exported(student, tmp_path_factory) -> Path:
    """That student in ONNX."""
    return export_model(student, tmp_path_factory.mktemp("exported") / "onnx", "onnx", texts=make_texts(6)).folder
