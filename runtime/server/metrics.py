"""Prometheus metrics of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine import Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Reads an engine's counters when it is scraped; owns its registry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = CollectorRegistry()
        gauge = lambda name, text: Gauge(f"llmc_{name}", text, registry=self.registry)  # noqa: E731
        self.waiting = gauge("requests_waiting", "Requests in the queue")
        self.running = gauge("requests_running", "Requests that have cache blocks")
        self.cache_used = gauge("cache_usage_ratio", "Share of the cache blocks in use")
        self.prefix_hits = gauge("prefix_cache_hits", "Blocks found in the prefix cache")
        self.prefix_lookups = gauge("prefix_cache_lookups", "Blocks looked up in the prefix cache")
        self.prompt_tokens = gauge("prompt_tokens", "Prompt tokens received")
        self.generated_tokens = gauge("generated_tokens", "Tokens generated")
        self.steps = gauge("steps", "Steps computed")
        self.preemptions = gauge("preemptions", "Requests preempted")
        self.finished = Gauge("llmc_requests_finished", "Choices finished, by reason", ["reason"], registry=self.registry)
        self.http = Counter("llmc_http_requests", "HTTP requests, by path and status", ["path", "status"], registry=self.registry)
        self.first_token = Histogram(
            "llmc_time_to_first_token_seconds", "From submission to the first token", registry=self.registry, buckets=SECONDS
        )
        self.between = Histogram(
            "llmc_time_between_tokens_seconds", "Between two tokens of a choice", registry=self.registry, buckets=SECONDS
        )

    def render(self) -> bytes:
        """The text exposition."""
        scheduler, counters = self._engine.scheduler, self._engine.counters
        self.waiting.set(len(scheduler.waiting))
        self.running.set(len(scheduler.running))
        self.cache_used.set(scheduler.pool.used / max(1, scheduler.pool.count))
        self.prefix_hits.set(scheduler.pool.hits)
        self.prefix_lookups.set(scheduler.pool.lookups)
        self.prompt_tokens.set(counters.prompt_tokens)
        self.generated_tokens.set(counters.generated_tokens)
        self.steps.set(counters.steps)
        self.preemptions.set(scheduler.preemptions)
        for reason, count in list(counters.finished.items()):
            self.finished.labels(reason).set(count)
        for histogram, seconds in ((self.first_token, counters.first_token_s), (self.between, counters.between_tokens_s)):
            while seconds:
                histogram.observe(seconds.pop())
        return generate_latest(self.registry)
