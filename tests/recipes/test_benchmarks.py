"""The benchmarks on tiny models: they run, and their figures are right."""

import asyncio
import copy
import io
import json
import statistics
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, set_seed

from hf_distill import export_model, load_predictor, make_student
from recipes.benchmarks import (
    corpus_streaming,
    distil_from_scratch,
    ensemble,
    export_speed,
    http_load,
    int8_variants,
    layer_choice,
    litserve_peer,
    memory_options,
    narrower,
    serve_load,
    signals,
    split_invariance,
    teacher_dtype,
    truncation,
    where_distilling_pays,
    whole_job,
)
from recipes.benchmarks._common import predict
from recipes.benchmarks.http_load import Answer
from recipes.benchmarks.narrower import Cut
from recipes.benchmarks.where_distilling_pays import NO_TEACHER, SAME_LABELS, TEACHER, Training
from recipes.embedding.data import TWEETS_FILE, read_tweets
from recipes.quickstart import students as quickstart_students
from recipes.quickstart.data import Corpus
from tests.conftest import HEADS, VOCAB_SIZE, make_config, make_model, make_rows, make_text_tokenizer, make_texts


@pytest.fixture
def teacher_folder(tmp_path):
    """A classifier with 4 layers and its tokenizer."""
    folder = tmp_path / "quickstart" / "teacher"
    make_model("bert", "classification", width=64).save_pretrained(folder)  # 4 bits need a multiple of 32
    words = {"[PAD]": 0, "[UNK]": 1} | {f"word{index}": index for index in range(2, VOCAB_SIZE)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "[UNK]")), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def rows():
    return Dataset.from_list(make_rows("classification", num_rows=8))


def test_split_invariance(tmp_path, monkeypatch, capsys):
    output = tmp_path / "made" / "split_invariance.json"
    monkeypatch.setattr(sys, "argv", ["split_invariance", "--output", str(output)])
    split_invariance.main()

    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(lines) == len(split_invariance.HEADS) + 2
    for head, (class_name, _) in split_invariance.HEADS.items():
        assert printed.count(f"| {head} ({class_name}) |") == 1
    measured = json.loads(output.read_text())["heads"]
    assert measured.keys() == split_invariance.HEADS.keys()

    for head, trainers in measured.items():
        distilled = trainers["DistillationTrainer"]
        assert distilled["gradient"] < 1e-6, head
        assert distilled["4x4"] == pytest.approx(distilled["16x1"], rel=1e-6), head
        assert trainers["Trainer"]["16x1"] > 0.1, head
    assert max(trainers["Trainer"]["gradient"] for trainers in measured.values()) > 0.5


def test_split_invariance_sees_padding_and_unequal_numbers_of_labels():
    for head in split_invariance.HEADS:
        rows = split_invariance.make_rows(head)
        assert len({len(row["input_ids"]) for row in rows}) > 3 or head == "multiple choice"
    for head in ("token classification", "masked LM, BERT", "causal LM", "sequence to sequence"):
        rows = split_invariance.make_rows(head)
        labels = [sum(label != -100 for row in rows[i : i + 4] for label in row["labels"]) for i in range(0, 16, 4)]
        assert min(labels) > 0
        assert max(labels) > 2 * min(labels)


def test_teacher_dtype(teacher_folder, rows, tmp_path, capsys):
    output = tmp_path / "teacher_dtype.json"
    measured = teacher_dtype.run(teacher_folder, rows, rounds=2, output=output)

    printed = capsys.readouterr().out
    assert json.loads(output.read_text())["teachers"] == measured
    for autocast, teachers in measured.items():
        for teacher, figures in teachers.items():
            assert printed.count(f"| {autocast} | {teacher} |") == 1
            if "skipped" in figures:
                assert teacher not in ("float32", "bfloat16")
                continue
            assert figures["ms per step"] > 0
            assert figures["ratio"] > 0
            # The student and its dropout are the same for every teacher.
            assert figures["loss_task"] == teachers["float32"]["loss_task"]
        assert teachers["float32"]["ratio"] == 1
        assert teachers["float32"]["deviation of loss_kl"] == 0
        for name in ("loss_kl", "loss_cos"):
            assert 0 < abs(teachers["bfloat16"][f"deviation of {name}"]) < 0.1
    assert measured["bf16"]["float32"]["loss_task"] != measured["off"]["float32"]["loss_task"]


def test_teacher_dtype_without_bitsandbytes(teacher_folder, rows, monkeypatch):
    monkeypatch.setattr("hf_distill.training.teacher.loading.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(teacher_dtype, "TEACHERS", {"8bit": teacher_dtype.TEACHERS["8bit"]})
    trainers = teacher_dtype.make_trainers(teacher_folder, rows, "off")
    assert "needs bitsandbytes: pip install" in trainers["8bit"]


@pytest.mark.parametrize("benchmark", [teacher_dtype, layer_choice])
def test_before_the_quickstart(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--quickstart", str(tmp_path / "quickstart")])
    assert benchmark.main() == 1
    assert capsys.readouterr().err == f"{tmp_path / 'quickstart' / 'teacher'} not found: run `make quickstart` first.\n"


@pytest.mark.long
def test_truncation(tmp_path, capsys, monkeypatch):
    """If only the last word tells the class, truncating to the head loses it."""
    monkeypatch.setattr(truncation, "WHOLE", 38)
    make_model("bert", "mlm").save_pretrained(tmp_path / "model")
    make_text_tokenizer().save_pretrained(tmp_path / "model")
    texts = [f"{text} w{5 + index % 2}" for index, text in enumerate(make_texts(128, longest=10))]
    rows = Dataset.from_dict({"text": texts, "labels": [index % 2 for index in range(128)]})
    train, test = rows.select(range(64)), rows.select(range(64, 128))
    output = tmp_path / "truncation.json"
    measured = truncation.run(
        tmp_path / "model",
        Corpus(train=train, test=test, unlabelled=test),
        lengths=[4],
        seeds=[0],
        output=output,
        use_cpu=True,
        num_train_epochs=40,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
    )
    assert list(measured) == ["38 head", "4 head", "4 tail", "4 head_tail"]
    cut = sum(len(text.split()) > 2 for text in test["text"]) / 64
    assert [own["cut"] for own in measured.values()] == [0, cut, cut, cut]
    assert measured["4 tail"]["accuracy"][0] > 0.9 > measured["4 head"]["accuracy"][0]
    assert json.loads(output.read_text())["measured"] == measured
    assert f"| 4 | tail | {cut:.0%} |" in capsys.readouterr().out


def test_truncation_before_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["truncation", "--fetched", str(tmp_path / "fetched")])
    assert truncation.main() == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'fetched' / 'minilm'} not found")


@pytest.mark.long
def test_int8_variants(tmp_path, capsys):
    """Each int8 variant is smaller than fp32 and has some error; fp32 equals the student."""
    make_model("bert", "classification", num_layers=2, width=64).save_pretrained(tmp_path / "student")
    make_text_tokenizer().save_pretrained(tmp_path / "student")
    rows = Dataset.from_dict({"text": make_texts(40), "labels": [index % 2 for index in range(40)]})
    corpus, output = Corpus(train=rows, test=rows, unlabelled=rows), tmp_path / "int8.json"
    measured = int8_variants.run(tmp_path / "student", corpus, 1, output, num_texts=30)
    assert list(measured) == ["fp32", "dynamic", "static", "onnx-int8", "torch-int8"]
    exact = measured.pop("fp32")
    assert (exact["agreement"], exact["root_mean_square_error"], exact["times_as_fast"]) == (1.0, 0.0, 1.0)
    for own in measured.values():
        assert own["bytes"] < exact["bytes"]
        assert own["root_mean_square_error"] > 0
    assert json.loads(output.read_text())["measured"] == {"fp32": exact} | measured
    assert "| onnx-int8 |" in capsys.readouterr().out


@pytest.mark.long
def test_export_speed(tmp_path, capsys, monkeypatch):
    """The student has half of the teacher's layers, and each export is compared with it in speed and predictions."""
    own, formats = {"peak_memory": 5_000_000, "cold_start": 0.5, "imports_torch": False}, ["onnx", "onnx-int8"]
    monkeypatch.setattr("hf_distill.evaluation.benchmark._starts", lambda *args: own)
    make_text_tokenizer().save_pretrained(tmp_path / "minilm")
    make_model("bert", "classification", num_layers=2).save_pretrained(tmp_path / "real" / "student")
    make_text_tokenizer().save_pretrained(tmp_path / "real" / "student")
    rows = Dataset.from_dict({"text": make_texts(40), "labels": [index % 2 for index in range(40)]})
    figures = export_speed.run(
        tmp_path,
        tmp_path / "out" / "export_speed.json",
        make_config("roberta"),
        formats,
        length=16,
        rounds=2,
        threads=1,
        real=tmp_path / "real",
        corpus=Corpus(train=rows, test=rows, unlabelled=rows),
    )
    models = figures["speed"]["models"]
    assert list(models) == list(figures["shares_of_student"]) == ["teacher", "student", *formats]
    assert [own["format"] for own in models.values()] == ["pytorch", "pytorch", *formats]
    per_layer = (models["teacher"]["parameters"] - models["student"]["parameters"]) / 2
    assert per_layer == sum(own.numel() for own in make_model("roberta", "mlm").roberta.encoder.layer[0].parameters())
    for name, own in models.items():
        share = own["bytes_on_disk"] / models["student"]["bytes_on_disk"]
        assert figures["shares_of_student"][name]["bytes_on_disk"] == share
    quality = figures["quality"]
    assert quality["onnx"]["agreement_with_student"] == quality["student"]["agreement_with_student"] == 1
    assert quality["onnx"]["accuracy"] == quality["student"]["accuracy"]
    assert 0 < quality["onnx-int8"]["kl_to_student"] < 0.01
    assert json.loads((tmp_path / "out" / "export_speed.json").read_text())["quality"] == quality
    printed = capsys.readouterr().out
    ratio = models["onnx"]["latency"]["16"]["times_as_fast"]["median"]
    assert f" | {ratio:.2f} (" in printed


def test_export_speed_before_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export_speed", "--fetched", str(tmp_path / "fetched")])
    assert export_speed.main() == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'fetched' / 'minilm'} not found")


@pytest.mark.long
def test_layer_choice(teacher_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layer_choice, "NUM_CALIBRATION", 20)
    numbers = range(2, VOCAB_SIZE)
    texts = [" ".join(f"word{numbers[(7 * row + column) % 59]}" for column in range(1 + row % 5)) for row in range(40)]
    labelled = Dataset.from_dict({"text": texts, "labels": [row % 2 for row in range(40)]})
    corpus = Corpus(train=labelled, test=labelled.select(range(20)), unlabelled=labelled)
    teacher = HEADS["classification"].from_pretrained(teacher_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    output = tmp_path / "layer_choice.json"
    measured = layer_choice.run(teacher, tokenizer, corpus, seeds=[0, 1], budgets=[2, 3], output=output)

    printed = capsys.readouterr().out
    untrained = measured["untrained"]
    assert len(untrained) == 6  # 2 of 4 layers
    assert all(printed.count(f"| {layers} |") >= 1 for layers in untrained)
    # The choice uses the first 20 texts, which here are also the test texts.
    calibrated = " ".join(map(str, measured["chosen"]["calibrated"]))
    assert untrained[calibrated]["KL"] == min(own["KL"] for own in untrained.values())
    assert measured["chosen"]["alternate"] == [0, 2]
    for strategy, budgets in measured["trained"].items():
        assert printed.count(f"| {strategy} |") == 2
        assert [len(runs) for runs in budgets.values()] == [2, 2]
        assert budgets[2] != budgets[3] != [untrained[" ".join(map(str, measured["chosen"][strategy]))]] * 2
    assert json.loads(output.read_text())["chosen"] == measured["chosen"]


def test_corpus_streaming(tmp_path, capsys, monkeypatch):
    # Separate processes would take seconds to start.
    monkeypatch.setattr(corpus_streaming, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(workers))
    output = tmp_path / "corpus_streaming.json"
    measured = corpus_streaming.run([0.02, 0.1], output)
    printed = capsys.readouterr().out
    small, large = measured.values()
    assert large["rows"] > 3 * small["rows"] > 3
    for name, own in measured.items():
        assert printed.count(f"| {name} |") == 1
        assert own["rows per second"] > 0
        assert own["rows per CPU second"] > 0
        assert 0 < own["MB before"] <= own["MB at most"]
    assert json.loads(output.read_text())["corpora"] == measured


@pytest.mark.long
def test_memory_options(tmp_path, capsys, monkeypatch):
    """Each line trains the right parameters, with weights and AdamW state as counted by hand."""
    monkeypatch.setattr(memory_options, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(workers))
    output = tmp_path / "memory_options.json"
    monkeypatch.setattr(sys, "argv", ["memory_options", "--shape", "tiny", "--length", "24", "--output", str(output)])
    memory_options.main()
    printed = capsys.readouterr().out
    measured = json.loads(output.read_text())["lines"]
    assert measured.keys() == memory_options.LINES.keys()
    assert all(printed.count(f"| {name} |") == 1 for name in measured)

    config = copy.deepcopy(memory_options.SHAPES["tiny"])
    teacher = HEADS["classification"].from_config(config).num_parameters()
    config.num_hidden_layers = 1
    student = HEADS["classification"].from_config(config).num_parameters()
    for name, line in memory_options.LINES.items():
        own = measured[name]
        assert 0 < own["weights and optimizer"] < own["at most"]
        if line.trains == "adapters":
            assert own["weights and optimizer"] < 1.2 * 4 * teacher, name
        else:
            by_hand = 3 * 4 * teacher
            if line.trains == "student":
                bytes_of_teacher = 0 if line.stored else 2 if "teacher_dtype" in line.options else 4
                by_hand = bytes_of_teacher * teacher + 3 * 4 * student
            # AdamW also stores a step count per tensor.
            assert own["weights and optimizer"] == pytest.approx(by_hand, rel=0.01), name


def test_memory_options_that_do_not_fit(tmp_path, capsys, monkeypatch):
    """If the system kills a process that takes too much memory, the table continues."""

    def measure(line, *folders):
        if not line.options:
            raise BrokenProcessPool
        return {"at most": 8e9 if line.num_batches == 1 else 6e9, "weights and optimizer": 3e9}

    monkeypatch.setattr(memory_options, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(workers))
    monkeypatch.setattr(memory_options, "measure", measure)
    names = ["nothing: float32, a batch of 16", "bf16", "the same, 4 batches of 4"]
    measured = memory_options.run("tiny", 24, names, tmp_path / "memory_options.json")
    assert measured[names[0]] is None
    printed = capsys.readouterr().out
    assert f"| {names[0]} | out of memory |  |  |  |" in printed
    assert "| bf16 | 8.00 |  | 3.00 (38%) |  |" in printed
    assert f"| {names[2]} | 6.00 |  | 3.00 (50%) | yes |" in printed


def test_rows_of_memory_options():
    config, length = memory_options.SHAPES["tiny"], 100

    def lengths(**options):
        rows = memory_options.make_rows(config, length, memory_options.Line(**options))
        assert all(len(row["input_ids"]) == len(row["attention_mask"]) for row in rows)
        sizes = [len(row["input_ids"]) for row in rows]
        return sizes[:16], sizes[16:], [sum(row["attention_mask"]) for row in rows][16:]

    short, padded, num_tokens = lengths()
    assert short == [8] * 16
    assert padded == [100] * 16
    _, ragged, _ = lengths(padding="longest")
    assert ragged == num_tokens
    assert max(ragged) == ragged[0] == 100
    assert len(set(ragged)) > 8
    _, halves, _ = lengths(cut=2)
    assert halves == [50] * 16


@pytest.mark.long
def test_distil_from_scratch(tmp_path, capsys):
    """A teacher without a head is trained, then a student with it and a student without it, twice."""
    model_folder, corpus = tmp_path / "model", tmp_path / "corpus.txt"
    make_model("bert", "mlm", max_position_embeddings=128).base_model.save_pretrained(model_folder)
    tokenizer = make_text_tokenizer()
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(model_folder)
    corpus.write_text("\n".join(make_texts(3_400)))
    output = tmp_path / "distil_from_scratch.json"
    measured = distil_from_scratch.run(model_folder, corpus, output, teacher_steps=3, student_steps=2, seeds=[0, 1])

    printed = capsys.readouterr().out
    assert measured["teacher perplexity"]["after"] < measured["teacher perplexity"]["before"]
    assert f"| teacher | 3 | {measured['teacher perplexity']['after']:.2f} |" in printed
    for name, perplexities in measured["student perplexity"].items():
        assert printed.count(f"| student {name} | 2 |") == 1
        assert len(set(perplexities)) == 2
    assert measured["difference"] == [
        first - second for first, second in zip(*measured["student perplexity"].values(), strict=True)
    ]
    assert json.loads(output.read_text()) == measured
    student = HEADS["mlm"].from_pretrained(tmp_path / "distil_from_scratch" / "student without, seed 0")
    assert student.config.num_hidden_layers == 2


def test_text_to_distil_from(tmp_path):
    rows = 'sentiment,confidence,text\nnegative,1,"one\nline, of two"\npositive,,twice\n'.encode("latin-1")
    with tarfile.open(tmp_path / "tweets.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(TWEETS_FILE)
        info.size = len(rows)
        archive.addfile(info, io.BytesIO(rows))
    for name in distil_from_scratch.SENTENCE_FILES:
        (tmp_path / name).write_text("1\t2.0\tgood\n2\t-1.0\ttwice\n")
    corpus = tmp_path / "made" / "corpus.txt"
    distil_from_scratch.write_corpus(corpus, tmp_path, read_tweets(tmp_path / "tweets.tar.gz"))
    assert sorted(corpus.read_text().splitlines()) == ["good", "one line, of two", "twice"]


@pytest.fixture
def pretrained(tmp_path):
    """A model with 4 layers and no head, and its tokenizer."""
    folder = tmp_path / "pretrained"
    make_model("bert", "classification").base_model.save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def film_corpus():
    """40 texts to train on and 20 to test on."""
    labelled = Dataset.from_dict({"text": make_texts(60, longest=12), "labels": [row % 2 for row in range(60)]})
    train, test = labelled.select(range(40)), labelled.select(range(40, 60))
    return Corpus(train=train, test=test, unlabelled=test.remove_columns("labels"))


def test_ensemble(tmp_path, pretrained, film_corpus, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(ensemble, "BATCH_SIZE", 16)
    monkeypatch.setattr(ensemble, "MIN_STEPS", 2)
    options = {"labels": [0, 10], "repetitions": [0, 1], "num_teachers": 2, "epochs": 1}
    output = tmp_path / "ensemble.json"
    measured = ensemble.run(pretrained, film_corpus, output, **options)
    printed = capsys.readouterr().out
    assert len(measured) == 20
    for name in ("first teacher", "mean of the teachers", "student, one teacher", "student, mean of logits of 2"):
        assert printed.count(f"| {name} |") == 2
    assert printed.count("mean of probabilities of 2 over one teacher, pair by pair") == 2
    # A second run trains nothing again.
    monkeypatch.setattr(ensemble, "train", None)
    assert ensemble.run(pretrained, film_corpus, output, **options) == measured
    assert json.loads(output.read_text())["trainings"] == measured


def test_signals(tmp_path, pretrained, capsys, monkeypatch):
    """Losses of every kind, at full and at half width. A second run trains nothing again."""
    for name, value in {"BATCH_SIZE": 8, "ROUNDS": 1, "STEPS_TO_TIME": 2, "STEPS_TO_WEIGH": 1}.items():
        monkeypatch.setattr(signals, name, value)
    labelled = Dataset.from_dict({"text": make_texts(24, longest=8), "labels": [row % 3 for row in range(24)]})
    sentences = dict.fromkeys(("teacher", "train", "validation", "test"), labelled)
    mixes = ["labels", "labels + cos", "hidden mse + attention, then labels + forward_kl", "labels + dkd"]
    students, output = ["2 layers", "half width"], tmp_path / "signals.json"

    def run():
        return signals.run(pretrained, sentences, output, students, mixes, seeds=[0], seconds=0.01)

    trainings = run()
    printed = capsys.readouterr().out
    assert len(trainings) == 2 * len(mixes)
    assert all(printed.count(f"\n| {mix} | ") == 3 for mix in mixes)
    assert f"\nBest combination on the validation sentences: {mixes[2]}\n" in printed
    measured = json.loads(output.read_text())
    assert measured["trainings"] == trainings
    for student in students:
        weights = measured["weights"][student]
        assert signals.DEFAULT_WEIGHTS.items() <= weights.items()
        assert min(weights.values()) > 0
        assert min(measured["step_seconds"][student].values()) > 0

    written = output.read_bytes()
    for name in ("train", "teacher"):
        monkeypatch.setattr(signals.Benchmark, name, None)
    assert run() == trainings
    assert output.read_bytes() == written  # also if this machine is another one

    mixes = ["labels"]  # no combination
    capsys.readouterr()
    run()
    printed = capsys.readouterr().out
    assert "Best on the validation sentences: labels\n" in printed
    assert "Best combination" not in printed


def test_half_width_student():
    teacher = make_model("bert", "classification")
    student = signals.half_width(teacher)
    assert student.config.hidden_size == teacher.config.hidden_size // 2
    assert student.config.num_hidden_layers == teacher.config.num_hidden_layers
    halves = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        half = halves[name]
        assert torch.equal(half, weight[tuple(slice(size) for size in half.shape)]), name


def test_sentences_of_signals(tmp_path):
    ratings = [-2.0, -1.0, 1.0, 2.0]
    lines = [f"{row}\t{ratings[row % 4]}\tsentence {row}{' long' * (20 * (row % 8 > 3))}" for row in range(2100)]
    for name in distil_from_scratch.SENTENCE_FILES:
        (tmp_path / name).write_text("\n".join(lines))
    sentences = signals.load_sentences(tmp_path, num_train=60, num_validation=40)
    assert len(sentences["teacher"]) == 60
    texts = {name: set(own["text"]) for name, own in sentences.items()}
    assert texts["train"] < texts["teacher"]
    assert not texts["teacher"] & texts["validation"] | texts["teacher"] & texts["test"]
    for own in sentences.values():
        for text, label in zip(own["text"], own["labels"], strict=True):
            assert label == [0, 1, 1, 2][int(text.split()[1]) % 4]
    assert max(len(text.split()) for text in texts["test"]) <= signals.MAX_WORDS


@pytest.fixture
def small_map(monkeypatch):
    monkeypatch.setattr(where_distilling_pays, "LAYERS", [2, 1])
    monkeypatch.setattr(where_distilling_pays, "BATCH_SIZE", 16)
    monkeypatch.setattr(where_distilling_pays, "MIN_STEPS", 2)


def test_where_distilling_pays(pretrained, film_corpus, small_map, tmp_path, capsys, monkeypatch):
    output = tmp_path / "where_distilling_pays.json"

    def run():
        seeds = {"table": [0, 1], "map": [0]}
        results = where_distilling_pays.run(pretrained, film_corpus, output, seeds, epochs=1, few_labels=[8])
        return results, capsys.readouterr().out

    results, printed = run()
    assert json.loads(output.read_text())["trainings"] == results
    # Two seeds with a teacher and two students each. The first seed also has the teacher of 8 labels and ten students.
    assert printed.count("minutes left") == len(results) == 2 * 3 + 1 + 10 == 17
    assert "| teacher, 4 layers | " in printed
    assert "| gain by the teacher, seed by seed | " in printed
    assert printed.count("| 4, teacher | 40 | ") == 2
    assert printed.count("| 1 | 8 | ") == 4
    assert printed.count(" | the same | the same |") == 4 * 2
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    taught, alone = (results[str(Training(0, 8, 1, way))] for way in (SAME_LABELS, NO_TEACHER))
    assert taught["expected_calibration_error"] != alone["expected_calibration_error"]
    assert taught["settings"]["options"]["alpha_kl"] == 5.0
    assert "alpha_kl" not in alone["settings"]["options"]
    assert results[str(Training(1, 40, 4, TEACHER))]["agreement"] == 1
    all_text = results[str(Training(0, 8, 1, "that teacher, all text"))]
    assert [own["settings"]["options"]["max_steps"] for own in (taught, all_text)] == [2, 3]

    assert run()[1].count("minutes left") == 0

    # A student that is missing is trained again, with its teacher, and gets the same figures.
    content = json.loads(output.read_text())
    missing = str(Training(0, 8, 1, SAME_LABELS))
    del content["trainings"][missing]
    output.write_text(json.dumps(content))
    again, printed = run()
    assert printed.count("minutes left") == 2
    measured = {name: value for name, value in results[missing].items() if name != "seconds"}
    assert measured.items() <= again[missing].items()

    monkeypatch.setattr(where_distilling_pays, "MIN_STEPS", 3)  # the number of steps on all 40 texts
    assert run()[1].count("minutes left") == 1 + 4


def test_where_distilling_pays_goes_on_where_it_was_interrupted(
    pretrained, film_corpus, small_map, tmp_path, capsys, monkeypatch
):
    output, train = tmp_path / "figures.json", where_distilling_pays.train
    trained = []

    def interrupted(*args):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(train(*args))

    monkeypatch.setattr(where_distilling_pays, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        where_distilling_pays.run(pretrained, film_corpus, output, {"table": [0]}, epochs=1)
    assert json.loads(output.read_text())["trainings"].keys() == {
        str(Training(0, 40, 4, TEACHER)),
        str(Training(0, 40, 2, SAME_LABELS)),
    }
    monkeypatch.setattr(where_distilling_pays, "train", train)
    capsys.readouterr()
    assert len(where_distilling_pays.run(pretrained, film_corpus, output, {"table": [0]}, epochs=1)) == 3
    assert capsys.readouterr().out.count("minutes left") == 2


def test_plan_of_the_map():
    """Which teacher each student has. With all labels, no text is unlabelled."""
    ways = where_distilling_pays.WAYS
    groups = where_distilling_pays.plan([0], [10, 50], [2], list(ways), num_all=50, deepest=6)
    of_few, of_all = Training(0, 10, 6, TEACHER), Training(0, 50, 6, TEACHER)
    assert {teacher: [(own.labels, own.way) for own in students] for teacher, students in groups.items()} == {
        of_few: [(10, NO_TEACHER), (10, SAME_LABELS), (10, "that teacher, all text")],
        of_all: [(10, "teacher of all labels, all text"), (50, NO_TEACHER), (50, SAME_LABELS)],
    }


def test_rows_without_labels():
    rows = Dataset.from_dict({"input_ids": [[1], [2], [3]], "labels": [1, 0, 1]})
    assert where_distilling_pays.labelled_rows(rows, 2, all_text=False)[:] == rows[:2]
    everything = where_distilling_pays.labelled_rows(rows, 2, all_text=True)
    assert everything[:] == {"input_ids": [[1], [2], [3]], "labels": [1, 0, -100]}


def test_seconds_that_are_left(monkeypatch):
    now = iter([10.0, 12.0, 18.0])
    monkeypatch.setattr(where_distilling_pays.time, "perf_counter", lambda: next(now))
    clock = where_distilling_pays.Clock([1, 1, 2])
    assert clock.lap(1) == (2.0, 6.0)
    assert clock.lap(1) == (6.0, 8.0)


@pytest.mark.long
def test_whole_job(pretrained, film_corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(whole_job, "MEDIAN_WORDS", 20)
    settings = {
        "sentences": whole_job.Setting(rows=12, max_length=16, batch_size=4),
        "documents": whole_job.Setting(rows=6, max_length=32, batch_size=4, are_documents=True),
    }
    output = tmp_path / "whole_job.json"
    measured = whole_job.run(pretrained, film_corpus, settings, [0, 1], 1, output)
    printed = capsys.readouterr().out
    assert printed.count("Warming up") == 2
    assert "12 sentences of at most 16 tokens, epochs: 1, in batches of 4" in printed
    for seeds in measured.values():
        assert len(seeds) == 2
        for own in seeds:
            assert own["seconds"].keys() == own["accuracy"].keys() == whole_job.WAYS.keys()
            assert min(own["seconds"].values()) > 0
        for name in whole_job.RATIOS:
            ratio = statistics.median(whole_job.ratio(own, name) for own in seeds)
            assert f"| {name} | {ratio:.2f} | " in printed
    assert json.loads(output.read_text())["figures"] == measured
    with pytest.raises(ValueError, match="rows=41, but there are only 40 sentences to train on"):
        whole_job.run(
            pretrained, film_corpus, {"sentences": whole_job.Setting(41, 16, 4)}, [0], 1, tmp_path / "other.json"
        )


def test_ratio_of_whole_jobs():
    figures = {"seconds": {whole_job.TUTORIAL: 30.0, whole_job.OURS: 2.0, whole_job.LIVE: 3.0}}
    ratios = [whole_job.ratio(figures, name) for name in list(whole_job.RATIOS)[:3]]
    assert ratios == [15.0, 10.0, 1.5]


def test_the_tutorial_trains_what_we_train(pretrained, film_corpus, tmp_path, monkeypatch):
    """Without dropout, grouping by length and bfloat16, all ways give the same student up to rounding."""
    monkeypatch.setattr(whole_job, "bf16_is_fast", lambda: False)
    monkeypatch.setattr(whole_job.Job, "grouping", "random")
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    torch.manual_seed(0)
    teacher = HEADS["classification"].from_pretrained(pretrained).eval()
    setting = whole_job.Setting(rows=40, max_length=16, batch_size=8)
    job = whole_job.Job(film_corpus.train, setting, teacher, tokenizer, 0, 1, tmp_path)
    texts = list(film_corpus.test["text"])
    logits = {"untrained": predict(make_student(teacher), tokenizer, texts)}
    for name in (whole_job.TUTORIAL, whole_job.OURS, whole_job.LIVE):
        student = make_student(teacher)
        set_seed(0)
        whole_job.WAYS[name](job, student)
        logits[name] = predict(student.eval(), tokenizer, texts)
    tutorial = logits[whole_job.TUTORIAL]
    assert (logits["untrained"] - tutorial).abs().max() > 1e-2
    for name in (whole_job.OURS, whole_job.LIVE):
        torch.testing.assert_close(logits[name], tutorial, rtol=0, atol=1e-4)


def test_documents():
    sentences = Dataset.from_dict({"text": ["good one", "bad", "fine", "dull at best"], "labels": [1, 0, 1, 0]})
    documents = whole_job.make_documents(sentences, 401)
    assert list(documents["labels"]).count(0) == 201
    for text, label in zip(documents["text"], documents["labels"], strict=True):
        assert set(text.split()) <= ({"good", "one", "fine"} if label else {"bad", "dull", "at", "best"})
    lengths = [len(text.split()) for text in documents["text"]]
    assert statistics.median(lengths) == pytest.approx(174, rel=0.15)
    assert statistics.mean(lengths) == pytest.approx(231, rel=0.15)
    assert whole_job.make_documents(sentences, 401)[:] == documents[:]
    assert whole_job.make_documents(sentences, 401, seed=1)[:] != documents[:]


@pytest.fixture
def served_student(tmp_path):
    """A classifier with one layer and class names, and its tokenizer."""
    student = tmp_path / "student"
    make_model("bert", "classification", num_layers=1).save_pretrained(student)
    config = json.loads((student / "config.json").read_text())
    names = {"0": "bad", "1": "good"}
    (student / "config.json").write_text(json.dumps(config | {"id2label": names, "label2id": {"bad": 0, "good": 1}}))
    make_text_tokenizer().save_pretrained(student)
    return student


@pytest.mark.long
def test_serve_load(served_student, tmp_path, capsys):
    texts = make_texts(300)
    rivals = [serve_load.FLASK]
    figures = serve_load.run(served_student, texts, tmp_path / "serve.json", rivals, 1, 0.3, soak=2.0, company=100)

    throughput = figures["throughput"]
    assert list(throughput) == [serve_load.OURS, *rivals]
    for own in throughput.values():
        assert own["ours_is_times_as_fast"] == [throughput[serve_load.OURS]["per_second"][0] / own["per_second"][0]]
    assert figures["latency"]["steady"]["statuses"].keys() == {"200"}
    assert figures["latency"]["overload"]["rate"] == pytest.approx(2 * figures["saturation"])
    assert figures["latency"]["overload"]["statuses"].keys() <= {"200", "503", http_load.NOT_SENT}
    assert figures["latency"]["overload, --max-wait 0.5"]["rate"] == figures["latency"]["overload"]["rate"]
    compared = {"refused": 0, "answered": 100, "different": 0, "unanswered": {}}
    assert figures["company"] == {"requests": 100, "clients": 32, **compared}
    assert figures["soak"]["statuses"].keys() == {"200"}
    assert figures["soak"]["memory_first"] > 1e7
    assert json.loads((tmp_path / "serve.json").read_text())["saturation"] == figures["saturation"]
    printed = capsys.readouterr().out
    assert "| Flask |" in printed
    assert "0 of 100 answers differ from the answer for the text alone" in printed


@pytest.mark.long
def test_refusals_are_no_answers(served_student, tmp_path, monkeypatch):
    """With a service that accepts few requests at a time, refused clients try again and get the right answer."""
    int8 = export_model(served_student, tmp_path / "int8", "onnx-int8", min_agreement=0.0).folder
    options = ["--workers", "1", "--max-queue", "8", "--max-texts", "8"]
    monkeypatch.setitem(serve_load.MODULES, serve_load.OURS, [*serve_load.MODULES[serve_load.OURS], *options])
    server = serve_load.Server(serve_load.OURS, int8=int8)
    try:
        server.wait()
        measured = serve_load.measure_company(server, int8, make_texts(300), 40)
    finally:
        server.stop()
    assert measured.pop("refused") > 0
    assert measured == {"requests": 40, "clients": 32, "answered": 40, "different": 0, "unanswered": {}}


def test_what_is_compared_are_answers():
    good = [{"label": "good", "score": 0.75}]
    answers = {
        0: Answer(200, json.dumps({"label": "good", "score": 0.75, "scores": good}).encode()),
        1: Answer(200, b'{"label": "good", "score": 0.5, "scores": [{"label": "good", "score": 0.5}]}'),
        2: Answer(503, b'{"detail": "Too many texts are waiting"}', 1.0),
        3: Answer(504, b'{"detail": "There was no answer"}'),
        4: Answer(http_load.TIMED_OUT),
        5: Answer(http_load.TIMED_OUT),
    }
    compared = serve_load.compare(answers, lambda number: good)
    assert compared == {"answered": 2, "different": 1, "unanswered": {"503": 1, "504": 1, http_load.TIMED_OUT: 2}}


def load_on_replies(replies, **options):
    """The outcome of one request to a server that gives these replies in turn, and the number of answers by status."""
    came = []

    async def reply(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(2)
            writer.write(replies.pop(0))

    async def run():
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            load = http_load.Load("127.0.0.1", server.sockets[0].getsockname()[1], "/", [{}])
            outcome = await load.closed_loop(1, 60, 1, lambda number, answer: came.append(answer), **options)
            load.close()
        return outcome.statuses

    statuses = asyncio.run(run())
    (answer,) = came
    return answer, statuses


REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
WELCOME = b"HTTP/1.1 200 OK\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"


def test_who_is_refused_comes_back_when_it_should():
    started = time.monotonic()
    answer, statuses = load_on_replies([REFUSAL, REFUSAL, WELCOME], patience=60)
    assert answer == Answer(200, b"{}")
    assert statuses == {503: 2, 200: 1}
    assert 2 <= time.monotonic() - started < 10


def test_who_is_refused_does_not_come_back_for_ever():
    started = time.monotonic()
    answer, statuses = load_on_replies([REFUSAL] * 3, patience=1.5)
    assert answer == Answer(503, b"", 1.0)
    assert statuses == {503: 2}
    assert time.monotonic() - started < 5
    assert load_on_replies([REFUSAL, WELCOME])[1] == {503: 1}


def test_litserve_peer(tmp_path):
    """The methods that LitServe calls."""
    make_model("bert", "classification", num_layers=1).save_pretrained(tmp_path)
    make_text_tokenizer().save_pretrained(tmp_path)
    peer = litserve_peer.Classifier(tmp_path)
    peer.setup("cpu")
    texts = [peer.decode_request({"text": text}) for text in make_texts(3)]
    answers = [peer.encode_response(answer) for answer in peer.predict(texts)]
    assert answers == load_predictor(tmp_path).predict(texts)


def test_load_is_for_this_machine_alone():
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is not this machine: load is only sent to 127\.0\.0\.1"):
        http_load.Load("192.0.2.1", 80, "/", [])


def saved_instead(model, folder, format, *, tokenizer, texts, min_agreement):
    """In place of an export, which takes a second."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return SimpleNamespace(num_bytes=model.num_parameters() * {"onnx": 4, "onnx-int8": 1}[format])


@pytest.mark.long
def test_narrower(pretrained, film_corpus, tmp_path, capsys, monkeypatch):
    """Students of every kind of cut are trained, exported and measured. A second run trains and measures nothing."""
    for name, value in {"VOCABULARY": 50, "ROUNDS": 1, "TEXTS_PER_TURN": 2, "NUM_COMPARED": 4}.items():
        monkeypatch.setattr(narrower, name, value)
    monkeypatch.setattr(quickstart_students, "TEACHER_OPTIONS", {"max_steps": 2})
    monkeypatch.setattr(narrower, "export_model", saved_instead)
    half = {"num_layers": 2, "hidden": 1 / 2, "feed_forward": 1 / 2}
    students = {"2 layers": Cut(2), "half": Cut(**half), "half, 50 tokens": Cut(**half, trimmed=True)}
    students["50 tokens, not trained"] = Cut(trimmed=True, trained=False)
    variants = {
        "taylor": Cut(**half, width="taylor"),
        "magnitude": Cut(**half, width="magnitude"),
        "hidden states": Cut(**half, losses=narrower.PROJECTED),
        "relations": Cut(**half, losses={"alpha_relation": 1.0}),
    }
    monkeypatch.setattr(narrower, "VARIED", "half")
    output = tmp_path / "narrower.json"

    def run():
        measured = narrower.run(pretrained, film_corpus, output, [0, 1], 2, students, variants)
        return json.loads(json.dumps(measured)), capsys.readouterr().out

    measured, printed = run()
    assert json.loads(output.read_text()) == measured
    assert measured["students"].keys() == {"teacher", *students, *variants}
    assert measured["speed"].keys() == {"teacher", *students}
    teacher = measured["students"]["teacher"]["0"]
    assert teacher["fp32"]["agreement"] == 1
    for name in students:
        runs = measured["students"][name]
        assert runs.keys() == {"0", "1"}
        assert runs["0"]["int8"]["megabytes"] * 4 == runs["0"]["fp32"]["megabytes"] < teacher["fp32"]["megabytes"]
        assert printed.count(f"\n| {name} | ") == (2 if name == "half" else 1)
        assert min(measured["speed"][name].values()) > 0
    assert all(printed.count(f"\n| {name} | ") == 1 for name in ("teacher", *variants))
    parameters = {name: runs["0"]["parameters"] for name, runs in measured["students"].items()}
    assert parameters["half"] - parameters["half, 50 tokens"] == (VOCAB_SIZE - 50) * 8
    assert parameters["teacher"] - parameters["50 tokens, not trained"] == (VOCAB_SIZE - 50) * 16
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(narrower.Benchmark, "trained", None)
    monkeypatch.setattr(narrower.Benchmark, "measure", None)
    assert run()[0] == measured
