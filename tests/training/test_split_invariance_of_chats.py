"""A step on packed chats: however it is split, and packed or not, its losses and its gradient are the same."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_distill import (
    DataCollatorForCausalLM,
    DistillationTrainer,
    DistillationTrainingArguments,
    SeparateDocuments,
    encode_chats,
    pack_chats,
)
from tests.conftest import make_text_tokenizer
from tests.data.test_chats import MARKED, chat, make_tokenizer
from tests.processes import run_on_two_processes
from tests.training.test_split_invariance import LOSS_NAMES, KeepGradient, assert_equal_steps, make_pair

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("chats_on_processes.py")
BLOCK_SIZE, NUM_CHATS, NUM_ROWS = 36, 36, 16


def make_chats() -> Dataset:
    """Chats of one or two questions and answers, one of them short. Packed, they are `NUM_ROWS` rows."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = sorted(make_text_tokenizer().get_vocab().items(), key=lambda own: own[1])
    words = [word for word, _ in vocabulary if word.startswith("w")]

    def text(longest: int) -> str:
        (length,) = torch.randint(1, longest + 1, (1,), generator=generator).tolist()
        return " ".join(words[i] for i in torch.randint(len(words), (length,), generator=generator).tolist())

    chats = []
    for number in range(NUM_CHATS):
        question, answer = (9, 1) if number % 3 else (1, 9)
        turns = [text(longest) for _ in range(1 + number % 4 // 3) for longest in (question, answer)]
        chats.append({"messages": chat(*turns)})
    return Dataset.from_list(chats)


def make_rows(packed: bool = True) -> Dataset:
    """The chats as rows, in which only answers have labels."""
    rows = encode_chats(make_chats(), make_tokenizer(MARKED), BLOCK_SIZE)
    return pack_chats(rows, BLOCK_SIZE) if packed else rows.remove_columns("length")


def one_step_on_chats(
    folder: Path, rows: Dataset, batch_size: int, accumulation: int = 1, kl_positions: str = "labels", **options
) -> tuple[list[float], torch.Tensor, int]:
    """The losses and the gradient of an optimizer step over all rows, and the number of processes."""
    teacher, student = make_pair("causal", "llama")
    keeper = KeepGradient()
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationTrainingArguments(
            output_dir=str(folder / "out"),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            max_steps=1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            kl_positions=kl_positions,
            **options,
        ),
        data_collator=DataCollatorForCausalLM(make_tokenizer(MARKED), attention=SeparateDocuments(student, teacher)),
        train_dataset=rows,
        callbacks=[keeper],
    )
    keeper.trainer = trainer
    trainer.train()
    losses = [trainer.state.log_history[0][name] for name in LOSS_NAMES]
    return losses, keeper.gradient, trainer.accelerator.num_processes


def test_rows_are_packed_and_unequal():
    rows = make_rows()
    assert len(rows) == NUM_ROWS
    assert sum(max(row["attention_mask"]) > 1 for row in rows) > NUM_ROWS / 2
    labels = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert len(set(labels)) > 5
    assert len({sum(labels[first : first + 4]) for first in range(0, NUM_ROWS, 4)}) == 4
    assert len({len(row["labels"]) for row in rows}) > 3
    assert all(0 < some < len(row["labels"]) for some, row in zip(labels, rows, strict=True))


@pytest.mark.parametrize("kl_positions", ["labels", "attended"])
def test_micro_batches(tmp_path, kl_positions):
    *whole, _ = one_step_on_chats(tmp_path, make_rows(), NUM_ROWS, kl_positions=kl_positions)
    for batch_size, accumulation in [(8, 2), (4, 4), (1, 16)]:
        *split, _ = one_step_on_chats(tmp_path, make_rows(), batch_size, accumulation, kl_positions)
        assert_equal_steps(split, whole)


@pytest.mark.parametrize("kl_positions", ["labels", "attended"])
def test_packing_changes_nothing(tmp_path, kl_positions):
    """The chats one by one, with padding, are the same step."""
    rows = make_rows(packed=False)
    *whole, _ = one_step_on_chats(tmp_path, rows, len(rows), kl_positions=kl_positions)
    *packed, _ = one_step_on_chats(tmp_path, make_rows(), NUM_ROWS, kl_positions=kl_positions)
    assert_equal_steps(packed, whole)


def test_two_processes(tmp_path):
    run = run_on_two_processes([SCRIPT, tmp_path], cwd=ROOT)
    result_file = tmp_path / "result.json"
    assert result_file.exists(), run.stderr[-3000:]
    losses, gradient, num_processes = json.loads(result_file.read_text())
    assert num_processes == 2
    *whole, _ = one_step_on_chats(tmp_path, make_rows(), NUM_ROWS)
    assert_equal_steps((losses, torch.tensor(gradient)), whole)
