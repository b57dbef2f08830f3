"""Errors before the first step, and their messages."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from tests.conftest import make_model, make_rows


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        ({}, None, {}, "alpha_kl=5.0 and alpha_cos=1.0 need a teacher"),
        ({}, {}, {"alpha_kl": 0.0, "alpha_cos": 0.0}, "teacher_model would have no effect"),
        ({}, {}, {"teacher_model_name_or_path": "roberta-base"}, "two teachers"),
        ({}, {}, {"kl_positions": "attended"}, "kl_positions='attended' would have no effect for a BertForSequence"),
        ({}, {"width": 32}, {}, "student's are 16 wide and the teacher's 32: set project_hidden"),
        ({}, {"num_labels": 3}, {}, "must be the same"),
        ({}, {}, {"rows": []}, "train_dataset is empty"),
        ({}, {}, {"eval_rows": []}, "eval_dataset is empty"),
        ({}, {}, {"eval_rows": {"small": []}}, "small is empty"),
        ({}, {}, {"trainer_options": {"compute_loss_func": print}}, "compute_loss_func would have no effect"),
    ],
)
def test_options_that_do_not_fit(make_trainer, student, teacher, options, message):
    student = make_model("bert", "classification", **student)
    teacher = None if teacher is None else make_model("bert", "classification", seed=1, **teacher)
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teacher, **options)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("regression", {"temperature": 4.0}, "temperature=4.0 would have no effect for a BertForSequence"),
        ("regression", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 only works for single"),
        ("multi_label", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 only works for single"),
        ("question_answering", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 only works for single"),
        ("question_answering", {"kl_positions": "attended"}, "because it has no logits per token"),
        ("classification", {"fp16": True}, "fp16=True would have no effect on the CPU"),
    ],
)
def test_options_that_do_not_fit_the_head(make_trainer, head, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_model("bert", head), make_model("bert", head, seed=1), **options)


def test_a_teacher_in_float16_beside_bf16_on_the_cpu(make_trainer):
    with pytest.raises(ValueError, match="float16 teacher does not run under bf16 autocast on the CPU"):
        make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm", seed=1), bf16=True, teacher_dtype="float16")


def test_experts_are_not_balanced_here(make_trainer):
    student, teacher = make_model("bert", "mlm"), make_model("bert", "mlm", seed=1)
    student.config.output_router_logits = True
    with pytest.raises(ValueError, match="output_router_logits=True would have no effect"):
        make_trainer(student, teacher)


def test_fsdp1(make_trainer, monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"FSDP1 is not supported.*fsdp_version: 2"):
        make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm", seed=1))


def test_no_repository_for_a_trainer_that_cannot_be(make_trainer, monkeypatch):
    made = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda trainer, *args, **kwargs: made.append(trainer))
    student, teacher = make_model("bert", "mlm"), make_model("bert", "mlm", seed=1, width=32)
    with pytest.raises(ValueError, match="set project_hidden_states"):
        make_trainer(student, teacher, push_to_hub=True)
    assert made == []
    trainer = make_trainer(student, make_model("bert", "mlm", seed=1), push_to_hub=True)
    assert made == [trainer]


@pytest.mark.parametrize(("head", "message"), [("classification", "set alpha_task=0"), ("mlm", "set alpha_task=0")])
def test_training_without_labels(make_trainer, head, message):
    rows = make_rows(head)
    for row in rows:
        del row["labels"]
    teacher = make_model("bert", head)
    trainer = make_trainer(make_student(teacher), teacher, rows)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_arguments_of_the_wrong_kind():
    teacher = make_model("bert", "mlm")
    with pytest.raises(TypeError, match="args should be DistillationTrainingArguments, but is TrainingArguments"):
        DistillationTrainer(
            model=make_student(teacher), teacher_model=teacher, args=TrainingArguments("out", use_cpu=True)
        )


def test_model_of_the_wrong_kind(make_trainer):
    with pytest.raises(TypeError, match="model should be a transformers model, but is Linear"):
        make_trainer(torch.nn.Linear(2, 2), make_model("bert", "mlm"))


def test_several_gpus_in_one_process(tmp_path):
    class TwoGPUs(DistillationTrainingArguments):
        n_gpu = 2

    teacher = make_model("bert", "mlm")
    with pytest.raises(ValueError, match=r"One process cannot drive 2 GPUs.*accelerate launch"):
        DistillationTrainer(make_student(teacher), TwoGPUs(str(tmp_path), use_cpu=True, report_to="none"))
