"""PEFT: students with adapters, teachers with adapters, and the student's own base as its teacher."""

import copy
import json
import os

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    TaskType,
    VeraConfig,
    get_peft_model,
)
from safetensors import safe_open
from transformers import AutoModel

from hf_distill.adapters import adapters_off, merged
from hf_distill.training.teacher.live import Teacher
from hf_distill.training.teacher.loading import load_teacher
from tests.conftest import FAMILY_OF_HEAD, HEADS, collate, make_config, make_model, make_rows

TASK_TYPES = {"classification": "SEQ_CLS", "token_classification": "TOKEN_CLS", "causal": "CAUSAL_LM", "mlm": None}
TARGETS = {"gpt2": ["c_attn"]}


@pytest.fixture(params=TASK_TYPES)
def head(request):
    return request.param


def with_adapters(model, head, seed=0, **options):
    targets = TARGETS.get(FAMILY_OF_HEAD.get(head), ["query", "value"])
    torch.manual_seed(seed)
    options = {"r": 4, "lora_dropout": 0.0, "target_modules": targets, "task_type": TASK_TYPES[head], **options}
    return get_peft_model(model, LoraConfig(**options))


def make_pair(head, **options):
    """A teacher, and a student whose adapters have an effect from the start."""
    family = FAMILY_OF_HEAD.get(head, "bert")
    student = with_adapters(make_model(family, head, seed=1), head, init_lora_weights=False, **options)
    return make_model(family, head), student


def test_only_the_adapters_are_trained_and_saved(make_trainer, head):
    teacher, student = make_pair(head)
    base = copy.deepcopy(student.get_base_model())
    trainer = make_trainer(
        student, teacher, make_rows(head), max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-2
    )
    trainer.train()
    for name, weight in student.get_base_model().named_parameters():
        adapted = "lora_" in name or "modules_to_save" in name
        assert torch.equal(weight, base.get_parameter(name)) != adapted

    checkpoint = trainer.args.output_dir + "/checkpoint-4"
    assert "adapter_model.safetensors" in os.listdir(checkpoint)
    assert not {"model.safetensors", "config.json"} & set(os.listdir(checkpoint))
    with safe_open(checkpoint + "/adapter_model.safetensors", "pt") as saved:
        assert all("lora_" in name or "classifier" in name for name in saved.keys())  # noqa: SIM118
    loaded = PeftModel.from_pretrained(make_model(FAMILY_OF_HEAD.get(head, "bert"), head, seed=1), checkpoint)
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    assert torch.equal(loaded.eval()(**inputs).logits, student.eval()(**inputs).logits)


def test_resume(make_trainer, head):
    rows, weights = make_rows(head), []
    for stop in (None, 2):
        teacher, student = make_pair(head)
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
        trainer = make_trainer(student, teacher, rows, **options)
        trainer.train(resume_from_checkpoint=None if stop is None else f"{trainer.args.output_dir}/checkpoint-{stop}")
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters() if p.requires_grad]))
    assert torch.equal(*weights)


def test_merged_model(make_trainer, head, tmp_path):
    teacher, student = make_pair(head)
    trainer = make_trainer(student, teacher, make_rows(head), max_steps=2, learning_rate=1e-2)
    trainer.train()
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    trainer.save_merged_model(str(tmp_path / "merged"))
    plain = HEADS[head].from_pretrained(tmp_path / "merged")
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    torch.testing.assert_close(plain(**inputs).logits, student.eval()(**inputs).logits)
    assert type(plain) is type(teacher)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_merging_what_is_tied():
    model = with_adapters(make_model("bert", "mlm"), "mlm", target_modules=["word_embeddings"])
    with pytest.raises(ValueError, match="tied to the head"):
        merged(model)


def test_nothing_to_merge(make_trainer, tmp_path):
    teacher, student = make_model("bert", "mlm"), make_model("bert", "mlm", seed=1)
    with pytest.raises(TypeError, match="BertForMaskedLM has no adapters to merge"):
        make_trainer(student, teacher).save_merged_model(str(tmp_path / "merged"))


@pytest.mark.parametrize("chunk_size", [10**6, 5])
def test_the_base_of_the_student_as_its_teacher(make_trainer, monkeypatch, head, chunk_size):
    """The training is the same as with a copy of the base as teacher. The student's state does not change."""
    from hf_distill.training.scoring import pieces

    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", chunk_size * 61)
    rows, results = make_rows(head), []
    for own in (True, False):
        _, student = make_pair(head)
        teacher = student
        if not own:
            teacher = make_model(FAMILY_OF_HEAD.get(head, "bert"), head, seed=1)
        options = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
        trainer = make_trainer(student, teacher, rows, **options)
        trainer.train()
        results.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
        assert student.training
        assert {name for name, p in student.named_parameters() if p.requires_grad} == {
            name for name, _ in student.named_parameters() if "lora_" in name or "modules_to_save" in name
        }
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert len(results[0]) == 3


def test_adapters_that_were_frozen_stay_so():
    student = with_adapters(make_model("bert", "mlm"), "mlm")
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    student.train()
    with adapters_off(student):
        assert not student.training
    assert student.training
    assert not any(parameter.requires_grad for parameter in student.parameters())


def test_teacher_with_adapters(make_trainer, tmp_path, head):
    """A teacher with adapters gives the same targets as a PEFT model, as an adapter folder, and merged by hand."""
    family, rows = FAMILY_OF_HEAD.get(head, "bert"), make_rows(head)
    make_model(family, head).save_pretrained(tmp_path / "base")
    teacher = with_adapters(HEADS[head].from_pretrained(tmp_path / "base"), head, init_lora_weights=False)
    teacher.save_pretrained(tmp_path / "adapter")
    losses = []
    for given in (teacher, str(tmp_path / "adapter"), merged(teacher)):
        trainer = make_trainer(make_model(family, head, seed=1, num_layers=2), given, eval_rows=rows)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    beside_the_base = make_trainer(make_model(family, head, seed=1, num_layers=2), make_model(family, head))
    assert beside_the_base.evaluate(rows)["eval_loss"] != pytest.approx(losses[0], rel=1e-3)


def test_adapter_of_three_labels(tmp_path):
    """The base has no head, and the adapter does not record the number of labels."""
    AutoModel.from_config(make_config("bert")).save_pretrained(tmp_path / "base")
    base = HEADS["classification"].from_pretrained(tmp_path / "base", num_labels=3)
    teacher = with_adapters(base, "classification", init_lora_weights=False).eval()
    teacher.save_pretrained(tmp_path / "adapter")
    loaded = load_teacher(str(tmp_path / "adapter"), make_model("bert", "classification", num_labels=3))
    inputs = collate(make_rows("classification"))
    inputs.pop("labels")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, teacher(**inputs).logits)


def test_adapter_without_a_head(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path / "base")
    base = HEADS["classification"].from_pretrained(tmp_path / "base")
    with_adapters(base, "classification", task_type=None).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"no weights for .*classifier.weight"):
        load_teacher(str(tmp_path / "adapter"), make_model("bert", "classification"))


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["value", "output.dense"], feedforward_modules=["output.dense"]),
        LoHaConfig(target_modules=["query", "value"]),
        VeraConfig(target_modules=["query", "value"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_adapters(make_trainer, config, tmp_path):
    student, teacher = get_peft_model(make_model("bert", "mlm", seed=1), config), make_model("bert", "mlm")
    trainer = make_trainer(student, teacher, make_rows("mlm"), num_train_epochs=5, learning_rate=1e-2)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    trainer.save_merged_model(str(tmp_path / "merged"))
    plain = HEADS["mlm"].from_pretrained(tmp_path / "merged")
    inputs = {"input_ids": torch.tensor([[7, 8, 9]])}
    torch.testing.assert_close(plain(**inputs).logits, student.eval()(**inputs).logits)


def test_prompts_are_refused(make_trainer):
    config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3)
    student = get_peft_model(make_model("bert", "classification"), config)
    with pytest.raises(ValueError, match=r"PREFIX_TUNING adds virtual tokens before the text.*use LoRA"):
        make_trainer(student, make_model("bert", "classification", seed=1))


def test_base_that_is_not_a_copy(make_trainer):
    _, student = make_pair("mlm")
    with pytest.raises(ValueError, match="pass the student itself as teacher_model"):
        make_trainer(student, student.get_base_model())


def test_the_base_is_the_same_teacher_whatever_the_adapters_begin_with():
    base = make_model("bert", "mlm")
    students = [with_adapters(copy.deepcopy(base), "mlm", seed=seed, init_lora_weights=False) for seed in (0, 1)]
    assert Teacher(students[0], students[0]).fingerprint == Teacher(students[1], students[1]).fingerprint
    other = with_adapters(make_model("bert", "mlm", seed=7), "mlm")
    assert Teacher(other, other).fingerprint != Teacher(students[0], students[0]).fingerprint


def test_distillation_state_names_the_base(make_trainer):
    _, student = make_pair("mlm")
    trainer = make_trainer(student, student, make_rows("mlm"), max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    with open(f"{trainer.args.output_dir}/checkpoint-1/distillation_state.json") as file:
        assert json.load(file)["teacher_fingerprint"] == trainer.teacher.fingerprint
