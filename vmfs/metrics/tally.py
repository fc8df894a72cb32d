"""Latencies that many threads count at once without a lock: what `prometheus_client`'s own histogram would cost the
data path is a third of its speed at queue depth 32, most of it waiting for locks."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf, isinf

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally:
    """Each thread adds to a row of its own: counts by bucket, the sum of seconds, the sum of amounts.

    Rows stay when their threads end. A reader may see one addition half done: its count, and not yet its seconds.
    """

    __slots__ = ("_bounds", "_columns", "_own", "_rows")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the upper ends of the buckets, growing."""
        self._bounds = bounds
        self._columns = len(bounds) + 3
        self._own = threading.local()
        self._rows: list[list[float]] = []

    def observe(self, seconds: float, amount: int = 0) -> None:
        """Count one."""
        try:
            row = self._own.row
        except AttributeError:
            row = self._own.row = [0] * self._columns
            self._rows.append(row)
        row[bisect_left(self._bounds, seconds)] += 1
        row[-2] += seconds
        row[-1] += amount

    def sums(self) -> list[float]:
        """All rows together: a count for each bucket and for what is above, seconds, amount."""
        return [sum(column) for column in zip([0] * self._columns, *list(self._rows), strict=True)]


class Latencies(Collector):
    """A histogram for Prometheus made of tallies, one a set of labels. Labels are made before threads use them."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, list(labels), bounds
        self._tallies: dict[tuple[str, ...], Tally] = {}
        self._mutex = threading.Lock()

    def labels(self, *values: str) -> Tally:
        """The tally for these values of the labels."""
        with self._mutex:
            return self._tallies.setdefault(values, Tally(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """As `prometheus_client` asks for."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        with self._mutex:
            tallies = list(self._tallies.items())
        for values, tally in tallies:
            *counts, seconds, _ = tally.sums()
            buckets, total = [], 0.0
            for bound, count in zip([*self._bounds, inf], counts, strict=True):
                total += count
                buckets.append(("+Inf" if isinf(bound) else repr(float(bound)), total))
            family.add_metric(list(values), buckets, seconds)
        yield family


class Amounts(Collector):
    """A counter of the amounts of tallies, by one label."""

    def __init__(self, name: str, text: str, label: str, tallies: dict[str, Tally]) -> None:
        self._name, self._text, self._label, self._tallies = name, text, label, tallies

    def collect(self) -> Iterator[Metric]:
        """As `prometheus_client` asks for."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, tally in self._tallies.items():
            family.add_metric([value], tally.sums()[-1])
        yield family
