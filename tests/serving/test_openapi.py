"""Requests that are made up from the service's own description: none of them breaks it, and it does as it says."""

import subprocess
import sys
from pathlib import Path

CONFIG = Path(__file__).with_name("schemathesis.toml")


def test_schemathesis(service, tmp_path):
    """All of its checks: no 500, statuses and schemas as described, what is valid taken and what is not refused."""
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run"]
    options = [
        f"http://127.0.0.1:{service.port}/openapi.json",
        "--checks",
        "all",
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "50",
        "--seed",
        "1",
    ]
    run = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stdout[-5000:]
    assert "5 selected / 5 total" in run.stdout
    assert not service.said("Traceback")
    assert service.post({"text": "w5", "top_k": 2.0}).status == 200
