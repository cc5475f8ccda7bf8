"""What the service counts, in the form Prometheus reads."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rec_pipeline.serving.answers import Answer
from rec_pipeline.serving.service import RecommendationService

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2)


class Telemetry:
    """Counters and gauges of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rec_http_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.answers = Histogram(
            "rec_answer_seconds",
            "Time to an answer by its source; those of cache are hits, of popular and snapshot fallbacks.",
            ["source"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.degraded = Counter("rec_degraded_answers", "Answers with something missing.", registry=self.registry)
        self.sources = Histogram(
            "rec_source_seconds",
            "Time of a source of live answers.",
            ["source"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.outcomes = Counter(
            "rec_source_outcomes",
            "How sources ended: ok, late, busy, or an error.",
            ["source", "outcome"],
            registry=self.registry,
        )
        self.events = Counter(
            "rec_events", "Events by outcome: recorded, duplicates, forgotten.", ["outcome"], registry=self.registry
        )
        self.generation = Gauge("rec_live_generation", "Number of the live generation.", registry=self.registry)
        self.generation_age = Gauge("rec_generation_age_seconds", "Its age.", registry=self.registry)
        self.store_up = Gauge("rec_store_up", "1 while the store answers.", registry=self.registry)
        self.bundle_loaded = Gauge("rec_bundle_loaded", "1 with a serving bundle in memory.", registry=self.registry)

    def on_answer(self, answer: Answer, seconds: float) -> None:
        """Count an answer."""
        self.answers.labels(answer.source).observe(seconds)
        if answer.degraded:
            self.degraded.inc()

    def on_source(self, name: str, seconds: float, outcome: str) -> None:
        """Count a source that was asked."""
        self.outcomes.labels(name, outcome).inc()
        if outcome == "ok":
            self.sources.labels(name).observe(seconds)

    def exposition(self, service: RecommendationService) -> bytes:
        """Return everything as text, the gauges as of now."""
        live = service.store.live
        self.generation.set(live.generation)
        self.generation_age.set(time.time() - live.published_at if live.published_at else 0)
        self.store_up.set(not service.store.breaker.is_open)
        self.bundle_loaded.set(service.bundles.current is not None)
        return generate_latest(self.registry)
