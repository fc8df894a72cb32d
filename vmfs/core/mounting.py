"""A mount from beginning to end: devices, membership, recovery, the file system, the kernel's mount, and back.

The order matters. Joining: claim a slot, start the heartbeat, begin an empty journal, recover the dead slots that are
this machine's own, and only then serve. Leaving: the kernel is done with us, all changes are settled, all locks given
up, and last the slot.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmfs.clock import Clock, SystemClock
from vmfs.cluster.evict import name_this_process
from vmfs.cluster.identity import HostIdentity
from vmfs.cluster.locks import LockManager
from vmfs.cluster.locktable import Tenure
from vmfs.cluster.membership import MembershipCallbacks
from vmfs.cluster.region import SlotRegion
from vmfs.cluster.watchdog import Watchdog
from vmfs.control.contract import MountOptions
from vmfs.control.server import ControlServer
from vmfs.core import recovering
from vmfs.core.attributes import Attributes
from vmfs.core.dataplane import DataPlane
from vmfs.core.deadhosts import DeadHosts
from vmfs.core.directories import DirectoryWriter
from vmfs.core.fencing import arm_watchdog, check_in_flight, fence_for, timers_of, volume_devices
from vmfs.core.filemap import MapWriter
from vmfs.core.fileops import FileOps
from vmfs.core.flights import Flights
from vmfs.core.groups import Groups, HeldGroup
from vmfs.core.inodes import Inodes
from vmfs.core.layers import Cloner
from vmfs.core.leased import LeasedIO, PatientLease
from vmfs.core.makeinode import InodeMaker
from vmfs.core.namespace import Namespace
from vmfs.core.objects import OrphansObject
from vmfs.core.openfile import OpenFiles
from vmfs.core.operations import FileSystem
from vmfs.core.parts import PLAIN, Parts
from vmfs.core.publisher import Publisher
from vmfs.core.reaper import Reaper
from vmfs.core.recovering import SlotLooker, SlotRecoverer
from vmfs.core.rename import Renamer
from vmfs.core.service import Service
from vmfs.core.silence import Silence, StuckAnswerer
from vmfs.core.slowwrite import SlowWriter
from vmfs.core.space import Space
from vmfs.core.state import Core
from vmfs.core.store import Store
from vmfs.core.succession import Heir, Legacy, finish_commits
from vmfs.core.transactions import Transactions
from vmfs.core.units import Units
from vmfs.devices import Device, open_device
from vmfs.devices.flight import Resending
from vmfs.devices.iscsi.credentials import choose_file
from vmfs.errors import DamagedBlock, DeviceError, DeviceNotUsable, StillInUse, VmfsError
from vmfs.estate.handles import HandleTable
from vmfs.estate.layout import Estate
from vmfs.estate.link import Link
from vmfs.estate.shadow import Shadow
from vmfs.events import Event, event
from vmfs.fuse import mount as kernel
from vmfs.fuse.session import Session
from vmfs.geometry import Geometry
from vmfs.lockmethod import prove, registers_of
from vmfs.logfields import about
from vmfs.ondisk import orphans as orphans_format
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import ADDRESS_SHIFT
from vmfs.ondisk.lock import Guards, Holder, LockRecord
from vmfs.ondisk.superblock import PRIMARY_OFFSET
from vmfs.volume import Volume, open_volume

if TYPE_CHECKING:
    from vmfs.metrics.exporter import Exporter  # only mounts with metrics load it

log = logging.getLogger("vmfs.core")

_KNOWN_OPTIONS: Final = frozenset({"noexec", "suid", "dev", "_netdev", "rw", "defaults"})


class MountedVolume:
    """All parts of one mount, without the kernel's side: what tests and tools drive directly too."""

    def __init__(
        self, volume: Volume, identity: HostIdentity, clock: Clock, *, rng: random.Random | None = None,
        read_only: bool = False, estate: Estate | None = None, in_flight_s: float | None = None,
        parts: Parts = PLAIN,
    ) -> None:  # fmt: skip
        """Claims a slot and recovers what is this machine's own. Raises HostNameInUse, NoFreeSlot, DeviceError,
        TimersRefused, FencingUnusable...

        `in_flight_s`: how long a write of this host may stay on its way, where no LUN refuses those of the dead.

        With an `estate` another process can take the mount over, and this one takes over what the estate holds.

        Close it with `leave` or `abandon`.
        """
        self.volume = volume
        self.parts = parts
        self._estate = estate
        self._heir: Heir | None = None
        self.legacy = Legacy(HandleTable(estate)) if estate is not None else Legacy()
        self._locks: LockManager | None = None
        sb, geometry = volume.superblock, volume.geometry
        rng = rng or random.SystemRandom()
        registers = registers_of(sb, volume.extents, clock, rng)
        region = SlotRegion(
            registers, sb.slots_address, sb.lock_block_bytes, sb.max_hosts, volume.prefix, clock
        )
        timers = timers_of(sb)
        self._flights = Flights()
        callbacks = MembershipCallbacks(
            on_request=self._on_request, on_fenced=self._on_fenced, may_resume=self._flights.none
        )
        self.membership = parts.membership(
            region, identity, timers, clock, volume_name=sb.label, superblock_address=PRIMARY_OFFSET,
            callbacks=callbacks, rng=rng, fence=fence_for(volume, clock),
        )  # fmt: skip
        for device in volume_devices(volume):
            if isinstance(device, Resending):
                device.keep_to_lease(timers.lease_us / 1e6, self.membership.check_lease)
        check_in_flight(volume, timers, in_flight_s)
        claimed = self.membership.claim(SlotLooker(volume).is_usable)
        try:
            self._lock_proof = self._prove_locks(rng)
            self.membership.start()
            if claimed.in_place:
                recovering.replay_in_place(volume, self.membership, clock, self._finish_commits)
            self._build(volume, geometry, clock, rng, read_only)
            self._succeed()
            if claimed.in_place:
                self.recoverer.settle_in_place(claimed.holder)
            self._journal.start()
            self._recover()
        except BaseException:
            if self._locks is not None:
                self._locks.lose_all()
            self.membership.abandon()
            raise

    def _finish_commits(self, io: LeasedIO, peek: Callable[[int], LockRecord], dead: Holder) -> None:
        if self._estate is not None:
            finish_commits(self._estate, self.volume, io, peek, dead)

    def _succeed(self) -> None:
        """Begin to take over from the process before this one, if there was one."""
        if self._estate is not None and self._estate.session() is not None:
            self._heir = Heir(self.core, self.inodes, self.files, self._estate, self.legacy)
            self._heir.restore()
            self.recoverer.heir = self._heir

    def _prove_locks(self, rng: random.Random) -> str:
        """Try the volume's lock method out; where it fails, the slot is given back. After the claim: LUNs that are
        reserved take writes of registered hosts alone."""
        try:
            return prove(self.volume.superblock, self.volume.extents, rng)
        except VmfsError:
            with suppress(VmfsError):
                self.membership.leave()
            raise

    def _build(self, volume: Volume, geometry: Geometry, clock: Clock, rng: random.Random, read_only: bool) -> None:
        sb = volume.superblock
        membership = self.membership
        holder = membership.holder
        self._patience = PatientLease(membership.check_lease, clock)
        io = self.parts.leased_io(volume.extents, self._patience, self._flights)
        self._journal = journal = self.parts.journal(
            io, address=geometry.journal_address(holder.slot), size_bytes=sb.journal_bytes, volume=volume.uuid,
            slot=holder.slot, incarnation=holder.incarnation,
        )  # fmt: skip
        store = Store(io, geometry, volume.uuid)
        groups = Groups(geometry, store, clock, sb.timers.quarantine_us / 1e6)
        units = Units(groups, geometry, store, clock)
        slot_lock = geometry.slot_address(holder.slot)
        store.hold(slot_lock, holder.incarnation)
        transactions = Transactions(io, journal, volume.uuid, sb.label, store.version, groups.on_settled)
        locks = self.parts.locks(
            membership, clock,
            before_release=self._before_release,
            recover=self._recover_slot,
            describe=self._describe_lock,
            rng=rng,
        )  # fmt: skip
        locks.patience = self._patience
        self.core = core = Core(
            volume=volume, geometry=geometry, clock=clock, membership=membership, locks=locks, io=io,
            data=self.parts.block_io(volume.extents, self._flights), store=store, groups=groups, units=units,
            transactions=transactions,
            maps=MapWriter(store, units), orphans=self._orphans(io, volume, holder.slot, slot_lock), random=rng,
            read_only=read_only, lock_proof=self._lock_proof,
            patience=self._patience,
        )  # fmt: skip
        self._build_operations(core)
        self._locks = locks

    def _orphans(self, io: LeasedIO, volume: Volume, slot: int, lock: int) -> OrphansObject:
        address = volume.geometry.orphans_address(slot)
        block = io.read(address, METADATA_BLOCK_BYTES)
        entries, generation = orphans_format.parse(block, address, volume.uuid, slot)
        return OrphansObject(address, lock, slot, entries, generation)

    def _build_operations(self, core: Core) -> None:
        self.inodes = inodes = Inodes(core)
        self.files = files = OpenFiles()
        self.space = space = Space(core)
        slow = SlowWriter(core, files, space)
        self.reaper = reaper = Reaper(core, inodes, files, space, slow)
        maker = InodeMaker(core, space)
        writer = DirectoryWriter(core.store, core.units, core.maps, core.geometry)
        namespace = Namespace(core, inodes, space, maker, writer, reaper)
        renamer = Renamer(core, inodes, space, namespace, writer, reaper)
        self.attributes = attributes = Attributes(core, inodes, files, space)
        fileops = FileOps(core, inodes, files, space, slow, reaper)
        self.plane = DataPlane(core, files, slow, attributes.kill_setid, self.legacy)
        self.cloner = Cloner(core, inodes, files, space, maker, namespace, writer, reaper)
        self.filesystem = FileSystem(
            core, inodes, files, space, namespace, renamer, attributes, fileops, self.plane, reaper, self.legacy
        )
        self.publisher = Publisher(core, files, attributes)
        self.recoverer = SlotRecoverer(core, reaper)

    def _recover(self) -> None:
        """Recover this host's own earlier mounts, and whatever else is known to be dead now."""
        tried = set(self.membership.predecessors)
        for slot in self.membership.predecessors:
            try:
                with self.core.locks.recoveries.alone(slot):
                    self.recoverer.recover_or_fail(slot)
            except (DamagedBlock, DeviceError) as error:
                # Left FAILED for an operator (R6). What it had locked stays locked; the rest of the volume serves.
                log.error("volume %s: slot %d is not recovered: %s", self.core.name, slot, error)
        # Round by round: a slot whose recoverer died is known to be dead once that one has been recovered.
        while dead := self.membership.dead_slots().keys() - tried:
            tried |= dead
            for slot in sorted(dead):
                try:
                    self.core.locks.recoveries.run(slot)  # unless another mount is at it already
                except VmfsError as error:
                    log.error("volume %s: slot %d is not recovered: %s", self.core.name, slot, error)
        if self._heir is not None:
            self._heir.settle()
            self.recoverer.heir = self._heir = None
        if self._estate is not None:
            self._estate.settle_holders(self.core.membership.holder)
            self.core.transactions.cast_shadow(Shadow(self._estate, self.core.membership.holder))
        self.core.locks.recoveries.start()
        self.reaper.start()
        self.reaper.kick()
        self.publisher.start()

    def journal_fill(self) -> tuple[int, int]:
        """As `Journal.fill`."""
        return self._journal.fill()

    # -- called back by the cluster's threads ------------------------------------------------------

    def _on_request(self, slot: int, kind: int, target: int, argument: int) -> None:
        if self._locks is not None:  # the heartbeat begins before there are locks to be asked for
            self._locks.on_request(slot, kind, target, argument)

    def _on_fenced(self) -> None:
        if self._locks is not None:
            self._locks.lose_all()
            self.core.transactions.fail(f"another host took this one for dead: {self.membership.fenced_by}")

    def _describe_lock(self, address: int, guards: Guards) -> str:
        """What messages call a lock."""
        if guards is Guards.INODE:
            return f"inode {(address + self.volume.superblock.lock_block_bytes) >> ADDRESS_SHIFT}"
        return f"the {guards.name.lower().replace('_', ' ')} at {address:#x}"

    def _recover_slot(self, slot: int) -> None:
        self.recoverer.recover(slot)

    # -- giving up locks ---------------------------------------------------------------------------

    def _before_release(self, tenure: Tenure) -> None:
        """Put in order what a lock covers (rules R5 and R11). Runs without the control mutex. Raises StillInUse."""
        core = self.core
        core.transactions.check()
        while True:
            # Looked at first: of many locks that became idle together, the first one's settling settles the others.
            with core.transactions.mutex:
                if not self._is_quiet(tenure):
                    raise StillInUse(self._describe_lock(tenure.address, tenure.guards))
                if not core.transactions.unsettled(tenure.address):
                    self._forget(tenure)
                    return
            core.transactions.settle()

    def _is_quiet(self, tenure: Tenure) -> bool:
        """Whether nothing is under way in what a lock covers. Has no more promised from a group from now on."""
        held = self._held_group(tenure)
        if held is None:
            return True
        if self.core.clock.now() < held.kept_until:
            return False
        held.asked = True
        self.core.groups.end_quarantines()
        return not held.pins

    def _held_group(self, tenure: Tenure) -> HeldGroup | None:
        if tenure.guards is not Guards.RESOURCE_GROUP:
            return None
        return next((h for h in self.core.groups.held.values() if h.obj.lock == tenure.address), None)

    def _forget(self, tenure: Tenure) -> None:
        """Everything under a lock is durable in place: keep nothing of it in memory."""
        core = self.core
        held = self._held_group(tenure)
        if held is not None:
            index = held.obj.group.index
            for file in self.files.table.values():
                file.reserve = [r for r in file.reserve if r.group != index]
            core.groups.forget(index)
        core.store.give_up(tenure.address)
        if tenure.guards is Guards.INODE:
            self.inodes.forget((tenure.address + core.volume.superblock.lock_block_bytes) >> ADDRESS_SHIFT)

    # -- the end -----------------------------------------------------------------------------------

    def leave(self) -> None:
        """Settle everything and free the slot. Raises VmfsError when that fails; then `abandon`."""
        self.core.locks.recoveries.stop()
        self.reaper.stop()
        self.publisher.stop()
        self.reaper.finish_all()
        self.core.transactions.settle()
        self.core.locks.close()
        self.core.transactions.settle()
        self.membership.leave()

    def abandon(self) -> None:
        """End all threads and leave the slot as it is: the next mount recovers it."""
        self._patience.give_up()
        self.core.locks.recoveries.stop()
        self.reaper.stop()
        self.publisher.stop()
        self.core.transactions.fail("the mount was abandoned")
        self.core.locks.abandon()
        self.membership.abandon()


def serve(options: MountOptions, ready: Callable[[], None], link: Link | None = None) -> int:
    """Mount, call `ready`, serve until unmounted; 0, or 1 when the mount could not leave in order.

    `link`: to the supervisor, which has another process take the mount over when this one dies. If it has brought a
    session, this process takes that one over.

    Raises VmfsError before `ready` when it cannot be mounted; nothing is left mounted then.
    """
    for name in options.options:
        if name not in _KNOWN_OPTIONS:
            raise DeviceNotUsable(f"-o {name}", "is no mount option that this version knows")
    if link is None or link.fuse_fd is None:
        kernel.check_target(options.mountpoint)
    name_this_process()
    with ExitStack() as stack:
        devices: list[Device] = []
        watchdog = None
        if options.watchdog is not None:
            watchdog = Watchdog(options.watchdog, options.mountpoint, SystemClock())
            stack.callback(watchdog.disarm)  # last of all: when no device is open any more
        choose_file(None if options.credentials is None else Path(options.credentials))
        for spec in options.devices:
            device = open_device(spec)
            stack.callback(device.close)
            devices.append(device)
        exporter = _start_exporter(options, taking_over=link is not None and link.fuse_fd is not None)
        if exporter is not None:
            stack.callback(exporter.close)
        volume = open_volume(devices)
        about(volume=volume.superblock.label, host=options.host, mountpoint=options.mountpoint)
        identity = HostIdentity.detect(options.host, options.boot_id)
        mounted = MountedVolume(
            volume, identity, SystemClock(), read_only=options.read_only, in_flight_s=options.in_flight_s,
            estate=link.estate if link is not None else None,
            parts=PLAIN if exporter is None else exporter.parts,
        )  # fmt: skip
        if exporter is not None:
            exporter.show(mounted, options.mountpoint, 0 if link is None else link.estate.takeovers)
        try:
            return _serve(options, mounted, watchdog, ready, link)
        finally:
            label = volume.superblock.label
            log.info("volume %s: host %s has left", label, options.host, extra=event(Event.UNMOUNTED))


def _start_exporter(options: MountOptions, *, taking_over: bool) -> Exporter | None:
    """What serves the mount's metrics, where they are wanted. Raises MetricsUnusable; not in a process that takes over:
    the mount is worth more than its metrics."""
    if options.metrics is None:
        return None
    from vmfs.metrics.address import MetricsUnusable
    from vmfs.metrics.exporter import Exporter

    try:
        return Exporter(options.metrics)
    except MetricsUnusable as error:
        if not taking_over:
            raise
        log.error("%s", error)
        return None


def _serve(
    options: MountOptions, mounted: MountedVolume, watchdog: Watchdog | None, ready: Callable[[], None],
    link: Link | None,
) -> int:  # fmt: skip
    core = mounted.core
    service = Service(
        core, mounted.files, mounted.space, mounted.cloner, mounted.filesystem, options.mountpoint,
        DeadHosts(core, mounted.recoverer), link,
    )  # fmt: skip
    answerer = StuckAnswerer(Silence(core.membership, core.clock), core.membership, core.clock)
    control = ControlServer(service)
    try:
        if watchdog is not None:
            arm_watchdog(watchdog, core, options.in_flight_s)
        session = _start(options, mounted, control, link)
    except BaseException:
        control.close()
        mounted.leave()
        raise
    answerer.start(session.fail_old)
    if link is not None:
        link.serving(resend=service.can_be_taken_over)
    ready()
    about(slot=str(core.membership.holder.slot))
    log.info(
        "volume %s: mounted at %s as host %s", core.name, options.mountpoint, options.host,
        extra=event(Event.MOUNTED if link is None or not link.estate.takeovers else Event.TAKEN_OVER),
    )  # fmt: skip
    while not session.wait(1.0):  # in slices, so that signal handlers get their turn
        pass
    if link is not None:
        link.ended()
    answerer.stop()
    control.close()
    try:
        core.membership.check_lease()  # without one, whoever tries to put things in order may hang in the storage
        mounted.leave()
    except VmfsError as error:
        log.error(
            "volume %s: the mount did not end in order: %s", core.name, error, extra=event(Event.NOT_IN_ORDER)
        )
        mounted.abandon()
        return 1
    return 0


def _start(options: MountOptions, mounted: MountedVolume, control: ControlServer, link: Link | None) -> Session:
    extra = options.options
    flags = kernel.MountOptions(
        read_only=options.read_only, no_exec="noexec" in extra, no_suid="suid" not in extra, no_dev="dev" not in extra
    )
    control.start()
    mounted.attributes.control_path = control.path.encode()
    plane = mounted.parts.plane(mounted.plane)
    if link is not None and link.fuse_fd is not None:
        session = Session(
            link.fuse_fd, mounted.filesystem, plane, data_threads=options.data_threads,
            agreed=link.estate.session(), dispatcher=mounted.parts.dispatcher,
        )  # fmt: skip
        session.start()
        return session
    fd = kernel.mount(options.mountpoint, mounted.core.name, flags)
    if link is not None:
        link.keep(fd)
    session = Session(
        fd, mounted.filesystem, plane, data_threads=options.data_threads, mask=options.init_mask,
        dispatcher=mounted.parts.dispatcher,
        on_agreed=(lambda agreed: None) if link is None else link.estate.publish_session,
    )  # fmt: skip
    try:
        session.start()
    except BaseException:
        kernel.unmount(options.mountpoint, lazy=True)
        raise
    kernel.raise_read_ahead(options.mountpoint)
    return session

