"""Numbers for Prometheus, under the names that dashboards of vLLM ask for, and some of our own."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
LABELS = ("model_name",)


class Metrics:
    """What the server counts itself; an engine's own numbers come from its stats when somebody asks."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, LABELS, buckets=buckets, registry=self.registry)

        self.first_token_s = histogram("vllm:time_to_first_token_seconds", "From request to first token", LATENCIES_S)
        self.between_tokens_s = histogram(
            "vllm:inter_token_latency_seconds", "Between tokens of one text: per message, its gap by its tokens",
            TOKENS_S,
        )  # fmt: skip
        self.per_token_s = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token after the first, per answer", TOKENS_S
        )
        self.whole_s = histogram("vllm:e2e_request_latency_seconds", "From request to the end", LATENCIES_S)
        self.queue_s = histogram("vllm:request_queue_time_seconds", "Waiting for a slot", LATENCIES_S)
        self.prefill_s = histogram("vllm:request_prefill_time_seconds", "From slot to first token", LATENCIES_S)
        self.decode_s = histogram("vllm:request_decode_time_seconds", "From first token to the end", LATENCIES_S)
        self.prompt_size = histogram("vllm:request_prompt_tokens", "Tokens of a prompt", COUNTS)
        self.answer_size = histogram("vllm:request_generation_tokens", "New tokens of a request", COUNTS)
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Tokens of prompts", LABELS, registry=self.registry)
        self.new_tokens = Counter("vllm:generation_tokens", "New tokens", LABELS, registry=self.registry)
        self.answers = Counter(
            "vllm:request_success", "Answers by how they ended", (*LABELS, "finished_reason"), registry=self.registry
        )
        self.responses = Counter(
            "intone:http_responses", "Responses by path and status", ("path", "status"), registry=self.registry
        )
        self.open = Gauge("intone:http_requests_open", "Requests that are being answered", registry=self.registry)
        self.tasks = Gauge("intone:asyncio_tasks", "Tasks of the event loop", registry=self.registry)

    def page(self, engines: Mapping[str, tuple[int, Mapping[str, Any] | None]]) -> bytes:
        """The text that Prometheus reads. engines: model -> (requests that wait, stats or None).

        Called in the server's event loop.
        """
        self.tasks.set(len(asyncio.all_tasks()))
        registry = CollectorRegistry()
        registry.register(_Engines(engines))
        return generate_latest(self.registry) + generate_latest(registry)


class _Engines(Collector):
    """The engines' own numbers at this moment."""

    def __init__(self, engines: Mapping[str, tuple[int, Mapping[str, Any] | None]]) -> None:
        self._engines = engines

    def collect(self) -> list[Metric]:
        """One family per number, one sample per model; an engine that does not answer has only num_requests_waiting."""
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests without a slot", labels=LABELS)
        gauges: dict[str, GaugeMetricFamily] = {
            "num_running": GaugeMetricFamily("vllm:num_requests_running", "Samples with a slot", labels=LABELS),
            "kv_share": GaugeMetricFamily(
                "vllm:kv_cache_usage_perc", "Share of the cache that texts hold, 0 to 1", labels=LABELS
            ),
            "remembered_bytes": GaugeMetricFamily(
                "intone:remembered_bytes", "Bytes of keys of ended texts that may be found again", labels=LABELS
            ),
        }
        counters: dict[str, CounterMetricFamily] = {
            "num_prompt_tokens": CounterMetricFamily(
                "vllm:prefix_cache_queries", "Tokens of prompts that were looked up", labels=LABELS
            ),
            "num_found_tokens": CounterMetricFamily(
                "vllm:prefix_cache_hits", "Tokens of prompts whose keys were there", labels=LABELS
            ),
            "num_evicted": CounterMetricFamily(
                "vllm:num_preemptions", "Texts that gave way for lack of pages", labels=LABELS
            ),
            "num_guessed": CounterMetricFamily(
                "vllm:spec_decode_num_draft_tokens", "Tokens guessed", labels=LABELS
            ),
            "num_right_guesses": CounterMetricFamily(
                "vllm:spec_decode_num_accepted_tokens", "Guesses that were right", labels=LABELS
            ),
            "num_steps": CounterMetricFamily("intone:steps", "Passes through the model", labels=LABELS),
            "num_token_forwards": CounterMetricFamily(
                "intone:token_forwards", "Tokens that went through the model", labels=LABELS
            ),
        }
        sizes = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens fed per step", labels=LABELS)
        for model, (num_waiting, stats) in self._engines.items():
            waiting.add_metric([model], num_waiting)
            if stats is None:
                continue
            values = {**stats, "kv_share": stats["held_bytes"] / stats["cache_bytes"]}
            for name, gauge in gauges.items():
                gauge.add_metric([model], values[name])
            for name, counter in counters.items():
                counter.add_metric([model], values[name])
            counts = list(itertools.accumulate(stats["step_sizes"]))
            bounds = [*(str(float(1 << place)) for place in range(len(counts) - 1)), "+Inf"]
            sizes.add_metric([model], list(zip(bounds, counts, strict=True)), stats["num_token_forwards"])
        return [waiting, *gauges.values(), *counters.values(), sizes]
