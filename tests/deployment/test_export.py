"""Exports compared with their students, independently of the built-in check."""

import itertools
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_distill import export_model, load_predictor
from hf_distill.deployment import onnx as onnx_export
from hf_distill.deployment.predictor import predictor_of
from tests.conftest import make_model, make_text_tokenizer, make_texts
from tests.deployment.conftest import texts_for, tiny_student

ENCODERS = ["bert", "roberta", "distilbert", "albert", "deberta-v2", "modernbert"]
PER_ENCODER = ["sequence classification", "token classification", "question answering"]
SHORT = {*(("bert", head) for head in PER_ENCODER), ("modernbert", PER_ENCODER[0])}
CASES = [
    pytest.param(*case, marks=[] if case in SHORT else pytest.mark.long)
    for case in itertools.product(ENCODERS, PER_ENCODER)
] + [
    ("bert", "masked language modelling"),
    pytest.param("llama", "sequence classification", marks=pytest.mark.long),
    pytest.param("gpt2", "causal language modelling", marks=pytest.mark.long),
    ("llama", "causal language modelling"),
]


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_parity(model_type, head, tmp_path):
    """Logits match on a padded batch of new texts, with another size and length than the exporter saw.

    Predictions are those of the student.
    """
    model, texts = tiny_student(model_type, head), texts_for(head)
    tokenizer = make_text_tokenizer()
    export = export_model(model, tmp_path / "onnx", "onnx", tokenizer=tokenizer, texts=texts, max_length=30)
    assert export.parity.largest_difference < 1e-4
    assert export.parity.agreement == 1.0

    generator = torch.Generator().manual_seed(1)
    inputs = {"input_ids": torch.randint(5, 61, (5, 29), generator=generator)}
    inputs["attention_mask"] = (torch.arange(29) < torch.tensor([[29], [1], [12], [28], [3]])).long()
    inputs["input_ids"][inputs["attention_mask"] == 0] = model.config.pad_token_id
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    token_types = {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    given = inputs | (token_types if "token_type_ids" in [own.name for own in session.get_inputs()] else {})
    actual = session.run(names, {name: tensor.numpy() for name, tensor in given.items()})
    with torch.no_grad():
        expected = model(**inputs)
    for name, own in zip(names, actual, strict=True):
        reference = expected[name].numpy()
        if head != "sequence classification":
            own, reference = own[inputs["attention_mask"] == 1], reference[inputs["attention_mask"] == 1]
        assert np.abs(own - reference).max() < 1e-4

    student_says = predictor_of(model, tokenizer, "student", 30).predict(texts, top_k=2)
    assert len(student_says) == len(texts)
    for one, other in zip(student_says, load_predictor(export.folder).predict(texts, top_k=2), strict=True):
        for mine, its in zip(one, other, strict=True):
            assert its == mine | {"score": pytest.approx(mine["score"], abs=1e-4)}


def test_what_is_written(student, exported):
    names = {"config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in exported.iterdir()} == names
    manifest = json.loads((exported / "export.json").read_text())
    assert manifest["student"] == "bert"
    assert manifest["labels"] == ["bad", "good"]
    assert manifest["files"] == {"model.onnx": (exported / "model.onnx").stat().st_size}
    assert manifest["parity"]["texts"] == 6
    assert manifest["parity"]["decisions"] == 12  # each alone, and in a batch
    written = b"".join(file.read_bytes() for file in exported.iterdir())
    assert str(student.parent).encode() not in written
    assert b"site-packages" not in written  # the exporter's stack traces are removed


def test_right_after_a_training_in_bf16(tmp_path):
    """The training leaves a forward that computes with autocast, and the export does not."""
    model = tiny_student("bert", "sequence classification")
    rows = [{"input_ids": [5, 6, 7], "labels": label} for label in (0, 1)]
    args = TrainingArguments(str(tmp_path / "out"), bf16=True, use_cpu=True, max_steps=1, report_to="none")
    Trainer(model, args, train_dataset=rows).train()
    export = export_model(model, tmp_path / "onnx", "onnx", tokenizer=make_text_tokenizer(), texts=texts_for(""))
    assert export.parity.largest_difference < 1e-4
    assert "_original_forward" in vars(model)  # the model itself does not change


def test_the_model_at_hand_stays_as_it_is(tmp_path):
    model = tiny_student("bert", "sequence classification").to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, tmp_path / "onnx", "onnx", tokenizer=make_text_tokenizer(), texts=make_texts(6))
    assert model.training
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("gpt2", "causal language modelling"),
        ("bert", "masked language modelling"),
        pytest.param("llama", "token classification", marks=pytest.mark.long),
        pytest.param("bert", "question answering", marks=pytest.mark.long),
    ],
)
def test_int8_of_other_heads(model_type, head, tmp_path):
    """Matrices that are tied to embeddings, have no bias, or are stored transposed."""
    model, texts = tiny_student(model_type, head), texts_for(head)
    options = {"tokenizer": make_text_tokenizer(), "texts": texts, "max_length": 30, "min_agreement": 0}
    folder = export_model(model, tmp_path / "int8", **options).folder
    graph = onnx.load(folder / "model.onnx")
    matrices = [own for own in graph.graph.initializer if len(own.dims) == 2 and min(own.dims) > 1]
    assert {own.data_type for own in matrices} == {onnx.TensorProto.INT8}
    exact, int8 = predictor_of(model, make_text_tokenizer(), "student", 30), load_predictor(folder)
    for one, other in zip(*[own.run(own.encoder.encode(texts)) for own in (exact, int8)], strict=True):
        for name in one:
            assert (one[name] - other[name]).std() < 0.15 * one[name].std()


def test_a_classifier_that_looks_for_padding(tmp_path):
    """GPT-2 has no padding token, and reads the last token before it."""
    model = tiny_student("gpt2", "sequence classification")
    model.config.pad_token_id = None
    tokenizer, texts = make_text_tokenizer(), make_texts(6)
    export = export_model(model, tmp_path / "onnx", "onnx", tokenizer=tokenizer, texts=texts, max_length=30)
    assert model.config.pad_token_id is None
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits
    assert np.abs(load_predictor(export.folder).logits(texts) - expected.numpy()).max() < 1e-4


def test_int8_is_small_and_near(tmp_path):
    """A model wide enough for the matrices to dominate the size."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512, "vocab_size": 2000}
    model = tiny_student("bert", "sequence classification", **sizes)
    tokenizer, texts = make_text_tokenizer(), make_texts(12)
    num_bytes, logits = {}, {}
    for format in ("onnx", "onnx-int8", "torch-int8"):
        export = export_model(model, tmp_path / format, format, tokenizer=tokenizer, texts=texts, min_agreement=0)
        num_bytes[format], logits[format] = export.num_bytes, load_predictor(export.folder).logits(texts)
    assert num_bytes["onnx-int8"] < 0.32 * num_bytes["onnx"]  # more than 0.25: operators count in so small a file
    assert num_bytes["torch-int8"] < 0.6 * num_bytes["onnx"]  # embeddings stay in fp32
    for format in ("onnx-int8", "torch-int8"):
        error = (logits[format] - logits["onnx"]).std() / logits["onnx"].std()
        assert 0 < error < 0.15, format


def test_torch_int8_loads_with_plain_transformers(student, tmp_path):
    export = export_model(student, tmp_path / "int8", "torch-int8", texts=make_texts(6), min_agreement=0)
    model = AutoModelForSequenceClassification.from_pretrained(export.folder).eval()
    texts = make_texts(4, seed=1)
    inputs = make_text_tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    assert np.abs(load_predictor(export.folder).logits(texts) - expected.numpy()).max() < 1e-5


def test_int8_says_the_same_in_any_company(student, tmp_path):
    export = export_model(student, tmp_path / "int8", texts=make_texts(6), min_agreement=0)
    predictor, texts = load_predictor(export.folder), make_texts(20, seed=3)
    together = predictor.logits(texts)
    assert all((predictor.logits([text]) == together[number]).all() for number, text in enumerate(texts))


@pytest.mark.long
def test_weights_beside_the_graph(student, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 0)
    folder = export_model(student, tmp_path / "onnx", "onnx", texts=make_texts(6)).folder
    assert set(json.loads((folder / "export.json").read_text())["files"]) == {"model.onnx", "model.onnx.data"}
    quantised = export_model(student, tmp_path / "int8", texts=make_texts(6), min_agreement=0).folder
    load_predictor(quantised).predict(["w5 w6"])
    (folder / "model.onnx.data").unlink()
    with pytest.raises(ValueError, match=r"onnx lacks model\.onnx\.data, a file of the model"):
        load_predictor(folder)


def test_an_export_that_is_not_the_student_is_not_written(student, tmp_path, monkeypatch):
    def spoil(graph):
        graph.graph.initializers["model.bert.embeddings.word_embeddings.weight"].const_value.numpy()[:, 0] += 0.5

    monkeypatch.setattr(onnx_export, "compute_first_token_alone", spoil)
    with pytest.raises(
        ValueError, match=r"The export does not match the student.*differ by up to .*Nothing was written"
    ):
        export_model(student, tmp_path / "onnx", "onnx", texts=make_texts(6))
    assert list(tmp_path.iterdir()) == []


def test_int8_that_decides_otherwise_is_not_written(student, tmp_path):
    with pytest.raises(ValueError, match=r"differs too much.*min_agreement is 101\.0%"):
        export_model(student, tmp_path / "int8", texts=make_texts(6), min_agreement=1.01)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(student, exported, tmp_path):
    tokenizer, output = make_text_tokenizer(), tmp_path / "output"
    with pytest.raises(ValueError, match=r"format='tflite' must be one of onnx, onnx-int8, torch-int8"):
        export_model(student, output, "tflite")
    with pytest.raises(TypeError, match=r"Cannot export PeftModel.*call trainer.save_merged_model first"):
        export_model(get_peft_model(make_model("bert", "mlm"), LoraConfig()), output, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="already exists: choose another folder"):
        export_model(student, exported)
    with pytest.raises(ValueError, match="A loaded model comes without a tokenizer"):
        export_model(make_model("bert", "classification"), output)
    with pytest.raises(ValueError, match=r"cannot be exported: it needs a head for one of audio classification"):
        export_model(make_model("bert", "multiple_choice"), output, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        export_model(tmp_path / "nothing", output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        export_model(tmp_path / "empty", output)
    with pytest.raises(ValueError, match="texts is empty"):
        export_model(student, output, texts=[])
    with pytest.raises(ValueError, match="Text 1 is empty"):
        export_model(student, output, texts=["w5", " "])
    with pytest.raises(ValueError, match="max_length=100 exceeds the model's 64 tokens"):
        export_model(student, output, max_length=100)
    assert not output.exists()


def test_a_head_without_weights_is_refused(student, tmp_path):
    backbone = AutoModelForSequenceClassification.from_pretrained(student).bert
    backbone.config.architectures = ["BertForSequenceClassification"]
    folder = tmp_path / "backbone"
    backbone.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    make_text_tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has no weights for classifier\.bias, classifier\.weight"):
        export_model(folder, tmp_path / "output")


def test_the_graph_is_valid_onnx(exported):
    graph = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [opset.domain for opset in graph.opset_import] == [""]  # nothing that ONNX Runtime alone has
    shapes = [[dim.dim_param or dim.dim_value for dim in own.type.tensor_type.shape.dim] for own in graph.graph.input]
    assert all(isinstance(size, str) for shape in shapes for size in shape)
