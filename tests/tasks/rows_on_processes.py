"""Trains every task in turn, on one process or several, from the YAML files in the current folder."""

import os
import sys

from hf_distill.cli import main

OUTPUT, BATCH_SIZE, *TASKS = sys.argv[1:]

if __name__ == "__main__":
    options = ["--per_device_train_batch_size", BATCH_SIZE]
    if "WORLD_SIZE" in os.environ:
        options += ["--ddp_backend", "gloo"]
    for task in TASKS:
        assert main(["train", f"{task}.yaml", "--output_dir", f"{OUTPUT}/{task}", *options]) == 0, task
