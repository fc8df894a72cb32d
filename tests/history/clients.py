"""What programs on one host do while its mount lives: writers of shared files, makers of names, readers, and a load of
files of its own. Each is a thread, which ends when it is told to or at the first error that only a fault explains."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.crash.load import Worker
from tests.crash.ports import KernelPort
from tests.history.records import History, Life, NameOp, Reading, Sync, Tenure, Write, now
from tests.history.sectors import PAGE_BYTES, Value, WrongBytes, pages, values
from vmfs.client import Mount
from vmfs.errors import VmfsError

FILE_PAGES: Final = 48  # three blocks of 64 KiB
FILE_BYTES: Final = FILE_PAGES * PAGE_BYTES
GROUPS: Final = 2
GROUP_DIRECTORIES: Final = ("a", "b")
GROUP_NAMES: Final = tuple(f"{d}/{n}" for d in GROUP_DIRECTORIES for n in ("x", "y"))
_LONGEST_WRITE: Final = 16
_CLONES_KEPT: Final = 3
_PAUSE_S: Final = 0.03  # between two steps: the hosts' own threads need a processor as well


@dataclass(slots=True)
class Clone:
    """A clone, and what it must hold if it is there."""

    path: str
    file: int
    found: list[Value]


class Site:
    """What the clients of all hosts share."""

    def __init__(self, history: History, files: int) -> None:
        self.history = history
        self.files = files
        self.clones: list[Clone] = []
        self.ended: list[Worker] = []
        """Loads of mounts that have ended and been recovered: to be judged by any host. Guarded by `mutex`."""
        self.mutex = threading.Lock()

    def prepare(self, root: Path) -> None:
        """Directories and files, durably."""
        for group in range(GROUPS):
            for directory in GROUP_DIRECTORIES:
                (root / f"names{group}" / directory).mkdir(parents=True)
        for name in ("disks", "clones"):
            (root / name).mkdir()
        for file in range(self.files):
            fd = os.open(root / "disks" / str(file), os.O_RDWR | os.O_CREAT, 0o600)
            os.truncate(fd, FILE_BYTES)
            os.fsync(fd)
            os.close(fd)
        os.sync()


class Client:
    """The programs on one mount. Start it, stop it, and join it before the mount goes away."""

    def __init__(self, site: Site, root: Path, life: Life, rng: random.Random, *, writers: int) -> None:
        self.errors: list[str] = []
        """What ended the threads, if it was not `stop`."""
        self._site, self._history = site, site.history
        self._root, self._life = root, life
        self._holding: set[int] = set()  # files that a thread here has open, or tries to; guarded by `_mutex`
        self._prepared = False
        self._stopped = threading.Event()
        self._mutex = threading.Lock()
        self._port = _PacedPort(root)
        self._worker = Worker(self._port, f"load-{life[0]}-{life[1]}", str(rng.random()), self._synced)
        roles: list[tuple[str, Callable[[random.Random], None]]] = [
            *((f"writer{n}", self._write) for n in range(writers)),
            ("names", self._names), ("reader", self._read), ("load", self._load),
        ]  # fmt: skip
        self._threads = [
            threading.Thread(target=self._run, args=(role, random.Random(rng.random())), name=f"{life[0]}-{name}")
            for name, role in roles
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell them to end, as soon as their calls return."""
        self._stopped.set()

    def join(self, seconds: float) -> bool:
        """Wait for them; whether they have ended. The load is judged by others when `recovered` says so."""
        deadline = now() + seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - now()))
        self._worker.let_go()
        return not any(thread.is_alive() for thread in self._threads)

    def hanging(self) -> list[str]:
        """The threads that have not ended."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def recovered(self) -> None:
        """Nothing that this mount was doing is left: what others find now is what there is."""
        self._history.over[self._life] = now()
        if self._prepared:
            with self._site.mutex:
                self._site.ended.append(self._worker)

    def take_over(self, dead: Tenure, since: float, limit_s: float) -> float | None:
        """When some host had the file that the dead one had open; this one tries. None: this mount failed, too."""
        path = self._root / "disks" / str(dead.file)
        while now() < since + limit_s and not self._stopped.is_set():
            when = self._history.had_by_another(dead, since)
            if when is not None:
                return when
            if not self._hold(dead.file):
                time.sleep(0.002)  # a writer of this host tries
                continue
            try:
                self._tenure(path, dead.file, lambda tenure, fd: None)
            except OSError:
                return None
            finally:
                self._let_go(dead.file)
        return None

    def judge_all(self) -> None:
        """At the end of a run, on the only mount: every file, load and clone."""
        for file in range(self._site.files):
            self._tenure(self._root / "disks" / str(file), file, lambda tenure, fd: None)
        while self._site.ended:
            self._judge_a_load()
        for clone in self._site.clones:
            with contextlib.suppress(FileNotFoundError):  # its host may have died before it was durable
                fd = os.open(self._root / clone.path, os.O_RDONLY | os.O_DIRECT)
                try:
                    if (found := read_all(fd, clone.file)) != clone.found:
                        self._history.problem(f"{clone.path} holds {found}, cloned was {clone.found}")
                finally:
                    os.close(fd)

    # -- threads -----------------------------------------------------------------------------------

    def _run(self, role: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            while not self._stopped.is_set():
                role(rng)
                time.sleep(rng.uniform(0, 2 * _PAUSE_S))
        except (OSError, VmfsError) as error:
            self.errors.append(f"{threading.current_thread().name}: {error!r}")
        except WrongBytes as error:
            self._history.problem(f"{self._life}: {error}")
        except Exception as error:
            self._history.problem(f"{self._life}: {threading.current_thread().name} fell over {error!r}")
            raise

    def _load(self, rng: random.Random) -> None:
        self._worker.prepare()
        self._prepared = True
        self._worker.run(self._stopped)
        if self._worker.failure is not None:
            raise self._worker.failure

    def _synced(self) -> None:
        self._history.count("fsyncs of the load")

    # -- files that all hosts write ----------------------------------------------------------------

    def _write(self, rng: random.Random) -> None:
        file = rng.randrange(self._site.files)
        if not self._hold(file):
            return
        try:
            steps = _Steps(self, file, rng)
            self._tenure(self._root / "disks" / str(file), file, steps.run)
        finally:
            self._let_go(file)

    def _hold(self, file: int) -> bool:
        """Whether no other thread here has it or tries; then this one may, until `_let_go`."""
        with self._mutex:
            if file in self._holding:
                return False
            self._holding.add(file)
            return True

    def _let_go(self, file: int) -> None:
        with self._mutex:
            self._holding.discard(file)

    def _tenure(self, path: Path, file: int, work: Callable[[Tenure, int], None]) -> Tenure | None:
        """Open it, read it, work on it, close it. None when another host has it."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EBUSY:
                self._history.count("opens that found it locked")
                return None
            raise
        tenure = Tenure(self._life, file, now())
        self._history.tenures.append(tenure)
        try:
            found = read_all(fd, file)
            tenure.found, tenure.found_at = found, now()
            work(tenure, fd)
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
            tenure.closed = now()
        return tenure

    # -- names -------------------------------------------------------------------------------------

    def _names(self, rng: random.Random) -> None:
        group = f"names{rng.randrange(GROUPS)}"
        kind = rng.choices(("make", "remove", "rename", "read"), (6, 3, 4, 8))[0]
        first, second = rng.sample(GROUP_NAMES, 2)
        token = f"t{self._history.stamp()}" if kind == "make" else None
        op = NameOp(self._life, kind, first, now(), token=token, other=second if kind == "rename" else "")
        record = self._history.names.setdefault(group, [])
        if kind != "read":
            record.append(op)
        try:
            self._name_call(self._root / group, op)
            result = 0
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOENT):
                raise
            result = error.errno
        if kind != "read":
            self._port.fsync_directory(f"{group}/{first.partition('/')[0]}")
            self._history.count("operations on names")
        else:
            self._history.count("looks at names")
        op.ended = now()
        op.result = result
        if kind == "read":
            record.append(op)

    @staticmethod
    def _name_call(root: Path, op: NameOp) -> None:
        path = root / op.name
        if op.kind == "make":
            assert op.token is not None
            os.symlink(op.token, path)
        elif op.kind == "remove":
            os.unlink(path)
        elif op.kind == "rename":
            os.rename(path, root / op.other)
        else:
            op.token = os.readlink(path)

    # -- readers -----------------------------------------------------------------------------------

    def _read(self, rng: random.Random) -> None:
        self._judge_a_load()
        file = rng.randrange(self._site.files)
        began = now()
        fd = os.open(self._root / "disks" / str(file), os.O_RDONLY | os.O_DIRECT)
        try:
            found = read_all(fd, file)
        finally:
            os.close(fd)
        self._history.readings.append(Reading(self._life, file, began, now(), found))
        self._history.count("readings")

    def _judge_a_load(self) -> None:
        with self._site.mutex:
            if not self._site.ended:
                return
            worker = self._site.ended.pop()
        try:
            paths = [f"{d}/{name}" for d in worker.directories for name in self._port.list(d)]
            problem = worker.ledger.problem({path: self._port.read(path) for path in paths})
        except BaseException:
            with self._site.mutex:
                self._site.ended.append(worker)
            raise
        self._history.count("loads judged")
        if problem is not None:
            self._history.problem(f"{self._life} found of the load in {worker.directories[0]}: {problem}")
            return
        for path in paths:
            self._port.unlink(path)
        for directory in worker.directories:
            os.rmdir(self._root / directory)


class _PacedPort(KernelPort):
    """Leaves the processors to others now and then."""

    def write(self, handle: int, offset: int, data: bytes) -> None:
        time.sleep(_PAUSE_S)
        super().write(handle, offset, data)

    def fsync_directory(self, path: str) -> None:
        time.sleep(_PAUSE_S)
        super().fsync_directory(path)


class _Steps:
    """What a writer does with a file that it has open: writes, fsyncs, looks at what is there, clones."""

    def __init__(self, client: Client, file: int, rng: random.Random) -> None:
        self._client, self._file, self._random = client, file, rng
        self._history = client._history
        self._memory = mmap.mmap(-1, _LONGEST_WRITE * PAGE_BYTES)

    def run(self, tenure: Tenure, fd: int) -> None:
        """Some steps; what was written is synced at the end."""
        assert tenure.found is not None
        holds = list(tenure.found)
        for _ in range(self._random.randrange(40)):
            self._write(tenure, fd, holds)
            step = self._random.random()
            if step < 0.2:
                self._sync(tenure, fd)
            elif step < 0.3:
                self._look(fd, holds, f"file {self._file} on its writer's own host")
            elif step < 0.33:
                self._clone(holds)
            if self._client._stopped.is_set():
                break
            time.sleep(self._random.uniform(0, _PAUSE_S))
        self._sync(tenure, fd)

    def _write(self, tenure: Tenure, fd: int, holds: list[Value]) -> None:
        first = self._random.randrange(FILE_PAGES)
        count = min(self._random.choice((1, 1, 1, 2, 4, _LONGEST_WRITE)), FILE_PAGES - first)
        stamp = self._history.stamp()
        length = count * PAGE_BYTES
        self._memory[:length] = pages(self._file, first, count, stamp)
        write = Write(first, count, stamp, now())
        tenure.events.append(write)
        with memoryview(self._memory) as view, view[:length] as data:
            written = os.pwrite(fd, data, first * PAGE_BYTES)
        if written != length:
            raise OSError(errno.EIO, f"{written} of {length} bytes were written")
        write.ended = now()
        self._history.count("writes")
        holds[first : first + count] = [stamp] * count

    def _sync(self, tenure: Tenure, fd: int) -> None:
        began = now()
        os.fsync(fd)
        tenure.events.append(Sync(began, now()))
        self._history.count("fsyncs")

    def _look(self, fd: int, holds: list[Value], what: str) -> None:
        found = read_all(fd, self._file)
        wrong = [(page, f, h) for page, (f, h) in enumerate(zip(found, holds, strict=True)) if f != h]
        if wrong:
            self._history.problem(f"{self._client._life}: {what}: (page, found, written) {wrong}")

    def _clone(self, holds: list[Value]) -> None:
        """One moment of the file; some stay, and must hold the same ever after."""
        root = self._client._root
        name = f"clones/{self._file}-{self._history.stamp()}"
        clone = Clone(name, self._file, list(holds))
        with self._client._site.mutex:
            self._client._site.clones.append(clone)
            old = self._client._site.clones.pop(0) if len(self._client._site.clones) > _CLONES_KEPT else None
        Mount.for_path(root).clone(root / "disks" / str(self._file), root / name)
        self._history.count("clones")
        fd = os.open(root / name, os.O_RDONLY | os.O_DIRECT)
        try:
            self._look(fd, holds, f"a clone of file {self._file}")
        finally:
            os.close(fd)
        if old is not None:
            with contextlib.suppress(FileNotFoundError):  # the mount that was to make it died
                os.unlink(root / old.path)


def read_all(fd: int, file: int) -> list[Value]:
    """The whole file, past the kernel's cache. Raises WrongBytes, OSError."""
    with mmap.mmap(-1, FILE_BYTES) as memory:
        at = 0
        while at < FILE_BYTES:
            with memoryview(memory) as view, view[at:] as rest:
                got = os.preadv(fd, [rest], at)
            if got <= 0:
                raise WrongBytes(f"file {file} ends at {at}, not at {FILE_BYTES}")
            at += got
        return values(file, memory[:])
