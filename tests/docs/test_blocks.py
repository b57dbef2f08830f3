"""Every command and Python block of the documentation runs as it is written, on tiny models, or is marked.

A block is marked for the reader too, by a title: "Needs the Hub", "Takes half an hour". It is then checked without
running it: Python is compiled, and commands are read by the real parsers.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hf_distill import DistillationTrainingArguments, export_model, make_student
from hf_distill.cli import main
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer, make_texts
from tests.docs.blocks import LANGUAGES, PAGES, READMES, check_command, outside_of_blocks, read_blocks
from tests.embedding.models import make_embedding_model
from tests.student.tiny_models import tiny_model
from tests.training.teacher.importing.test_tokens import prompt_logprobs_of

# Commands that are read here, and run by tests of their own.
RUN_ELSEWHERE = {
    "export": "tests/deployment/test_export.py",
    "benchmark": "tests/evaluation/test_benchmark.py",
    "report": "tests/evaluation/test_report.py",
    "serve": "tests/serving",
}
TRAIN_TINY = ["--use_cpu", "--report_to", "none", "--max_steps", "2", "--disable_tqdm", "true"]
COMMAND = re.compile(r"^ +(hf-distill|make|pip|python|accelerate|torchrun|curl|from|import) ", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that pages take as given. Names on the Hub are folders here, which are looked for first."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = make_text_tokenizer()
    tokenizer.model_max_length = 128

    def save(model, *names):
        for name in names:
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)

    longer = {"max_position_embeddings": 130}
    classes = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    teacher = make_model("bert", "classification", **longer, **classes)
    save(teacher, "outputs/teacher", "textattack/bert-base-uncased-imdb")
    save(make_student(teacher), "outputs/student")
    export_model(folder / "outputs/student", folder / "outputs/student-int8")
    save(make_model("bert", "mlm", **longer, num_layers=6), "pretrained", "google-bert/bert-base-uncased")
    save(make_model("bert", "mlm", **longer), "my-masked-model")
    save(make_model("gpt2", "causal", n_positions=130), "my-causal-model")

    labels = ["negative", "positive"] * 6
    for name, head in {"reviews.csv": "review,sentiment", "test.csv": "review,sentiment"}.items():
        (folder / name).write_text("\n".join([head, *map(",".join, zip(make_texts(12), labels, strict=True))]))
    (folder / "stanfordnlp/imdb").mkdir(parents=True)
    numbered = [f"{text},{index % 2}" for index, text in enumerate(make_texts(12))]
    for name in ("train.csv", "held_out.csv", "stanfordnlp/imdb/train.csv", "stanfordnlp/imdb/test.csv"):
        (folder / name).write_text("\n".join(["text,label", *numbered]))
    pairs = zip(make_texts(12, 1), make_texts(12, 2), ["no", "yes"] * 6, strict=True)
    (folder / "pairs.csv").write_text("\n".join(["question,answer,fits", *map(",".join, pairs)]))
    queries = [{"query": f"w{n}", "positive": f"w{n} w{n}", "negative": make_texts(2, n)} for n in range(5, 13)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    make_embedding_model(max_position_embeddings=130).save_pretrained(folder / "embedder")
    (folder / "sentences.txt").write_text("\n".join(make_texts(40)))
    (folder / "texts").mkdir()
    (folder / "texts/some.txt").write_text("\n".join(make_texts(40)))
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """A copy of these files, as the working directory."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(DistillationTrainingArguments, "__init__", _tiny(DistillationTrainingArguments.__init__))
    return tmp_path


def _tiny(init):
    def tiny(self, *args, **options):
        init(self, *args, **{"report_to": "none", "use_cpu": True} | options | {"max_steps": 1, "disable_tqdm": True})

    return tiny


def given(page):
    """The names that the blocks of a page take as given."""
    if page == "students":
        clip = tiny_model("clip", vision_config={"num_hidden_layers": 12})
        models = {"bart": tiny_model("bart"), "whisper": tiny_model("whisper"), "clip": clip}
        batches = [collate([{"input_ids": row["input_ids"]} for row in make_rows("classification", 4)])]
        return {"teacher": make_model("bert", "classification", num_layers=6), "batches": batches} | models
    if page == "vocabulary":
        words = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index for index in range(2, 9_000)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), unk_token="[UNK]")
        model = tiny_model("bert", vocab_size=len(words))
        return {"model": model, "tokenizer": tokenizer, "texts": ["w2", "w7"], "counts": {"w2": 5, 7: 3}}
    head = "mlm" if page == "pretraining" else "classification"
    teacher, rows = make_model("bert", head), make_rows(head)
    tokenizer = make_text_tokenizer()
    names = {"teacher": teacher, "student": make_student(teacher), "tokenizer": tokenizer, "collator": collate}
    names |= {"args": DistillationTrainingArguments("outputs/given"), "rows": rows}
    of_one_length = [{name: row[name][:3] if name != "labels" else row[name] for name in row} for row in rows]
    names["train_dataset"] = Dataset.from_list(of_one_length)
    if page == "teacher_targets":
        names["train"] = Dataset.from_dict({"text": make_texts(8), "labels": [0, 1] * 4})
        names |= {"bert_tokenizer": tokenizer, "roberta_tokenizer": make_text_tokenizer()}
        names["roberta_large"] = make_model("roberta", "classification")
        causal = make_model("gpt2", "causal")
        names |= {"causal_teacher": causal, "causal_student": make_student(causal), "causal_tokenizer": tokenizer}
        names["causal_rows"] = Dataset.from_list(make_rows("causal")).remove_columns("labels")
        names["outputs"] = [
            SimpleNamespace(prompt_logprobs=prompt_logprobs_of(row, teacher=causal)) for row in names["causal_rows"]
        ]
    if page == "losses":
        ranker = make_model("bert", "classification", num_labels=1)
        names |= {"teacher_ranker": ranker, "student_ranker": make_student(ranker)}
    if page == "several_teachers":
        names |= {"large_teacher": teacher, "small_teacher": make_model("roberta", head, seed=1, num_layers=2)}
    if page == "pretraining":
        causal = make_model("gpt2", "causal")
        names |= {"causal_teacher": causal, "causal_student": make_student(causal), "causal_tokenizer": tokenizer}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, here, monkeypatch):
    blocks = read_blocks(page)
    runs_python = any(block.language == "python" and not block.is_marked for block in blocks)
    names = given(page.stem) if runs_python else {}
    for block in blocks:
        if block.language == "yaml" and block.title:
            Path(block.title).write_text(block.code)
        elif block.language == "python":
            code = compile(block.code, f"{page.name}: {block.title}", "exec")
            if not block.is_marked:
                exec(code, names)
        elif block.language == "shell":
            for words in block.commands:
                run_command(words, block.is_marked, monkeypatch)


def run_command(words, is_marked, monkeypatch):
    program, command = words[0], words[1]
    if is_marked or program == "pip" or (program == "hf-distill" and command in RUN_ELSEWHERE):
        check_command(words, monkeypatch)
    elif program == "hf-distill" and command.startswith("--"):
        with pytest.raises(SystemExit, match="0"):
            main(words[1:])
    else:
        assert program == "hf-distill", f"{words} is not run: give its block a title, such as Needs the Hub"
        assert main([*words[1:], *(TRAIN_TINY if command == "train" else [])]) == 0, words


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.parent.name)
def test_readme(page, monkeypatch):
    """Of a recipe: its commands take hours, and its own test runs it on a small example."""
    assert Path("tests/recipes", f"test_{page.parent.name}.py").is_file()
    for block in read_blocks(page):
        for words in block.commands if block.language == "shell" else []:
            check_command(words, monkeypatch)


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_blocks_say_what_they_are(page):
    for block in read_blocks(page):
        assert block.language in LANGUAGES, block
        assert not block.title or block.is_marked or block.language == "yaml", block
    assert not COMMAND.search(outside_of_blocks(page)), "a command outside of a fenced block is not run"


def test_an_unmarked_command_is_not_overlooked(monkeypatch):
    with pytest.raises(AssertionError, match="is not run"):
        run_command(["python", "-m", "recipes.quickstart"], False, monkeypatch)
    with pytest.raises(SystemExit):
        run_command(["hf-distill", "serve", "outputs/student", "--prot", "1"], False, monkeypatch)
    with pytest.raises(AssertionError):
        run_command(["make", "coffee"], True, monkeypatch)
