"""Run by `test_epochs.py` on two processes: writes the rows that each process trains on, as JSON.

python -m torch.distributed.run --standalone --nproc_per_node 2 batches_on_processes.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.test_epochs import CASES_ON_PROCESSES, RESUMED_ON_PROCESSES, make_case, make_trainer, tokens_of

torch.set_num_threads(1)

FOLDER, RANK = Path(sys.argv[1]), os.environ["RANK"]


def train(case: str, resume_from: Path | None = None) -> dict[str, list]:
    dataset, options = make_case(case)
    trainer = make_trainer(FOLDER / case, dataset, ddp_backend="gloo", **options)
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    assert trainer.accelerator.num_processes == 2
    labels = [row.tolist() for batch in trainer.batches for row in batch["labels"]]
    return {"tokens": tokens_of(trainer.batches), "labels": labels}


seen = {}
for case in CASES_ON_PROCESSES:
    whole = train(case)
    seen[case] = {"whole": whole["tokens"], "labels": whole["labels"]}
    if case in RESUMED_ON_PROCESSES:
        resumed = train(case, resume_from=FOLDER / case / "checkpoint-2")
        seen[case] |= {"resumed": resumed["tokens"], "resumed_labels": resumed["labels"]}
(FOLDER / f"{RANK}.json").write_text(json.dumps(seen))
