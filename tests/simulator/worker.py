"""What every client can do: tell the model what it begins and how it ended, and look names up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EBUSY, EEXIST, EFBIG, EINVAL, EISDIR, ENOENT, ENOSPC, ENOTDIR, ESTALE
from random import Random
from typing import TYPE_CHECKING, Final

from tests.simulator.host import Process
from tests.simulator.model import SECTOR, FileModel, Violation
from tests.simulator.registers import Change, Register
from vmfs.core.mounting import MountedVolume
from vmfs.errors import DamagedBlock, VmfsError
from vmfs.fuse.contract import ROOT_ID, Context

if TYPE_CHECKING:
    from tests.simulator.world import World

CONTEXT: Final = Context(0, 0, 1)
BLOCK: Final = 64 << 10
BLOCK_SECTORS: Final = BLOCK // SECTOR
FILE_BLOCKS: Final = 10
FAR_BLOCK: Final = 70  # behind what the inode itself can point at
DIRECTORIES: Final = 2
NAMES: Final = [b"a", b"b", b"c", b"d", b"e", b"f"]
# The operation was refused and has changed nothing.
REFUSED: Final = frozenset({EBUSY, EEXIST, ENOENT, ENOSPC, ESTALE, EISDIR, ENOTDIR, EINVAL, EFBIG})


class Busy(Exception):
    """Another client works on that: pick something else."""


class Worker:
    """One thread of one process."""

    def __init__(self, world: World, process: Process, number: int) -> None:
        self.world = world
        self.model = world.model
        self.process = process
        self.rng = Random(world.rng_workload.getrandbits(64))
        self.number = number
        assert process.volume is not None
        self.volume: MountedVolume = process.volume
        self.fs = self.volume.filesystem
        self.plane = self.volume.plane
        self.operations = 0

    def _judge(self, error: OSError | VmfsError, action: str) -> None:
        """An operation failed: with a reason?"""
        if isinstance(error, DamagedBlock) or isinstance(error.__cause__, DamagedBlock):
            raise Violation(f"{action} on {self.process.name} met damage: {error}") from error
        if error.errno in REFUSED:
            return
        if not self.world.trouble(self.process):
            raise Violation(f"{action} on {self.process.name} failed without a fault: {error!r}") from error

    @staticmethod
    def _raise(problem: str | None) -> None:
        if problem:
            raise Violation(problem)

    def _is_killed(self) -> bool:
        return not self.process.alive

    # -- telling the model --------------------------------------------------------------------------------------

    @contextmanager
    def _change(
        self, what: str, pushes: list[tuple[Register, int]], *, joint: bool = False, in_part: bool = False
    ) -> Iterator[Change]:
        """A change of registers is made inside: `joint`, all of them or none; `in_part`, some even when refused."""
        change = Change(what, self.process, self.world.now, joint=joint)
        for register, value in pushes:
            register.begin(value, change)
        self.world.note("op", self.process.name, self.number, what)
        try:
            yield change
        except (OSError, VmfsError) as error:
            change.ended = self.world.now
            refused = error.errno in REFUSED
            for register, value in pushes:
                if not refused:
                    register.fail(self.world.now + self.world.lun.timing.late_max)
                elif in_part:
                    register.fail(self.world.now)
                else:
                    register.withdraw(value)
            self.world.note("failed", self.process.name, self.number, what, type(error).__name__, error.errno)
            raise
        change.ended = self.world.now
        change.acknowledged = True
        for register, _ in pushes:
            register.succeed(self.world.now)
        self.world.note("done", self.process.name, self.number, what)

    @contextmanager
    def _names(self, *keys: tuple[int, bytes]) -> Iterator[list[Register]]:
        """Names for this client alone. Raises Busy."""
        busy = self.world.busy_names
        if any(k in busy for k in keys):
            raise Busy
        busy.update(keys)
        try:
            yield [self.model.name(*k) for k in keys]
        finally:
            busy.difference_update(keys)

    def _some_name(self) -> tuple[int, bytes]:
        if self.world.plan.style == "churn":
            return 0, self.rng.choice(NAMES[:3])
        return self.rng.randrange(DIRECTORIES), self.rng.choice(NAMES)

    def _some_block(self) -> int:
        """The first sector of a block: of the first ones more often than of others, or of one that needs a map node."""
        if self.world.plan.far_rate and self.rng.random() < self.world.plan.far_rate:
            return FAR_BLOCK * BLOCK_SECTORS
        blocks = FILE_BLOCKS if self.rng.random() < 0.4 else 2
        return self.rng.randrange(blocks) * BLOCK_SECTORS

    def _directory(self, index: int) -> int:
        """The node id of a directory."""
        return ROOT_ID if index == 0 else self.world.subdirectory

    def _durable_by_handover(self, directory: int) -> None:
        """This host has changed the directory: what others did in it before is settled."""
        if self.world.last_changer.get(directory) is not self.process:
            self.world.last_changer[directory] = self.process
            for (where, _), register in self.model.names.items():
                foreign = register.mark().change.by is not self.process
                if where == directory and foreign and not register.under_way and len(register.possible()) == 1:
                    register.synced(register.mark(), self.world.now)

    # -- looking ------------------------------------------------------------------------------------------------

    def _lookup(self, directory: int, name: bytes) -> FileModel | None:
        """The file of a name as this host sees it without locks."""
        register = self.model.name(directory, name)
        since = self.world.seen_since()
        try:
            entry = self.fs.lookup(CONTEXT, self._directory(directory), name)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            self._check_seen(register, 0, since)
            return None
        file = self._file_at((entry.nodeid, entry.generation), register)
        self._check_seen(register, file.uid, since)
        return file

    def _check_seen(self, register: Register, value: int, since: float) -> None:
        if not register.may_be_seen(value, since):
            raise Violation(
                f"{self.process.name} sees {register.name} as {value}, not one of {register.values()} "
                f"(before: {register.recent}, now {self.world.now:.3f})"
            )

    def _file_at(self, node: tuple[int, int], register: Register) -> FileModel:
        """Which file an inode is. One whose creation failed is met here for the first time."""
        file = self.model.by_node.get(node)
        if file is None:
            unplaced = [self.model.files[v] for v in register.values() if v and self.model.files[v].node is None]
            if not unplaced:
                raise Violation(f"{register.name} leads to inode {node}, which nobody ever made")
            file = unplaced[-1]
            self.model.placed(file, node)
        return file
