"""Run by `test_checkpoints.py`: trains, is killed at random moments, resumes, and prints the result as JSON.

python kill_and_resume.py FOLDER HEAD NUM_KILLS
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DataCollatorForLanguageModeling
from transformers.trainer_utils import get_last_checkpoint

sys.path.insert(0, str(Path(__file__).parents[3]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.training.checkpoints.folders import UNFINISHED_NAME
from tests.conftest import collate, make_model, make_rows
from tests.training.teacher.test_live import make_tokenizer

FOLDER, HEAD, NUM_KILLS = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def train(output_dir: Path) -> None:
    """Continues from the last checkpoint: three epochs of 6 steps of two micro-batches, saved after each step."""
    rows, collator = make_rows(HEAD, num_rows=44), collate
    if HEAD == "mlm":  # new masks in each epoch
        tokenizer = make_tokenizer([*(str(i) for i in range(59)), "[PAD]", "[MASK]"])
        tokenizer.pad_token, tokenizer.mask_token = "[PAD]", "[MASK]"
        rows = [{"input_ids": [token % 59 for token in row["input_ids"]]} for row in rows]
        collator = DataCollatorForLanguageModeling(tokenizer)
    arguments = DistillationTrainingArguments(
        str(output_dir),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=3,
        learning_rate=1e-3,
    )
    teacher, student = make_model("bert", HEAD), make_model("bert", HEAD, seed=1, num_layers=2, dropout=0.1)
    trainer = DistillationTrainer(student, arguments, collator, rows, teacher_model=teacher)
    output_dir.mkdir(exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output_dir))


def in_a_process_of_its_own(output_dir: Path, killed_after: tuple[int, float] | None = None) -> bool:
    """Returns True if the training finished. `killed_after`: number of checkpoints, and then seconds."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(output_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        status = 1
        try:
            train(output_dir)
            status = 0
        finally:
            os._exit(status)
    if killed_after is not None:
        num_checkpoints, seconds = killed_after
        while last_step(output_dir) < num_checkpoints and not has_ended(child):
            time.sleep(0.001)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status == 0


def has_ended(child: int) -> bool:
    """Waits for the end of the process, and leaves its status for `os.waitpid`."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def last_step(output_dir: Path) -> int:
    """Step of the last checkpoint; 0 without a checkpoint."""
    checkpoint = get_last_checkpoint(output_dir) if output_dir.exists() else None
    return int(checkpoint.rpartition("-")[2]) if checkpoint else 0


def weights(output_dir: Path) -> torch.Tensor:
    saved = load_file(output_dir / "checkpoint-18" / "model.safetensors")
    return torch.cat([saved[name].flatten() for name in sorted(saved)])


torch.set_num_threads(1)
FOLDER.mkdir(exist_ok=True)
assert in_a_process_of_its_own(FOLDER / "whole"), (FOLDER / "whole.log").read_text()[-3000:]
written = [(FOLDER / "whole" / f"checkpoint-{step}").stat().st_mtime for step in (16, 18)]
seconds_of_a_step = (written[1] - written[0]) / 2
expected = weights(FOLDER / "whole")

moments = random.Random(0)
results = []
for number in range(NUM_KILLS):
    output_dir = FOLDER / str(number)
    num_checkpoints = number * 17 // NUM_KILLS
    while in_a_process_of_its_own(output_dir, (num_checkpoints, moments.uniform(0, 2 * seconds_of_a_step))):
        shutil.rmtree(output_dir)  # the training finished before it was killed
    resumed_from = last_step(output_dir)
    half_written = (output_dir / UNFINISHED_NAME).exists()
    assert in_a_process_of_its_own(output_dir), output_dir.with_suffix(".log").read_text()[-3000:]
    results.append(
        {
            "resumed_from": resumed_from,
            "half_written": half_written,
            "identical": torch.equal(weights(output_dir), expected),
            "left_over": (output_dir / UNFINISHED_NAME).exists(),
        }
    )
(FOLDER / "results.json").write_text(json.dumps(results))
