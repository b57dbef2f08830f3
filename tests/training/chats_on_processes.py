"""Run by `test_split_invariance_of_chats.py` on two processes: one optimizer step on packed chats, as JSON.

python -m torch.distributed.run --nproc_per_node 2 chats_on_processes.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.test_split_invariance_of_chats import NUM_ROWS, make_rows, one_step_on_chats

torch.set_num_threads(1)

FOLDER = Path(sys.argv[1])
losses, gradient, num_processes = one_step_on_chats(FOLDER, make_rows(), NUM_ROWS // 2, ddp_backend="gloo")
if os.environ["RANK"] == "0":
    (FOLDER / "result.json").write_text(json.dumps([losses, gradient.tolist(), num_processes]))
