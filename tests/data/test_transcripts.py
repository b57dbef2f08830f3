"""Recordings with transcripts: what is read, encoded and refused."""

import json

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperForConditionalGeneration

from hf_distill import collate_speech, encode_transcripts, load_transcribed_sounds
from hf_distill.data.speech import language_of_speech, set_speech_language
from tests.speech import END, RATE, make_recording, make_speech_processor, make_whisper, write_recordings


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_tables_and_folders(tmp_path):
    table = write_recordings(tmp_path / "data", ["ab", "cba"])
    rows = load_transcribed_sounds(table)
    assert rows.column_names == ["audio", "sha256", "target"]
    assert rows["target"][:] == ["ab", "cba"]
    alone = load_transcribed_sounds(tmp_path / "data", text_column=None)
    assert alone.column_names == ["audio", "sha256"]
    assert alone["sha256"][:] == rows["sha256"][:]
    contents = [{"bytes": (tmp_path / "data" / f"{number}.wav").read_bytes(), "path": None} for number in range(2)]
    of_hub = datasets.Dataset.from_dict({"clip": contents, "sentence": ["ab", "cba"]})
    of_hub.cast_column("clip", datasets.Audio(decode=False)).to_parquet(tmp_path / "hub.parquet")
    again = load_transcribed_sounds(tmp_path / "hub.parquet", "clip", "sentence")
    assert (again["sha256"][:], again["target"][:]) == (rows["sha256"][:], rows["target"][:])


def test_what_is_encoded(tmp_path):
    """The labels, after the shift that every Whisper does, are the tokens of the tokenizer."""
    processor, texts = make_speech_processor(), ["ab", "cba"]
    rows = encode_transcripts(load_transcribed_sounds(write_recordings(tmp_path, texts)), processor, 8)
    assert [*rows[0]] == ["input_features", "labels"]
    batch = collate_speech([rows[0], rows[1]])
    expected = processor(
        [soundfile.read(tmp_path / f"{number}.wav", dtype="float32")[0] for number in range(2)],
        sampling_rate=RATE,
        return_tensors="pt",
    )
    torch.testing.assert_close(batch["input_features"], expected.input_features)
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    is_text = tokens.attention_mask[:, 1:].bool()
    assert torch.equal(batch["labels"], tokens.input_ids[:, 1:].where(is_text, torch.tensor(-100)))
    with torch.no_grad():
        model = make_whisper()
        logits = model(**batch).logits
        by_hand = model(input_features=batch["input_features"], decoder_input_ids=tokens.input_ids[:, :-1]).logits
    torch.testing.assert_close(logits[is_text], by_hand[is_text])


def test_long_transcripts_end_with_the_end(tmp_path):
    processor = make_speech_processor()
    rows = encode_transcripts(load_transcribed_sounds(write_recordings(tmp_path, ["abcabcab"])), processor, 5)
    assert processor.tokenizer.convert_ids_to_tokens(rows[0]["labels"]) == ["<|notimestamps|>", "a", "b", "c", END]
    with pytest.raises(ValueError, match="max_target_length=2 leaves no room for text: use at least 3"):
        encode_transcripts(load_transcribed_sounds(tmp_path / "data.jsonl"), processor, 2)


def test_languages(tmp_path):
    model, processor = make_whisper(is_multilingual=True), make_speech_processor()
    set_speech_language(model, processor, "chinese")
    rows = encode_transcripts(load_transcribed_sounds(write_recordings(tmp_path, ["a"])), processor, 8)
    prefix = ["<|zh|>", "<|transcribe|>", "<|notimestamps|>"]
    assert processor.tokenizer.convert_ids_to_tokens(rows[0]["labels"]) == [*prefix, "a", END]
    model.save_pretrained(tmp_path / "model")
    config = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model").generation_config
    assert (config.language, config.task) == ("zh", "transcribe")
    with pytest.raises(ValueError, match="is multilingual: set language"):
        language_of_speech(model, None)
    with pytest.raises(ValueError, match=r"language='xx' is not a language of .*: it knows en, zh"):
        language_of_speech(model, "xx")
    assert language_of_speech(make_whisper(), "english") == {}
    with pytest.raises(ValueError, match="knows English only, but language='de'"):
        language_of_speech(make_whisper(), "de")


def test_bad_rows(tmp_path):
    table = write_recordings(tmp_path, ["ab", "c"])
    soundfile.write(tmp_path / "1.wav", np.tile(make_recording("a"), 11), RATE)
    with pytest.raises(
        ValueError, match=r"reads 2 s, but 1 of 2 recordings are longer \(row 2; the first is .*1.wav\)"
    ):
        encode_transcripts(load_transcribed_sounds(table), make_speech_processor(), 8)
    table.write_text("\n".join(json.dumps({"audio": "0.wav", "text": text}) for text in ("a", " ")))
    with pytest.raises(ValueError, match="row 2"):
        load_transcribed_sounds(table)
    table.write_text(json.dumps({"audio": "2.wav", "text": "a"}))
    with pytest.raises(ValueError, match=r"row 1 \(.*2.wav\) does not exist"):
        load_transcribed_sounds(table)
    with pytest.raises(ValueError, match="no column 'sentence', only 'audio', 'text'"):
        load_transcribed_sounds(table, text_column="sentence")
