"""`python -m hf_distill.serving.worker MODEL FORMAT THREADS`: one process that loads a model and answers batches.

It speaks through its standard input and output, in messages (`messages.py`). The first that it sends is the model's
`ModelInfo`, once the model is loaded and warm, or `{"error": ...}`. Then it answers each `{"texts": [...], "top_k": k}`
with `{"answers": [...]}`, which has an entry for each text, or is null if the model failed. It ends when its input
does, so that it does not outlive its service.
"""

import dataclasses
import logging
import os
import signal
import sys
import traceback
from typing import Any

from hf_distill.deployment.heads import TextOutputs
from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.deployment.text_encoder import Encoded
from hf_distill.serving.messages import encode_message, read_message
from hf_distill.serving.model_info import model_info

logger = logging.getLogger(__name__)


def main() -> None:
    model, format, threads = sys.argv[1:]
    for stop in (signal.SIGINT, signal.SIGTERM):  # are for the service, which lets its workers finish
        signal.signal(stop, signal.SIG_IGN)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as channel:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
        try:
            predictor = load_predictor(model, format, int(threads))
            hello = dataclasses.asdict(model_info(predictor, model))
        except (ValueError, ImportError, OSError) as error:
            hello = {"error": " ".join(str(error).split())}
        channel.write(encode_message(hello))
        while "error" not in hello and (batch := read_message(sys.stdin.buffer)) is not None:
            channel.write(encode_message({"answers": answer(predictor, **batch)}))


def answer(predictor: Predictor, texts: list[str], top_k: int) -> list[dict[str, Any]] | None:
    """For each text what was read from it, how many tokens it has, and whether it was cut; or an error. None if the
    model failed.
    """
    try:
        answers = [_encode(predictor, text) for text in texts]
        good = [number for number, own in enumerate(answers) if "error" not in own]
        encodings = [answers[number].pop("encoding") for number in good]
        for number, encoding, outputs in zip(good, encodings, predictor.run(encodings), strict=True):
            answers[number] |= _read(predictor, outputs, encoding, texts[number], top_k)
        return answers
    except Exception as error:  # of whatever runs the model; its message could have a part of a text in it
        trace = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%d texts failed with %s:\n%s", len(texts), type(error).__name__, trace)
        return None


def _encode(predictor: Predictor, text: str) -> dict[str, Any]:
    try:
        (encoding,) = predictor.encoder.encode([text])
    except ValueError as error:
        return {"error": str(error).removeprefix("Text 0 "), "tokens": 0}
    return {"encoding": encoding, "tokens": len(encoding), "truncated": bool(encoding.overflowing)}


def _read(predictor: Predictor, outputs: TextOutputs, encoding: Encoded, text: str, top_k: int) -> dict[str, Any]:
    try:
        read = predictor.read(outputs, encoding, text, top_k)
    except ValueError as error:  # such as a text without the mask
        return {"error": str(error)}
    if predictor.head == "token classification":
        return {"entities": read}
    return {"scores": read if isinstance(read, list) else [read]}  # which is not a list where one is asked for


if __name__ == "__main__":
    main()
