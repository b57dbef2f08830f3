"""What cannot be trimmed: a clear error that says what would work."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    CanineConfig,
    CanineModel,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
)

from hf_distill import trim_vocabulary
from hf_distill.student.architectures import skeleton
from hf_distill.student.vocabulary import weights
from tests.student.tiny_models import tiny_model
from tests.student.vocabulary.tiny_tokenizers import TOKENIZERS

BERT = TOKENIZERS["bert"]()


def bert(**options):
    return tiny_model("bert", vocab_size=len(BERT), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing says which tokens stay: pass texts, counts or keep"),
        ({"texts": ["a"], "counts": {"a": 1}}, "texts and counts are both given"),
        ({"texts": []}, "texts has no token of the vocabulary"),
        ({"texts": ["", " \n"]}, "texts has no token of the vocabulary"),
        ({"texts": ["ЖЖЖ"]}, "texts has no token of the vocabulary"),  # [UNK] alone
        ({"counts": {}}, "counts has no token of the vocabulary"),
        ({"counts": {"a": 0}}, "counts has no token of the vocabulary"),
        ({"counts": {"нет": 3}}, "counts has 'нет', which is not a token"),
        ({"counts": {400: 3}}, "counts has 400, which is not a token"),
        ({"counts": {"a": -1}}, "counts must not be negative, but is -1 for 'a'"),
        ({"keep": 3}, r"keep=3 is too low: \d+ tokens always stay .*keep must be at least \d+"),
        ({"keep": 0}, "keep=0 is too low"),
        ({"keep": 401}, "keep=401 is higher than the 400 tokens"),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        trim_vocabulary(bert(), BERT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "a b c"}, "texts must be an iterable of texts, but is a str: put it into a list"),
        ({"texts": [["a"]]}, "texts must contain only texts, but has a list"),
        ({"counts": ["a"]}, "counts must map each token or id to its count, but is a list"),
        ({"keep": 100.0}, "keep must be a whole number, but is 100.0"),
        ({"keep": True}, "keep must be a whole number, but is True"),
    ],
)
def test_types(options, message):
    with pytest.raises(TypeError, match=message):
        trim_vocabulary(bert(), BERT, **options)


def test_lowest_keep_works():
    with pytest.raises(ValueError, match="keep must be at least") as error:
        trim_vocabulary(bert(), BERT, keep=1)
    lowest = int(str(error.value).rstrip(".").split()[-1])
    assert len(trim_vocabulary(bert(), BERT, keep=lowest).kept) == lowest


def test_not_a_model_or_tokenizer():
    with pytest.raises(TypeError, match=r"model must be a transformers model, but is a Linear.*merge_and_unload"):
        trim_vocabulary(torch.nn.Linear(2, 2), BERT, keep=100)
    with pytest.raises(TypeError, match=r"tokenizer must be a tokenizer of transformers, but is a Tokenizer"):
        trim_vocabulary(bert(), BERT.backend_tokenizer, keep=100)


def test_other_tokenizers():
    with pytest.raises(ValueError, match="ByT5Tokenizer is a slow tokenizer"):
        trim_vocabulary(tiny_model("t5", vocab_size=384), ByT5Tokenizer(), keep=300)
    with pytest.raises(ValueError, match=r"has the ids 0 to 399, but BertForMaskedLM has only 61 tokens"):
        trim_vocabulary(tiny_model("bert"), BERT, keep=50)
    custom = TOKENIZERS["bert"]()
    custom.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(ValueError, match="BertTokenizer cannot be trimmed, because it cannot be saved and loaded"):
        trim_vocabulary(bert(), custom, keep=100)
    twice = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("a", -2.0)], unk_id=0))
    with pytest.raises(ValueError, match="some of its tokens are twice"):
        trim_vocabulary(bert(), PreTrainedTokenizerFast(tokenizer_object=twice), keep=2)


def test_other_models():
    canine = CanineModel(CanineConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ValueError, match="'canine' cannot be trimmed: its config has no vocab_size"):
        trim_vocabulary(canine, BERT, keep=100)
    with pytest.raises(ValueError, match="'vit' cannot be trimmed: its config has no vocab_size"):
        trim_vocabulary(tiny_model("vit"), BERT, keep=100)
    with pytest.raises(ValueError, match="HubertForSequenceClassification has no weight with one row"):
        trim_vocabulary(tiny_model("hubert", vocab_size=400), BERT, keep=100)
    decoder = tiny_model("gpt2", vocab_size=500, add_cross_attention=True, is_decoder=True)
    with pytest.raises(ValueError, match=r"'encoder-decoder' has several vocabularies, .*400.*500"):
        trim_vocabulary(EncoderDecoderModel(encoder=bert().bert, decoder=decoder), BERT, keep=100)
    changed = bert()
    changed.cls.predictions.bias = torch.nn.Parameter(torch.zeros(401))
    with pytest.raises(
        ValueError, match=r"cls.predictions.bias has the shape \(401,\), but its config makes it \(400,\)"
    ):
        trim_vocabulary(changed, BERT, keep=100)


def test_weights_that_are_not_there():
    model = bert()
    with pytest.raises(ValueError, match="are on the meta device"):
        trim_vocabulary(skeleton(type(model), model.config), BERT, keep=100)
    model.is_quantized = True
    with pytest.raises(ValueError, match="is quantized: load it without quantization_config"):
        trim_vocabulary(model, BERT, keep=100)


def test_a_cut_that_changes_the_outputs(monkeypatch):
    """Nothing is returned."""
    cut = weights.cut_vocabulary

    def wrong(model, kept):
        small = cut(model, kept)
        small.bert.embeddings.word_embeddings.weight.data = small.bert.embeddings.word_embeddings.weight.data.flip(0)
        return small

    monkeypatch.setattr("hf_distill.student.vocabulary.trimming.cut_vocabulary", wrong)
    with pytest.raises(ValueError, match="The logits of the trimmed BertForMaskedLM do not match"):
        trim_vocabulary(bert(), BERT, keep=200)


def test_cut_without_an_id_of_the_config():
    with pytest.raises(ValueError, match=r"refer to the tokens \[0\]: keep them"):
        weights.cut_vocabulary(bert(), [1, 2, 3, 4, 5])


def test_a_tokenizer_that_changes_when_it_is_loaded():
    """BertTokenizer has its own pre-tokenizer, whatever tokenizer.json says."""
    tokenizer = TOKENIZERS["bert"]()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("e")
    with pytest.raises(ValueError, match=r"BertTokenizer cannot be trimmed: .* becomes \[.*\], but was \["):
        trim_vocabulary(bert(), tokenizer, texts=["aeb"])
