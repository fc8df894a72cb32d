"""What is counted as it happens. Every mount has meters of its own, so that several can be in one process."""

from __future__ import annotations

import logging
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from vmfs.metrics.tally import Amounts, Latencies

EVENT: Final = "event"
"""The attribute of a log record that names an event (`vmfs.events`)."""
# Seconds. From what a page on a fast disk takes up to what makes guests complain (their disks time out at 30 s).
_FAST: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """Counters and histograms in a registry. `prometheus_client` guards its own with locks; what the data path counts
    is in tallies, which have none."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Latencies(
            "azekura_request_seconds", "Requests of the kernel, from taking one up to its answer", ["opcode"], _FAST
        )
        self.request_errors = Counter(
            "azekura_request_errors", "Requests that were answered with an error", ["opcode", "errno"], registry=r
        )
        moved = {"read": self.requests.labels("READ"), "write": self.requests.labels("WRITE")}
        r.register(self.requests)
        r.register(Amounts("azekura_data_bytes", "Bytes of files read and written", "direction", moved))
        self.io = Latencies(
            "azekura_storage_seconds", "Reads, writes and flushes of the storage", ["kind", "operation"], _FAST
        )
        r.register(self.io)
        self.io_errors = Counter("azekura_storage_errors", "Storage I/O that failed", ["kind", "operation"], registry=r)
        self.commits = Histogram(
            "azekura_commit_seconds", "Records written to the journal and flushed", buckets=_FAST, registry=r
        )
        self.commit_blocks = Counter("azekura_commit_blocks", "Metadata blocks in committed records", registry=r)
        self.heartbeats = Histogram(
            "azekura_heartbeat_seconds", "Heartbeats, each with the look at all slots", buckets=_FAST, registry=r
        )
        self.heartbeat_misses = Counter("azekura_heartbeat_misses", "Heartbeats that did not land", registry=r)
        self.lock_waits = Histogram(
            "azekura_lock_seconds", "How long it took to get a lock, those included that were here already", ["guards"],
            buckets=_FAST, registry=r,
        )  # fmt: skip
        self.lock_refusals = Counter(
            "azekura_lock_refusals", "Locks that were not got: other hosts hold them", ["guards"], registry=r
        )
        self.locks_lost = Counter("azekura_locks_lost", "Locks lost because this host was fenced", registry=r)
        self.events = Counter("azekura_events", "Events in the log (docs/operations.md)", [EVENT], registry=r)


class EventCounter(logging.Handler):
    """Counts the events that are logged."""

    def __init__(self, meters: Meters) -> None:
        super().__init__()
        self._meters = meters

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, EVENT, None)
        if event is not None:
            self._meters.events.labels(str(event)).inc()
