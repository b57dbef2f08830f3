"""A student of `make_student` is trained with TRL, and what TRL saves is evaluated and exported here."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_distill import evaluate_model, export_model, load_predictor, make_student
from recipes.benchmarks._common import train_quietly
from tests.conftest import make_model
from tests.data.test_chats import MARKED, chat, make_tokenizer

pytest.importorskip("trl")

OPTIONS = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
CHATS = [{"messages": chat(f"w{n} w{n + 1}", f"w{n + 2}")} for n in range(5, 13)]


def sft(student, teacher, tokenizer, folder):
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(str(folder), assistant_only_loss=True, **OPTIONS)
    return SFTTrainer(str(student), args, train_dataset=Dataset.from_list(CHATS), processing_class=tokenizer)


def gkd(student, teacher, tokenizer, folder):
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(str(folder), lmbda=1.0, max_new_tokens=4, **OPTIONS)
    chats = Dataset.from_list(CHATS)
    return GKDTrainer(str(student), str(teacher), args, train_dataset=chats, processing_class=tokenizer)


def on_policy(student, teacher, tokenizer, folder):
    from trl import DistillationConfig, DistillationTrainer

    args = DistillationConfig(str(folder), max_completion_length=4, **OPTIONS)
    prompts = Dataset.from_list([{"prompt": own["messages"][:1]} for own in CHATS])
    return DistillationTrainer(str(student), str(teacher), args, train_dataset=prompts, processing_class=tokenizer)


@pytest.mark.parametrize(("make", "generations"), [(sft, 0), (gkd, 2), (on_policy, 2)])
def test_hand_over(tmp_path, monkeypatch, make, generations):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer = make_tokenizer(MARKED)
    teacher = make_model("llama", "causal", num_layers=4)
    student = make_student(teacher)
    for name, model in {"teacher": teacher, "student": student}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    before = student.state_dict()

    generated = []
    generate = LlamaForCausalLM.generate
    monkeypatch.setattr(
        LlamaForCausalLM, "generate", lambda *args, **options: generated.append(1) or generate(*args, **options)
    )
    trainer = make(tmp_path / "student", tmp_path / "teacher", tokenizer, tmp_path / "out")
    train_quietly(trainer)
    assert len(generated) == generations  # the student's own text is learned by on-policy trainers alone
    trained = tmp_path / "trained"
    trainer.save_model(str(trained))

    loaded, loading = AutoModelForCausalLM.from_pretrained(trained, output_loading_info=True)
    assert type(loaded) is LlamaForCausalLM
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not list(trained.glob("*.py"))
    assert any(not torch.equal(own, before[name]) for name, own in loaded.state_dict().items())
    assert loaded.config.distilled_from == student.config.distilled_from  # the layers, for losses over layers

    chats = tmp_path / "test.jsonl"
    chats.write_text("\n".join(map(json.dumps, CHATS)))
    metrics = evaluate_model(trained, chats, teacher=tmp_path / "teacher", max_length=30)
    assert metrics["rows"] == len(CHATS)
    assert metrics["perplexity"] > 1
    export = export_model(trained, tmp_path / "onnx", "onnx", texts=["w5 w6", "w7"], max_length=30)
    assert export.parity.agreement == 1
    (answer,) = load_predictor(tmp_path / "onnx").predict(["w5 w6"])
    token = loaded(**tokenizer(["w5 w6"], return_tensors="pt")).logits[0, -1].argmax()
    assert answer["label"] == tokenizer.convert_ids_to_tokens(int(token))
