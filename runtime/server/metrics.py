"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine import Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EngineCollector(Collector):
    """An engine's state and counters as they are when it is scraped."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        scheduler, counters = self._engine.scheduler, self._engine.counters
        pool = scheduler.pool
        for name, text, value in (
            ("requests_waiting", "Requests in the queue", len(scheduler.waiting)),
            ("requests_running", "Requests that have cache blocks", len(scheduler.running)),
            ("cache_usage_ratio", "Share of the cache blocks in use", pool.used / max(1, pool.count)),
        ):
            yield GaugeMetricFamily(f"llmc_{name}", text, value=value)
        for name, text, value in (
            ("prefix_cache_hits", "Blocks found in the prefix cache", pool.hits),
            ("prefix_cache_lookups", "Blocks looked up in the prefix cache", pool.lookups),
            ("prompt_tokens", "Prompt tokens received", counters.prompt_tokens),
            ("generated_tokens", "Tokens generated", counters.generated_tokens),
            ("steps", "Steps computed", counters.steps),
            ("preemptions", "Requests preempted", scheduler.preemptions),
        ):
            yield CounterMetricFamily(f"llmc_{name}", text, value=value)
        finished = CounterMetricFamily("llmc_requests_finished", "Choices finished, by reason", labels=["reason"])
        for reason, count in list(counters.finished.items()):
            finished.add_metric([reason], count)
        yield finished


class Metrics:
    """Reads an engine's counters when it is scraped; owns its registry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.http = Counter("llmc_http_requests", "HTTP requests, by path and status", ["path", "status"], registry=self.registry)
        self.first_token = Histogram(
            "llmc_time_to_first_token_seconds", "From submission to the first token", registry=self.registry, buckets=SECONDS
        )
        self.between = Histogram(
            "llmc_time_between_tokens_seconds", "Between two tokens of a choice", registry=self.registry, buckets=SECONDS
        )

    def render(self) -> bytes:
        """The text exposition."""
        counters = self._engine.counters
        for histogram, seconds in ((self.first_token, counters.first_token_s), (self.between, counters.between_tokens_s)):
            while seconds:
                histogram.observe(seconds.pop())
        return generate_latest(self.registry)
