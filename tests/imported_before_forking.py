"""What the processes of `tests.processes` need not do again: importing, and what takes the first saved model a second.

Every training collects garbage first, which takes another second where it goes through all that was imported.
"""

import gc
from tempfile import TemporaryDirectory

import torch

import hf_distill
from tests.conftest import make_model

for name in hf_distill.__all__:
    getattr(hf_distill, name)

torch.set_num_threads(1)
with TemporaryDirectory() as folder, torch.random.fork_rng():
    make_model("bert", "classification").save_pretrained(folder)
gc.collect()
gc.freeze()
