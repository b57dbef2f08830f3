"""The recipe's script on a tiny teacher and made-up text, with the options of the real run."""

import json
import math
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_distill import DistillationTrainer, DistillationTrainingArguments, parse_config
from recipes.distilroberta import train
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.processes import run_on_two_processes

RECIPE = Path(train.__file__).parent
CONFIG, SMOKE = str(RECIPE / "config.yaml"), str(RECIPE / "smoke.yaml")


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Command-line options for a teacher with 4 layers, and text in 4 files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_model("roberta", "mlm", max_position_embeddings=41).save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "text").mkdir()
    for index in range(4):
        (tmp_path / "text" / f"{index}.txt").write_text("\n".join(make_texts(60, seed=index)))
    words = ["--config", CONFIG, SMOKE, "--teacher", tmp_path / "teacher", "--corpus", tmp_path / "text"]
    return [*map(str, words), "--output_dir", str(tmp_path / "student"), "--report_to", "none"]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def test_smoke(given, tmp_path):
    trainer = train.main(given)
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "student").mask_token == "[MASK]"
    teacher = AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher")
    assert not torch.equal(student.lm_head.dense.weight, teacher.lm_head.dense.weight)  # it was trained

    metrics = json.loads((tmp_path / "student" / "eval_results.json").read_text())
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss_task"]))
    assert {"eval_loss_kl", "eval_loss_cos"} <= metrics.keys()
    assert trainer.args.bf16
    assert sorted(tmp_path.glob("student/checkpoint-*")) == [tmp_path / "student" / f"checkpoint-{n}" for n in (2, 4)]
    assert [log["step"] for log in trainer.state.log_history if "loss_kl" in log] == [1, 2, 3, 4]


def test_evaluation_has_the_same_masks_each_time(given):
    trainer = train.main([*given, "--max_steps", "1"])
    assert train.evaluate(trainer)["perplexity"] == train.evaluate(trainer)["perplexity"]


def test_it_resumes_by_itself(given, tmp_path):
    """A training stopped after step 2 and started again with the same command gives the same weights."""
    train.main(given)
    expected = weights(tmp_path / "student")
    (tmp_path / "student").rename(tmp_path / "whole")
    (tmp_path / "student").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "student" / "checkpoint-2")
    trainer = train.main(given)
    assert [log["step"] for log in trainer.state.log_history if "loss_kl" in log] == [1, 2, 3, 4]
    assert not (tmp_path / "student" / "checkpoint-1").exists()
    resumed = weights(tmp_path / "student")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)

    shutil.rmtree(tmp_path / "student")
    train.main([*given, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2")])
    resumed = weights(tmp_path / "student")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_second_run_into_a_finished_folder(given, tmp_path):
    assert train.main(given).steps_made == 4
    before = {path: path.read_bytes() for path in (tmp_path / "student").rglob("*") if path.is_file()}
    assert train.main(given) is None
    with pytest.raises(ValueError, match=r"learning_rate was .* is 0.5\. It cannot resume with another learning_rate"):
        train.main([*given, "--learning_rate", "0.5"])
    with pytest.raises(ValueError, match="block_size was 32 and is 16"):
        train.main([*given, "--block_size", "16"])
    assert {path: path.read_bytes() for path in (tmp_path / "student").rglob("*") if path.is_file()} == before
    assert train.main([*given, "--max_steps", "5", "--resume"]).steps_made == 1
    assert train.main([*given, "--block_size", "16", "--overwrite"]).steps_made == 4


@pytest.mark.parametrize(
    "words",
    [
        ["--streaming", "--emphasize_rare_tokens", "false"],
        ["--packing", "full_sentences"],
        ["--packing", "none", "--train_sampling_strategy", "group_by_length"],
        ["--alpha_kl", "0", "--alpha_cos", "0"],
    ],
    ids=["streaming", "full sentences", "not packed", "no teacher"],
)
def test_other_ways(given, words):
    trainer = train.main([*given, *words])
    assert trainer.state.global_step == 4
    assert (trainer.teacher is None) == ("--alpha_kl" in words)
    assert trainer.evaluate()["eval_loss_task"] > 0


def test_push_to_hub(given, monkeypatch):
    pushed = []
    monkeypatch.setattr(DistillationTrainer, "init_hf_repo", lambda trainer: None)
    monkeypatch.setattr(DistillationTrainer, "push_to_hub", lambda trainer: pushed.append(trainer.state.global_step))
    monkeypatch.setattr(DistillationTrainer, "_push_from_checkpoint", lambda *args: None)
    monkeypatch.setattr(DistillationTrainer, "save_model", lambda *args, **options: None)
    train.main([*given, "--push_to_hub", "--save_strategy", "no"])
    assert pushed == [4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--validation_documents", "240"],
            "The corpus has 240 documents: too few to hold out validation_documents=240",
        ),
        (
            ["--gradient_accumulation_steps", "1000"],
            r"gives \d+ rows, but one step needs 4,000",
        ),
        (["--streaming"], "emphasize_rare_tokens=True reads the whole corpus first"),
        (["--block_size", "39"], "block_size=39 must be between 1 and 38"),
        (["--corpus", "nothing/*.txt"], "not found: give a file"),
    ],
)
def test_errors_before_the_first_step(given, words, message):
    with pytest.raises(ValueError, match=message):
        train.main([*given, *words])


@pytest.mark.long
def test_two_processes(given, tmp_path):
    """The recipe runs as a script outside the repository's root. The first process prints the number of processes."""
    words = [RECIPE / "train.py", *given, "--ddp_backend", "gloo"]
    run = run_on_two_processes(words, env={"HF_DATASETS_CACHE": str(tmp_path / "cache")}, cwd=tmp_path)
    assert (tmp_path / "student" / "eval_results.json").exists(), run.stderr[-3000:]
    (said,) = re.findall(r"rows of 32 tokens, .*", run.stdout)
    assert said == "rows of 32 tokens, 16 per step on 2 process(es)"
    assert weights(tmp_path / "student")


def test_the_real_config():
    recipe, training = parse_config(
        [train.RecipeArguments, DistillationTrainingArguments], ["--config", CONFIG, "--use_cpu"]
    )
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 4_000
    assert (recipe.teacher, recipe.corpus) == ("FacebookAI/roberta-base", "Skylion007/openwebtext")
    assert (training.temperature, training.alpha_kl, training.alpha_task, training.alpha_cos) == (2, 5, 2, 1)


def test_every_value_says_where_it_is_from():
    sources = r"(paper|command|train\.py|card|RoBERTa|ours)\b"
    lines = [line for line in Path(CONFIG).read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(yaml.safe_load(Path(CONFIG).read_text())) > 25
    assert [line for line in lines if not re.search(rf"  # {sources}", line)] == []


def test_the_smoke_run_changes_model_data_and_steps_only():
    real = yaml.safe_load(Path(CONFIG).read_text())
    losses_and_optimizer = {name for name in real if re.match("alpha|temp|adam|lr|learn|warm|weight|max_grad", name)}
    assert len(losses_and_optimizer) > 8
    assert not losses_and_optimizer & yaml.safe_load(Path(SMOKE).read_text()).keys()
