"""The notebooks run from top to bottom on a tiny model and a few texts, and are committed with their outputs."""

import csv
import json
import sys
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import pytest
import transformers

from tests.conftest import make_model, make_text_tokenizer, make_texts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells_of(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def run_notebook(notebook: Path, parameters: dict[str, object]) -> dict[str, object]:
    """Runs the code cells in one namespace, with these parameters in place of those of the cell that has the tag."""
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells_of(notebook):
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), f"{notebook.name}: {cell['id']}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= names.keys()
            names |= parameters
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A small pretrained model and CSV files; what a notebook sets for its process is set back."""
    classes = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    make_model("bert", "classification", max_position_embeddings=130, **classes).save_pretrained(tmp_path / "model")
    tokenizer = make_text_tokenizer()
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(tmp_path / "model")
    for name, number in {"train": 64, "test": 16}.items():
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = zip(make_texts(number), ["negative", "positive"] * (number // 2), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    verbosity = transformers.logging.get_verbosity()
    yield {
        "TRAIN": str(tmp_path / "train.csv"),
        "TEST": str(tmp_path / "test.csv"),
        "OUTPUT": str(tmp_path / "output"),
    }
    plt.close("all")
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()


def test_classifier(files, tmp_path, capsys):
    names = run_notebook(FOLDER / "classifier.ipynb", files | {"MODEL": str(tmp_path / "model")})
    table = names["table"]
    assert list(table) == ["teacher", "student", "student, int8"]
    sizes, accuracies, agreements, latencies = zip(*table.values(), strict=True)
    assert sizes[0] > sizes[1]
    assert sizes[2] > 0
    assert agreements[0] == 1
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert min(latencies) > 0
    assert (tmp_path / "output" / "student-int8" / "export.json").is_file()
    printed = capsys.readouterr().out
    assert "64 to train on, 16 to test on, labels: ['negative', 'positive']" in printed
    assert "%  A warm, funny film" in printed


def test_students_anatomy(files, tmp_path, capsys):
    names = run_notebook(
        FOLDER / "students_anatomy.ipynb", files | {"TEACHER": str(tmp_path / "model"), "MAX_STEPS": 4}
    )
    teacher, student = names["teacher"], names["student"]
    assert names["kept"] == [0, 2]
    for model in (teacher, student):
        millions = sum(names["parameters_by_part"](model).values())
        assert millions * 1e6 == pytest.approx(model.num_parameters())
    before, after = names["before"], names["after"]
    assert before.shape == after.shape == (3, 5)
    assert before[0, 0] == pytest.approx(1)  # the embeddings
    assert before[1, 1] == pytest.approx(1)  # the first layer of both
    assert after[1, 1] < 1 - 1e-6
    assert len(names["logs"]) == 4
    assert "last hidden states: " in capsys.readouterr().out


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_outputs_are_kept(notebook):
    """Of a run from top to bottom, without a path or a warning of it, and small."""
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 250_000
    assert not any(word in text for word in ("/root", "/home", "/tmp", "/work", "/usr", "Warning"))
    code = [cell for cell in cells_of(notebook) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert max(len(line) for cell in code for line in "".join(cell["source"]).splitlines()) <= 120


def test_there_are_two():
    assert [notebook.stem for notebook in NOTEBOOKS] == ["classifier", "students_anatomy"]
