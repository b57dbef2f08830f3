"""The benchmark of summaries on a tiny model: it runs, continues, and its table is right."""

import json

import datasets
import numpy
import pytest

from hf_distill import make_student
from recipes.benchmarks import _trainings, summaries
from recipes.rerank import smoke_data as documentation
from recipes.summarization import smoke_data
from tests.conftest import make_model, make_text_tokenizer


@pytest.mark.long
def test_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(documentation, "_modules", lambda: [numpy])
    monkeypatch.setattr(summaries, "READING", {"max_length": 20, "max_target_length": 6})
    smoke_data.write_data(tmp_path / "data", 12, 4)
    make_model("bert", "mlm", num_layers=6).save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    output = tmp_path / "out" / "summaries.json"
    benchmark = summaries.Benchmark(tmp_path / "data", output, epochs=1)
    benchmark.run(tmp_path / "pretrained", [0], teacher_epochs=1)
    summaries.print_table(benchmark.results, [0])
    models = json.loads(output.read_text())["models"]
    assert [*models] == [summaries.TEACHER, summaries.UNTRAINED, *(f"{way} 0" for way in summaries.WAYS)]
    assert models["teacher"]["rougeL_to_teacher"] == pytest.approx(100) or not models["teacher"]["words"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(table) == 2 + 5 + 2

    again = summaries.Benchmark(tmp_path / "data", output, epochs=1)
    monkeypatch.setattr(_trainings, "train_model", lambda *args: pytest.fail("a finished training is repeated"))
    again.run(tmp_path / "pretrained", [0], teacher_epochs=1)
    assert again.results == models


def test_the_start_has_the_layers_of_the_pretrained_model(tmp_path):
    pretrained = make_model("bert", "mlm", num_layers=6)
    pretrained.save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    summaries.save_start(tmp_path / "pretrained", tmp_path / "start")
    model = summaries.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "start")
    expected = make_student(pretrained, 3).bert.encoder.layer
    for stack in (model.encoder.encoder.layer, model.decoder.bert.encoder.layer):
        for own, other in zip(stack, expected, strict=True):
            assert own.attention.self.query.weight.equal(other.attention.self.query.weight)
    assert model.generation_config.decoder_start_token_id == model.generation_config.bos_token_id


def test_table(capsys):
    results = {summaries.TEACHER: 30.0, summaries.UNTRAINED: 0.0}
    for seed, quality in enumerate((10.0, 14.0)):
        results |= {f"{summaries.ALONE} {seed}": quality}
        results |= {f"{summaries.TAUGHT} {seed}": quality + 2, f"{summaries.WRITTEN} {seed}": quality + seed}
    summaries.print_table({name: dict.fromkeys(summaries.MEASURES, value) for name, value in results.items()}, [0, 1])
    rows = [line.split(" | ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["30.0", "0.0", "12.0 ± 2.8", "14.0 ± 2.8", "12.5 ± 3.5", "+2.0 ± 0.0", "+0.5 ± 0.7"]
