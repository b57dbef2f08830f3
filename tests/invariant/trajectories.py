"""Losses and gradient norms of a few tiny trainings, step by step.

`python -m tests.invariant.trajectories` writes the current numbers to `trajectories.json`. Run it only after a change
that is meant to change numbers, and explain the change in the commit.
"""

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_model, make_rows

STORED = Path(__file__).with_name("trajectories.json")

CASES = {
    "classification": {"head": "classification", "family": "bert"},
    "masked language modelling": {"head": "mlm", "family": "roberta"},
    "masked language modelling, all positions": {"head": "mlm", "family": "bert", "kl_positions": "attended"},
    "masked language modelling, a narrow student": {"head": "mlm", "family": "bert", "project_hidden_states": True},
    "causal language modelling": {"head": "causal", "family": "gpt2"},
    "sequence to sequence": {"head": "seq2seq", "family": "bart"},
    "question answering": {"head": "question_answering", "family": "distilbert"},
    "multi-label classification": {"head": "multi_label", "family": "bert", "temperature": 4.0},
    "regression": {"head": "regression", "family": "bert"},
}


def fill(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights that do not depend on the initialisation of torch or transformers."""
    for name, parameter in model.named_parameters():
        rng = np.random.default_rng(zlib.crc32(f"{seed} {name}".encode()))
        values = torch.from_numpy(rng.normal(scale=0.2, size=parameter.shape))
        parameter.data.copy_(values + 1 if "norm" in name.lower() and name.endswith("weight") else values)
    return model


def trajectory(head: str, family: str, **options) -> list[dict[str, float]]:
    """Loss, its parts and the gradient norm in each of 6 steps, with accumulation and clipping."""
    narrow = {"width": 8} if options.get("project_hidden_states") else {}
    teacher = fill(make_model(family, head), seed=0)
    student = fill(make_model(family, head, num_layers=2, **narrow), seed=1)
    with tempfile.TemporaryDirectory() as output_dir:
        arguments = DistillationTrainingArguments(
            output_dir,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            max_steps=6,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            train_sampling_strategy="sequential",
            optim="sgd",
            learning_rate=0.05,
            **options,
        )
        trainer = DistillationTrainer(student, arguments, collate, make_rows(head), teacher_model=teacher)
        trainer.train()
    names = ("loss", "loss_kl", "loss_task", "loss_cos", "grad_norm")
    return [{name: log[name] for name in names} for log in trainer.state.log_history if "loss" in log]


if __name__ == "__main__":
    STORED.write_text(json.dumps({name: trajectory(**case) for name, case in CASES.items()}, indent=1) + "\n")
