"""Files of anchors."""

import pytest
import torch

from hf_distill.embedding import read_anchors, write_anchors
from tests.embedding.models import TEXTS, encode, make_embedding_model


def test_written_anchors_are_the_teachers_vectors(tmp_path):
    teacher, file = make_embedding_model(), tmp_path / "anchors.safetensors"
    write_anchors(file, teacher, TEXTS)
    anchors = read_anchors(file)
    torch.testing.assert_close(anchors.vectors, encode(teacher))
    write_anchors(file, make_embedding_model(seed=1), TEXTS)
    assert read_anchors(file).fingerprint != anchors.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["anchors.safetensors"]


def test_errors(tmp_path):
    teacher, file = make_embedding_model(), tmp_path / "anchors.safetensors"
    with pytest.raises(ValueError, match="1 different text"):
        write_anchors(file, teacher, ["w5", "w5"])
    with pytest.raises(ValueError, match="1 of 2 texts are empty, the first at index 0"):
        write_anchors(file, teacher, ["", "w5"])
    with pytest.raises(ValueError, match="is not a file of write_anchors"):
        read_anchors(file)
    file.write_text("something else")
    with pytest.raises(ValueError, match="is not a file of write_anchors"):
        read_anchors(file)
