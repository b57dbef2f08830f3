"""`hf-distill` from the shell."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from hf_distill import __version__, describe, make_student
from hf_distill.cli import main
from hf_distill.student.model_card import student_card
from tests.conftest import make_config, make_model, make_text_tokenizer, make_texts
from tests.training.teacher.test_live import make_tokenizer
from tests.training.test_engines import TORCHRUN


@pytest.fixture
def teacher(tmp_path):
    make_model("roberta", "mlm").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_make_student(teacher, tmp_path, capsys):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "out" / "student")]) == 0
    assert "layers [0, 2]" in capsys.readouterr().out
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "student")
    assert student.config.num_hidden_layers == 2
    assert student.config.distilled_from["teacher"] == "teacher"
    whole = AutoModelForMaskedLM.from_pretrained(teacher)
    assert torch.equal(
        student.roberta.encoder.layer[1].output.dense.weight, whole.roberta.encoder.layer[2].output.dense.weight
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out" / "student")) == 3


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (["--layers", "1", "3"], [1, 3]),
        (["--layers", "2"], [2]),
        (["--layers", "last", "--num-layers", "1"], [3]),
        (["--num-layers", "3"], [0, 1, 2]),
        (["--layers", "layers=0,3"], [0, 3]),
    ],
)
def test_choice_of_layers(teacher, tmp_path, options, layers):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    assert student.config.distilled_from["layers"] == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-layers", "5"], "num_layers=5, but the teacher has 4 layers"),
        (["--layers", "middle"], "layers='middle' is not a known strategy"),
        (["--layers", "0", "two"], "'two' is not a whole number"),
        (["--num-layers", "half"], "'half' is not a whole number"),
        (["--num-layers", "1", "2"], "'1 2' should be one number"),
        (["--num-layers", "layers=1", "2"], "should have one NAME=VALUE for each stack"),
        (["--num-layers", "encoder=1"], "names 'encoder', but the teacher's stacks are 'layers'"),
        (["--family", "bert"], "family='bert' is not known: use 'distilbert'"),
        (["--family", "distilbert"], "no DistilBERT of a RobertaForMaskedLM"),
        (
            ["--layers", "calibrated"],
            "There is no calibration_data, and layers=['calibrated']: the one needs the other",
        ),
        (["--layers", "calibrated", "--calibration-file", "nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["--layers", "-1"], "out of range"),
    ],
)
def test_bad_choice_is_one_line_and_leaves_nothing(teacher, tmp_path, capsys, options, message):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("hf-distill: ")  # above it is the progress bar of loading
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def test_output_that_exists_is_left_alone(teacher, tmp_path, capsys):
    (tmp_path / "student").mkdir()
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "student").iterdir())


def test_teacher_that_is_not_there(tmp_path, capsys):
    assert main(["make-student", str(tmp_path / "nothing"), "--output", str(tmp_path / "student")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_teacher_without_weights(tmp_path, capsys):
    make_model("bert", "mlm").config.save_pretrained(tmp_path / "teacher")
    torch.save({}, tmp_path / "teacher" / "pytorch_model.bin")
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student")]) == 2
    assert "teacher has no weights in safetensors" in capsys.readouterr().err


def test_an_adapter(tmp_path, capsys):
    get_peft_model(make_model("bert", "mlm"), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "lora")
    assert main(["make-student", str(tmp_path / "lora"), "--output", str(tmp_path / "student")]) == 2
    assert "lora is a PEFT adapter, which does not say what head it belongs to" in capsys.readouterr().err


def test_calibrated(teacher, tmp_path, caplog):
    tokenizer = make_tokenizer(["[PAD]", "a", "b", "c"])
    tokenizer.pad_token = "[PAD]"
    tokenizer.save_pretrained(teacher)
    (tmp_path / "texts.txt").write_text("a b c\n\nb b\nc\n", encoding="utf-8")
    options = ["--layers", "calibrated", "--calibration-file", str(tmp_path / "texts.txt")]
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    provenance = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").config.distilled_from
    assert provenance["method"] == "calibrated"
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [2, 2, 0], [3, 0, 0]])}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    expected = make_student(
        AutoModelForMaskedLM.from_pretrained(teacher), layers="calibrated", calibration_data=[inputs]
    )
    assert provenance["layers"] == expected.config.distilled_from["layers"]


def test_empty_calibration_file(teacher, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n")
    options = ["--layers", "calibrated", "--calibration-file", str(tmp_path / "texts.txt")]
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 2
    assert "calibration_data is empty" in capsys.readouterr().err


def test_calibration_file_for_images(tmp_path, capsys):
    make_model("vit", "image").save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.txt").write_text("a")
    options = ["--layers", "calibrated", "--calibration-file", str(tmp_path / "texts.txt")]
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student"), *options]) == 2
    assert "--calibration-file is for texts, but ViTForImageClassification" in capsys.readouterr().err


def test_stacks_by_name(tmp_path):
    make_model("bart", "seq2seq").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    options = ["--num-layers", "decoder=2", "--layers", "encoder=last", "decoder=spread"]
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student"), *options]) == 0
    student = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    teacher_layers = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "teacher").config
    assert student.config.distilled_from["layers"]["decoder"] == [0, teacher_layers.decoder_layers - 1]


def test_distilbert(tmp_path):
    """The tokenizer does not give it the token types that it does not have."""
    make_model("bert", "classification").save_pretrained(tmp_path / "teacher")
    Path(tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "teacher")
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path / "teacher")("a b")
    options = ["--family", "distilbert", "--output", str(tmp_path / "student")]
    assert main(["make-student", str(tmp_path / "teacher"), *options]) == 0
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert student.config.model_type == "distilbert"
    assert set(AutoTokenizer.from_pretrained(tmp_path / "student")("a b")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("family", "head", "processor"),
    [("vit", "image", ViTImageProcessor), ("wav2vec2", "audio", Wav2Vec2FeatureExtractor)],
)
def test_images_and_sounds(tmp_path, family, head, processor):
    make_model(family, head).save_pretrained(tmp_path / "teacher")
    processor(do_normalize=False).save_pretrained(tmp_path / "teacher")
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student")]) == 0
    assert not processor.from_pretrained(tmp_path / "student").do_normalize


def test_card(teacher, tmp_path):
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), "--layers", "1", "3"]) == 0
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert card.data.library_name == "transformers"
    assert "hf_distill" in card.data.tags
    assert card.data.base_model is None  # a folder is not on the Hub
    for line in ("| teacher | teacher |", "| revision | not known |", "| layers kept | 1, 3 |"):
        assert line in card.text
    assert "| how they were chosen | explicit |" in card.text
    assert "from transformers import RobertaForMaskedLM" in card.text
    assert str(tmp_path) not in card.content


def test_card_of_a_teacher_on_the_hub():
    model = make_model("bart", "seq2seq")
    model.name_or_path, model.config._commit_hash = "facebook/bart-base", "aadd2ab"
    card = student_card(make_student(model, num_layers={"decoder": 1}), "facebook/bart-base")
    assert card.data.base_model == "facebook/bart-base"
    assert "`facebook/bart-base` at revision `aadd2ab`" in card.text
    assert "| how they were chosen | encoder: all; decoder: alternate |" in card.text


def test_inspect(teacher, tmp_path, capsys):
    """It reads the config alone."""
    (teacher / "model.safetensors").unlink()
    assert main(["inspect", str(teacher)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == describe(make_model("roberta", "mlm"))
    assert "0-3: RobertaLayer x 4" in shown


@pytest.mark.parametrize("architectures", [None, ["MyModel"]])
def test_inspect_a_class_that_is_not_there(tmp_path, capsys, architectures):
    make_config("bert", architectures=architectures).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "its config should name one under `architectures`" in capsys.readouterr().err


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A folder to work in, with `pretrained`, `train.csv`, `test.csv` and `config.yaml`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_model("bert", "mlm").save_pretrained(tmp_path / "pretrained")
    make_text_tokenizer().save_pretrained(tmp_path / "pretrained")
    for name, num_rows in (("train.csv", 32), ("test.csv", 16)):
        rows = [f"{text},{'pos' if index % 2 else 'neg'}" for index, text in enumerate(make_texts(num_rows))]
        (tmp_path / name).write_text("\n".join(["review,mood", *rows]))
    (tmp_path / "config.yaml").write_text(
        "train_file: train.csv\ntest_file: test.csv\ntext_column: review\nlabel_column: mood\n"
        "model_name_or_path: pretrained\nlearning_rate: 1.0e-3\nmax_steps: 4\nper_device_train_batch_size: 4\n"
        "use_cpu: true\nreport_to: none\nsave_strategy: 'no'\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


DISTIL = """
model_name_or_path: null
teacher_model_name_or_path: teacher
"""


def test_train_and_evaluate(reviews, capsys):
    assert main(["train", "config.yaml", "--output_dir", "teacher"]) == 0
    (reviews / "distil.yaml").write_text(DISTIL)
    words = ["train", "config.yaml", "distil.yaml", "--output-dir", "student", "--max_steps", "2", "--optim", "sgd"]
    assert main(words) == 0
    assert AutoModelForSequenceClassification.from_pretrained("student").config.num_hidden_layers == 2
    assert json.loads(Path("student/train_results.json").read_text())["epoch"] == 0.25
    tested = json.loads(Path("student/test_results.json").read_text())

    capsys.readouterr()
    words = ["evaluate", "student", "--data", "test.csv", "--teacher", "teacher", "--output", "report"]
    assert main(words) == 0  # which columns there are, the student says
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said["texts"] == "16"
    assert float(said["accuracy"]) == pytest.approx(tested["test_accuracy"], abs=1e-4)
    assert {"f1", "agreement", "kl_to_teacher"} <= said.keys()
    assert Path("report/calibration.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["make-student", "TEACHER", "--num_layers", "1", "--calibration_file=a_b.txt", "--output", "a_b"],
        ["evaluate", "MODEL", "--data", "a_b.csv", "--text_column", "a_b", "--label_column=a_b", "--max_length", "8"],
        ["export", "MODEL", "--output", "a_b", "--max_length", "8", "--min_agreement", "0.9"],
        ["report", "--teacher", "a", "--student", "b", "--data", "c", "--output", "d", "--config_name", "a_b"],
        ["serve", "MODEL", "--token_file", "a_b", "--max_batch_tokens", "512"],
    ],
)
def test_options_with_underscores(monkeypatch, words):
    """Those of `train` are spelt so; of a value, nothing is changed."""
    parsed = []
    monkeypatch.setattr(sys.modules[main.__module__], f"_{words[0].replace('-', '_')}", parsed.append)
    with_dashes = [
        word.replace("_", "-", word.split("=")[0].count("_")) if word[:2] == "--" else word for word in words
    ]
    assert with_dashes != words
    assert main(words) == main(with_dashes) == 0
    assert parsed[0] == parsed[1]
    assert "a_b" in str(parsed[0])


def test_train_says_what_is_wrong(reviews, capsys):
    for words, message in (
        (["config.yaml", "--text_column", "text"], "train.csv has no column 'text', only 'review', 'mood'"),
        (["nothing.yaml"], "There is no config file"),
        (["config.yaml", "--model_name_or_path", "nowhere/at/all"], "nowhere/at/all"),
        (["--model_name_or_path", "pretrained"], "There is nothing to train on"),
    ):
        assert main(["train", *words, "--output_dir", "out", "--use_cpu"]) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("hf-distill: ")
        assert message in error.splitlines()[-1]
        assert "Traceback" not in error
    (reviews / "wrong.yaml").write_text("lerning_rate: 1.0")
    assert main(["train", "config.yaml", "wrong.yaml"]) == 2
    assert "wrong.yaml has options that do not exist: lerning_rate" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_code:
        main(["train", "config.yaml", "--lerning_rate", "1"])
    assert exit_code.value.code == 2
    assert "hf-distill train [CONFIG.yaml ...] [--key value ...]" in capsys.readouterr().err


def test_train_into_a_finished_folder(reviews, capsys, caplog):
    words = ["train", "config.yaml", "--output_dir", "out", "--save_strategy", "epoch"]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert main(words) == 0
    assert "out has this model already" in caplog.text
    assert main([*words, "--learning_rate", "0.5"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        "hf-distill: out has a finished training with other settings: learning_rate was 0.001 and is"
    )
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert main([*words, "--max_steps", "6", "--resume"]) == 0
    assert main([*words, "--learning_rate", "0.5", "--overwrite"]) == 0
    assert "| learning rate | 0.5," in Path("out/README.md").read_text()


def test_evaluate_says_what_is_wrong(reviews, capsys):
    assert main(["evaluate", "pretrained", "--data", "test.csv"]) == 2
    assert "pretrained has no head that was trained to classify texts" in capsys.readouterr().err.splitlines()[-1]


def test_train_on_two_processes(reviews):
    """As a module, which is how `accelerate launch -m` and `torchrun -m` start it."""

    def run():
        command = ["-m", *TORCHRUN, "-m", "hf_distill.cli", "train", "config.yaml", "--ddp_backend", "gloo"]
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(reviews / "cache")},
        )

    first = run()
    results = Path("trainer_output/train_results.json")
    assert results.exists(), first.stderr[-3000:]
    assert json.loads(results.read_text())["epoch"] == 1  # 4 steps of 2 * 4 rows
    assert AutoModelForSequenceClassification.from_pretrained("trainer_output").config.label2id["pos"] == 1

    before = {path: path.read_bytes() for path in Path("trainer_output").rglob("*") if path.is_file()}
    assert run().stderr.count("trainer_output has this model already") == 1
    assert {path: path.read_bytes() for path in Path("trainer_output").rglob("*") if path.is_file()} == before


def test_version_and_help(capsys):
    for options, expected in (
        (["--version"], __version__),
        (["--help"], "make-student"),
        (["inspect", "--help"], "no weights"),
        (["make-student", "--help"], "--num-layers"),
        (["train", "--help"], "--gradient_accumulation_steps"),
        (["evaluate", "--help"], "--truncation"),
        (["benchmark", "--help"], "--lengths"),
        (["report", "--help"], "--export"),
        (["serve", "--help"], "--max-batch-tokens"),
    ):
        with pytest.raises(SystemExit) as exit_code:
            main(options)
        assert exit_code.value.code == 0
        assert expected in capsys.readouterr().out
