"""Requests generated from the service's OpenAPI description: none breaks it, and answers match the description."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.long
def test_schemathesis(service, tmp_path):
    """Runs all checks: no status 500; statuses and schemas as described; valid bodies accepted, others refused."""
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
