"""`python -m hf_distill.serving.worker MODEL FORMAT THREADS`: one process that loads a model and answers batches.

It exchanges messages (`messages.py`) over standard input and output. When the model is loaded and warm, it sends the
`ModelInfo`, or else `{"error": ...}`. Then it answers each `{"texts": [...], "top_k": k}` with `{"answers": [...]}`,
one entry per text, or null if the model failed. A text is a string, or a list of two strings for a model that reads
pairs. The worker ends with its input, so that it does not outlive the service.
"""

import dataclasses
import logging
import os
import re
import signal
import sys
import traceback
from typing import Any

from hf_distill.deployment.embeddings import EMBEDDING
from hf_distill.deployment.heads import PREDICTION_HEADS, TextOutputs
from hf_distill.deployment.json_inputs import from_json
from hf_distill.deployment.predictor import Predictor, load_predictor
from hf_distill.deployment.text_encoder import Encoded
from hf_distill.serving.embedding import to_text
from hf_distill.serving.messages import encode_message, read_message
from hf_distill.serving.model_info import model_info

logger = logging.getLogger(__name__)


def main() -> None:
    model, format, threads = sys.argv[1:]
    for stop in (signal.SIGINT, signal.SIGTERM):  # the service handles these, and lets its workers finish
        signal.signal(stop, signal.SIG_IGN)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as channel:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps prints of libraries out of the messages
        try:
            predictor = load_predictor(model, format, int(threads))
            hello = dataclasses.asdict(model_info(predictor, model))
        except (ValueError, ImportError, OSError) as error:
            hello = {"error": " ".join(str(error).split())}
        channel.write(encode_message(hello))
        while "error" not in hello and (batch := read_message(sys.stdin.buffer)) is not None:
            channel.write(encode_message({"answers": answer(predictor, **batch)}))


def answer(predictor: Predictor, texts: list[Any], top_k: int) -> list[dict[str, Any]] | None:
    """Predicts for a batch of texts, pairs of texts or images, as values in JSON.

    Returns:
        One entry per text: the prediction, the number of tokens, and whether the text was truncated; or an error. None
        if the model failed.
    """
    try:
        inputs = [from_json(text) for text in texts]
        answers = [_encode(predictor, text) for text in inputs]
        good = [number for number, own in enumerate(answers) if "error" not in own]
        encodings = [answers[number].pop("encoding") for number in good]
        for number, encoding, outputs in zip(good, encodings, predictor.run(encodings), strict=True):
            answers[number] |= _read(predictor, outputs, encoding, inputs[number], top_k)
        return answers
    except Exception as error:  # any error of the model; its message is not logged, because it may quote a text
        trace = "".join(traceback.format_tb(error.__traceback__))
        logger.error("%d texts failed with %s:\n%s", len(texts), type(error).__name__, trace)
        return None


def _encode(predictor: Predictor, text: Any) -> dict[str, Any]:
    try:
        (encoding,) = predictor.encoder.encode([text])
    except ValueError as error:
        return {"error": re.sub("^(Text|Image|Recording) 0 ", "", str(error)), "tokens": 0}
    return {"encoding": encoding, "tokens": len(encoding), "truncated": bool(encoding.overflowing)}


def _read(predictor: Predictor, outputs: TextOutputs, encoding: Encoded, text: Any, top_k: int) -> dict[str, Any]:
    try:
        read = predictor.read(outputs, encoding, text, top_k)
    except ValueError as error:  # for example a text without the mask
        return {"error": str(error)}
    if predictor.head == EMBEDDING:
        return {"embedding": to_text(read)}
    if predictor.head == "token classification":
        return {"entities": read}
    if PREDICTION_HEADS[predictor.head].generates:
        return {"generated": read}
    name = "answers" if predictor.head == "question answering" else "scores"
    return {name: read if isinstance(read, list) else [read]}  # `read` is not a list with top_k=1


if __name__ == "__main__":
    main()
