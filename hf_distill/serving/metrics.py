"""Metrics of a service for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The metrics of one service, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = {"registry": self.registry, "namespace": "hf_distill"}
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "requests", "Answers to /predict, /rerank and /embed, by model and status.", ["model", "status"], **of
        )
        self.errors = Counter("errors", "Requests that were not answered with a prediction.", ["kind"], **of)
        self.seconds = Histogram("request_seconds", "Time from request to answer.", ["model"], buckets=SECONDS, **of)
        self.batch_texts = Histogram("batch_texts", "Texts per batch.", buckets=SIZES, **of)
        self.batch_tokens = Histogram("batch_tokens", "Tokens per batch.", buckets=TOKENS, **of)
        self.queue = Gauge("queue_texts", "Texts that wait for a worker.", ["model"], **of)
        self.workers = Gauge("workers", "Worker processes that have loaded the model.", ["model"], **of)
        self.restarts = Counter("worker_restarts", "Workers that died and were replaced.", ["model"], **of)
        self.info = Gauge("model_info", "The model that is served.", ["model", "name", "revision", "format"], **of)

    def page(self) -> bytes:
        return generate_latest(self.registry)
