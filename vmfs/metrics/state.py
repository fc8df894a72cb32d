"""What is looked up when somebody asks for the metrics: all of it in memory, without a word to the storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vmfs.core.mounting import MountedVolume
from vmfs.ondisk.slot import SlotState


class StateCollector(Collector):
    """The state of one mount at the moment of a scrape."""

    def __init__(self, mounted: MountedVolume, mountpoint: str, takeovers: int) -> None:
        self._mounted = mounted
        self._mountpoint = mountpoint
        self._takeovers = takeovers

    def collect(self) -> Iterator[Metric]:
        """As `prometheus_client` asks for."""
        yield from self._about()
        yield from self._cluster()
        yield from self._space()

    def _about(self) -> Iterator[Metric]:
        core = self._mounted.core
        names = ["volume", "uuid", "host", "slot", "mountpoint"]
        info = GaugeMetricFamily("azekura_mount_info", "Which mount this is; always 1", labels=names)
        sb, holder = core.volume.superblock, core.membership.holder
        host = core.membership.identity.name
        info.add_metric([core.name, str(sb.volume), host, str(holder.slot), self._mountpoint], 1)
        yield info
        yield CounterMetricFamily(
            "azekura_takeovers", "Processes that have taken this mount over from a dead one", value=self._takeovers
        )
        failed = core.transactions.failure is not None
        yield GaugeMetricFamily("azekura_mount_failed", "1: the mount has failed and refuses changes", value=failed)
        used, size = self._mounted.journal_fill()
        yield GaugeMetricFamily("azekura_journal_used_blocks", "Blocks of records that replay would need", value=used)
        yield GaugeMetricFamily("azekura_journal_size_blocks", "Blocks that the journal has for records", value=size)

    def _cluster(self) -> Iterator[Metric]:
        core = self._mounted.core
        membership = core.membership
        now = core.clock.now()
        left = max(0.0, membership.lease_deadline - now)
        yield GaugeMetricFamily("azekura_lease_remaining_seconds", "For how long this host may still write", value=left)
        age = now - membership.last_answered
        yield GaugeMetricFamily("azekura_heartbeat_age_seconds", "Since the last one that landed was sent", value=age)
        yield GaugeMetricFamily("azekura_fenced", "1: another host took this one for dead", value=membership.fenced)
        hosts = GaugeMetricFamily("azekura_hosts", "Hosts by the state of their slots", labels=["state"])
        snapshot = membership.snapshot
        states = Counter(record.state for record in snapshot.records) if snapshot is not None else Counter[SlotState]()
        for state in SlotState:
            if state is not SlotState.FREE:
                hosts.add_metric([state.name.lower()], states[state])
        yield hosts
        held = GaugeMetricFamily("azekura_locks_held", "Locks that this host holds", labels=["guards"])
        for guards, count in sorted(Counter(t.guards.name.lower() for t in core.locks.all_held()).items()):
            held.add_metric([guards], count)
        yield held
        running = len(core.locks.recoveries.under_way())
        yield GaugeMetricFamily("azekura_recoveries_running", "Hosts that this one is recovering now", value=running)

    def _space(self) -> Iterator[Metric]:
        core = self._mounted.core
        size = core.geometry.total_blocks() * core.block_bytes
        yield GaugeMetricFamily("azekura_volume_size_bytes", "Space for file data and metadata", value=size)
        free = self._mounted.space.free_blocks_seen() * core.block_bytes
        yield GaugeMetricFamily("azekura_volume_free_bytes", "Of it free, as this host last counted", value=free)
        held_groups = list(core.groups.held.values())
        waiting = sum(held.obj.group.quarantine.bit_count() for held in held_groups)
        yield GaugeMetricFamily(
            "azekura_quarantine_bytes", "Freed lately in groups held here: not to be used again yet",
            value=waiting * core.block_bytes,
        )  # fmt: skip
        yield GaugeMetricFamily("azekura_groups_held", "Groups of blocks that this host holds", value=len(held_groups))
        files = len(self._mounted.files.table)
        yield GaugeMetricFamily("azekura_open_files", "Files with open handles here", value=files)
