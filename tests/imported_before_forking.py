"""What the processes of `tests.processes` need not import again."""

import torch

import hf_distill
import tests.conftest  # noqa: F401

for name in hf_distill.__all__:
    getattr(hf_distill, name)

torch.set_num_threads(1)
