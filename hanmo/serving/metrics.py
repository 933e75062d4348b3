"""What Prometheus reads: the metrics that vLLM's dashboards ask for, under names of our own or under theirs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hanmo.serving.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
CHOICES = (1, 2, 5, 10, 20, 50, 100)
_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Seconds from the request to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Seconds between two tokens of a reply.", SECONDS),
    "e2e_request_latency_seconds": ("Seconds from the request to the end of a reply.", SECONDS),
    "request_queue_time_seconds": ("Seconds from the request to the reading of its first prompt.", SECONDS),
    "request_prompt_tokens": ("Tokens of the prompts of a request.", TOKENS),
    "request_generation_tokens": ("Tokens of a reply.", TOKENS),
    "request_params_max_tokens": ("The most tokens that a reply may have.", TOKENS),
    "request_params_n": ("Replies to each prompt of a request.", CHOICES),
}
_COUNTERS = {
    "prompt_tokens": ("Tokens of prompts.", []),
    "generation_tokens": ("Tokens that were generated.", []),
    "request_success": ("Replies that have ended.", ["finished_reason"]),
}


class _State(Collector):
    """What is counted elsewhere, as it is when it is asked for."""

    def __init__(self, worker: Worker, prefix: str):
        self._worker, self._prefix = worker, prefix

    def collect(self) -> Iterator[Metric]:
        engines = self._worker.engines
        caches = {name: engine.beginnings for name, engine in engines.items() if engine.beginnings is not None}
        for kind, name, text, values in (
            (GaugeMetricFamily, "num_requests_running", "Replies that are decoded.", self._worker.running),
            (GaugeMetricFamily, "num_requests_waiting", "Replies that wait.", self._worker.waiting),
            *(
                (
                    CounterMetricFamily,
                    f"prefix_cache_{name}",
                    text,
                    {key: getattr(one, of) for key, one in caches.items()},
                )
                for name, of, text in (
                    ("queries", "asked", "Tokens of prompts that were read."),
                    ("hits", "reused", "Tokens of prompts that were known from earlier ones."),
                )
            ),
        ):
            family = kind(f"{self._prefix}:{name}", text, labels=["model_name"])
            for model in engines if kind is GaugeMetricFamily else values:
                family.add_metric([model], values[model])
            yield family


class Metrics:
    """Metrics of one server, in a registry of its own. ``prefix``: before their names."""

    def __init__(self, worker: Worker, prefix: str = "hanmo"):
        self.registry = CollectorRegistry()
        self.registry.register(_State(worker, prefix))
        shared: dict[str, Any] = {"registry": self.registry}
        model = ["model_name"]
        self._histograms = {
            name: Histogram(f"{prefix}:{name}", text, model, buckets=buckets, **shared)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._counters = {
            name: Counter(f"{prefix}:{name}", text, [*model, *labels], **shared)
            for name, (text, labels) in _COUNTERS.items()
        }
        self.rejections = Counter(
            f"{prefix}:admission_rejections", "Requests that found no place.", ["reason"], **shared
        )

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def observe(self, name: str, model: str, value: float) -> None:
        self._histograms[name].labels(model).observe(value)

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        self._counters[name].labels(*labels).inc(by)


class Timing:
    """The times of one request, from when it is made; reported to the metrics of its model."""

    def __init__(self, metrics: Metrics, model: str):
        self._metrics, self._model = metrics, model
        self._arrival = time.monotonic()
        self._last: dict[int, float] = {}  # time of the last token, by choice

    def planned(self, prompt_tokens: int, choices: int, max_tokens: int) -> None:
        self._metrics.count("prompt_tokens", self._model, by=prompt_tokens)
        for name, value in (
            ("request_prompt_tokens", prompt_tokens),
            ("request_params_n", choices),
            ("request_params_max_tokens", max_tokens),
        ):
            self._metrics.observe(name, self._model, value)

    def update(self, index: int, tokens: int) -> None:
        """A choice has got tokens."""
        if not tokens:
            return
        now = time.monotonic()
        if index in self._last:
            self._metrics.observe("inter_token_latency_seconds", self._model, (now - self._last[index]) / tokens)
        elif not self._last:
            self._metrics.observe("time_to_first_token_seconds", self._model, now - self._arrival)
        self._last[index] = now
        self._metrics.count("generation_tokens", self._model, by=tokens)

    def finished(self, reason: str, tokens: int, started_at: float | None) -> None:
        """A choice has ended."""
        self._metrics.count("request_success", self._model, reason)
        self._metrics.observe("request_generation_tokens", self._model, tokens)
        self._metrics.observe("e2e_request_latency_seconds", self._model, time.monotonic() - self._arrival)
        if started_at is not None:
            self._metrics.observe("request_queue_time_seconds", self._model, started_at - self._arrival)
