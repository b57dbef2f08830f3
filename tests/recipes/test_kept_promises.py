"""The benchmark of what compressed models keep on rows that no search has seen, with a tiny teacher."""

import csv
import json

import datasets
import pytest

from hf_distill import TextClassificationArguments
from recipes.benchmarks import kept_promises as benchmark
from tests.compression.requests import end_after, write_request

ROW = {"is_met": True, "low": 0.94, "share": 0.95, "high": 0.99, "times_as_fast": 8.0, "unseen_share": 0.945}


def rows_of(file):
    with file.open(newline="") as opened:
        return list(csv.reader(opened))[1:]


@pytest.mark.long
def test_each_run_has_its_own_test_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    end_after(monkeypatch, 1)
    folder = tmp_path / "promises" / "tiny"
    folder.mkdir(parents=True)
    write_request(folder, 160, 300)
    own = benchmark.Dataset(
        lambda fetched: benchmark.Rows(rows_of(folder / "train.csv"), rows_of(folder / "test.csv")),
        TextClassificationArguments,
        ("text", "label"),
        num_test=200,
        keep=0.5,
        metric="accuracy",
        runs=2,
    )
    monkeypatch.setattr(benchmark, "DATASETS", {"tiny": own})
    monkeypatch.setattr(benchmark, "fetch", lambda fetched: (tmp_path, tmp_path))
    monkeypatch.setattr(benchmark, "train_model", lambda *arguments: None)  # the teacher is there
    monkeypatch.setattr(benchmark, "MAX_LENGTH", 32)
    output = tmp_path / "promises.json"
    monkeypatch.setattr("sys.argv", ["kept_promises", "--output", str(output), "--budget", "1h"])
    assert benchmark.main() == 0
    runs = json.loads(output.read_text())["results"]["tiny"]
    assert [own["unseen_rows"] for own in runs] == [100, 100]
    assert all(own["low"] <= own["share"] and own["unseen_share"] > 0.4 for own in runs)
    drawn = [{text for text, _ in rows_of(folder / f"run-{seed}" / "test.csv")} for seed in (0, 1)]
    unseen = {text for text, _ in rows_of(folder / "run-0" / "unseen.csv")}
    assert drawn[0] != drawn[1]
    assert not drawn[0] & unseen
    assert capsys.readouterr().out.count("| tiny | ") == 2

    monkeypatch.setattr(benchmark, "compress", None)  # every run is there
    assert benchmark.main() == 0


@pytest.mark.parametrize(
    ("changed", "promised", "kept"),
    [({}, "yes", "yes"), ({"unseen_share": 0.92}, "yes", "no"), ({"is_met": False, "unseen_share": 0.8}, "no", "-")],
)
def test_table(changed, promised, kept):
    *_, line = benchmark.show({"tweets": [ROW | changed]}).splitlines()
    cells = [own.strip() for own in line.strip("|").split("|")]
    assert cells[:4] == ["tweets", "0", "93%", "95.0% [94.0, 99.0]"]
    assert (cells[4], cells[6], cells[7]) == (promised, kept, "8.0")
