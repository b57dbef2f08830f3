"""The GPU report as a dry run on the CPU, and its text when something fails, is missing or takes too long."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer

from recipes.benchmarks import gpu_checks, gpu_report, training_step
from recipes.benchmarks.gpu_report import Section, Settings

TINY = training_step.SHAPES["tiny"]
CPU = Settings("cpu", tiny=True)


@pytest.fixture
def report(monkeypatch):
    """Calls `main` with these options."""

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["gpu_report", *map(str, options)])
        return gpu_report.main()

    return call


@pytest.mark.long
def test_dry_run(report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report("--device", "cpu", "--tiny", "--output", "made") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    text, written = Path("made/gpu.md").read_text(), json.loads(Path("made/gpu.json").read_text())

    assert "    python -m recipes.benchmarks.gpu_report --device cpu --tiny\n" in text
    assert "| card | none: on the CPU |" in text
    assert f"| torch | {torch.__version__} |" in text
    sections = written["sections"]
    assert list(sections) == list(gpu_report.SECTIONS)
    assert "failed" not in {key for own in sections.values() for key in own}
    for section in gpu_report.SECTIONS.values():
        assert text.count(f"\n## {section.title}\n") == 1
    assert sections["tests"]["skipped"] == sections["synchronisations"]["skipped"] == "needs CUDA"
    assert text.count("\nSkipped: needs CUDA.\n") == 2

    for name in ("steps", "short steps", "causal", "compile"):
        assert sections[name]["rounds"] == 1
        assert sections[name]["matrix peak"] > 0
    sides = sections["steps"]["sides"]
    reference = sides["common pattern, same positions, bf16"]
    assert sides["ours, bf16"]["loss"] == pytest.approx(reference["loss"], rel=1e-2)
    assert sides["ours, bf16"]["memory"] < reference["memory"]
    share = 1 / sides["ours, bf16"]["times the floor"]
    assert f" | {share:.0%} | " in text

    precisions = sections["precision"]["precisions"]
    assert precisions["fp16"]["skipped"] == "needs CUDA"
    assert "| fp16 | needs CUDA |" in text
    assert len(precisions["fp32"]["losses"]) == 4
    assert precisions["fp32"]["deviation"] == 0
    bf16 = precisions["bf16, teacher in bfloat16"]
    assert 0 < bf16["deviation"] < gpu_checks.TOLERANCE
    assert bf16["passes"]


def test_where_it_does_not_run(report, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        report()
    assert "no CUDA device found" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report("--device", "cpu", "--tiny")
    assert "docs is for figures of a GPU" in capsys.readouterr().err


def test_a_section_that_fails_does_not_end_the_report(tmp_path, monkeypatch):
    def fail(settings, until):
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    sections = {
        "tests": Section("First", fail, str),
        "steps": Section("Second", lambda settings, until: {"figure": 3}, lambda figures: f"{figures['figure']}\n"),
    }
    gpu_report.run(CPU, tmp_path, sections)
    text = (tmp_path / "gpu.md").read_text()
    assert "## First\n\nFailed: RuntimeError: CUDA error: an illegal memory access.\n" in text
    assert "## Second\n\n3\n" in text

    monkeypatch.setattr(gpu_report, "TOTAL", 0)
    gpu_report.run(CPU, tmp_path, sections)
    assert "## Second\n\nSkipped: no time left.\n" in (tmp_path / "gpu.md").read_text()


def test_rounds_end_when_the_time_is_up(tmp_path):
    measured = training_step.measure(TINY, "labels", ["ours, bf16"], 50, tmp_path, "cpu", until=0.0)
    assert len(measured["ours, bf16"]["steps"]) == 1


def test_a_side_that_cannot_run(tmp_path, monkeypatch):
    """The report gives the reason, and compares the other sides."""
    has_run = []

    def no_memory(*args, **options):
        raise torch.OutOfMemoryError

    def wrong_versions(*args, **options):
        raise ImportError("cannot import name 'is_tf_available'")

    def no_memory_later(*args, **options):
        side = training_step.ours(*args, **options)
        monkeypatch.setattr(side, "optimizer_step", lambda: no_memory() if has_run else has_run.append(True))
        return side

    makers = {"common pattern, bf16": no_memory, "TextBrewer": wrong_versions, "ours": no_memory_later}
    for name, make in makers.items():
        monkeypatch.setitem(training_step.SIDES, name, (make, {}, None))
    measured = training_step.measure(TINY, "labels", [*makers, "ours, bf16"], 2, tmp_path, "cpu")
    *without, ours = measured.values()
    out_of_memory = {"skipped": "out of memory"}
    assert without == [out_of_memory, {"skipped": "ImportError: cannot import name 'is_tf_available'"}, out_of_memory]
    assert ours["times as fast"] == 1


TESTS = {
    "test_good.py": "@pytest.mark.gpu\ndef test_one():\n    pass\n\ndef test_not_asked_for():\n    assert False\n",
    "test_bad.py": "@pytest.mark.gpu\ndef test_two():\n    assert 1 == 2\n\n@pytest.mark.gpu\n"
    "@pytest.mark.skipif(True, reason='no')\ndef test_three():\n    pass\n",
    "test_other.py": "import nowhere_to_be_found\n\n@pytest.mark.gpu\ndef test_four():\n    pass\n",
    "test_none.py": "raise RuntimeError('this file has no such test')\n",
}


@pytest.fixture
def tests_folder(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: as ours\n")
    monkeypatch.setattr(gpu_checks, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins take seconds to load
    return tmp_path / "tests"


def test_tests_marked_gpu(tests_folder):
    for name, content in TESTS.items():
        (tests_folder / name).write_text(f"import pytest\n{content}")
    figures = gpu_checks.run_tests(60)
    assert figures["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    failed, missing = sorted(figures["problems"].items())
    assert failed == ("tests.test_bad.test_two", "assert 1 == 2")
    assert missing == ("tests.test_other", "nowhere_to_be_found is not installed")
    text = gpu_report.write_tests(figures)
    assert text.startswith("1 error, 1 failed, 1 passed, 1 skipped.\n")
    assert "| `tests.test_other` | nowhere_to_be_found is not installed |" in text


@pytest.mark.long
def test_tests_that_take_too_long(tests_folder):
    content = "import time\nimport pytest\n\n@pytest.mark.gpu\ndef test_one():\n    pass\n\n@pytest.mark.gpu\n"
    (tests_folder / "test_slow.py").write_text(content + "def test_two():\n    time.sleep(60)\n")
    figures = gpu_checks.run_tests(10)
    assert figures["counts"] == {"passed": 1}
    assert figures["problems"]["all"] == "interrupted after 10 seconds: unfinished tests are not counted"


def test_what_the_tests_themselves_need_is_not_installed(tests_folder):
    (tests_folder / "test_good.py").write_text(f"import pytest\n{TESTS['test_good.py']}")
    (tests_folder / "conftest.py").write_text("import nowhere_to_be_found\n")
    figures = gpu_checks.run_tests(60)
    assert figures == {"counts": {}, "problems": {"pytest": "nowhere_to_be_found is not installed"}}


def test_synchronisations_are_counted(monkeypatch):
    """One simulated synchronisation per step. Those of the first steps do not count."""
    modes, training_step_of_trainer = ["default"], Trainer.training_step

    def training_step_that_waits(self, *args, **options):
        if modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        return training_step_of_trainer(self, *args, **options)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(Trainer, "training_step", training_step_that_waits)
    measured = gpu_checks.count_synchronisations(TINY, "cpu", steps=2)
    assert list(measured) == list(gpu_checks.LOOPS)
    for own in measured.values():
        assert own["per step"] == 1
        ((place, number),) = own["where"].items()
        assert place.startswith("recipes/test_gpu_report.py:")
        assert number == 1
    assert modes[-1] == "default"
    text = gpu_report.write_synchronisations({"steps": 2, "loops": measured})
    assert f"| ours | 1 | `{place}` 1 |" in text


def test_a_scaler_that_skips_every_step(monkeypatch):
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)
    monkeypatch.setattr(gpu_checks, "PRECISIONS", {"fp32": {}})
    measured = gpu_checks.compare_precisions(TINY, "cpu", 4, lambda: False)
    assert measured["fp32"]["skipped steps"] == [1, 2, 3, 4]
    assert not measured["fp32"]["passes"]
    assert " | 1, 2, 3, 4 |  | NO |" in gpu_report.write_precision(
        {"steps": 4, "batch": [4, 32], "precisions": measured}
    )
