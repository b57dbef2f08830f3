"""Files are written byte for byte, and old files survive a failure."""

import json

import pytest

from hf_distill.files import read_json, write_json, write_whole


def test_json_is_written_as_people_read_it(tmp_path):
    value = {"text": "Wörter", "numbers": [1, 2.5], "none": None}
    write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_bytes() == json.dumps(value, indent=2).encode() + b"\n"
    assert read_json(tmp_path / "a.json") == value
    write_json(tmp_path / "a.json", value, ensure_ascii=False)
    assert "Wörter".encode() in (tmp_path / "a.json").read_bytes()
    assert read_json(tmp_path / "a.json") == value
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.json", "\ud800")
    assert read_json(tmp_path / "a.json") == [1]
