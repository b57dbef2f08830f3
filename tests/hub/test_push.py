"""`push_folder` and `hf-distill push`, with the real client, against a local Hub."""

import json

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForMaskedLM

from hf_distill import make_student, push_folder
from hf_distill.cli import main
from hf_distill.hub.cards import make_card, write_card
from hf_distill.hub.push import files_to_push, is_on_hub, public_name, revision_on_hub
from tests.conftest import make_model, make_text_tokenizer


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    make_student(make_model("bert", "mlm")).save_pretrained(folder)
    make_text_tokenizer().save_pretrained(folder)
    write_card(make_card(ModelCardData(license="mit"), "# student\n"), folder / "README.md")
    return folder


@pytest.fixture
def export(student, tmp_path):
    """A folder like those of `hf-distill export`, with a large and a small file."""
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((student / name).read_bytes())
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "model.onnx.data").write_bytes(bytes(range(256)) * 20)
    manifest = {"format": "onnx-int8", "files": {"model.onnx": 4, "model.onnx.data": 5120}}
    (folder / "export.json").write_text(json.dumps(manifest))
    return folder


STUDENT = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
EXPORT = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx", "model.onnx.data", "export.json"}


def test_student_and_export(hub, student, export, capsys):
    assert main(["push", str(student), "mine", "--private", "--message", "First"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"  {name}" for name in sorted(STUDENT)),
        f"{hub.endpoint}/tester/mine",
    ]
    assert hub.files("tester/mine") == {name: (student / name).read_bytes() for name in STUDENT}
    assert hub.messages("tester/mine") == ["First"]
    assert hub.private == {"tester/mine"}
    assert AutoModelForMaskedLM.from_pretrained("tester/mine").config.num_hidden_layers == 2

    assert push_folder(export, "people/onnx").repo_url == f"{hub.endpoint}/people/onnx"
    assert hub.files("people/onnx") == {name: (export / name).read_bytes() for name in EXPORT}
    assert hub.private == {"tester/mine"}
    assert push_folder(export, "people/onnx").oid == hub.repos["people/onnx"][-1][0]  # nothing new to commit
    assert len(hub.repos["people/onnx"]) == 1


def test_what_goes_and_what_stays(student, export):
    (student / "onnx").mkdir()
    for path in export.iterdir():
        (student / "onnx" / path.name).write_bytes(path.read_bytes())
    (student / "int8").mkdir()
    (student / "int8" / "export.json").write_text('{"format": "torch-int8", "files": {"model.safetensors": 2}}')
    stays = [
        *("training_args.bin", "trainer_state.json", "all_results.json", "train.csv", "notes.md", "pytorch_model.bin"),
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "distillation_state.json", "projection.safetensors", ".env"),
        *("teacher/model.safetensors", "teacher/config.json", "runs/events.out.tfevents.1", "targets/data.arrow"),
        *("checkpoint-4/model.safetensors", "checkpoint-4/a.png", "_unfinished_checkpoint/a.png", ".ipynb/a.png"),
        *("onnx/model.safetensors", "onnx/README.md", "deep/er/a.png"),
    ]
    goes = ["report.json", "report.md", "curves.png", "plots/curves.png", "onnx/check.png", "spiece.model", "vocab.txt"]
    goes += ["int8/model.safetensors"]
    goes += ["generation_config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "adapter_config.json"]
    for name in [*stays, *goes]:
        (student / name).parent.mkdir(parents=True, exist_ok=True)
        (student / name).write_bytes(b"{}")
    assert set(files_to_push(student)) == {
        *STUDENT,
        *(f"onnx/{name}" for name in EXPORT),
        "int8/export.json",
        *goes,
    }


def test_nothing_private_goes(hub, student, tmp_path, monkeypatch, capsys):
    config = json.loads((student / "config.json").read_text())
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "data").mkdir()
    elsewhere = str(tmp_path / "data")
    for value, what in [
        (hub.token, "a token"),
        (str(student), "a local path"),
        ("/home/someone/teachers/large", "a local path"),
        (elsewhere, elsewhere),
    ]:
        (student / "config.json").write_text(json.dumps({**config, "made_from": [{"x": value}]}))
        assert main(["push", str(student), "mine"]) == 2
        assert f"{student}/config.json contains {what}" in capsys.readouterr().err
    (student / "config.json").write_text(json.dumps({**config, "made_from": "/no/such/path"}))
    (student / "model.onnx").write_bytes(b"onnx " + torch.__file__.encode())  # as in the exporter's stack traces
    with pytest.raises(ValueError, match=r"model.onnx contains a local path, so nothing was pushed"):
        push_folder(student, "mine")
    (student / "model.onnx").unlink()
    (student / "curves.png").write_bytes(b"png " + str(student).encode())
    with pytest.raises(ValueError, match=r"curves.png contains a local path, so nothing was pushed"):
        push_folder(student, "mine")
    assert hub.repos == {}


def test_folders_that_are_not_pushed(hub, student, export, tmp_path, capsys):
    for folder, message in [
        (tmp_path / "none", "is not a folder"),
        (tmp_path, "neither a student (config.json"),
    ]:
        assert main(["push", str(folder), "mine"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    weights = (student / "model.safetensors").read_bytes()
    (student / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged \(.*\): save the model again"):
        push_folder(student, "mine")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (student / "model.safetensors").rename(student / "model-00001-of-00002.safetensors")
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002.safetensors from model.safetensors.index.json is missing"
    ):
        push_folder(student, "mine")
    for cut in (lambda file: file.write_bytes(b"half"), lambda file: file.unlink()):
        cut(export / "model.onnx.data")
        with pytest.raises(
            ValueError, match=r"export is incomplete: model.onnx.data must have 5,120 bytes. Export the student"
        ):
            push_folder(export, "mine")
    (export / "model.onnx.data").write_bytes(bytes(5120))
    (export / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        push_folder(export, "mine")
    with pytest.raises(ValueError, match="is not a valid Hub name"):
        push_folder(export, "a/b/c")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("answer", "token", "reason"),
    [
        (None, "hf_wrong", "the token is missing or invalid (401)"),
        (None, "hf_thisonemayread", "the token has no write access (403)"),
        (("POST", "/preupload/", 404), None, "the repository or revision does not exist"),
        (("POST", "/commit/", 500), None, "500"),
        (("POST", "/objects/batch", 503), None, "503"),
        (("POST", "/api/repos/create", 429), None, "429"),
    ],
)
def test_the_hub_refuses(hub, student, monkeypatch, capsys, answer, token, reason):
    if answer is not None:
        hub.answers[answer[:2]] = answer[2]
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(student), "mine"]) == 2
    *_, error = capsys.readouterr().err.splitlines()  # after progress bars
    assert error.startswith("hf-distill: Pushing to mine failed: ")
    assert reason in error
    assert f"saved in {student}; push it later with: hf-distill push {student} mine" in error
    assert str(token) not in error
    assert hub.repos.get("tester/mine", []) == []
    assert AutoModelForMaskedLM.from_pretrained(student).config.num_hidden_layers == 2
    hub.answers.clear()
    assert push_folder(student, "mine", token=hub.token).repo_url == f"{hub.endpoint}/tester/mine"
    assert hub.files("tester/mine").keys() == STUDENT


def test_metadata_that_the_hub_refuses(hub, student):
    write_card(make_card(ModelCardData(base_model_relation="distilled"), "# student\n"), student / "README.md")
    with pytest.raises(OSError, match=r"Pushing to mine failed: Invalid metadata in README.md.*base_model_relation"):
        push_folder(student, "mine")
    assert hub.files("tester/mine") == {}


def test_offline(student):
    with pytest.raises(OSError, match=r"Pushing to mine failed: Cannot reach .*offline mode is enabled"):
        push_folder(student, "mine", token="hf_any")


def test_interrupted_upload_starts_again(hub, student):
    """A file in one part is sent again from the start."""
    hub.lose = 2
    push_folder(student, "mine")
    assert hub.files("tester/mine") == {name: (student / name).read_bytes() for name in STUDENT}
    assert hub.lose == 0


def test_names(tmp_path):
    assert is_on_hub("google-bert/bert-base-uncased")
    assert public_name("bert-base-uncased") == "bert-base-uncased"
    assert public_name("") == ""
    for path in (str(tmp_path), "/gone/teacher", "../teacher", "runs/teachers/teacher", "./teacher/"):
        assert not is_on_hub(path)
        assert public_name(path) in ("teacher", tmp_path.name)


def test_revision(hub, student, tmp_path):
    """Newer transformers do not record a model's commit. It is known if the cache has only one."""
    commits = [push_folder(student, "tester/mine").oid]
    model = AutoModelForMaskedLM.from_pretrained("tester/mine")
    assert revision_on_hub(model) == commits[0]
    assert make_student(model).config.distilled_from["revision"] == commits[0]
    assert revision_on_hub(AutoModelForMaskedLM.from_pretrained(student)) is None

    card = ModelCard.load(student / "README.md")
    card.data.license = "apache-2.0"
    write_card(card, student / "README.md")
    commits.append(push_folder(student, "tester/mine").oid)
    model = AutoModelForMaskedLM.from_pretrained("tester/mine")
    assert len(set(commits)) == 2
    assert revision_on_hub(model) is None
