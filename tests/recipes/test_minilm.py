"""The recipe's script on a tiny teacher and made-up text, with the options of the real run."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import DistillationTrainer, DistillationTrainingArguments, parse_config
from recipes.minilm import train
from tests.conftest import make_config, make_text_tokenizer, make_texts
from tests.processes import run_on_two_processes

RECIPE = Path(train.__file__).parent
CONFIG, MINIATURE = str(RECIPE / "config.yaml"), str(RECIPE / "miniature.yaml")
TINY = {
    "student": {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2},
    "relation_heads": 4,
    "validation_documents": 8,
    "block_size": 32,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Command-line options for a teacher with 4 layers, and text in 4 files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = make_config("roberta", max_position_embeddings=41)
    AutoModel.from_config(config).save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "text").mkdir()
    for index in range(4):
        (tmp_path / "text" / f"{index}.txt").write_text("\n".join(make_texts(60, seed=index)))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["--config", CONFIG, MINIATURE, tmp_path / "tiny.yaml", "--teacher", tmp_path / "teacher"]
    words += ["--corpus", tmp_path / "text", "--output_dir", tmp_path / "student", "--report_to", "none"]
    return [*map(str, words), "--bf16", "false"]


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def test_the_student(given, tmp_path):
    """A backbone of the given sizes, for any head. In its last layer, only queries, keys and values are trained."""
    trainer = train.main([*given, "--packing", "documents"])
    measured = json.loads((tmp_path / "student" / "eval_results.json").read_text())
    assert trainer.evaluate()["eval_loss_relation"] == measured["eval_loss_relation"] > 0
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert (classifier.config.num_hidden_layers, classifier.config.hidden_size) == (2, 8)
    student = AutoModel.from_pretrained(tmp_path / "student")
    assert all(torch.equal(weights(tmp_path / "student")[name], own) for name, own in student.state_dict().items())
    assert torch.equal(classifier.roberta.embeddings.word_embeddings.weight, student.embeddings.word_embeddings.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").pad_token == "[PAD]"
    assert 'AutoModel.from_pretrained("path/to/this/folder")' in (tmp_path / "student" / "README.md").read_text()

    new = train.new_student(*_arguments(given, tmp_path))
    changed = {name for name, own in student.state_dict().items() if not torch.equal(own, new.state_dict()[name])}
    first, last = "encoder.layer.0.", "encoder.layer.1."
    assert {name for name in student.state_dict() if name.startswith(first) and "key.bias" not in name} <= changed
    assert {name for name in changed if name.startswith(last)} <= {
        f"{last}attention.self.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")
    }
    losses = [log["loss_relation"] for log in trainer.state.log_history if "loss_relation" in log]
    assert len(losses) == 4


def _arguments(given, tmp_path):
    recipe, training = parse_config([train.RecipeArguments, DistillationTrainingArguments], given)
    return recipe, AutoModel.from_pretrained(tmp_path / "teacher"), training.seed


def test_layers_of_the_teacher(given, tmp_path):
    words = [*given[:4], str(RECIPE / "cut.yaml"), *given[4:]]
    student = train.main([*words, "--learning_rate", "0"]).model
    teacher = AutoModel.from_pretrained(tmp_path / "teacher")
    assert student.config.distilled_from["layers"] == [0, 2]
    for own, other in zip(student.encoder.layer, [teacher.encoder.layer[0], teacher.encoder.layer[2]], strict=True):
        assert torch.equal(own.output.dense.weight, other.output.dense.weight)


def test_nothing_is_masked():
    tokenizer = make_text_tokenizer()
    batch = train.PaddingCollator(tokenizer)([{"input_ids": [1, 5, 6, 2]}, {"input_ids": [1, 7, 2]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 5, 6, 2], [1, 7, 2, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]],
    }


def test_it_resumes_by_itself(given, tmp_path):
    """A training stopped after step 2 and started again with the same command gives the same weights."""
    train.main(given)
    expected = weights(tmp_path / "student")
    (tmp_path / "student").rename(tmp_path / "whole")
    (tmp_path / "student").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "student" / "checkpoint-2")
    assert train.main(given).steps_made == 2
    resumed = weights(tmp_path / "student")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert train.main(given) is None
    with pytest.raises(ValueError, match="block_size was 32 and is 16"):
        train.main([*given, "--block_size", "16"])


def test_streaming(given):
    trainer = train.main([*given, "--streaming", "--train_sampling_strategy", "random"])
    assert trainer.state.global_step == 4


def test_push_to_hub(given, monkeypatch):
    pushed = []
    monkeypatch.setattr(DistillationTrainer, "init_hf_repo", lambda trainer: None)
    monkeypatch.setattr(DistillationTrainer, "push_to_hub", lambda trainer: pushed.append(trainer.state.global_step))
    monkeypatch.setattr(DistillationTrainer, "_push_from_checkpoint", lambda *args: None)
    train.main([*given, "--push_to_hub", "--save_strategy", "no"])
    assert pushed == [4]


@pytest.mark.parametrize(
    ("student", "words", "message"),
    [
        (None, ["--validation_documents", "240"], "The corpus has 240 documents: too few to hold out"),
        (None, ["--gradient_accumulation_steps", "1000"], r"gives \d+ rows, but one step needs 4,000"),
        (None, ["--relation_heads", "5"], "relation_heads=5 does not divide"),
        (None, ["--relation_layer", "4"], "relation_layer=4 is outside the teacher, which has 4 layers"),
        (None, ["--alpha_kl", "1"], "RobertaModel has no head, so there are no logits for alpha_kl=1.0"),
        (None, ["--student_weights", "teacher"], "cannot have another hidden_size, intermediate_size, num_attention"),
        ({"num_layer": 2}, [], "student has num_layer, which is not in a RobertaConfig"),
    ],
)
def test_errors_before_the_first_step(given, tmp_path, student, words, message):
    if student is not None:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "student": student}))
    with pytest.raises(ValueError, match=message):
        train.main([*given, *words])


@pytest.mark.long
def test_two_processes(given, tmp_path):
    """Some weights get no gradient: those after the queries, keys and values of the last layer."""
    words = [RECIPE / "train.py", *given, "--ddp_backend", "gloo", "--packing", "documents"]
    run = run_on_two_processes(words, env={"HF_DATASETS_CACHE": str(tmp_path / "cache")}, cwd=tmp_path)
    assert (tmp_path / "student" / "eval_results.json").exists(), run.stderr[-3000:]
    assert re.findall(r"rows of .*", run.stdout) == ["rows of at most 32 tokens, 16 per step on 2 process(es)"]


@pytest.mark.parametrize(
    ("more", "teacher", "heads", "layer"),
    [
        ([], "google-bert/bert-base-uncased", 48, -1),
        (["bert_large.yaml"], "google-bert/bert-large-uncased", 64, 20),
        (["roberta_large.yaml"], "FacebookAI/roberta-large", 64, 18),
    ],
)
def test_the_real_configs(more, teacher, heads, layer):
    files = [CONFIG, *(str(RECIPE / name) for name in more)]
    recipe, training = parse_config(
        [train.RecipeArguments, DistillationTrainingArguments], ["--config", *files, "--use_cpu"]
    )
    training.check_losses()
    assert (recipe.teacher, training.relation_heads, training.relation_layer) == (teacher, heads, layer)
    assert recipe.student["hidden_size"] % heads == 0
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 256
    assert (training.max_steps, training.warmup_steps) == (400_000, 4000)


def test_every_value_says_where_it_is_from():
    lines = [line for line in Path(CONFIG).read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(yaml.safe_load(Path(CONFIG).read_text())) > 25
    assert [line for line in lines if not re.search(r"  # (paper|release|reproduction|ours)\b", line)] == []


def test_the_miniature_changes_models_data_and_length_only():
    real = yaml.safe_load(Path(CONFIG).read_text())
    losses_and_optimizer = {name for name in real if re.match("alpha|relation|adam|lr|learn|weight|max_grad", name)}
    assert len(losses_and_optimizer) > 10
    assert not losses_and_optimizer & yaml.safe_load(Path(MINIATURE).read_text()).keys()
