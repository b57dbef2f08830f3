"""Run by `test_split_invariance.py` under torchrun: one optimizer step and one evaluation, written to a JSON file."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_rows
from tests.training.test_split_invariance import LOSS_NAMES, KeepGradient, make_pair

head, result_file = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(1)
arguments = DistillationTrainingArguments(
    output_dir=str(result_file.parent / "out"),
    use_cpu=True,
    ddp_backend="gloo",
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
keeper = KeepGradient()
options = {"args": arguments, "data_collator": collate}

teacher, student = make_pair("bert", head)
evaluated = DistillationTrainer(
    model=student, teacher_model=teacher, eval_dataset=make_rows(head, num_rows=15), **options
).evaluate()

# A fresh student: Accelerate does not wrap a model a second time, and evaluating has marked the first one as prepared.
teacher, student = make_pair("bert", head)
trainer = DistillationTrainer(
    model=student, teacher_model=teacher, train_dataset=make_rows(head), callbacks=[keeper], **options
)
keeper.trainer = trainer
trainer.train()
if trainer.is_world_process_zero():
    result = {
        "num_processes": trainer.accelerator.num_processes,
        "wrapper": keeper.wrapper,
        "losses": [trainer.state.log_history[0][name] for name in LOSS_NAMES],
        "gradient": keeper.gradient.tolist(),
        "evaluated": evaluated,
    }
    result_file.write_text(json.dumps(result))
