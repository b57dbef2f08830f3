"""Fixtures for the tests of several commands."""

import datasets
import pytest

from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.training.teacher.test_live import make_tokenizer


@pytest.fixture
def teacher(tmp_path):
    make_model("roberta", "mlm").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A folder to work in, with `pretrained`, `train.csv`, `test.csv` and `config.yaml`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_model("bert", "mlm").save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    for name, num_rows in (("train.csv", 32), ("test.csv", 16)):
        rows = [f"{text},{'pos' if index % 2 else 'neg'}" for index, text in enumerate(make_texts(num_rows))]
        (tmp_path / name).write_text("\n".join(["review,mood", *rows]))
    (tmp_path / "config.yaml").write_text(
        "train_file: train.csv\ntest_file: test.csv\ntext_column: review\nlabel_column: mood\n"
        "model_name_or_path: pretrained\nlearning_rate: 1.0e-3\nmax_steps: 4\nper_device_train_batch_size: 4\n"
        "use_cpu: true\nreport_to: none\nsave_strategy: 'no'\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path
