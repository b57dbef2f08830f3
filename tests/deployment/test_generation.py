"""Sequence-to-sequence models generate the same texts as `generate`, in the predictor, in int8 and in the service."""

import pytest
from transformers import MBart50Tokenizer

from hf_distill import export_model, load_predictor
from hf_distill.data.languages import force_target_language, set_languages
from hf_distill.deployment.predictor import predictor_of
from hf_distill.evaluation.benchmark import Runner
from hf_distill.lengths import READING
from hf_distill.serving.model_info import model_info
from hf_distill.serving.predict import answers_of
from hf_distill.serving.worker import answer
from tests.conftest import make_model, make_text_tokenizer, make_texts

TOKENIZER = make_text_tokenizer()
TEXTS = make_texts(6)


def make_student(family="bart", **reading):
    layers = {"num_decoder_layers": 2} if family == "t5" else {}
    model = make_model(family, "seq2seq", seed=2, width=32, **layers)
    model.generation_config.update(max_length=9, num_beams=2, early_stopping=True)
    if reading:
        setattr(model.config, READING, {"task": "summarization", **reading})
    return model


def one_by_one(model, texts):
    texts_of = []
    for text in texts:
        batch = TOKENIZER(text, return_tensors="pt")
        generated = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"])
        texts_of.append({"text": TOKENIZER.decode(generated[0], skip_special_tokens=True).strip()})
    return texts_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    make_student().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_the_texts_are_those_of_generate(family):
    model = make_student(family)
    predictor = predictor_of(model, TOKENIZER, "tiny")
    assert predictor.head == "sequence-to-sequence"
    assert predictor.predict(TEXTS) == predictor.predict(TEXTS, top_k=3) == one_by_one(model, TEXTS)
    assert predictor.predict([]) == []


def test_a_saved_model_keeps_its_generation_config(folder):
    assert load_predictor(folder).predict(TEXTS) == one_by_one(make_student(), TEXTS)


def test_the_prefix_that_the_model_was_trained_with():
    predictor = predictor_of(make_student(source_prefix="w30 w31: "), TOKENIZER, "tiny")
    expected = predictor_of(make_student(), TOKENIZER, "tiny").predict([f"w30 w31: {text}" for text in TEXTS])
    assert predictor.predict(TEXTS) == expected
    assert expected != predictor_of(make_student(), TOKENIZER, "tiny").predict(TEXTS)


def test_the_languages_that_the_model_was_trained_with():
    tokenizer = MBart50Tokenizer()
    tokenizer.model_max_length = 20
    model = make_model("bart", "seq2seq", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model.generation_config.max_length = 6
    languages = {"source_lang": "de_DE", "target_lang": "fr_XX"}
    setattr(model.config, READING, {"task": "translation", "source_prefix": "", **languages})
    set_languages(tokenizer, *languages.values())
    force_target_language(model, tokenizer)
    predictor = predictor_of(model, MBart50Tokenizer(model_max_length=20), "tiny")
    (encoding,) = predictor.encoder.encode(["a"])
    assert encoding.ids[0] == tokenizer.convert_tokens_to_ids("de_DE")
    (outputs,) = predictor.run([encoding])
    assert outputs["sequences"][1] == tokenizer.convert_tokens_to_ids("fr_XX")


def test_int8(tmp_path):
    student = make_student(source_prefix="w30 w31: ")
    options = {"tokenizer": TOKENIZER, "texts": TEXTS, "min_agreement": 0.9}
    export = export_model(student, tmp_path / "int8", "torch-int8", **options)
    assert export.parity.decisions >= 2 * len(TEXTS)  # one per token
    assert 0 < export.parity.largest_difference < 0.3
    predictor = load_predictor(tmp_path / "int8")
    assert predictor.encoder.prefix == "w30 w31: "
    expected = predictor_of(student, TOKENIZER, "tiny").predict(TEXTS)
    same = [one == other for one, other in zip(predictor.predict(TEXTS), expected, strict=True)]
    assert sum(same) >= len(TEXTS) / 2


@pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
def test_no_export_to_onnx(tmp_path, format):
    with pytest.raises(
        ValueError, match=rf"are not exported to {format}: use format='torch-int8', or the model itself"
    ):
        export_model(make_student(), tmp_path / "export", format, tokenizer=TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_the_service_answers_with_the_same_texts(folder):
    predictor = load_predictor(folder)
    assert model_info(predictor, str(folder)).tokens_per_second > 0
    answered = answers_of(answer(predictor, TEXTS, 5), 5)
    assert answered == predictor.predict(TEXTS)
    long, empty = answer(predictor, ["w5 " * 50, " "], 1)
    assert answers_of([long], None)[0]["truncated"]
    assert empty["error"] == "is empty."


def test_the_benchmark_measures_generation(folder):
    runner = Runner("tiny", folder, load_predictor(folder))
    runner.prepare(TEXTS, [8])
    assert len(runner.burst(8)) == 10
    assert runner.texts_per_second(TEXTS, 4) > 0
