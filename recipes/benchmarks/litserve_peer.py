"""`python -m recipes.benchmarks.litserve_peer FOLDER PORT`: serves an export with LitServe, for `serve_load`.

It uses the same predictor as `hf-distill serve`, the same number of processes with one thread each, and LitServe's own
batching.
"""

import os
import sys

import litserve

from hf_distill import load_predictor

MAX_BATCH_SIZE = 16


class Classifier(litserve.LitAPI):
    def __init__(self, folder: str):
        super().__init__(max_batch_size=MAX_BATCH_SIZE)
        self.folder = folder

    def setup(self, device: str) -> None:
        self.predictor = load_predictor(self.folder, threads=1)

    def decode_request(self, request: dict) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[dict]:
        return self.predictor.predict(texts)

    def encode_response(self, output: dict) -> dict:
        return output


def main() -> None:
    folder, port = sys.argv[1:]
    workers = len(os.sched_getaffinity(0))
    server = litserve.LitServer(Classifier(folder), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
