"""Slow work that is done once, before the processes of `tests.processes` fork: imports and the first saved model.

Also keeps imported modules away from the garbage collection of each training, which would take another second.
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

# Forked processes share tqdm's lock: a process that is killed while it holds the lock would block the others.
tqdm.tqdm.set_lock(threading.RLock())
torch.set_num_threads(1)
with TemporaryDirectory() as folder, torch.random.fork_rng():
    make_model("bert", "classification").save_pretrained(folder)
gc.collect()
gc.freeze()
