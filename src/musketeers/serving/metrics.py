"""What the service counts, for Prometheus, in a registry of its own.

Gives `Metrics`.  No label comes from a request: a route is its template or "unmatched", a method
one of `METHODS` or "other"; domains, strategies and versions are the model's own.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""OpenTelemetry's buckets for the duration of requests."""
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        seconds = Histogram(
            "http_server_request_duration_seconds",
            "Time from the end of a request's headers to the end of its answer.",
            ("http_route", "http_request_method", "http_response_status_code"),
            registry=registry,
            buckets=_SECONDS,
        )
        # finding what belongs to the labels takes as long as adding to it; there are few
        self._seconds: Callable[..., Any] = cache(seconds.labels)
        self._inflight = Gauge(
            "musketeers_inflight_requests", "Requests that are worked on now.", registry=registry
        )
        rejected = Counter(
            "musketeers_rejected", "Requests refused.", ("reason",), registry=registry
        )
        self._rejected: Callable[..., Any] = cache(rejected.labels)
        self._reload = Counter(
            "musketeers_reload", "Attempts to load a model.", ("result",), registry=registry
        )
        self._model = Info("musketeers_model", "The model that answers.", registry=registry)
        self._age = Gauge(
            "musketeers_model_age_seconds", "Time since the model was made.", registry=registry
        )
        self._recommend = Counter(
            "musketeers_recommend",
            "Users answered, by how.",
            ("domain", "strategy"),
            registry=registry,
        )
        self._batch = Histogram(
            "musketeers_batch_size", "Users of a batch.", registry=registry, buckets=_USERS
        )

    def watch(self, inflight: Callable[[], float]) -> None:
        """Ask `inflight` for the number of requests that are worked on."""
        self._inflight.set_function(inflight)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request is done; `route` is a template or `UNMATCHED`, `method` one of few."""
        self._seconds(route, method, status).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request is refused; `reason` is the code of its problem."""
        self._rejected(reason).inc()

    def reloaded(self, result: str) -> None:
        """A model was to be loaded; `result` is one word of ours."""
        self._reload.labels(result).inc()

    def serves(self, model_version: str, made_at: float) -> None:
        """Another model answers, made at that time (seconds since 1970)."""
        self._model.info({"model_version": model_version})
        self._age.set_function(lambda: time.time() - made_at)

    def recommended(self, domain: str, strategy: str, users: int = 1) -> None:
        """So many users were answered this way; `domain` is one of the model's."""
        self._recommend.labels(domain, strategy).inc(users)

    def batch(self, users: int) -> None:
        """A batch for so many users was asked for."""
        self._batch.observe(users)

    def render(self) -> bytes:
        """All of it in Prometheus' text format, of type `MEDIA_TYPE`."""
        return generate_latest(self._registry)
