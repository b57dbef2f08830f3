"""The GLUE recipe on tiny models and tiny data: its own script, its own configs."""

import csv
import json
import random
import re
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from hf_distill import DistillationTrainer, glue_metric
from recipes.glue import train
from recipes.glue.train import PUBLISHED, TASKS, results_table
from tests.conftest import VOCAB_SIZE, make_model

RECIPE = Path(train.__file__).parent
WORDS = [f"word{index}" for index in range(2, VOCAB_SIZE)]


def write_task(folder: Path, task: str, num_rows: int = 8) -> None:
    """A task as CSV files, or MNLI as Parquet files like those on the Hub, with a test set without labels."""
    draw = random.Random(task)
    info = TASKS[task]
    (folder / task).mkdir(parents=True)
    for split in ("train", *info.validation, *(name.replace("validation", "test") for name in info.validation)):
        rows = [
            {
                **{column: " ".join(draw.choices(WORDS, k=draw.randint(1, 15))) for column in info.columns},
                "label": -1 if "test" in split else (row % len(info.labels) if info.labels else row / 2),
                "idx": row,
            }
            for row in range(num_rows)
        ]
        if task == "mnli":
            Dataset.from_list(rows).to_parquet(folder / task / f"{split}-00000-of-00001.parquet")
        else:
            Dataset.from_list(rows).to_csv(folder / task / f"{split}.csv")


def save_model(folder: Path, model) -> None:
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<unk>": 1} | {word: index for index, word in enumerate(WORDS, start=2)}
    tokenizer = Tokenizer(WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=24
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The model and data that smoke.yaml names: a pretrained masked language model, and the nine tasks."""
    folder = tmp_path_factory.mktemp("glue") / "tiny"
    save_model(folder / "model", make_model("roberta", "mlm", num_layers=2))
    for task in TASKS:
        write_task(folder / "glue", task)
    return folder


@pytest.fixture(autouse=True)
def _workplace(tiny, tmp_path, monkeypatch):
    """A separate folder for each test, with `tiny` in it, and caches separate from the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(tiny)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def run(*options: str):
    configs = [str(RECIPE / name) for name in ("config.yaml", "smoke.yaml")]
    return train.main(["--config", *configs, *options])


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, str | None]]:
    """The folder of each started training, and the checkpoint that it continued from."""
    begun = []
    train_itself = DistillationTrainer.train

    def train_and_tell(trainer, resume_from_checkpoint):
        begun.append((trainer.args.output_dir, resume_from_checkpoint and Path(resume_from_checkpoint).name))
        return train_itself(trainer, resume_from_checkpoint)

    monkeypatch.setattr(DistillationTrainer, "train", train_and_tell)
    return begun


def result_of(task: str, seed: int = 1) -> Path:
    return Path("outputs/glue", task, f"seed-{seed}", "result.json")


def rows_of(table: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): row[2:] for row in cells[2:]}


def test_all_nine_tasks(monkeypatch, capsys):
    """Runs the script as a user would. The second run trains nothing."""
    configs = [str(RECIPE / name) for name in ("config.yaml", "smoke.yaml")]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", *configs, "--compare_with", "distilroberta-base"])
    runpy.run_path(train.__file__, run_name="__main__")
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    assert {task for task, _ in rows} == {*(task.title for task in TASKS.values()), "mean"}
    assert set(rows) - {("mean", "of the 9 compared")} == {
        ("CoLA", "Matthews correlation"),
        ("SST-2", "accuracy"),
        *(("MRPC", metric) for metric in ("F1", "accuracy", "mean of the two")),
        *(("QQP", metric) for metric in ("F1", "accuracy", "mean of the two")),
        *(("STS-B", metric) for metric in ("Pearson correlation", "Spearman correlation", "mean of the two")),
        *(("MNLI", metric) for metric in ("accuracy, matched", "accuracy, mismatched")),
        *((task, "accuracy") for task in ("QNLI", "RTE", "WNLI")),
    }
    for ours, theirs, difference in rows.values():
        if theirs:
            assert float(difference) == pytest.approx(float(ours) - float(theirs.strip(" ?")), abs=0.11)
    assert sum(bool(theirs) for _, theirs, _ in rows.values()) == 10

    again = train.main()
    assert capsys.readouterr().out.count("already finished in") == 9
    assert {task: list(scores[0]) for task, scores in again.items()} == {
        task: list(info.validation) for task, info in TASKS.items()
    }
    assert results_table(again, "distilroberta-base") in printed


def test_scores_are_those_of_the_saved_model(tiny):
    run("--tasks", "stsb", "--learning_rate", "1.0e-2")
    folder = result_of("stsb").parent
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with (tiny / "glue" / "stsb" / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    with torch.no_grad():
        inputs = [tokenizer(row["sentence1"], row["sentence2"], truncation=True, return_tensors="pt") for row in rows]
        predictions = [model(**one).logits.item() for one in inputs]
    gold = [float(row["label"]) for row in rows]
    scores = json.loads(result_of("stsb").read_text())["scores"]["validation"]
    assert scores["pearsonr"] == pytest.approx(pearsonr(gold, predictions).statistic, abs=1e-5)
    assert scores["spearmanr"] == pytest.approx(spearmanr(gold, predictions).statistic, abs=1e-5)
    assert scores["mean"] == pytest.approx((scores["pearsonr"] + scores["spearmanr"]) / 2)


def test_trained_again_only_for_other_settings(trained, tiny):
    options = ["--tasks", "wnli", "--learning_rate"]
    first = run(*options, "1.0e-2", "--seeds", "1", "2")
    assert trained == [("outputs/glue/wnli/seed-1", None), ("outputs/glue/wnli/seed-2", None)]
    assert run(*options, "1.0e-2", "--seeds", "2", "1", "--disable_tqdm", "true") == {"wnli": first["wnli"][::-1]}
    assert len(trained) == 2
    run(*options, "2.0e-2")
    assert len(trained) == 3

    Path("tiny").unlink()
    shutil.copytree(tiny, "tiny")
    run(*options, "2.0e-2")
    assert len(trained) == 3  # a copy is the same model and the same data
    save_model(Path("tiny/model"), make_model("roberta", "mlm", num_layers=2, seed=1))
    run(*options, "2.0e-2")
    assert len(trained) == 4
    with Path("tiny/glue/wnli/validation.csv").open("a") as file:
        file.write("word2,word3,1,8\n")
    run(*options, "2.0e-2")
    assert len(trained) == 5


@pytest.fixture
def killed(monkeypatch):
    """Runs until the second checkpoint of WNLI is written."""
    save_checkpoint = DistillationTrainer._save_checkpoint

    def save_and_die(trainer, *args):
        save_checkpoint(trainer, *args)
        if "wnli" in trainer.args.output_dir and trainer.state.global_step == 2:
            raise KeyboardInterrupt

    def run_and_die(*options: str) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(DistillationTrainer, "_save_checkpoint", save_and_die)
            with pytest.raises(KeyboardInterrupt):
                run(*options)

    return run_and_die


LONGER = ["--max_steps", "4", "--learning_rate", "1.0e-2", "--load_best_model_at_end", "false"]


def test_a_run_that_is_killed_goes_on(killed, trained):
    """A stopped run gives the same weights as an uninterrupted one, and does not repeat the finished task."""
    options = ["--tasks", "cola", "wnli", *LONGER]
    run(*options, "--output_dir", "outputs/not-killed")
    trained.clear()
    killed(*options)
    assert "scores" not in json.loads(result_of("wnli").read_text())
    run(*options)
    wnli = "outputs/glue/wnli/seed-1"
    assert trained == [("outputs/glue/cola/seed-1", None), (wnli, None), (wnli, "checkpoint-2")]
    weights = [load_file(Path("outputs", name, "wnli/seed-1/model.safetensors")) for name in ("glue", "not-killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert not [*Path("outputs").rglob("checkpoint-*")]


def test_a_run_with_other_settings_starts_anew(killed, trained):
    killed("--tasks", "wnli", *LONGER)
    run("--tasks", "wnli", *LONGER, "--weight_decay", "0.2")
    assert trained == [("outputs/glue/wnli/seed-1", None)] * 2


def test_from_the_model_of_another_task():
    """A head for three classes is replaced by one for two, as from MNLI to RTE."""
    save_model(Path("mnli"), make_model("roberta", "classification", num_layers=2, num_labels=3))
    run("--tasks", "rte", "--model_name_or_path", "mnli")
    model = AutoModelForSequenceClassification.from_pretrained(result_of("rte").parent)
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}


def test_with_a_teacher_for_each_task(monkeypatch):
    options = ["--tasks", "rte", "stsb"]
    run(*options, "--output_dir", "outputs/teacher", "--seeds", "2", *LONGER)
    teachers = {}
    evaluate_itself = DistillationTrainer.evaluate

    def evaluate_and_tell(trainer, *args, **kwargs):
        scores = evaluate_itself(trainer, *args, **kwargs)
        teachers[trainer.teacher.name] = scores
        return scores

    monkeypatch.setattr(DistillationTrainer, "evaluate", evaluate_and_tell)
    teacher = "outputs/teacher/{task}/seed-2"
    run(*options, "--teacher_model_name_or_path", teacher, "--alpha_kl", "1", "--alpha_cos", "1")
    assert teachers.keys() == {"outputs/teacher/rte/seed-2", "outputs/teacher/stsb/seed-2"}
    for scores in teachers.values():
        assert scores["validation_loss_kl"] > 0
        assert scores["validation_loss_cos"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "cola", "squad"], "Unknown GLUE task squad: choose from cola, sst2"),
        (["--compare_with", "gpt2"], "compare_with='gpt2' must be one of roberta-base, distilroberta-base"),
        (["--seed", "7"], "seed=7 has no effect: use --seeds 7"),
        (["--alpha_kl", "1"], "need a teacher"),
        (["--teacher_model_name_or_path", "{task}"], "would have no effect with alpha_kl=0"),
    ],
)
def test_bad_options(options, message, trained):
    with pytest.raises(ValueError, match=message):
        run(*options)
    assert trained == []


def test_a_teacher_that_is_not_there(trained):
    with pytest.raises(ValueError, match="No tokenizer found at no-such-folder/wnli"):
        run("--tasks", "wnli", "--teacher_model_name_or_path", "no-such-folder/{task}", "--alpha_kl", "1")
    assert trained == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "wnli has no file for train, validation, such as train.csv"),
        ({"sentence1": ["word2"], "label": [0]}, "wnli, train has no column sentence2, only sentence1, label"),
        ({"sentence1": ["word2"], "sentence2": ["word3"]}, "wnli, train has no column label, only"),
        (
            {"sentence1": ["word2"], "sentence2": ["word3"], "label": [-1]},
            r"has the labels \[-1\]: labels must be 0 for not_entailment, 1 for entailment",
        ),
        (
            {"sentence1": ["word2"], "sentence2": ["word3"], "label": ["entailment"]},
            r"has the labels \['entailment'\]: labels must be 0 for",
        ),
    ],
)
def test_bad_data(content, message, trained):
    """Data errors of the last task are reported before any training."""
    write_task(Path("bad"), "rte")
    if content is not None:
        Path("bad/wnli").mkdir()
        for split in ("train", "validation"):
            Dataset.from_dict(content).to_json(f"bad/wnli/{split}.jsonl")
    with pytest.raises(ValueError, match=message):
        run("--data", "bad", "--tasks", "rte", "wnli")
    assert trained == []


def test_scores_that_are_no_numbers():
    Path("bad/stsb").mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_dict({"sentence1": ["word2"], "sentence2": ["word3"], "label": ["high"]}).to_json(
            f"bad/stsb/{split}.jsonl"
        )
    with pytest.raises(ValueError, match=r"stsb, train has the labels \['high'\]: labels must be numbers"):
        train.load_task("bad", "stsb")


def test_rows_are_cut_and_not_padded(tiny):
    data = train.load_task(str(tiny / "glue"), "mnli")
    assert list(data) == ["train", "validation_matched", "validation_mismatched"]
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    encoded = train.encode(data["train"], TASKS["mnli"], tokenizer)
    for row, encoded_row in zip(data["train"], encoded, strict=True):
        words = len(row["premise"].split()) + len(row["hypothesis"].split())
        assert len(encoded_row["input_ids"]) == min(words, 24)
        assert encoded_row["labels"] == row["label"]
    assert len(set(map(len, encoded["input_ids"]))) > 1


def test_table():
    """0.5, 0.6 and 0.9 have the median 60%."""
    results = {
        "rte": [{"validation": {"accuracy": value, "mean": value}} for value in (0.5, 0.9, 0.6)],
        "mrpc": [{"validation": {"f1": 0.9, "accuracy": 0.8, "mean": 0.85}}] * 3,
        "mnli": [
            {
                "validation_matched": {"accuracy": 0.84, "mean": 0.84},
                "validation_mismatched": {"accuracy": 0.83, "mean": 0.83},
            }
        ]
        * 3,
    }
    assert rows_of(results_table(results, "distilroberta-base")) == {
        ("RTE", "accuracy"): ["60.0 (50.0 to 90.0)", "67.9", "-7.9"],
        ("MRPC", "F1"): ["90.0 (90.0 to 90.0)", "", ""],
        ("MRPC", "accuracy"): ["80.0 (80.0 to 80.0)", "", ""],
        ("MRPC", "mean of the two"): ["85.0 (85.0 to 85.0)", "86.6 ?", "-1.6"],
        ("MNLI", "accuracy, matched"): ["84.0 (84.0 to 84.0)", "84.0", "+0.0"],
        ("MNLI", "accuracy, mismatched"): ["83.0 (83.0 to 83.0)", "", ""],
        ("mean", "of the 3 compared"): ["76.3", "79.5", "-3.2"],
    }
    of_roberta = rows_of(results_table(results, "roberta-base"))
    assert of_roberta["MRPC", "accuracy"][1:] == ["90.2", "-10.2"]
    assert of_roberta["MRPC", "mean of the two"][1:] == ["", ""]
    alone = rows_of(results_table({"rte": results["rte"][:1]}, None))
    assert alone == {("RTE", "accuracy"): ["50.0"]}


def test_a_model_is_compared_by_its_name(tiny, capsys):
    run("--tasks", "wnli")
    assert "| task | metric | ours |\n" in capsys.readouterr().out  # there is no row for `model`
    Path("distilroberta-base").symlink_to(tiny / "model")
    run("--tasks", "wnli", "--model_name_or_path", "distilroberta-base")
    assert "| task | metric | ours | distilroberta-base | difference |\n" in capsys.readouterr().out


def test_published_figures():
    """Each published score is of a metric of its task, and the means equal the published means."""
    means = {}
    for name, row in PUBLISHED.items():
        figures = {task: row[task] for task in TASKS if task in row}
        assert row.keys() == {"source", "uncertain", *figures}
        assert set(row["uncertain"]) <= set(figures)
        for task, figure in figures.items():
            (metric,) = figure
            metrics = glue_metric(task, keep_in_memory=True).compute(predictions=[0, 1], references=[0, 1])
            assert metric in metrics or (metric == "mean" and len(metrics) == 2)
        means[name] = sum(value for figure in figures.values() for value in figure.values()) / len(figures)
    assert means == {
        "roberta-base": pytest.approx(86.4, abs=0.051),  # without WNLI
        "distilroberta-base": pytest.approx(79.0, abs=0.051),
        "bert-base-uncased": pytest.approx(79.5 + (86.7 - 84.7) / 9, abs=0.051),  # see published.yaml
        "distilbert-base-uncased": pytest.approx(77.0, abs=0.051),
    }


def test_the_script_stands_alone():
    """The script runs although the repository is not on Python's path."""
    source = Path(train.__file__).read_text()
    assert not [line for line in source.splitlines() if re.match(r"(from|import) (recipes|tests|\.)", line)]


def test_help(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "--compare_with" in capsys.readouterr().out
