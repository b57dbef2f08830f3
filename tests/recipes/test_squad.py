"""The recipe's smoke run, and the benchmark: questions made by rules, on tiny models."""

import json
import random
from pathlib import Path

import datasets
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from hf_distill import load_predictor, load_questions
from hf_distill.cli import main
from recipes.benchmarks import answers
from recipes.squad import smoke_data
from tests.conftest import make_model

RECIPE = Path(smoke_data.__file__).parent
CONFIG, SMOKE = RECIPE / "config.yaml", RECIPE / "smoke.yaml"
SHORTER = ["--disable_tqdm", "true", "--max_steps", "6"]


def save_pretrained(folder, num_layers=2):
    specials = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    texts = [
        paragraph["context"] for article in smoke_data.squad()["train"]["data"] for paragraph in article["paragraphs"]
    ]
    tokenizer.train_from_iterator(texts, WordPieceTrainer(vocab_size=1000, special_tokens=[*specials.values()]))
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name}_token": token for name, token in specials.items()}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, model_input_names=inputs, **named
    ).save_pretrained(folder)
    sizes = {
        "num_layers": num_layers,
        "width": 32,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 128,
    }
    make_model("bert", "mlm", **sizes).save_pretrained(folder)


def results(folder):
    return json.loads((Path(folder) / "test_results.json").read_text())


def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    smoke_data.write_data(tmp_path)
    save_pretrained("pretrained")
    configs = ["train", str(CONFIG), str(SMOKE), *SHORTER]
    as_teacher = {"model_name_or_path": "pretrained", "output_dir": "out/teacher"}
    without = ["--teacher_model_name_or_path", "null", "--num_layers", "null", "--temperature", "2.0"]
    options = [word for name, value in as_teacher.items() for word in (f"--{name}", value)]
    assert main([*configs, *without, *options]) == 0
    assert main(configs) == 0
    for folder in ("out/teacher", "out/student"):
        assert {"test_f1", "test_answerable_f1", "test_unanswerable_accuracy"} <= results(folder).keys()
    predictor = load_predictor("out/student")
    assert (predictor.encoder.max_length, predictor.encoder.stride) == (128, 32)
    assert predictor.reader.no_answer_threshold == 0.0
    (found,) = predictor.predict([("Which error?", 'This raises "TypeError".')])
    assert found["answer"] in 'This raises "TypeError".'


def test_the_questions_are_those_of_the_rule(tmp_path, monkeypatch):
    smoke_data.write_data(tmp_path)
    train, test = (load_questions(tmp_path / f"{part}.json") for part in ("train", "test"))
    assert len(train) + len(test) > 300
    unanswered = sum(not answers for answers in [*train["answers"], *test["answers"]])
    assert 0.15 < unanswered / (len(train) + len(test)) < 0.35
    assert not set(train["context"]) & set(test["context"])
    text = 'It is as follows. The built-in function "len()" calls this method if it is defined at all.'
    monkeypatch.setattr(smoke_data, "KEPT", 1.0)
    (question,) = smoke_data.questions_of(text, random.Random(0))
    assert question["question"] == "The built-in function what calls this method if it is defined at all?"
    assert question["answers"] == [{"text": "len()", "answer_start": text.index("len()")}]


def test_the_smoke_run_changes_models_data_and_sizes_only():
    changed = yaml.safe_load(SMOKE.read_text()).keys()
    assert {"learning_rate", "num_train_epochs", "use_cpu", "bf16", "max_length", "stride"} <= changed
    assert not {"alpha_kl", "alpha_task", "alpha_cos", "metric_for_best_model", "eval_strategy"} & changed


def editorials(number, sentences=5):
    """Lines of the file of editorials: number, rating and text, tab-separated."""
    names = ["Ada Lovelace", "London", "Paris", "Charles Babbage"]
    for editorial in range(number):
        for index in range(sentences):
            name, other = names[(editorial + index) % 4], names[(editorial + 2 * index + 1) % 4]
            text = f"The engine of {name} has {editorial} parts and {index} {{wheels}} in {other} today."
            yield f"{editorial}_{index}\t0.5\t{text}"


def test_questions_of_the_benchmark(tmp_path):
    """Each question is a part of a sentence around its answer; a text without an answer lacks that sentence."""
    file = tmp_path / "editorials.txt"
    file.write_text("\n".join(editorials(40)))
    parts = answers.read_editorials(file)
    assert parts[3][2] == "The engine of London has 3 parts and 2 wheels in Ada Lovelace today."
    train, test = answers.prepare(file, tmp_path / "data", 1000, 20)
    rows = load_questions(train)
    assert (len(rows), len(load_questions(test))) == (150, 20)
    assert 0.2 < sum(not own for own in rows["answers"]) / len(rows) < 0.45
    for row in rows:
        before, after = (part.split() for part in row["question"].rstrip("?").split("who or what"))
        has_sentence = any(
            set(before + after) <= set(sentence.rstrip(".").split()) for sentence in row["context"].split(". ")
        )
        assert has_sentence or not row["answers"]
        assert len(row["context"].split(". ")) == answers.SENTENCES


def test_the_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    save_pretrained(tmp_path / "pretrained", num_layers=4)
    (tmp_path / "editorials.txt").write_text("\n".join(editorials(12)))
    data = answers.prepare(tmp_path / "editorials.txt", tmp_path / "data", 16, 8)
    benchmark = answers.Benchmark(tmp_path / "pretrained", data, tmp_path / "answers.json", epochs=1)
    benchmark.run([0])
    written = json.loads((tmp_path / "answers.json").read_text())["models"]
    assert list(written) == ["teacher", *(f"{way} 0" for way in (answers.TAUGHT, answers.ALONE, answers.PRETRAINED))]
    assert written["teacher"]["agreement"] == 1
    answers.print_table(written, [0])
    printed = capsys.readouterr().out
    assert "gain by the teacher, seed by seed, over layers of the teacher, labels alone" in printed
    benchmark.results = {name: own for name, own in written.items() if name != f"{answers.ALONE} 0"}
    benchmark.run([0])  # trains what is missing alone
    assert list(benchmark.results)[-1] == f"{answers.ALONE} 0"
