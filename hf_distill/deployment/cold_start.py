"""`python -m hf_distill.deployment.cold_start FOLDER FORMAT THREADS`: one process that loads a model and uses it.

It reads texts from the standard input, as a JSON list, and writes one line of JSON: when the first answer was there, on
the clock that all processes share; the bytes of memory at most, after all texts were read one by one; and whether
PyTorch was imported.
"""

import json
import resource
import sys
import time
from pathlib import Path

from hf_distill.deployment.predictor import Predictor, load_predictor


def main() -> None:
    folder, format, threads = sys.argv[1:]
    texts = json.load(sys.stdin)
    predictor = load_predictor(folder, format, int(threads))
    _answer(predictor, texts[0])
    answered = time.monotonic()
    for text in texts[1:]:
        _answer(predictor, text)
    print(json.dumps({"answered": answered, "peak_memory": peak_memory(), "imports_torch": "torch" in sys.modules}))


def _answer(predictor: Predictor, text: str) -> None:
    predictor.backend(predictor.encoder.pad(predictor.encoder.encode([text])))


def peak_memory() -> int:
    """The bytes of memory that this process had at most.

    On Linux not those of `getrusage`, which begins to count with what the process had that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which macOS counts in bytes
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
