"""A trainer on tiny models."""

import pytest

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.conftest import collate


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a `DistillationTrainer` on the CPU that logs every step, and neither shuffles nor saves."""

    def make(student, teacher, rows=None, eval_rows=None, data_collator=collate, trainer_options=None, **arguments):
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 16,
            "max_grad_norm": 0.0,
        }
        return DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationTrainingArguments(**{**defaults, **arguments}),
            train_dataset=rows,
            eval_dataset=eval_rows,
            data_collator=data_collator,
            **(trainer_options or {}),
        )

    return make
