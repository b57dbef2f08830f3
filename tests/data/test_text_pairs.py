"""Source texts and targets from every kind of file, their tokens, and errors for invalid ones."""

import json

import datasets
import pytest
from datasets import Dataset, Features, Translation
from transformers import DataCollatorForSeq2Seq, MBart50Tokenizer, MBartTokenizer, NllbTokenizer

from hf_distill import encode_text_pairs, load_text_pairs
from hf_distill.data.languages import force_target_language, set_languages
from tests.conftest import make_model, make_text_tokenizer

ROWS = [
    {"article": "w5 w6 w7", "summary": "w5"},
    {"article": "w8,\nw9", "summary": "w9 w8"},
]
EXPECTED = [{"source": row["article"], "target": row["summary"]} for row in ROWS]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write(folder, name, rows=ROWS):
    file = folder / name
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        getattr(Dataset.from_list(rows), f"to_{file.suffix[1:]}")(file)
    return file


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet"])
def test_every_kind_of_file(tmp_path, name):
    file = write(tmp_path, name)
    assert load_text_pairs(file, "article", "summary").to_list() == EXPECTED
    assert load_text_pairs(file, "article", None).to_list() == [{"source": row["source"]} for row in EXPECTED]


def test_columns_may_have_each_others_names(tmp_path):
    file = write(tmp_path, "rows.jsonl", [{"source": "a summary", "target": "an article"}])
    assert load_text_pairs(file, "target", "source").to_list() == [{"source": "an article", "target": "a summary"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "hub"])
def test_translations_as_in_wmt(tmp_path, name):
    rows = [{"translation": {"en": "a cat", "de": "eine Katze"}}, {"translation": {"en": "a dog", "de": "ein Hund"}}]
    if name == "hub":  # a folder with the features of the Hub's translation datasets
        (tmp_path / "hub").mkdir()
        features = Features({"translation": Translation(["de", "en"])})
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / "hub" / "train.parquet")
        source = tmp_path / "hub"
    else:
        source = write(tmp_path, name, rows)
    loaded = load_text_pairs(source, "translation.de", "translation.en").to_list()
    assert loaded == [{"source": "eine Katze", "target": "a cat"}, {"source": "ein Hund", "target": "a dog"}]
    with pytest.raises(ValueError, match=r"no column 'translation.fr', only"):
        load_text_pairs(source, "translation.de", "translation.fr")


def test_sources_alone_from_text_files(tmp_path):
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    assert load_text_pairs(tmp_path / "texts.txt", target_column=None)["source"][:] == ["one", "two"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"summary": " "}, r"rows.jsonl has empty texts in the column 'summary', in row 2: remove"),
        ({"summary": None}, r"rows.jsonl has empty texts in the column 'summary', in row 2: remove"),
        ({"article": ""}, r"rows.jsonl has empty texts in the column 'article', in row 2: remove"),
    ],
)
def test_empty_texts(tmp_path, changed, message):
    file = write(tmp_path, "rows.jsonl", [ROWS[0], ROWS[1] | changed])
    with pytest.raises(ValueError, match=message):
        load_text_pairs(file, "article", "summary")


def test_other_errors(tmp_path):
    file = write(tmp_path, "rows.jsonl", [{"source": "a", "target": ["b"]}])
    with pytest.raises(ValueError, match=r"row 1: \['b'\] in the column 'target' must be a string, but is list"):
        load_text_pairs(file)
    with pytest.raises(ValueError, match="source_column and target_column are both 'source'"):
        load_text_pairs(file, target_column="source")


def encode(rows=EXPECTED, max_length=20, max_target_length=20, **options):
    return encode_text_pairs(Dataset.from_list(rows), make_text_tokenizer(), max_length, max_target_length, **options)


def test_tokens():
    rows = encode(max_length=4, max_target_length=3, source_prefix="w30 ")
    assert rows["input_ids"][:] == [[1, 30, 5, 2], [1, 30, 3, 2]]
    assert rows["labels"][:] == [[1, 5, 2], [1, 9, 2]]  # the end of the text stays
    assert rows.column_names == ["labels", "input_ids", "attention_mask"]
    assert encode([{"source": "w5 w6 w7"}], max_length=4, truncation="tail").to_list() == [
        {"input_ids": [1, 6, 7, 2], "attention_mask": [1, 1, 1, 1]}
    ]


def test_batches_have_the_students_decoder_inputs():
    model = make_model("bart", "seq2seq")
    batch = DataCollatorForSeq2Seq(make_text_tokenizer(), model=model)(encode().to_list())
    assert batch["labels"].tolist() == [[1, 5, 2, -100], [1, 9, 8, 2]]
    assert batch["decoder_input_ids"].tolist() == [[2, 1, 5, 2], [2, 1, 9, 8]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_target_length": 2}, "max_target_length=2 leaves no room for text: use at least 3"),
        ({"max_length": 2}, "max_length=2 leaves no room for text"),
        ({"source_prefix": "w30 ", "truncation": "tail"}, "would cut the source_prefix 'w30 ' from long texts"),
    ],
)
def test_encoding_errors(options, message):
    with pytest.raises(ValueError, match=message):
        encode(**options)


@pytest.mark.parametrize(
    ("make", "languages", "first"),
    [
        (NllbTokenizer, ("eng_Latn", "deu_Latn"), "forced_bos_token_id"),
        (MBart50Tokenizer, ("en_XX", "de_DE"), "forced_bos_token_id"),
        (MBartTokenizer, ("en_XX", "de_DE"), "decoder_start_token_id"),
    ],
)
def test_languages(make, languages, first):
    tokenizer, model = make(), make_model("bart", "seq2seq")
    set_languages(tokenizer, *languages)
    force_target_language(model, tokenizer)
    source, target = tokenizer.convert_tokens_to_ids(list(languages))
    rows = encode_text_pairs(Dataset.from_list([{"source": "a", "target": "b"}]), tokenizer, 9, 9)
    assert source in rows["input_ids"][0]
    assert target not in rows["input_ids"][0]
    assert target in rows["labels"][0]
    assert getattr(model.generation_config, first) == target
    with pytest.raises(ValueError, match=rf"target_lang='de' is not a language of {make.__name__}, such as .*de"):
        set_languages(tokenizer, languages[0], "de")
    with pytest.raises(ValueError, match="has a token for each language: set target_lang, such as"):
        set_languages(tokenizer, languages[0], None)


def test_a_tokenizer_without_languages():
    tokenizer, model = make_text_tokenizer(), make_model("bart", "seq2seq")
    set_languages(tokenizer, None, None)
    force_target_language(model, tokenizer)
    assert model.generation_config.forced_bos_token_id is None
    with pytest.raises(ValueError, match=r"target_lang='de' would have no effect, because .* has no language tokens"):
        set_languages(tokenizer, None, "de")
