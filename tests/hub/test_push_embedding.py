"""An embedding model is pushed with its modules, and loads from the Hub."""

import torch

from hf_distill import push_folder
from hf_distill.embedding import EmbeddingModel
from tests.embedding.models import encode, library, make_embedding_model


def test_modules_are_pushed(hub, tmp_path):
    model = make_embedding_model(dense=6)
    model.save_pretrained(tmp_path / "student")
    (tmp_path / "student" / "2_Dense" / "notes.txt").write_text("private")
    push_folder(tmp_path / "student", "mine")
    written = {path.relative_to(tmp_path / "student").as_posix() for path in (tmp_path / "student").rglob("*.*")}
    assert set(hub.files("tester/mine")) == written - {"2_Dense/notes.txt"}
    torch.testing.assert_close(encode(library.SentenceTransformer("tester/mine", device="cpu")), encode(model))
    torch.testing.assert_close(encode(EmbeddingModel.from_pretrained("tester/mine")), encode(model))
