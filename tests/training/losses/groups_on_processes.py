"""Run by `test_ranking.py` on two processes: an optimizer step and an evaluation on queries with documents, as JSON.

python -m torch.distributed.run --nproc_per_node 2 groups_on_processes.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.groups import collate_groups, make_groups
from tests.training.losses.test_ranking import ALL, make_pair
from tests.training.test_split_invariance import KeepGradient

torch.set_num_threads(1)
FOLDER = Path(sys.argv[1])


def make_trainer(rows=None, eval_rows=None, **options):
    teacher, student = make_pair()
    args = DistillationTrainingArguments(
        output_dir=str(FOLDER / "out"),
        use_cpu=True,
        ddp_backend="gloo",
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        max_steps=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        max_grad_norm=0.0,
        **ALL,
    )
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=collate_groups,
        **options,
    )


keeper = KeepGradient()
keeper.trainer = trainer = make_trainer(make_groups(), callbacks=[keeper])
trainer.train()
# 7 queries on 2 processes: one is repeated to fill the last batch, and must not be counted twice.
predicted = make_trainer().predict(make_groups()[1:])
result = {
    "num_processes": trainer.accelerator.num_processes,
    "wrapper": keeper.wrapper,
    "losses": [trainer.state.log_history[0][name] for name in ("loss", *(f"loss_{name}" for name in trainer.losses))],
    "names": list(trainer.losses),
    "gradient": keeper.gradient.tolist(),
    "metrics": predicted.metrics,
    "predictions": predicted.predictions.tolist(),
    "labels": predicted.label_ids.tolist(),
}
if os.environ["RANK"] == "0":
    (FOLDER / "result.json").write_text(json.dumps(result))
