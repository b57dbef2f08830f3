"""`DistillationTrainer` on tiny models: losses, unchanged objects, and errors."""

import copy
import json
import math
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from hf_distill.training.scoring import pieces
from tests.conftest import AUTO_CLASSES, FAMILY_OF_HEAD, HEADS, collate, make_model, make_rows
from tests.training.losses.test_losses import cosine_by_definition, cross_entropy_by_definition, kl_by_definition
from tests.training.teacher.test_live import make_tokenizer

CASES = [
    *[(head, family) for head in ("classification", "mlm") for family in ("bert", "roberta", "distilbert")],
    *[(head, "bert") for head in ("multi_label", "regression", "token_classification", "question_answering")],
    *[("causal", family) for family in ("gpt2", "llama", "opt")],
    *[("seq2seq", family) for family in ("bart", "t5")],
    *[("multiple_choice", "bert"), ("image", "vit"), ("audio", "wav2vec2")],
]


LABEL_NAMES = ("labels", "start_positions", "end_positions")


def losses_by_definition(head, student, teacher, rows, kl_positions="labels", temperature=2.0):
    """The three mean losses from the formulas, computed row by row without padding."""
    sums, items = {"kl": 0.0, "task": 0.0, "cos": 0.0}, {"kl": 0, "task": 0, "cos": 0}
    for row in rows:
        batch = collate([row])
        labels = torch.cat([batch[n].flatten() for n in LABEL_NAMES if n in batch])
        if head != "seq2seq":  # which takes its decoder_input_ids from the labels
            batch = {name: value for name, value in batch.items() if name not in LABEL_NAMES}
        outputs = []
        with torch.no_grad():
            for model in (student.eval(), teacher.eval()):
                states = []
                body = model.get_decoder() if head in ("causal", "seq2seq") else model.base_model
                hook = body.register_forward_hook(lambda module, args, output, states=states: states.append(output[0]))
                outputs.append((model(**batch), states))
                hook.remove()
        (student_output, (s_hidden,)), (teacher_output, (t_hidden,)) = outputs
        if head == "question_answering":
            s, t = (torch.cat([o.start_logits, o.end_logits]) for o in (student_output, teacher_output))
            labels = torch.where((labels < 0) | (labels >= s.shape[1]), -100, labels)
        else:
            s, t = student_output.logits, teacher_output.logits
        s, t, labels = s.double().numpy(), t.double().numpy(), labels.numpy()
        if s.ndim == 3:
            s, t = s[0], t[0]
            if head == "causal":
                labels = [*labels[1:], -100]
            scored = [kl_positions == "attended" or label != -100 for label in labels]
            if head == "seq2seq":
                scored = [label != -100 for label in labels]
        else:
            scored = [True] * len(s)
        sums["kl"] += divergence(head, s[scored], t[scored], temperature)
        items["kl"] += sum(scored)
        if head == "multi_label":
            probability = [1 / (1 + math.exp(-z if yes else z)) for z, yes in zip(s[0], labels, strict=True)]
            sums["task"] += -sum(map(math.log, probability))
            items["task"] += len(probability)
        elif head == "regression":
            sums["task"] += (s[0, 0] - labels[0]) ** 2
            items["task"] += 1
        else:
            sums["task"] += cross_entropy_by_definition(s, labels)
            items["task"] += sum(label != -100 for label in labels)
        if head == "image" and s_hidden.ndim == 4:
            s_hidden, t_hidden = (hidden.flatten(2).mT for hidden in (s_hidden, t_hidden))
        attended = torch.ones(s_hidden.shape[:2])
        if head == "multiple_choice":
            attended = batch["attention_mask"][0]
        if head == "seq2seq":
            attended = batch["labels"] != -100
        num_items = 1 if head in ("image", "audio") else attended.sum().item()
        distance = cosine_by_definition(s_hidden.double().numpy(), t_hidden.double().numpy(), attended.numpy())
        sums["cos"] += distance * num_items / max(1, attended.sum().item())
        items["cos"] += num_items
    return {name: sums[name] / items[name] for name in sums}


def divergence(head, student_logits, teacher_logits, temperature):
    if head == "regression":
        return ((student_logits - teacher_logits) ** 2).sum()
    if head == "multi_label":  # each class is a distribution over yes and no, with the logits z and 0
        pairs = [np.stack([logits[0], 0 * logits[0]], axis=1) for logits in (student_logits, teacher_logits)]
        return kl_by_definition(*pairs, temperature) / len(pairs[0])
    return kl_by_definition(student_logits, teacher_logits, temperature)


@pytest.mark.parametrize(
    ("head", "family", "kl_positions"),
    [
        *[(head, family, "labels") for head, family in CASES],
        *[("mlm", "bert", "attended"), ("token_classification", "bert", "attended"), ("causal", "gpt2", "attended")],
    ],
)
def test_logged_losses_are_those_of_the_formulas(make_trainer, family, head, kl_positions):
    teacher, student, rows = make_model(family, head), make_model(family, head, seed=1, num_layers=2), make_rows(head)
    expected = losses_by_definition(head, student, teacher, rows, kl_positions)
    total = 5 * expected["kl"] + 2 * expected["task"] + expected["cos"]
    trainer = make_trainer(
        student, teacher, rows, rows, kl_positions=kl_positions, max_steps=1, per_device_eval_batch_size=3
    )

    evaluated = trainer.evaluate()
    trainer.train()
    for logged, prefix in ((evaluated, "eval_loss"), (trainer.state.log_history[-2], "loss")):
        assert logged[prefix] == pytest.approx(total, rel=1e-5)
        for name, value in expected.items():
            assert logged[f"{prefix}_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_losses_of_feature_maps(make_trainer):
    """Only in evaluation: in training, a ResNet normalises over the batch, so single rows give other results."""
    teacher, student = make_model("resnet", "image"), make_model("resnet", "image", seed=1, num_layers=2)
    expected = losses_by_definition("image", student, teacher, make_rows("image"))
    evaluated = make_trainer(student, teacher, eval_rows=make_rows("image"), per_device_eval_batch_size=3).evaluate()
    for name, value in expected.items():
        assert evaluated[f"eval_loss_{name}"] == pytest.approx(value, rel=1e-5)


def test_logged_losses_are_means_over_the_steps_since_the_last_log(make_trainer):
    rows = make_rows("classification")
    teacher, student = make_model("bert", "classification"), make_student(make_model("bert", "classification", seed=1))
    by_step, by_three = (
        make_trainer(
            copy.deepcopy(student), teacher, rows, max_steps=6, per_device_train_batch_size=4, logging_steps=steps
        )
        for steps in (1, 3)
    )
    by_step.train()
    by_three.train()
    for name in ("loss", "loss_kl", "loss_task", "loss_cos"):
        each = [log[name] for log in by_step.state.log_history if name in log]
        means = [log[name] for log in by_three.state.log_history if name in log]
        assert len(each) == 6
        assert means == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-6)


def test_logged_losses_begin_anew_with_each_training(make_trainer):
    """Steps that one training did not log are not in the first log of the next training."""
    teacher, student = make_model("bert", "classification"), make_student(make_model("bert", "classification", seed=1))
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 2, "learning_rate": 1e-2}
    trainer = make_trainer(student, teacher, make_rows("classification"), **options)
    trainer.train()
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    assert log["loss"] == pytest.approx(5 * log["loss_kl"] + 2 * log["loss_task"] + log["loss_cos"], rel=1e-5)


def test_only_the_losses_with_a_weight_are_computed_and_logged(make_trainer):
    teacher, student = make_model("bert", "mlm"), make_student(make_model("bert", "mlm", seed=1))
    trainer = make_trainer(student, teacher, make_rows("mlm"), max_steps=1, alpha_cos=0.0, alpha_task=0.0)
    trainer.train()
    log = trainer.state.log_history[0]
    assert {name for name in log if name.startswith("loss")} == {"loss", "loss_kl"}
    assert log["loss"] == pytest.approx(5 * log["loss_kl"])


def test_no_loss_and_no_gradient_if_the_student_is_the_teacher(make_trainer, family, head):
    teacher = make_model(family, head)
    student = make_student(teacher, layers=[0, 1, 2, 3])
    trainer = make_trainer(student, teacher, alpha_task=0.0)
    loss = trainer.compute_loss(student, collate(make_rows(head)))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    gradients = [parameter.grad.abs().max().item() for parameter in student.parameters() if parameter.grad is not None]
    assert len(gradients) > 20
    assert max(gradients) < 1e-5


def test_padding_changes_neither_loss_nor_gradient(make_trainer, family, head):
    rows, teacher = make_rows(head), make_model(family, head)
    results = []
    for length in (None, 35):
        student = make_student(make_model(family, head, seed=1))
        loss = make_trainer(student, teacher).compute_loss(student, collate(rows, length))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        results.append((loss.item(), gradient))
    (loss, gradient), (padded_loss, padded_gradient) = results
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    assert (gradient - padded_gradient).norm() <= 2e-6 * gradient.norm()


def test_teacher_is_bitwise_unchanged_and_in_no_checkpoint(make_trainer, family, head):
    teacher = make_model(family, head, dropout=0.1)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = make_student(teacher)
    start = student.base_model.get_input_embeddings().weight.clone()
    trainer = make_trainer(
        student, teacher.train(), make_rows(head), max_steps=3, save_strategy="steps", save_steps=3, learning_rate=1e-2
    )
    trainer.train()
    assert not torch.equal(student.base_model.get_input_embeddings().weight, start)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])

    checkpoint = trainer.args.output_dir + "/checkpoint-3"
    saved = HEADS[head].from_pretrained(checkpoint)
    assert saved.num_parameters() == student.num_parameters() < teacher.num_parameters()
    assert sum(file.endswith(".safetensors") for file in os.listdir(checkpoint)) == 1
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in teacher.parameters()}


def test_saved_student_loads_where_hf_distill_is_not_installed(make_trainer, head, tmp_path):
    teacher = make_model("bert", head)
    trainer = make_trainer(make_student(teacher), teacher, make_rows(head), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    code = """
import sys, json, torch
sys.modules["hf_distill"] = None                     # any import of it fails
import transformers
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1])
print(json.dumps(model(input_ids=torch.tensor([[7, 8, 9]])).logits.flatten().tolist()))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "student"), AUTO_CLASSES[head]]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    expected = trainer.model.eval()(input_ids=torch.tensor([[7, 8, 9]])).logits.flatten().tolist()
    assert json.loads(run.stdout) == pytest.approx(expected, abs=1e-6)


def test_unlabelled_data(make_trainer, head):
    """With `alpha_task=0` nothing needs labels, in training or in evaluation."""
    rows = make_rows(head)
    for row in rows:
        del row["labels"]
    options = {"kl_positions": "attended"} if head == "mlm" else {}
    teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
    trainer = make_trainer(student, teacher, rows, rows, alpha_task=0.0, max_steps=30, learning_rate=1e-2, **options)
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss_kl"] < 0.5 * before["eval_loss_kl"]


def test_masked_language_modelling_with_the_usual_collator(make_trainer):
    words = [*"abcdefghijklmnopqrstuvwxyz", "[PAD]", "[MASK]"]
    tokenizer = make_tokenizer(words)
    tokenizer.pad_token, tokenizer.mask_token = "[PAD]", "[MASK]"
    rows = [{"input_ids": row["input_ids"]} for row in make_rows("classification")]
    rows = [{"input_ids": [token % 26 for token in row["input_ids"]]} for row in rows]
    teacher = make_model("bert", "mlm")
    trainer = make_trainer(
        make_student(teacher), teacher, rows, data_collator=DataCollatorForLanguageModeling(tokenizer), max_steps=3
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss_task"] > 0


def test_token_type_ids_reach_only_the_model_that_has_them(make_trainer):
    """A DistilBERT student with a BERT teacher: the column of token types is kept, and given only to the teacher."""
    rows = [{**row, "token_type_ids": [1] * len(row["input_ids"])} for row in make_rows("classification")]
    teacher, student = make_model("bert", "classification"), make_model("distilbert", "classification")
    seen = {}
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: seen.update({name: set(kwargs)}), with_kwargs=True
        )
    trainer = make_trainer(student, teacher, datasets.Dataset.from_list(rows), max_steps=1)
    trainer.train()
    assert seen == {
        "teacher": {"input_ids", "attention_mask", "token_type_ids"},
        "student": {"input_ids", "attention_mask"},
    }


def test_bf16(make_trainer, head):
    """Under autocast, losses are computed in fp32, and are close to those without autocast."""
    teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
    logs = []
    for bf16 in (False, True):
        trainer = make_trainer(copy.deepcopy(student), teacher, make_rows(head), max_steps=1, bf16=bf16)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "loss_kl", "loss_task", "loss_cos"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=0.05)
        assert logs[0][name] != logs[1][name]


def test_teacher_dtype(make_trainer):
    teacher, student = make_model("bert", "mlm"), make_student(make_model("bert", "mlm", seed=1))
    trainer = make_trainer(student, teacher, make_rows("mlm"), teacher_dtype="bfloat16", max_steps=1)
    trainer.train()
    assert trainer.teacher.model.dtype == torch.bfloat16
    assert teacher.dtype == torch.float32  # the caller's own is untouched
    assert trainer.state.log_history[0]["loss_kl"] > 0


def test_teacher_by_name(make_trainer, tmp_path, head):
    teacher, student, rows = make_model("bert", head), make_student(make_model("bert", head, seed=1)), make_rows(head)
    teacher.save_pretrained(tmp_path / "teacher")
    name = str(tmp_path / "teacher")
    trainers = [
        make_trainer(copy.deepcopy(student), teacher, eval_rows=rows),
        make_trainer(copy.deepcopy(student), name, eval_rows=rows),
        make_trainer(copy.deepcopy(student), None, eval_rows=rows, teacher_model_name_or_path=name),
    ]
    losses = [trainer.evaluate()["eval_loss"] for trainer in trainers]
    assert losses[0] == losses[1] == losses[2]


def test_gradient_checkpointing_and_chunks_together(make_trainer, monkeypatch):
    teacher, rows, results = make_model("bert", "mlm"), make_rows("mlm"), []
    for checkpointing in (False, True):
        student = make_student(make_model("bert", "mlm", seed=1))
        if checkpointing:
            # its name before transformers 5.10 is deprecated now
            getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
            monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", 7 * student.config.vocab_size)
        trainer = make_trainer(student, teacher, rows, max_steps=3, kl_positions="attended")
        trainer.train()
        results.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_torch_compile(make_trainer, head):
    """The compiled student gives the same losses, with gradient checkpointing and without."""
    teacher, rows, results = make_model("bert", head), make_rows(head), []
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    for options, checkpointing in (({}, False), (compiled, False), (compiled, True)):
        student = make_student(make_model("bert", head, seed=1))
        if checkpointing:
            getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
        trainer = make_trainer(student, teacher, rows, max_steps=2, **options)
        trainer.train()
        results.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    torch._dynamo.reset()
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.long
def test_lengths_do_not_compile_anew(make_trainer, head):
    """Student and teacher compile two graphs each: for the first length, and for any length."""
    rows = make_rows(head, num_rows=48)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    lengths = set()

    def collate_and_look(rows):
        batch = collate(rows)
        lengths.add(batch["input_ids"].shape[1])
        return batch

    options = {"max_steps": 12, "per_device_train_batch_size": 4, "torch_compile_backend": "eager"}
    teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
    trainer = make_trainer(student, teacher, rows, torch_compile=True, **options)
    trainer.data_collator = collate_and_look
    trainer.train()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert len(lengths) > 4
    assert graphs == 4


def test_hyperparameter_search_changes_the_losses(make_trainer):
    from transformers.trainer_utils import HPSearchBackend

    rows = make_rows("classification")
    teacher = make_model("bert", "classification")
    student = make_student(make_model("bert", "classification", seed=1))
    trainer = make_trainer(student, teacher, rows, max_steps=1, alpha_kl=1.0, temperature=2.0)
    trainer.model_init = lambda: copy.deepcopy(student)

    def start_trial(trial):
        trainer.hp_search_backend = HPSearchBackend.RAY  # its trials are plain dicts
        trainer._hp_search_setup(trial)
        trainer.hp_search_backend = None

    for trial in ({"alpha_kl": 4.0}, {"alpha_kl": 1.0, "temperature": 5.0}, {"alpha_cos": 0.0, "temperature": 2.0}):
        start_trial(dict(trial))
        trainer.train()
        fresh = make_trainer(
            copy.deepcopy(student),
            teacher,
            rows,
            max_steps=1,
            alpha_kl=trainer.args.alpha_kl,
            alpha_cos=trainer.args.alpha_cos,
            temperature=trainer.args.temperature,
        )
        fresh.train()
        ours, theirs = ({n: v for n, v in t.state.log_history[0].items() if "loss" in n} for t in (trainer, fresh))
        assert ours == theirs
    with pytest.raises(ValueError, match=r"temperature=-1\.0 should be above 0"):
        start_trial({"temperature": -1.0})


@pytest.mark.parametrize("head", ["causal", "seq2seq"])
def test_decoders_from_end_to_end(make_trainer, head):
    """A student learns to do as its teacher does, is saved, loads with plain transformers and generates."""
    family = FAMILY_OF_HEAD[head]
    teacher, rows = make_model(family, head), make_rows(head, num_rows=32)
    student = make_student(teacher) if head == "causal" else make_model(family, head, seed=1, num_layers=2)
    trainer = make_trainer(student, teacher, rows, rows, num_train_epochs=20, learning_rate=1e-2)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.8 * before["eval_loss"]
    trainer.save_model()
    saved = HEADS[head].from_pretrained(trainer.args.output_dir)
    generated = saved.generate(torch.tensor([[7, 8, 9]]), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] >= 2


def test_other_width_without_the_cosine(make_trainer):
    teacher, student = make_model("bert", "mlm", width=32), make_model("bert", "mlm")
    trainer = make_trainer(student, teacher, make_rows("mlm"), alpha_cos=0.0, max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["loss_kl"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_step_on_a_gpu(head, tmp_path):
    """The same losses as on the CPU, with fp16 and its loss scaling."""
    rows, losses = make_rows(head), []
    for options in ({"use_cpu": True}, {}, {"fp16": True}):
        teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
        arguments = DistillationTrainingArguments(
            str(tmp_path), max_steps=3, logging_steps=1, report_to="none", **options
        )
        trainer = DistillationTrainer(student, arguments, collate, rows, teacher_model=teacher)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=5e-2)


@pytest.mark.parametrize("head", ["token_classification", "question_answering", "mlm"])
def test_a_distilbert_learns_from_its_bert(make_trainer, head):
    """The batch has token types, which the student does not take; with all layers there is nothing left to learn."""
    teacher, rows = make_model("bert", head), make_rows(head)
    for row in rows:
        row["token_type_ids"] = [0] * len(row["input_ids"])
    whole, half = (make_student(teacher, num_layers, family="distilbert") for num_layers in (4, 2))
    losses = make_trainer(whole, teacher, rows, rows).evaluate()
    assert losses["eval_loss_kl"] == pytest.approx(0, abs=1e-5)
    assert losses["eval_loss_cos"] == pytest.approx(0, abs=1e-5)
    trainer = make_trainer(half, teacher, rows, rows, max_steps=8, learning_rate=1e-3)
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]
