"""Run by `test_split_invariance.py` under torchrun: one optimizer step and one evaluation of each case, as JSON."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate
from tests.training.test_split_invariance import CASES, LOSS_NAMES, KeepGradient, make_pair, make_sparse_rows

result_file = Path(sys.argv[1])
torch.set_num_threads(1)
arguments = DistillationTrainingArguments(
    output_dir=str(result_file.parent / "out"),
    use_cpu=True,
    ddp_backend="gloo",
    ddp_find_unused_parameters=True,
    report_to="none",
    disable_tqdm=True,
    save_strategy="no",
    logging_steps=1,
    max_steps=1,
    train_sampling_strategy="sequential",
    per_device_train_batch_size=8,
    per_device_eval_batch_size=4,
    max_grad_norm=0.0,
)


def step_and_evaluation(head: str, family: str) -> dict:
    options = {"args": arguments, "data_collator": collate}
    teacher, student = make_pair(head, family)
    evaluated = DistillationTrainer(
        model=student, teacher_model=teacher, eval_dataset=make_sparse_rows(head)[1:], **options
    ).evaluate()

    # A fresh student: Accelerate does not wrap a model a second time, and evaluating has marked the first as prepared.
    teacher, student = make_pair(head, family)
    keeper = KeepGradient()
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, train_dataset=make_sparse_rows(head), callbacks=[keeper], **options
    )
    keeper.trainer = trainer
    trainer.train()
    return {
        "num_processes": trainer.accelerator.num_processes,
        "wrapper": keeper.wrapper,
        "losses": [trainer.state.log_history[0][name] for name in LOSS_NAMES],
        "gradient": keeper.gradient.tolist(),
        "evaluated": evaluated,
    }


results = [step_and_evaluation(head, family) for head, family in CASES]
if arguments.process_index == 0:
    result_file.write_text(json.dumps(results))
