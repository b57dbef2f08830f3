"""The recipe on its small real data, with tiny models, and the benchmark of rerankers."""

import json
from pathlib import Path

import datasets
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_distill import load_predictor, load_rankings
from hf_distill.cli import main
from recipes.benchmarks import reranking
from recipes.rerank import smoke_data
from tests.conftest import make_model

RECIPE = Path(smoke_data.__file__).parent
SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]


def save_pretrained(folder, file):
    """A tiny encoder whose tokenizer knows the words of a file."""
    words = [*SPECIALS, *sorted({word for word in file.read_text().lower().split() if word.isalpha()})]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token", "mask_token"), SPECIALS, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    ).save_pretrained(folder)
    make_model("bert", "mlm", num_layers=2, vocab_size=len(words)).save_pretrained(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank")
    smoke_data.write_data(folder / "data", 24, 8)
    save_pretrained(folder / "pretrained", folder / "data" / "train.jsonl")
    return folder


@pytest.fixture
def here(data, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(data / "cache"))
    monkeypatch.chdir(data)


def test_the_data(data):
    rows = {part: [json.loads(line) for line in (data / "data" / f"{part}.jsonl").open()] for part in ("train", "test")}
    assert [len(own) for own in rows.values()] == [24, 8]
    assert {len(row["negative"]) for row in rows["train"]} == {smoke_data.TRAIN_NEGATIVES}
    assert {len(row["negative"]) for row in rows["test"]} == {smoke_data.NUM_NEGATIVES}
    queries = [row["query"] for row in (*rows["train"], *rows["test"])]
    assert len(set(queries)) == 32
    assert all(row["positive"] not in row["negative"] for row in rows["test"])


def test_smoke(here):
    options = [
        "--use_cpu",
        "--report_to",
        "none",
        "--save_strategy",
        "no",
        "--max_length",
        "32",
        "--disable_tqdm",
        "true",
    ]
    fine_tune = ["--task", "reranking", "--model_name_or_path", "pretrained", "--train_file", "data/train.jsonl"]
    assert main(["train", *fine_tune, "--num_train_epochs", "1", "--output_dir", "out/teacher", *options]) == 0
    assert main(["train", str(RECIPE / "config.yaml"), str(RECIPE / "smoke.yaml"), "--disable_tqdm", "true"]) == 0
    for part in ("eval", "test"):
        results = json.loads(Path(f"out/student/{part}_results.json").read_text())
        assert {f"{part}_ndcg@10", f"{part}_mrr@10", f"{part}_map", f"{part}_loss_kl"} <= results.keys()
    assert load_predictor("out/student").reads_pairs


@pytest.mark.long
def test_the_benchmark(here, data, monkeypatch, capsys):
    """A second run continues after what was measured."""
    monkeypatch.setattr(reranking, "fetch", lambda folder: (data / "pretrained", data))
    lines = [f"{n}\t{n % 9 - 4}.0\tsentence {n}" for n in range(60)]
    (data / "movieReviewSnippets_GroundTruth.txt").write_text("\n".join(lines))
    options = ["--queries", "8", "--test-queries", "6", "--epochs", "1", "--max-length", "16"]
    options += ["--output", "out/reranking.json"]
    students = [*reranking.STARTS, *reranking.LOSSES]
    for seeds, trainings in (("1", 1 + len(students)), ("2", len(students))):
        monkeypatch.setattr("sys.argv", ["reranking", *options, "--seeds", seeds])
        assert reranking.main() == 0
        lines = capsys.readouterr().out.strip().splitlines()
        assert len([line for line in lines if ": ndcg@10" in line]) == trainings
    rows = lines[-len(students) - 2 :]
    assert [row.split("|")[1].strip() for row in rows] == [reranking.RANDOM, reranking.TEACHER, *students]
    assert [row.count("±") for row in rows] == [0, 0, *[4] * len(students)]
    measured = json.loads(Path("out/reranking.json").read_text())["measured"]
    assert [len(runs) for runs in measured.values()] == [1, *[2] * len(students)]
    assert measured[reranking.TEACHER][0]["agreement"] == 1.0
    train, test = (load_rankings(f"out/reranking/{part}.jsonl", **reranking.SCORED) for part in ("train", "test"))
    assert (len(train), len(test)) == (80, 60)
    assert not set(train["text_pair"]) & set(test["text_pair"])
