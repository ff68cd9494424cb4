"""What the service counts, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one service, in a registry of its own.

    Attributes:
        requests: finished requests by route and status.
        seconds: how long they took, by route.
        group: prompts that were read together, each time.
        tokens: tokens of prompts and of answers.
        masks: masks that were found, one for each object on each frame.
        uploaded: bytes of requests' bodies.

    Args:
        waiting: a function that tells how many requests are taken and not yet answered.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("unipixel_requests", "Finished requests.", ("route", "status"), registry=self._registry)
        self.seconds = Histogram("unipixel_request_seconds", "Time of a request.", ("route",), buckets=SECONDS, registry=self._registry)
        self.group = Histogram("unipixel_batch_size", "Prompts that are read together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry)
        self.tokens = Counter("unipixel_tokens", "Tokens.", ("of",), registry=self._registry)
        self.masks = Counter("unipixel_masks", "Masks of objects on frames.", registry=self._registry)
        self.uploaded = Counter("unipixel_uploaded_bytes", "Bytes of requests' bodies.", registry=self._registry)
        queue = Gauge("unipixel_queue_length", "Requests that are taken and not yet answered.", registry=self._registry)
        queue.set_function(waiting)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)
