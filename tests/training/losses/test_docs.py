"""docs/losses.md: its example runs as it stands."""

import re
from pathlib import Path

from hf_distill import DistillationTrainingArguments
from tests.conftest import collate, make_model, make_rows

DOCS = Path(__file__).parents[3] / "docs" / "losses.md"


def test_the_examples_of_the_docs(tmp_path):
    rows = make_rows("classification")
    names = {
        "student": make_model("bert", "classification", seed=1, num_layers=2),
        "teacher": make_model("bert", "classification"),
        "args": DistillationTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none"),
        "train_dataset": rows,
        "rows": rows,
        "collator": collate,
    }
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    trainer = names["trainer"]
    assert trainer.loss_weights == {"kl": 5.0, "task": 2.0, "cos": 1.0, "reverse_kl": 0.5}
    trainer.data_collator = collate
    trainer.train()
    assert trainer.state.global_step == 1
