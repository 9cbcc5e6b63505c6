"""Figures of a running server, as Prometheus reads them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Figures:
    """Counters of one server, in a registry of its own.

    Attributes:
        requests: by `route` and `status`.
        request_seconds: from its head to its answer, by `route`.
        images: that were answered.
        batch_images: how many images the network took at once.
        batch_seconds: how long it took.
        waiting: images in the house.
        ready: 1 while `/ready` says yes.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter("vitcls_requests", "Requests.", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "vitcls_request_seconds", "Seconds of a request.", ["route"], registry=registry, buckets=_SECONDS
        )
        self.images = Counter("vitcls_images", "Images answered.", registry=registry)
        self.batch_images = Histogram("vitcls_batch_images", "Images in a batch.", registry=registry, buckets=_IMAGES)
        self.batch_seconds = Histogram(
            "vitcls_batch_seconds", "Seconds of a batch in the network.", registry=registry, buckets=_SECONDS
        )
        self.waiting = Gauge("vitcls_waiting_images", "Images accepted and not yet answered.", registry=registry)
        self.ready = Gauge("vitcls_ready", "1 while the server is ready.", registry=registry)
        ProcessCollector(registry=registry)

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry).decode()
