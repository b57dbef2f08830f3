"""What the processes of `tests.processes` need not do again: importing, and what takes the first saved model a second.

Every training collects garbage first, which takes another second where it goes through all that was imported.
"""

import gc
import threading
from tempfile import TemporaryDirectory

import torch
import tqdm

import hf_distill
from tests.conftest import make_model

for name in hf_distill.__all__:
    getattr(hf_distill, name)

# tqdm's own lock is one for all processes that are forked: one that is killed while it holds it stops the others.
tqdm.tqdm.set_lock(threading.RLock())
torch.set_num_threads(1)
with TemporaryDirectory() as folder, torch.random.fork_rng():
    make_model("bert", "classification").save_pretrained(folder)
gc.collect()
gc.freeze()
