"""Trimmed models of many types: the same outputs for kept tokens, and configs that follow."""

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from hf_distill import make_student, trim_vocabulary
from hf_distill.student.architectures import example_inputs
from hf_distill.student.vocabulary.weights import config_ids, cut_vocabulary, prove_vocabulary, vocabulary_places
from tests.conftest import VOCAB_SIZE
from tests.student.tiny_models import TYPES, tiny_model
from tests.student.vocabulary.tiny_tokenizers import TOKENIZERS, corpus

HEADS = ("MaskedLM", "CausalLM", "Seq2SeqLM", "SpeechSeq2Seq", "")
TYPES_WITH_TOKENS = [model_type for head in HEADS for model_type in TYPES[head]]


def run(model, ids):
    torch.manual_seed(0)
    inputs = example_inputs(model)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            repeated = ids.repeat(inputs[name].numel() // len(ids) + 1)
            inputs[name] = repeated[: inputs[name].numel()].reshape(inputs[name].shape)
    with torch.no_grad():
        return model(**inputs, return_dict=True)


@pytest.mark.parametrize("model_type", TYPES_WITH_TOKENS)
def test_every_type(model_type):
    """No name of a family is known. Logits, the loss's gradient and ties are those of the whole model."""
    model = tiny_model(model_type)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    kept = sorted({*range(0, VOCAB_SIZE, 2), *config_ids(model)})
    small = cut_vocabulary(model, kept)
    prove_vocabulary(small, model, kept)
    ordinary = torch.tensor([new for new, old in enumerate(kept) if old > 10])
    expected, actual = run(model, torch.tensor(kept)[ordinary]), run(small, ordinary)
    name = "logits" if "logits" in expected else "text_embeds"
    wanted = expected[name][..., kept] if name == "logits" else expected[name]
    torch.testing.assert_close(actual[name], wanted, rtol=1e-6, atol=1e-6)

    assert small.config.get_text_config().vocab_size == len(kept)
    places = vocabulary_places(model)
    assert {weight.shape[places[name]] for name, weight in small.state_dict().items() if name in places} == {len(kept)}
    ties = [
        [name for name in places if own.state_dict(keep_vars=True)[name] is own.state_dict(keep_vars=True)[first]]
        for own in (model, small)
        for first in places
    ]
    assert ties[: len(places)] == ties[len(places) :]
    for weight in small.state_dict().values():
        weight.fill_(7)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_how_many_types():
    assert len(TYPES_WITH_TOKENS) >= 60


CASES = {
    "WordPiece, tied head with two biases": ("bert", "bert", {}),
    "byte-level BPE, tied": ("gpt2", "gpt2", {}),
    "byte-level BPE, encoder-decoder with a bias buffer": ("bart", "roberta", {}),
    "byte fallback, untied": ("llama", "llama", {}),
    "byte fallback, tied": ("llama", "llama", {"tie_word_embeddings": True}),
    "Unigram, encoder-decoder, untied": ("mt5", "xlm_roberta", {"tie_word_embeddings": False}),
    "Unigram, tied": ("xlm-roberta", "xlm_roberta", {"pad_token_id": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_model_and_tokenizer_together(case, tmp_path):
    """On texts of kept tokens, logits are the same; also after saving and loading; and the model can be trained."""
    model_type, name, options = CASES[case]
    tokenizer = TOKENIZERS[name]()
    model = tiny_model(model_type, vocab_size=len(tokenizer), **options)
    trimmed = trim_vocabulary(model, tokenizer, texts=corpus()[:8])
    trimmed.model.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == trimmed.tokenizer.get_vocab()
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.num_parameters() == trimmed.model.num_parameters() < model.num_parameters()
    for text in corpus()[:8]:
        given, own = tokenizer(text, return_tensors="pt"), trimmed.tokenizer(text, return_tensors="pt")
        labels = {"decoder_input_ids": given["input_ids"]}, {"decoder_input_ids": own["input_ids"]}
        if not model.config.is_encoder_decoder:
            labels = {}, {}
        with torch.no_grad():
            expected = model(**given, **labels[0]).logits[..., trimmed.kept]
            for small in (trimmed.model, loaded):
                torch.testing.assert_close(small(**own, **labels[1]).logits, expected, rtol=1e-6, atol=1e-6)
    loss = trimmed.model(**own, labels=own["input_ids"]).loss
    loss.backward()
    assert trimmed.model.get_input_embeddings().weight.grad.any()


def test_generates_the_same():
    tokenizer = TOKENIZERS["gpt2"]()
    model = tiny_model("gpt2", vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0)
    text = corpus()[0]
    trimmed = trim_vocabulary(model, tokenizer, texts=[text])
    lost = sorted(set(range(len(tokenizer))) - set(trimmed.kept))
    whole = model.generate(
        **tokenizer(text, return_tensors="pt"), max_new_tokens=12, do_sample=False, suppress_tokens=lost
    )
    small = trimmed.model.generate(**trimmed.tokenizer(text, return_tensors="pt"), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(whole[0]) == trimmed.tokenizer.decode(small[0])


def test_more_rows_than_tokens():
    """Rows without a token are removed, unless the config refers to one."""
    tokenizer = TOKENIZERS["bert"]()
    size = len(tokenizer)
    for pad, expected in ((0, 0), (size + 7, 1)):
        model = tiny_model("bert", vocab_size=size + 20, pad_token_id=pad)
        trimmed = trim_vocabulary(model, tokenizer, keep=200)
        assert len(trimmed.kept) == trimmed.model.config.vocab_size == 200
        assert len(trimmed.tokenizer) == 200 - expected
        assert trimmed.model.config.pad_token_id == (199 if expected else 0)
        assert trimmed.model.bert.embeddings.word_embeddings.padding_idx == trimmed.model.config.pad_token_id


def test_ids_in_configs():
    tokenizer = TOKENIZERS["roberta"]()
    model = tiny_model("bart", vocab_size=len(tokenizer), forced_eos_token_id=2)
    last = len(tokenizer) - 1
    model.config.task_specific_params = {"summarization": {"forced_bos_token_id": last - 1, "max_length": 500}}
    model.config.pad_token_id = -1
    model.generation_config = GenerationConfig(
        eos_token_id=[2, last],
        bad_words_ids=[[last - 2, last - 3], [3]],
        suppress_tokens=[last - 4, 5],
        begin_suppress_tokens=None,
        sequence_bias=[[[last - 5], 2]],
        forced_decoder_ids=[[1, last - 6]],
        lang_to_id={"<|en|>": last - 7},
        max_length=400,
        decoder_start_token_id=2,
    )
    before = model.config.to_dict(), model.generation_config.to_dict()
    trimmed = trim_vocabulary(model, tokenizer, texts=corpus()[:3])
    config, generation, kept = trimmed.model.config, trimmed.model.generation_config, trimmed.kept
    new = {old: kept.index(old) for old in range(last - 7, last + 1)}
    assert config.task_specific_params == {"summarization": {"forced_bos_token_id": new[last - 1], "max_length": 500}}
    assert (config.pad_token_id, config.forced_eos_token_id) == (-1, 2)
    assert generation.eos_token_id == [2, new[last]]
    assert generation.bad_words_ids == [[new[last - 2], new[last - 3]], [3]]
    assert generation.suppress_tokens == [new[last - 4], 5]
    assert generation.sequence_bias == [[[new[last - 5]], 2]]
    assert generation.forced_decoder_ids == [[1, new[last - 6]]]
    assert generation.lang_to_id == {"<|en|>": new[last - 7]}
    assert (generation.max_length, generation.decoder_start_token_id) == (400, 2)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert all(trimmed.tokenizer.convert_ids_to_tokens(new[old]) == tokenizer.convert_ids_to_tokens(old) for old in new)


def test_a_token_that_the_config_needs_brings_its_merges():
    """Otherwise text with this token would be tokenized differently."""
    tokenizer = TOKENIZERS["gpt2"]()
    model = tiny_model("gpt2", vocab_size=len(tokenizer))
    word = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.convert_tokens_to_string([word])
    model.generation_config.suppress_tokens = tokenizer.convert_tokens_to_ids([word])
    trimmed = trim_vocabulary(model, tokenizer, texts=["a"])
    assert trimmed.tokenizer.tokenize(text) == [word] == tokenizer.tokenize(text)


def test_without_a_pooler_and_in_bfloat16():
    tokenizer = TOKENIZERS["bert"]()
    config = tiny_model("bert", vocab_size=len(tokenizer)).config
    model = AutoModel.from_config(config, add_pooling_layer=False, dtype=torch.bfloat16).train()
    trimmed = trim_vocabulary(model, tokenizer, texts=corpus()[:5]).model
    assert trimmed.pooler is None
    assert trimmed.dtype == torch.bfloat16
    assert model.training
    assert not trimmed.training


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"]
)
@pytest.mark.parametrize("model_type", ["bert", "bart", "t5"])
def test_other_heads(head, model_type):
    prefix = {"bert": "Bert", "bart": "Bart", "t5": "T5"}[model_type]
    model_class = getattr(transformers, prefix + head, None)
    if model_class is None:
        pytest.skip("there is no such head")
    tokenizer = TOKENIZERS["roberta"]()
    model = model_class(tiny_model(model_type, vocab_size=len(tokenizer)).config)
    trimmed = trim_vocabulary(model, tokenizer, texts=corpus()[:5]).model
    assert type(trimmed) is model_class


def test_origin():
    """What `make_student` recorded stays. A second cut names the first vocabulary."""
    tokenizer = TOKENIZERS["bert"]()
    size = len(tokenizer)
    teacher = tiny_model("bert", vocab_size=size)
    teacher.config.name_or_path = "google-bert/bert-base-uncased"
    student = make_student(teacher)
    student.config.distilled_from = recorded = {**student.config.distilled_from}
    trimmed = trim_vocabulary(student, tokenizer, keep=300)
    assert trimmed.model.config.distilled_from == {**recorded, "vocabulary": {"kept": 300, "of": size}}
    twice = trim_vocabulary(trimmed.model, trimmed.tokenizer, keep=200).model
    assert twice.config.distilled_from["vocabulary"] == {"kept": 200, "of": size}
    assert "vocabulary" not in student.config.distilled_from
    plain = trim_vocabulary(teacher, tokenizer, keep=300).model.config.distilled_from
    assert plain.keys() == {"teacher", "revision", "hf_distill_version", "vocabulary"}


def test_places():
    places = vocabulary_places(tiny_model("bart"))
    assert places["final_logits_bias"] == 1
    assert {dim for name, dim in places.items() if name != "final_logits_bias"} == {0}
