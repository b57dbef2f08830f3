"""On-policy distillation: the student's own completions, however a step is split."""

import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_distill import (
    DataCollatorForCausalLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    add_teacher_targets,
    encode_chats,
)
from hf_distill.training.losses import on_policy
from hf_distill.training.losses.on_policy import SeededNoise, prompts_of
from tests.conftest import make_model, make_rows, make_texts
from tests.data.test_chats import chat, make_tokenizer
from tests.processes import run_on_two_processes
from tests.training.test_split_invariance import KeepGradient

ON = {"on_policy_fraction": 1.0, "on_policy_max_new_tokens": 5}
KL = {"alpha_kl": 1.0, "alpha_task": 0.0, "alpha_cos": 0.0, "temperature": 1.0, "learning_rate": 0.05, "optim": "sgd"}
END = 2


def make_pair():
    student = make_model("llama", "causal", seed=1, num_layers=2, initializer_range=0.3)
    student.generation_config.eos_token_id, student.generation_config.pad_token_id = END, 0
    return make_model("llama", "causal", initializer_range=0.3), student


def make_chats(number=8):
    texts = make_texts(2 * number, seed=3, longest=5)
    rows = [{"messages": chat(*texts[2 * row : 2 * row + 2])} for row in range(number)]
    return encode_chats(Dataset.from_list(rows), make_tokenizer(), 30)


class KeepBatches(TrainerCallback):
    """Keeps the rows of every micro-batch that a trainer computes the loss of."""

    def __init__(self, trainer):
        self.batches, compute = [], trainer.compute_loss

        def kept(model, inputs, *args, **kwargs):
            self.batches.append({name: value.clone() for name, value in inputs.items() if name in KEPT})
            return compute(model, inputs, *args, **kwargs)

        trainer.compute_loss = kept

    def rows(self, batch):
        own = self.batches[batch]
        triples = zip(own["input_ids"], own["labels"], own["attention_mask"], strict=True)
        return [(ids[mask.bool()].tolist(), labels[mask.bool()].tolist()) for ids, labels, mask in triples]


KEPT = ("input_ids", "attention_mask", "labels")


def train(make_trainer, rows=None, **arguments):
    teacher, student = make_pair()
    tokenizer = make_tokenizer()
    keeper = KeepGradient()
    options = {"callbacks": [keeper], "processing_class": tokenizer}
    trainer = make_trainer(
        student,
        teacher,
        rows or make_chats(),
        data_collator=DataCollatorForCausalLM(tokenizer),
        trainer_options=options,
        **{**KL, **ON, "max_steps": 1, **arguments},
    )
    keeper.trainer = trainer
    batches = KeepBatches(trainer)
    trainer.train()
    return trainer, batches, keeper.gradient


def test_noise_samples_the_softmax():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    counts = torch.zeros(4)
    for key in range(4000):
        counts[SeededNoise([key * 1000], 0)(torch.zeros(1, 0), logits).argmax()] += 1
    expected = 4000 * logits[0].softmax(0)
    assert ((counts - expected).abs() < 4 * expected.sqrt()).all()


def test_the_loss_is_that_of_the_written_completions(make_trainer):
    """Another computation: whole logits of both models on the same rows."""
    trainer, batches, _ = train(make_trainer, logging_steps=1)
    teacher, student = make_pair()
    given = {tuple(own["input_ids"]) for own in make_chats()}
    divergences = []
    for ids, labels in batches.rows(0):
        assert tuple(ids) not in given
        begin = next(place for place, label in enumerate(labels) if label != -100)
        assert labels == [-100] * begin + ids[begin:]
        assert 1 <= len(ids) - begin <= 5
        assert END not in ids[begin:-1]  # the first end ends it
        with torch.no_grad():
            p, q = (
                own(input_ids=torch.tensor([ids])).logits[0, begin - 1 : -1].log_softmax(-1)
                for own in (teacher, student)
            )
        divergences.append((p.exp() * (p - q)).sum(-1))
    assert trainer.state.log_history[0]["loss_kl"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_split_invariance(make_trainer, size):
    _, one, gradient = train(make_trainer, per_device_train_batch_size=8)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    _, several, own_gradient = train(make_trainer, **options)
    assert [row for batch in range(8 // size) for row in several.rows(batch)] == one.rows(0)
    assert (own_gradient - gradient).norm() <= 1e-6 * gradient.norm()


def test_two_processes(make_trainer, tmp_path):
    file = tmp_path / "gradient.json"
    run = run_on_two_processes([__file__, str(file)], cwd=Path(__file__).parents[3])
    assert file.exists(), run.stderr[-3000:]
    _, _, gradient = train(make_trainer, per_device_train_batch_size=8)
    assert (torch.tensor(json.loads(file.read_text())) - gradient).norm() <= 1e-6 * gradient.norm()


def test_share_of_the_steps(make_trainer):
    rows = make_chats()
    _, batches, _ = train(make_trainer, rows, on_policy_fraction=0.5, max_steps=4, per_device_train_batch_size=8)
    given = [(own["input_ids"], own["labels"]) for own in rows]
    assert [batches.rows(step) == given for step in range(4)] == [True, False, True, False]
    assert batches.rows(1) != batches.rows(3)  # other noise, and another student


def test_a_resumed_run_writes_the_same(make_trainer, tmp_path):
    trainer, _, _ = train(make_trainer, max_steps=4, save_strategy="steps", save_steps=2)
    teacher, student = make_pair()
    again = make_trainer(
        student,
        teacher,
        make_chats(),
        data_collator=DataCollatorForCausalLM(make_tokenizer()),
        trainer_options={"processing_class": make_tokenizer()},
        **{**KL, **ON, "max_steps": 4, "save_strategy": "steps", "save_steps": 2},
    )
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name]), name


def test_training_comes_closer_to_the_teacher(make_trainer):
    trainer, _, _ = train(
        make_trainer, max_steps=30, learning_rate=0.01, optim="adamw_torch", lr_scheduler_type="constant"
    )
    losses = [own["loss_kl"] for own in trainer.state.log_history if "loss_kl" in own]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert trainer.model.training


def test_bad_arguments(make_trainer):
    for name, value, message in [
        ("on_policy_fraction", 1.5, r"on_policy_fraction=1.5 should be from 0 \(never\) to 1"),
        ("on_policy_max_new_tokens", 0, "on_policy_max_new_tokens=0 should be 1 or more"),
        ("alpha_task", 1.0, "on_policy_fraction=1.0 needs alpha_task=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(make_trainer, **{name: value})
    with pytest.raises(ValueError, match="needs a causal language model, not a BertForMaskedLM"):
        make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm"), make_rows("mlm"), **KL, **ON)
    teacher, student = make_pair()
    rows = add_teacher_targets(make_chats().remove_columns("length"), teacher, make_tokenizer(), temperature=1.0)
    with pytest.raises(ValueError, match="needs a teacher that reads what the student writes: pass teacher_model"):
        make_trainer(student, None, rows, trainer_options={"processing_class": make_tokenizer()}, **KL, **ON)


def test_without_a_tokenizer(make_trainer):
    teacher, student = make_pair()
    with pytest.raises(ValueError, match="needs a tokenizer with a padding token: pass it as processing_class"):
        make_trainer(student, teacher, make_chats(), **KL, **ON)


def test_bad_rows(make_trainer, monkeypatch):
    monkeypatch.setattr(on_policy, "most_tokens", lambda student: 10)
    with pytest.raises(
        ValueError, match=r"A prompt has \d+ tokens, but with on_policy_max_new_tokens=5 the student acc"
    ):
        train(make_trainer)
    batch = {name: torch.tensor([[5, 6]]) for name in KEPT}
    with pytest.raises(ValueError, match="needs rows that begin with a prompt"):
        prompts_of(batch)
    apart = SeparateDocuments(make_pair()[0])
    packed = DataCollatorForCausalLM(make_tokenizer(), attention=apart)(
        [{"input_ids": [5, 6], "attention_mask": [1, 2], "labels": [-100, 6]}]
    )
    with pytest.raises(ValueError, match="put one chat into a row"):
        prompts_of(packed)


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)

    def make_on_process(student, teacher, rows, data_collator, trainer_options, **arguments):
        options = {"use_cpu": True, "ddp_backend": "gloo", "report_to": "none", "save_strategy": "no"}
        options |= {"train_sampling_strategy": "sequential", "max_grad_norm": 0.0, **arguments}
        args = DistillationTrainingArguments(str(Path(sys.argv[1]).parent / "out"), **options)
        return DistillationTrainer(student, args, data_collator, rows, teacher_model=teacher, **trainer_options)

    own_trainer, _, own_gradient = train(make_on_process, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert own_trainer.accelerator.num_processes == 2
    if own_trainer.is_world_process_zero():
        Path(sys.argv[1]).write_text(json.dumps(own_gradient.tolist()))
