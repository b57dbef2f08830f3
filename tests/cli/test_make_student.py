"""`hf-distill make-student`"""

from pathlib import Path

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

from hf_distill import make_student
from hf_distill.cli import main
from hf_distill.student.model_card import student_card
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.training.teacher.test_live import make_tokenizer


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
        (["--num-layers", "encoder=1"], "names 'encoder', but the teacher has the stacks 'layers'"),
        (["--family", "bert"], "family='bert' is unknown: use 'distilbert'"),
        (["--family", "distilbert"], "Cannot make a DistilBERT from RobertaForMaskedLM"),
        (
            ["--layers", "calibrated"],
            "calibration_data is missing, but layers=['calibrated']: use both together",
        ),
        (["--layers", "calibrated", "--calibration-file", "nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["--layers", "-1"], "out of range"),
        (["--intermediate-size", "64"], "intermediate_size=64, but the teacher has intermediate_size=32"),
        (["--hidden-size", "wide"], "--hidden-size: 'wide' is not a whole number"),
        (["--hidden-size", "text=8"], "names 'text', but there is one for each of 'layers'"),
        (["--num-key-value-heads", "1"], "has no number for the key-value heads"),
        (["--num-attention-heads", "1"], "Give hidden_size= too, so that a head keeps its width"),
        (["--width", "random"], "width='random' is unknown"),
        (["--width", "activation"], "width='activation' would have no effect without a size"),
        (["--width", "activation", "--hidden-size", "8"], "width='activation' needs data"),
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
    assert "already exists" in capsys.readouterr().err
    assert not list((tmp_path / "student").iterdir())


def test_teacher_that_is_not_there(tmp_path, capsys):
    assert main(["make-student", str(tmp_path / "nothing"), "--output", str(tmp_path / "student")]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()


def test_teacher_without_weights(tmp_path, capsys):
    make_model("bert", "mlm").config.save_pretrained(tmp_path / "teacher")
    torch.save({}, tmp_path / "teacher" / "pytorch_model.bin")
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student")]) == 2
    assert "teacher has no .safetensors weights" in capsys.readouterr().err


def test_an_adapter(tmp_path, capsys):
    get_peft_model(make_model("bert", "mlm"), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "lora")
    assert main(["make-student", str(tmp_path / "lora"), "--output", str(tmp_path / "student")]) == 2
    assert "lora is a PEFT adapter, which does not record the model's head" in capsys.readouterr().err


def test_sizes(teacher, tmp_path, capsys):
    options = ["--hidden-size", "8", "--num-attention-heads", "layers=1", "--intermediate-size", "16"]
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    sizes = "intermediate_size 16 (of 32), num_attention_heads 1 (of 2), hidden_size 8 (of 16)"
    assert f"RobertaForMaskedLM with layers [0, 1, 2, 3], {sizes} of {teacher}" in line
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    expected = make_student(
        AutoModelForMaskedLM.from_pretrained(teacher), hidden_size=8, num_attention_heads=1, intermediate_size=16
    )
    assert student.config.distilled_from == expected.config.distilled_from
    for name, weight in expected.state_dict().items():
        assert torch.equal(student.state_dict()[name], weight), name
    card = (tmp_path / "student" / "README.md").read_text()
    assert "keeps some of the units of `teacher`" in card
    assert "| sizes | intermediate_size: 16 of 32; num_attention_heads: 1 of 2; hidden_size: 8 of 16 |" in card
    assert "| unit selection | magnitude |" in card


def test_layers_and_sizes(teacher, tmp_path):
    options = ["--num-layers", "2", "--intermediate-size", "16"]
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    config = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").config
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 16)
    assert "keeps some of the layers and units" in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize("width", ["activation", "taylor"])
def test_units_chosen_on_texts(tmp_path, width):
    """As with `calibration_data`; a masked language model is given random masks, the same at every run."""
    make_model("bert", "mlm").save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.txt").write_text("\n".join(make_texts(40)), encoding="utf-8")
    options = ["--intermediate-size", "8", "--width", width, "--calibration-file", str(tmp_path / "texts.txt")]
    students = []
    for name in ("first", "second"):
        assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / name), *options]) == 0
        students.append(AutoModelForMaskedLM.from_pretrained(tmp_path / name))
    assert students[0].config.distilled_from["width"] == width
    by_magnitude = make_student(AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher"), intermediate_size=8)
    weights = [model.bert.encoder.layer[0].intermediate.dense.weight for model in (*students, by_magnitude)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_labels_that_texts_do_not_have(tmp_path, capsys):
    make_model("bert", "classification").save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.txt").write_text("w5 w6")
    options = ["--intermediate-size", "8", "--width", "taylor", "--calibration-file", str(tmp_path / "texts.txt")]
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student"), *options]) == 2
    assert (
        "a file of texts has none for BertForSequenceClassification: use width='activation'" in capsys.readouterr().err
    )
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("is_cut", [False, True])
def test_vocabulary(tmp_path, capsys, is_cut):
    """Without other options, all layers stay."""
    make_model("bert", "mlm").save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "texts.txt").write_text("w5 w6 w7\n\nw5 w9\n", encoding="utf-8")
    options = ["--vocabulary-texts", str(tmp_path / "texts.txt"), *(["--num-layers", "2"] if is_cut else [])]
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student"), *options]) == 0
    assert "9 (of 61) tokens of " in capsys.readouterr().out
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert student.config.vocab_size == len(tokenizer) == 9  # and five special tokens
    teacher = make_student(AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher"), num_layers=2 if is_cut else 4)
    old = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    kept = old.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(range(9)))
    with torch.no_grad():
        logits = student(**tokenizer("w9 w5", return_tensors="pt")).logits
        torch.testing.assert_close(logits, teacher(**old("w9 w5", return_tensors="pt")).logits[..., kept])
    card = (tmp_path / "student" / "README.md").read_text()
    assert "| tokens kept | 9 of 61 |" in card
    assert ("| layers kept | 0, 2 |" in card) == is_cut
    assert f"some of the {'layers and ' if is_cut else ''}tokens of `teacher`" in card


def test_number_of_tokens(tmp_path, capsys):
    make_model("bert", "mlm").save_pretrained(tmp_path / "teacher")
    make_text_tokenizer().save_pretrained(tmp_path / "teacher")
    command = ["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student")]
    assert main([*command, "--keep-tokens", "62"]) == 2
    assert "keep=62 is higher than the 61 tokens" in capsys.readouterr().err
    assert not (tmp_path / "student").exists()
    assert main([*command, "--keep-tokens", "20", "--hidden-size", "8", "--num-attention-heads", "1"]) == 0
    config = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (20, 8, 4)
    assert config.distilled_from["vocabulary"] == {"kept": 20, "of": 61}


def test_tokens_of_a_model_without_any(tmp_path, capsys):
    make_model("vit", "image").save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "teacher")
    options = ["--keep-tokens", "5", "--output", str(tmp_path / "student")]
    assert main(["make-student", str(tmp_path / "teacher"), *options]) == 2
    assert "tokenizer must be a tokenizer of transformers, but is a ViTImageProcessor" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["calibrated", "influence"])
def test_strategies_that_read_texts(teacher, tmp_path, strategy):
    tokenizer = make_tokenizer(["[PAD]", "a", "b", "c"])
    tokenizer.pad_token = "[PAD]"
    tokenizer.save_pretrained(teacher)
    (tmp_path / "texts.txt").write_text("a b c\n\nb b\nc\n", encoding="utf-8")
    options = ["--layers", strategy, "--calibration-file", str(tmp_path / "texts.txt")]
    assert main(["make-student", str(teacher), "--output", str(tmp_path / "student"), *options]) == 0
    provenance = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").config.distilled_from
    assert provenance["method"] == strategy
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [2, 2, 0], [3, 0, 0]])}
    inputs["attention_mask"] = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    expected = make_student(AutoModelForMaskedLM.from_pretrained(teacher), layers=strategy, calibration_data=[inputs])
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
    assert "--calibration-file holds text, but ViTForImageClassification" in capsys.readouterr().err


def test_stacks_by_name(tmp_path):
    make_model("bart", "seq2seq").save_pretrained(tmp_path / "teacher")
    make_tokenizer(["a", "b", "c"]).save_pretrained(tmp_path / "teacher")
    options = ["--num-layers", "decoder=2", "--layers", "encoder=last", "decoder=spread"]
    assert main(["make-student", str(tmp_path / "teacher"), "--output", str(tmp_path / "student"), *options]) == 0
    student = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "student")
    teacher_layers = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "teacher").config
    assert student.config.distilled_from["layers"]["decoder"] == [0, teacher_layers.decoder_layers - 1]


def test_distilbert(tmp_path):
    """The student has no token types, so its tokenizer does not return them."""
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
    for line in ("| teacher | teacher |", "| revision | unknown |", "| layers kept | 1, 3 |"):
        assert line in card.text
    assert "| layer selection | explicit |" in card.text
    assert "from transformers import RobertaForMaskedLM" in card.text
    assert str(tmp_path) not in card.content


def test_card_of_a_teacher_on_the_hub():
    model = make_model("bart", "seq2seq")
    model.name_or_path, model.config._commit_hash = "facebook/bart-base", "aadd2ab"
    card = student_card(make_student(model, num_layers={"decoder": 1}), "facebook/bart-base")
    assert card.data.base_model == "facebook/bart-base"
    assert "`facebook/bart-base` at revision `aadd2ab`" in card.text
    assert "| layer selection | encoder: all; decoder: alternate |" in card.text
