"""Embedding models in every format: the vectors are those of sentence-transformers."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import HfApi

from hf_distill import export_model, load_predictor, push_folder
from hf_distill.cli import main
from hf_distill.deployment import onnx as onnx_export
from hf_distill.deployment.embeddings import PART, embed
from hf_distill.deployment.parity import measure_parity
from hf_distill.evaluation import benchmark_models
from tests.conftest import make_text_tokenizer, make_texts
from tests.sentence_models import PROMPTS, make_sentence_model

pytest.importorskip("sentence_transformers")

from sentence_transformers import CrossEncoder, SentenceTransformer, models

from hf_distill.embedding import EmbeddingModel

LONG = " ".join(f"w{5 + index % 50}" for index in range(100))
TEXTS = [*make_texts(11, longest=30), LONG, "w5"]
"""Of 1 to 100 tokens; three are longer than the limit of 24 tokens."""


def ours(folder, texts=TEXTS, **options):
    return load_predictor(folder).embed(texts, **options)


def cosines(one, other):
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.fixture(scope="module")
def library_model(tmp_path_factory):
    """Mean pooling, two Dense modules, vectors of length 1, and prompts."""
    return make_sentence_model(tmp_path_factory.mktemp("model"), dense=12, prompts=PROMPTS)


@pytest.fixture(scope="module")
def folder(library_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "embedder"
    library_model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def exports(folder, tmp_path_factory):
    """Exports by format."""
    output = tmp_path_factory.mktemp("exports")
    formats = ("onnx", "onnx-int8", "torch-int8")
    return {own: export_model(folder, output / own, own, texts=make_texts(8), min_cosine=0.9) for own in formats}


def test_every_way_gives_the_same_vectors(library_model, folder, exports):
    expected = library_model.encode(TEXTS)
    model = EmbeddingModel.from_pretrained(folder)
    tokens = model.tokenizer(TEXTS, padding=True, truncation=True, max_length=model.max_length, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(model(**tokens).embeddings.numpy(), expected, atol=1e-5)
    for own in (folder, exports["onnx"].folder):
        vectors = ours(own)
        assert vectors.shape == (len(TEXTS), 12)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    for format in ("onnx-int8", "torch-int8"):
        assert cosines(ours(exports[format].folder), expected).min() > 0.9


def test_what_is_measured_and_written(folder, exports):
    for export in exports.values():
        manifest = json.loads((export.folder / "export.json").read_text())
        assert manifest["head"] == "embedding"
        assert manifest["outputs"] == ["embeddings"]
        assert manifest["max_length"] == 24
        assert manifest["prompts"] == PROMPTS
        assert manifest["default_prompt_name"] is None
        assert manifest["embedding_width"] == 12
        assert manifest["parity"]["lowest_cosine"] == export.parity.lowest_cosine
    assert exports["onnx"].parity.decisions == 16  # each alone, and in a batch
    assert exports["onnx-int8"].parity.decisions == 8  # which runs one by one
    assert exports["onnx"].parity.largest_difference < 1e-5
    assert exports["onnx"].parity.lowest_cosine > 1 - 1e-9
    names = {"config.json", "export.json", "model.onnx", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in exports["onnx"].folder.iterdir()} == names
    graph = onnx.load(exports["onnx"].folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (output,) = graph.graph.output
    assert output.name == "embeddings"
    assert [dim.dim_value or dim.dim_param for dim in output.type.tensor_type.shape.dim][1] == 12


def test_torch_int8_loads_with_sentence_transformers(exports):
    folder = exports["torch-int8"].folder
    np.testing.assert_allclose(SentenceTransformer(str(folder)).encode(TEXTS), ours(folder), atol=1e-5)
    assert set(exports["torch-int8"].parity.__dict__) > {"lowest_cosine"}
    assert json.loads((folder / "export.json").read_text())["files"].keys() >= {"modules.json", "2_Dense/config.json"}
    (folder / "2_Dense" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"2_Dense/config\.json has 1 bytes instead of"):
        load_predictor(folder)


TAKE_LONG = ("cls", "max", "weightedmean", "mean_sqrt_len_tokens")
POOLINGS = ["lasttoken", *(pytest.param(own, marks=pytest.mark.long) for own in TAKE_LONG)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings(pooling, tmp_path):
    model = make_sentence_model(tmp_path / "model", pooling, normalize=False, options={"num_hidden_layers": 1})
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)


@pytest.mark.long
def test_several_poolings_and_a_layer_norm(tmp_path):
    model = make_sentence_model(tmp_path / "model", ["cls", "mean"], normalize=False, options={"num_hidden_layers": 1})
    model = SentenceTransformer(modules=[*model, models.LayerNorm(32), models.Dropout(0.5)], device="cpu")
    torch.nn.init.normal_(model[2].norm.weight)
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    assert ours(export.folder).shape == (len(TEXTS), 32)
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "pooling", ["lasttoken", *(pytest.param(own, marks=pytest.mark.long) for own in ("mean", "weightedmean"))]
)
def test_a_tokenizer_that_pads_on_the_left(pooling, tmp_path):
    """The predictor pads on the right, with the same result. The graph also takes what is padded on the left."""
    tokenizer = make_text_tokenizer()
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    options = {"num_hidden_layers": 1}
    model = make_sentence_model(tmp_path / "model", pooling, "llama", tokenizer=tokenizer, options=options)
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    model.tokenizer.padding_side = "left"
    expected = model.encode(TEXTS)
    np.testing.assert_allclose(ours(export.folder), expected, atol=1e-5)
    tokens = model.tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="np")
    assert tokens["attention_mask"][0, 0] == 0
    session = onnxruntime.InferenceSession(export.folder / "model.onnx")
    given = {own.name: tokens[own.name].astype(np.int64) for own in session.get_inputs()}
    np.testing.assert_allclose(session.run(["embeddings"], given)[0], expected, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["distilbert", "modernbert", "mpnet", "xlm-roberta"])
def test_other_encoders(model_type, tmp_path):
    tokenizer = make_text_tokenizer()
    if model_type == "distilbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    options = {"num_hidden_layers": 1} | ({"layer_types": ["full_attention"]} if model_type == "modernbert" else {})
    model = make_sentence_model(tmp_path / "model", "mean", model_type, tokenizer=tokenizer, options=options)
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)


def test_prompts(library_model, folder, exports):
    expected = library_model.encode(TEXTS, prompt_name="query")
    assert np.abs(expected - library_model.encode(TEXTS)).max() > 0.01
    for own in (folder, exports["onnx"].folder):
        np.testing.assert_allclose(ours(own, prompt_name="query"), expected, atol=1e-5)
        np.testing.assert_array_equal(ours(own, prompt_name="plain"), ours(own))
        known = "known are 'query', 'document', 'plain'"
        with pytest.raises(ValueError, match=f"prompt_name='passage' is not a prompt of the model: {known}"):
            ours(own, prompt_name="passage")


def test_a_default_prompt(tmp_path):
    model = make_sentence_model(tmp_path / "model", prompts=PROMPTS, default_prompt_name="query")
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)
    expected = model.encode(TEXTS, prompt_name="document")
    np.testing.assert_allclose(ours(export.folder, prompt_name="document"), expected, atol=1e-5)


@pytest.mark.long
def test_vectors_that_are_truncated(tmp_path):
    """`truncate_dim` of the model, which does not normalize the result."""
    model = make_sentence_model(tmp_path / "model", truncate_dim=5)
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    assert ours(export.folder).shape == (len(TEXTS), 5)
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)


def test_the_other_texts_change_nothing(exports):
    for format in ("onnx", "onnx-int8"):
        predictor = load_predictor(exports[format].folder)
        alone = np.concatenate([predictor.embed([text]) for text in TEXTS])
        for batch_size in (None, 1, 3, 100):
            np.testing.assert_allclose(predictor.embed(TEXTS, batch_size=batch_size), alone, atol=1e-6)
    np.testing.assert_array_equal(predictor.embed(TEXTS), alone)  # int8 runs them one by one


def test_batch_size(folder, monkeypatch):
    predictor, sizes = load_predictor(folder), []
    run = predictor.backend
    monkeypatch.setattr(predictor, "backend", lambda inputs: sizes.append(len(inputs["input_ids"])) or run(inputs))
    predictor.embed(TEXTS, batch_size=5)
    assert sizes == [5, 5, 3]
    with pytest.raises(ValueError, match="batch_size=0 must be 1 or more"):
        predictor.embed(TEXTS, batch_size=0)


def test_many_texts(exports, monkeypatch):
    assert PART > 1000
    predictor = load_predictor(exports["onnx"].folder)
    expected = predictor.embed(TEXTS)
    monkeypatch.setitem(embed.__globals__, "PART", 4)
    np.testing.assert_allclose(predictor.embed(TEXTS), expected, atol=1e-6)
    assert predictor.embed([]).shape == (0, 12)


def test_bad_texts(exports, folder):
    for own in (folder, exports["onnx"].folder):
        for texts, message in {
            ("w5", ""): "Text 1 is empty",
            ("w5", "w6", " \n"): "Text 2 is empty",
            (None,): "Text 0 must be a string, but is NoneType",
            (("w5", "w6"),): "Text 0 must be a string, but is tuple",
            ("w5 \ud800",): "Text 0 is not valid Unicode",
        }.items():
            with pytest.raises(ValueError, match=message):
                ours(own, list(texts), prompt_name="query")
        with pytest.raises(ValueError, match="texts must be a list of strings, but is one string"):
            ours(own, "w5 w6")


def test_predict_and_embed_name_each_other(exports, exported):
    with pytest.raises(ValueError, match=r"embedder is an embedding model and predicts no class: call embed\(texts\)"):
        load_predictor(exports["onnx"].folder).predict(["w5"])
    with pytest.raises(ValueError, match="is for embedding: only sequence classification"):
        load_predictor(exports["onnx"].folder).logits(["w5"])
    message = r"bert is for sequence classification and has no vectors of texts: call predict\(texts\)"
    with pytest.raises(ValueError, match=message):
        load_predictor(exported).embed(["w5"])


def test_an_embedding_model_at_hand(folder, tmp_path):
    model = EmbeddingModel.from_pretrained(folder).to(torch.bfloat16).train()
    export = export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    assert model.training
    assert model.dtype == torch.bfloat16
    expected = model.float().to_sentence_transformer().encode(TEXTS)
    np.testing.assert_allclose(ours(export.folder), expected, atol=1e-5)


def test_the_command(folder, tmp_path, capsys):
    assert main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    shown = capsys.readouterr().out
    assert "Compared with the student on 24 texts, the lowest cosine between their vectors is 1.00000;" in shown
    command = ["export", str(folder), "--output", str(tmp_path / "int8"), "--min-cosine", "1.1"]
    assert main(command) == 2
    assert "min_cosine is 1.1" in capsys.readouterr().err


def test_a_shorter_maximum_length(folder, tmp_path):
    export = export_model(folder, tmp_path / "onnx", "onnx", texts=make_texts(6), max_length=9)
    model = SentenceTransformer(str(folder))
    model.max_seq_length = 9
    np.testing.assert_allclose(ours(export.folder), model.encode(TEXTS), atol=1e-5)


def test_an_export_that_is_not_the_model_is_not_written(folder, tmp_path, monkeypatch):
    def spoil(graph):
        graph.graph.initializers["model.transformer.embeddings.word_embeddings.weight"].const_value.numpy()[:, 0] += 0.5

    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "compute_first_token_alone", spoil)
        with pytest.raises(ValueError, match=r"does not match the student.* at most 1e-05 is allowed. Nothing was wri"):
            export_model(folder, tmp_path / "onnx", "onnx", texts=make_texts(6))
    message = r"the lowest cosine between its vectors and the student's is 0\.9.*, but min_cosine is 1\.1"
    with pytest.raises(ValueError, match=message):
        export_model(folder, tmp_path / "int8", texts=make_texts(6), min_cosine=1.1)
    assert list(tmp_path.iterdir()) == []


def test_the_cosine(folder, exports):
    """Of vectors in the wrong order, computed by hand."""
    student, export = load_predictor(folder), load_predictor(exports["onnx"].folder)
    texts = make_texts(4)
    backend = export.backend
    export.backend = lambda inputs: {"embeddings": -backend(inputs)["embeddings"]}
    parity = measure_parity(student, export, texts)
    assert parity.lowest_cosine == pytest.approx(-1)
    assert parity.agreement == 0
    largest = np.abs(student.embed(texts)).max()
    assert parity.largest_difference == pytest.approx(2 * largest, rel=1e-5)


def test_modules_that_cannot_be_exported(library_model, folder, tmp_path):
    class Bessel(torch.nn.Module):
        def forward(self, values):
            return torch.special.bessel_j0(values)

    model = EmbeddingModel.from_pretrained(folder)
    model.head[1].activation_function = Bessel()
    with pytest.raises(ValueError, match=r"cannot export the module Dense \(2\) after .* \(remove or replace it"):
        export_model(model, tmp_path / "onnx", "onnx", texts=make_texts(6))
    lstm = SentenceTransformer(modules=[library_model[0], models.LSTM(16, 8), models.Pooling(16)], device="cpu")
    with pytest.raises(
        ValueError, match=r"has the modules Transformer, LSTM, Pooling\. Supported are a Transformer, a P"
    ):
        export_model(lstm, tmp_path / "onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_chat_template(tmp_path):
    tokenizer = make_text_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}w5 {{ message['content'] }}{% endfor %}"
    model = make_sentence_model(tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="in a way of its own, such as a chat template"):
        export_model(model, tmp_path / "onnx", "onnx")


def test_a_cross_encoder_is_no_embedding_model(student, tmp_path):
    CrossEncoder(str(student), num_labels=2).save_pretrained(str(tmp_path / "reranker"))
    predictor = load_predictor(tmp_path / "reranker")
    assert predictor.head == "sequence classification"
    assert predictor.reads_pairs


def test_onnx_runs_without_pytorch(exports):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["sentence_transformers"] = None
from hf_distill import load_predictor
assert load_predictor({str(exports["onnx"].folder)!r}).embed(["w5 w6"], "query").shape == (1, 12)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_from_the_hub(hub, folder, exports, tmp_path):
    """The folders of the modules are downloaded too, and nothing else below."""
    push_folder(exports["onnx"].folder, "exported")
    np.testing.assert_array_equal(ours("tester/exported"), ours(exports["onnx"].folder))
    api = HfApi()
    api.create_repo("tester/embedder")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "other.txt").write_text("other")
    api.upload_folder(repo_id="tester/embedder", folder_path=folder)
    api.upload_folder(repo_id="tester/embedder", folder_path=tmp_path / "below", path_in_repo="below")
    np.testing.assert_array_equal(ours("tester/embedder"), ours(folder))
    assert list((tmp_path / "cache").rglob("other.txt")) == []


def test_without_sentence_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_distill\[embeddings\]'"):
        load_predictor(folder)


@pytest.mark.long
def test_benchmark(folder, exports):
    models = {"pytorch": folder, "onnx": exports["onnx"].folder}
    measured = benchmark_models(models, lengths=[16], texts=make_texts(8), threads=1, rounds=1)
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert len(list(folder.rglob("*.safetensors"))) == 3
    assert measured.models["pytorch"]["bytes_on_disk"] == weights
    assert measured.models["onnx"]["imports_torch"] is False
    assert measured.models["onnx"]["throughput"]["texts_per_second"] > 0
