"""`python -m hf_distill.deployment.cold_start FOLDER FORMAT THREADS`: a process that loads a model and uses it once.

It reads a JSON list of texts, pairs of texts or images from standard input, runs them one by one, and prints one line
of JSON: the time of the first answer on a clock that all processes share, the peak memory in bytes, and whether PyTorch
was imported.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from hf_distill.deployment.json_inputs import from_json
from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.deployment.text_encoder import windows_of


def main() -> None:
    folder, format, threads = sys.argv[1:]
    inputs = [from_json(value) for value in json.load(sys.stdin)]
    predictor = load_predictor(folder, format, int(threads))
    _answer(predictor, inputs[0])
    answered = time.monotonic()
    for own in inputs[1:]:
        _answer(predictor, own)
    print(json.dumps({"answered": answered, "peak_memory": peak_memory(), "imports_torch": "torch" in sys.modules}))


def _answer(predictor: Predictor, given: Any) -> None:
    predictor.backend(predictor.encoder.pad(windows_of(predictor.encoder.encode([given]))))


def peak_memory() -> int:
    """Peak memory of this process in bytes.

    On Linux `getrusage` is not used, because its value starts at the memory of the parent process.
    """
    status = Path("/proc/self/status")
    if sys.platform == "win32":
        import psutil  # accelerate needs it too

        return psutil.Process().memory_info().peak_wset
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
