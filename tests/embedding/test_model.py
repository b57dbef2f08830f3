"""`EmbeddingModel` computes what a `SentenceTransformer` computes, and writes what it reads."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_distill.embedding import EmbeddingModel, as_embedding_model
from tests.conftest import make_model
from tests.embedding.models import (
    encode,
    library,
    make_embedding_model,
    make_sentence_transformer,
    make_transformer_folder,
    models,
    tokenized,
)

POOLINGS = [*models.Pooling.POOLING_MODES, ("cls", "max")]


def vectors(model):
    with torch.no_grad():
        return model(**tokenized(model)).embeddings


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("dense", [None, 6])
def test_same_vectors_as_sentence_transformer(pooling, dense, tmp_path):
    given = make_sentence_transformer(pooling=pooling, dense=dense)
    model = as_embedding_model(given)
    expected = encode(given)
    assert expected.std() > 0.05
    torch.testing.assert_close(vectors(model), expected, rtol=0, atol=1e-6)
    assert model.embedding_width == expected.shape[1]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(encode(library.SentenceTransformer(str(tmp_path), device="cpu")), expected)
    torch.testing.assert_close(vectors(EmbeddingModel.from_pretrained(tmp_path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2"])
def test_families(family):
    given = make_sentence_transformer(family=family)
    torch.testing.assert_close(vectors(as_embedding_model(given)), encode(given), rtol=0, atol=1e-6)


def test_folder_of_sentence_transformers(tmp_path):
    given = make_sentence_transformer(dense=6)
    given.save_pretrained(str(tmp_path))
    model, loading = EmbeddingModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    torch.testing.assert_close(vectors(model), encode(given), rtol=0, atol=1e-6)
    assert model.settings["prompts"]["query"] == "w5 w6 "
    assert model.max_length == 24


def test_transformer_with_named_pooling(tmp_path):
    folder = make_transformer_folder(tmp_path / "bert")
    model = EmbeddingModel.from_pretrained(folder, pooling="cls", normalize=True)
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokenized(model)).last_hidden_state
    torch.testing.assert_close(vectors(model), torch.nn.functional.normalize(hidden[:, 0], dim=-1))


def test_saved_folder_is_plain_transformers(tmp_path):
    model = make_embedding_model(dense=6)
    model.save_pretrained(tmp_path)
    plain, loading = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    inputs = tokenized(model)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    saved = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert (saved.prompts["query"], saved.max_seq_length) == ("w5 w6 ", 24)


def test_saves_given_weights(tmp_path):
    """An engine that shards weights gathers them and passes them on."""
    model = make_embedding_model(dense=6)
    doubled = {name: 2 * weight for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=doubled)
    saved = EmbeddingModel.from_pretrained(tmp_path).state_dict()
    assert saved.keys() == doubled.keys()
    assert all(torch.equal(saved[name], doubled[name]) for name in doubled)
    assert load_file(tmp_path / "2_Dense" / "model.safetensors").keys() == {"linear.weight", "linear.bias"}


def test_copy_is_independent():
    model = make_embedding_model(dense=6)
    copied = copy.deepcopy(model)
    before = vectors(copied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(vectors(copied), before)
    assert torch.equal(encode(copied), before)


def test_shares_modules_with_sentence_transformer():
    given = make_sentence_transformer()
    model = as_embedding_model(given)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    torch.testing.assert_close(vectors(model), encode(given), rtol=0, atol=1e-6)


def test_other_models_stay():
    model = make_model("bert", "classification")
    assert as_embedding_model(model) is model


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda modules: [modules[0]], "has the modules Transformer. Supported are a Transformer, a Pooling"),
        (lambda modules: [*modules, torch.nn.Linear(2, 2)], "Transformer, Pooling, Normalize, Linear"),
        (lambda modules: [modules[0], models.Pooling(16, "mean", include_prompt=False)], "include_prompt=False"),
    ],
)
def test_unknown_modules(parts, message):
    modules = list(make_sentence_transformer())
    with pytest.raises(ValueError, match=message):
        EmbeddingModel(parts(modules))


def test_errors_of_folders(tmp_path):
    folder = make_transformer_folder(tmp_path / "bert")
    with pytest.raises(ValueError, match="name the pooling that it was trained with, 'cls', 'max', 'mean'"):
        EmbeddingModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"No model found at .*nothing"):
        EmbeddingModel.from_pretrained(tmp_path / "nothing")
    make_embedding_model(dense=6).save_pretrained(tmp_path / "embedder")
    with pytest.raises(ValueError, match="pooling='cls' and normalize=False would have no effect"):
        EmbeddingModel.from_pretrained(tmp_path / "embedder", pooling="cls")
    shutil.move(tmp_path / "embedder" / "2_Dense" / "model.safetensors", tmp_path / "weights")
    with pytest.raises(ValueError, match=r"has no 2_Dense/model.safetensors"):
        EmbeddingModel.from_pretrained(tmp_path / "embedder")


def test_unknown_module_in_folder_is_not_imported(tmp_path):
    make_embedding_model().save_pretrained(tmp_path)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[2]["type"] = "my_package.MyModule"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match=r"has the modules Transformer, Pooling, my_package.MyModule"):
        EmbeddingModel.from_pretrained(tmp_path)
