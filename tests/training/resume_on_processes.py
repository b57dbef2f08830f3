"""Run by `test_engines.py` on two processes: a training and its resume from the middle, as JSON.

python -m torch.distributed.run --nproc_per_node 2 resume_on_processes.py RESULT_FILE

The engine is FSDP2, the losses are those over layers, with projections. The head has no gradient.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate, make_rows
from tests.training.losses.test_layer_losses import ALONE
from tests.training.test_split_invariance import make_pair

torch.set_num_threads(1)
# Accelerate does not shard on the CPU, and does not warn about it: pretend that these are GPUs.
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)

RESULT_FILE = Path(sys.argv[1])
FOLDER = RESULT_FILE.parent / "out"


def train(checkpoint: str | None) -> tuple[DistillationTrainer, list[torch.Tensor]]:
    """The trainer, and the trained weights of the loss and of the student."""
    teacher, student = make_pair("mlm", "bert/narrow")
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        train_dataset=make_rows("mlm"),
        data_collator=collate,
        args=DistillationTrainingArguments(
            output_dir=str(FOLDER),
            fsdp=True,
            fsdp_config={"version": 2},
            ddp_backend="gloo",
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=2,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            weight_decay=0.1,
            project_hidden_states=True,
            **ALONE,
        ),
    )
    before = [parameter.detach().clone() for parameter in trainer.loss_parameters.trained]
    trainer.train(resume_from_checkpoint=checkpoint)
    own = [parameter.detach().clone() for parameter in trainer.loss_parameters.trained]
    assert all((one - other).norm() > 0.1 for one, other in zip(own, before, strict=True))
    return trainer, [*own, *(parameter.detach().full_tensor() for parameter in trainer.model.parameters())]


_, whole = train(None)
trainer, resumed = train(str(FOLDER / "checkpoint-2"))
result = {
    "equal": all(torch.equal(*pair) for pair in zip(whole, resumed, strict=True)),
    "wrapper": type(trainer.model).__name__,
    "saved": sorted(os.listdir(FOLDER / "checkpoint-4")),
}
if os.environ["RANK"] == "0":
    RESULT_FILE.write_text(json.dumps(result))
