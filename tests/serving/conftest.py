"""A tiny classifier in ONNX int8, and a service for it."""

from pathlib import Path

import pytest

from hf_distill import export_model
from tests.conftest import make_text_tokenizer, make_texts
from tests.deployment.conftest import tiny_student
from tests.serving.running import RunningService


def save_student(folder: Path, head: str = "sequence classification", **options) -> Path:
    tiny_student("bert", head, **options).save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Path:
    """A classifier of two classes, in a folder with its tokenizer."""
    return save_student(tmp_path_factory.mktemp("student") / "bert", id2label={0: "bad", 1: "good"})


@pytest.fixture(scope="session")
def int8(student, tmp_path_factory) -> Path:
    """The student as an ONNX int8 export."""
    folder = tmp_path_factory.mktemp("exported") / "bert-int8"
    return export_model(student, folder, texts=make_texts(6), min_agreement=0).folder


@pytest.fixture(scope="session")
def service(int8, tmp_path_factory):
    """A shared service with two workers that no test stops."""
    with RunningService(tmp_path_factory.mktemp("service"), int8, "--workers", "2") as running:
        running.wait_until(lambda: running.metric("hf_distill_workers") == 2)
        yield running
