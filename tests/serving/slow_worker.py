"""A worker that sleeps instead of running a model: `slow_worker.py TOKENS_PER_SECOND`.

It sends the same messages as `hf_distill.serving.worker`. A word is a token. Times are exact even on a busy machine.
"""

import sys
import time

from hf_distill.serving.messages import encode_message, read_message

MAX_LENGTH = 512


def answer(text: str) -> dict:
    words = text.split()
    cut = len(words) > MAX_LENGTH
    return {"tokens": min(len(words), MAX_LENGTH), "truncated": cut, "scores": [{"label": words[0], "score": 1.0}]}


def main() -> None:
    tokens_per_second = float(sys.argv[1])
    model = {"name": "slow", "revision": "0", "format": "none", "max_length": MAX_LENGTH}
    sys.stdout.buffer.write(encode_message({**model, "tokens_per_second": tokens_per_second}))
    sys.stdout.buffer.flush()
    while (batch := read_message(sys.stdin.buffer)) is not None:
        answers = [answer(text) for text in batch["texts"]]
        time.sleep(sum(own["tokens"] for own in answers) / tokens_per_second)
        sys.stdout.buffer.write(encode_message({"answers": answers}))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
