"""Forked processes do not depend on each other."""

from tests.processes import run_python

KILLED_WITH_A_LOCK = """
import os, signal
from transformers.utils.logging import tqdm
from tqdm.auto import tqdm as bar

child = os.fork()
if child == 0:
    bar.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
print(sum(tqdm([1, 2])), sum(bar([3, 4])))
"""


def test_one_that_is_killed_leaves_no_lock_behind():
    for _ in range(2):
        run = run_python(["-c", KILLED_WITH_A_LOCK], timeout=30)
        assert (run.returncode, run.stdout) == (0, "3 7\n"), run.stderr


def test_exit_codes_and_output():
    assert run_python(["-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a"]).returncode == 3
    run = run_python(["-c", "import os; print(os.environ['OWN'], file=__import__('sys').stderr)"], env={"OWN": "set"})
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "set\n")
