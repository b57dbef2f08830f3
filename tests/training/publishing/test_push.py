"""What is pushed and when, and what remains after a failed push. With the real client, against a local Hub."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from hf_distill import make_student
from tests.conftest import make_model, make_rows, make_text_tokenizer, make_texts

PUSHED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}

LOAD = """
import json, sys, torch, transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(**tokenizer(json.loads(sys.argv[2]), return_tensors="pt", padding=True)).logits
assert "hf_distill" not in sys.modules
print(json.dumps(logits.tolist()))
"""


def train(make_trainer, tmp_path, save_first=True, **arguments):
    """Trains a student for two steps, with a teacher in a folder, and saves it unless told otherwise."""
    tokenizer = make_text_tokenizer()
    make_model("bert", "classification").save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")
    texts = make_texts(8)
    rows = Dataset.from_dict({**tokenizer(texts), "labels": [0, 1] * 4})
    trainer = make_trainer(
        make_student(teacher),
        teacher,
        rows,
        data_collator=None,
        trainer_options={"processing_class": tokenizer},
        **{"per_device_train_batch_size": 4, "num_train_epochs": 1, **arguments},
    )
    trainer.train()
    return trainer


def check_private(hub, repo, tmp_path):
    """No file of any commit contains a local path or a token."""
    num_files = 0
    for _, _, files in hub.repos[repo]:
        for name, data in files.items():
            num_files += 1
            assert str(tmp_path).encode() not in data, name
            assert hub.token.encode() not in data, name
    assert num_files > 0


def test_pushed_and_loaded_from_a_fresh_cache(hub, make_trainer, tmp_path):
    trainer = train(make_trainer, tmp_path, save_strategy="steps", save_steps=1, hub_token=hub.token)
    out = tmp_path / "out"
    for name in ("runs/events.out", "all_results.json", "teacher/model.safetensors", "plots/curves.png", "curves.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"made elsewhere")
    commit = trainer.push_to_hub()
    assert commit.repo_url == f"{hub.endpoint}/tester/out"
    assert hub.files("tester/out").keys() == {*PUSHED, "curves.png", "plots/curves.png"}
    assert hub.messages("tester/out") == ["End of training"]
    assert b'Classification.from_pretrained("tester/out")' in hub.files("tester/out")["README.md"]
    assert {"training_args.bin", "checkpoint-2", "trainer_state.json"} & {path.name for path in out.iterdir()}
    check_private(hub, "tester/out", tmp_path)

    trainer.model.eval()
    texts = ["w5 w6 w7", "w8"]
    with torch.no_grad():
        expected = trainer.model(**make_text_tokenizer()(texts, return_tensors="pt", padding=True)).logits
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "fresh"), "HF_HUB_DISABLE_XET": "1"}
    loading = subprocess.run(
        [sys.executable, "-c", LOAD, "tester/out", json.dumps(texts)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert loading.returncode == 0, loading.stderr
    logits = torch.tensor(json.loads(loading.stdout))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("of_args", "private", "is_private"), [(None, True, True), (True, None, True), (True, False, False)]
)
def test_private_repository(hub, make_trainer, tmp_path, of_args, private, is_private):
    """Also with transformers before 5.23, whose `init_hf_repo` has no argument `private`."""
    trainer = train(make_trainer, tmp_path, hub_private_repo=of_args)
    init = trainer.init_hf_repo
    trainer.init_hf_repo = lambda token=None: init(token=token)
    trainer.push_to_hub(private=private)
    assert hub.private == ({"tester/out"} if is_private else set())
    assert trainer.args.hub_private_repo is of_args


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_strategies(hub, make_trainer, tmp_path, strategy):
    options = {"save_strategy": "steps", "save_steps": 1, "hub_always_push": True}
    trainer = train(make_trainer, tmp_path, push_to_hub=True, hub_strategy=strategy, hub_model_id="mine", **options)
    during = [] if strategy == "end" else ["Training in progress, step 1", "Training in progress, step 2"]
    assert hub.messages("tester/mine") == during
    trainer.save_model()
    # Nothing has changed since the second step, but the weights are there.
    assert hub.messages("tester/mine")[: len(during)] == during
    assert hub.files("tester/mine").keys() == PUSHED
    assert hub.files("tester/mine")["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    check_private(hub, "tester/mine", tmp_path)
    if during:
        first, second = (files["model.safetensors"] for _, _, files in hub.repos["tester/mine"][:2])
        assert first != second
    else:
        assert hub.messages("tester/mine") == ["Model save"]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_pushed(hub, make_trainer, strategy):
    with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' would push optimizer states.*'every_save'"):
        make_trainer(
            make_model("bert", "mlm"), make_model("bert", "mlm", seed=1), push_to_hub=True, hub_strategy=strategy
        )
    assert hub.repos == {}


def test_wrong_token_before_training(hub, make_trainer, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OSError, match=r"the token is missing or invalid.*HF_TOKEN.*Nothing has been trained yet"):
        make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm", seed=1), push_to_hub=True)


@pytest.mark.parametrize(
    ("token", "reason"),
    [("hf_wrong", "the token is missing or invalid"), ("hf_thisonemayread", "has no write access")],
)
def test_wrong_token_after_training(hub, make_trainer, tmp_path, token, reason):
    trainer = train(make_trainer, tmp_path)
    with pytest.raises(
        OSError, match=rf"{reason}.*saved in {tmp_path}/out; .*hf-distill push {tmp_path}/out out"
    ) as raised:
        trainer.push_to_hub(token=token)
    assert token not in str(raised.value)
    assert hub.repos == {}
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(saved.classifier.weight, trainer.model.classifier.weight)
    assert (tmp_path / "out" / "README.md").is_file()
    trainer.push_to_hub()
    assert hub.files("tester/out").keys() == PUSHED


def test_no_connection(hub, make_trainer, tmp_path):
    trainer = train(make_trainer, tmp_path)
    hub.__exit__()
    with pytest.raises(OSError, match=f"Pushing to out failed: .*saved in {tmp_path}/out"):
        trainer.push_to_hub()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


def test_failures_while_training_are_told(hub, make_trainer, tmp_path, caplog):
    hub.answers["POST", "/preupload/"] = 403
    options = {"save_strategy": "steps", "save_steps": 1, "hub_always_push": True, "push_to_hub": True}
    trainer = train(make_trainer, tmp_path, **options)
    assert trainer.state.global_step == 2  # which went on
    said = [record.message for record in caplog.records if "A push during training failed" in record.message]
    assert len(said) == 2
    assert "has no write access" in said[0]
    assert f"hf-distill push {tmp_path}/out tester/out" in said[0]
    assert hub.messages("tester/out") == []
    hub.answers.clear()
    trainer.push_to_hub()
    assert hub.files("tester/out").keys() == PUSHED


def test_large_file_that_is_interrupted_once_is_resumed(hub, make_trainer, tmp_path):
    """For a file in parts, only the lost part is sent again."""
    hub.part_size, hub.lose = 10_000, 1
    trainer = train(make_trainer, tmp_path)
    trainer.push_to_hub()
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.files("tester/out")["model.safetensors"] == weights
    num_parts = -(-len(weights) // 10_000)
    parts = [part for _, part in hub.uploads]
    assert num_parts > 1
    assert sorted(part for part in parts if part > 1) == list(range(2, num_parts + 1))


def test_large_file_that_is_interrupted_for_good(hub, make_trainer, tmp_path):
    """A failed push leaves no commit, and the next push is complete."""
    hub.lose = 1000
    trainer = train(make_trainer, tmp_path)
    with pytest.raises(OSError, match=f"Pushing to out failed: Error while uploading .*saved in {tmp_path}/out"):
        trainer.push_to_hub()
    assert hub.messages("tester/out") == []
    assert hub.files("tester/out") == {}
    hub.lose = 0
    trainer.push_to_hub()
    assert hub.files("tester/out")["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.files("tester/out").keys() == PUSHED


def test_adapter(hub, make_trainer, tmp_path):
    """An adapter is pushed if its base model has a Hub name. A local path is never pushed."""
    make_model("bert", "classification").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    trainer = make_trainer(student, make_model("bert", "classification", seed=1), make_rows("classification"))
    with pytest.raises(ValueError, match=rf"out/adapter_config.json contains .*{tmp_path}/base, so nothing was pushed"):
        trainer.push_to_hub()
    assert hub.repos == {}
    student.peft_config["default"].base_model_name_or_path = "tester/base"
    trainer.push_to_hub()
    assert hub.files("tester/out").keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    check_private(hub, "tester/out", tmp_path)
