"""A load of several files: writes, fsyncs, renames over each other, clones, holes, removals, by a seed.

Each worker has a directory tree, a ledger and a random generator of its own, so what one seed does in one worker is the
same each time; only how the workers' steps fall together is not.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable

from tests.crash.ledger import FileModel, Ledger
from tests.crash.ports import ALLOCATE, PUNCH, ZERO, Port
from vmfs.errors import VmfsError

WORKERS = 3
FILES_MAX = 7  # a worker has at most
NEAR_BYTES = 400 << 10  # most writes end below: over a handful of blocks of 64 KiB
FAR_BYTES = 5 << 20  # beyond 4 MiB the map needs nodes of its own
LONGEST_WRITE = 150 << 10


class Worker:
    """One thread of the load."""

    def __init__(self, port: Port, name: str, seed: str, acknowledged: Callable[[], None]) -> None:
        """`acknowledged` is told of every fsync that has returned."""
        self.ledger = Ledger()
        self.directories = [f"{name}/a", f"{name}/b"]
        self.failure: BaseException | None = None
        self.doing = ""
        self._port = port
        self._name = name
        self._random = random.Random(seed)
        self._acknowledged = acknowledged
        self._handles: dict[str, int] = {}
        self._serial = 0

    def prepare(self) -> None:
        """Make the directories, durably."""
        self._port.mkdir(self._name)
        for directory in self.directories:
            self._port.mkdir(directory)
        self._port.fsync_directory(self._name)

    def run(self, stopped: threading.Event) -> None:
        """Work until something fails, as it does when the crash comes."""
        steps: list[tuple[Callable[[], None], int]] = [
            (self._write, 30), (self._replace, 14), (self._create, 8), (self._unlink, 6), (self._truncate, 8),
            (self._punch, 7), (self._clone, 9), (self._move, 5), (self.sync_directory, 6), (self._unlink_open, 3),
            (self._link, 2),
        ]  # fmt: skip
        choices, weights = zip(*steps, strict=True)
        try:
            while not stopped.is_set():
                step = self._random.choices(choices, weights)[0]
                self.doing = step.__name__
                step()
        except (OSError, VmfsError) as error:
            self.failure = error
        except BaseException as error:  # a bug of the file system or of this test: whoever joins the thread raises it
            self.failure = error
            raise

    # -- choosing ----------------------------------------------------------------------------------

    def _new_path(self) -> str:
        self._serial += 1
        return f"{self._random.choice(self.directories)}/f{self._serial}"

    def _some(self) -> str | None:
        """A file, opened."""
        files = self.ledger.files
        if not files:
            self._create()
            return None
        path = self._random.choice(sorted(files))
        if path not in self._handles:
            self._handles[path] = self._port.open(path)
        return path

    def _make_room(self) -> None:
        while len(self.ledger.files) >= FILES_MAX:
            self._unlink()

    def _data(self, length: int) -> bytes:
        self._serial += 1
        unit = b"%s#%d." % (self._name.encode(), self._serial)
        return (unit * (length // len(unit) + 1))[:length]

    def _range(self, model: FileModel) -> tuple[int, int]:
        """(offset, length), of sectors and blocks mostly, now and then of odd bytes, at the end, or far out."""
        r = self._random
        unit = r.choice((1, 512, 4096, 4096, 4096, 65536))
        length = max(1, r.randint(1, LONGEST_WRITE) // unit) * unit if r.random() < 0.4 else unit * r.randint(1, 3)
        where = r.random()
        if where < 0.15:
            return model.size, length
        if where < 0.18:
            return r.randrange(NEAR_BYTES, FAR_BYTES) // unit * unit, length
        return r.randrange(NEAR_BYTES) // unit * unit, length

    # -- parts of steps ----------------------------------------------------------------------------

    def fsync(self, path: str) -> None:
        """Sync an open file."""
        self._port.fsync(self._handles[path], data_only=self._random.random() < 0.5)
        self.ledger.file_synced(self.ledger.files[path])
        self._acknowledged()

    def sync_directory(self, directory: str | None = None) -> None:
        """Sync a directory: any of this worker's, or the one given."""
        directory = directory or self._random.choice(self.directories)
        self._port.fsync_directory(directory)
        self.ledger.directory_synced(directory)
        self._acknowledged()

    def pause(self, most_seconds: float) -> None:
        """Do nothing for a random part of that time: windows between threads open at different moments."""
        time.sleep(self._random.uniform(0, most_seconds))

    def new(self) -> str:
        """Create an empty file and return its path."""
        path = self._new_path()
        self.ledger.put(path, FileModel())
        self._handles[path] = self._port.create(path)
        return path

    def remove(self, path: str) -> None:
        """Close a file and remove its name."""
        self.close(path)
        self.ledger.remove(path)
        self._port.unlink(path)

    def close(self, path: str) -> None:
        """Close a file, if it is open."""
        handle = self._handles.pop(path, None)
        if handle is not None:
            self._port.close(handle)

    def put_at(self, path: str, offset: int, length: int) -> None:
        """Write to an open file."""
        data = self._data(length)
        self.ledger.files[path].write(offset, data, whole=self._port.writes_whole)
        self._port.write(self._handles[path], offset, data)

    def put(self, path: str) -> None:
        """Write somewhere in an open file."""
        self.put_at(path, *self._range(self.ledger.files[path]))

    # -- steps -------------------------------------------------------------------------------------

    def _write(self) -> None:
        path = self._some()
        if path is None:
            return
        for _ in range(self._random.randint(1, 4)):
            self.put(path)
        if self._random.random() < 0.7:
            self.fsync(path)
        if self._random.random() < 0.2:
            self.close(path)

    def _create(self) -> None:
        self._make_room()
        path = self.new()
        if self._random.random() < 0.5:
            self.put(path)
            self.fsync(path)

    def _replace(self) -> None:
        """As editors and package managers do: write aside, fsync, rename over, fsync the directory."""
        if not self.ledger.files:
            self._create()
            return
        target = self._random.choice(sorted(self.ledger.files))
        aside = f"{target.rpartition('/')[0]}/tmp{self._serial}"
        self.ledger.put(aside, FileModel())
        self._handles[aside] = self._port.create(aside)
        self.put(aside)
        self.fsync(aside)
        old = self._handles.pop(target, None)
        self.ledger.rename(aside, target)
        self._port.rename(aside, target)
        self._handles[target] = self._handles.pop(aside)
        if old is not None:
            self._port.close(old)
        self.sync_directory(target.rpartition("/")[0])

    def _move(self) -> None:
        if not self.ledger.files:
            self._create()
            return
        old, new = self._random.choice(sorted(self.ledger.files)), self._new_path()
        self.ledger.rename(old, new)
        self._port.rename(old, new)
        if old in self._handles:
            self._handles[new] = self._handles.pop(old)
        if self._random.random() < 0.5:
            self.sync_directory(self._random.choice((old, new)).rpartition("/")[0])

    def _unlink(self) -> None:
        if not self.ledger.files:
            self._create()
            return
        self.remove(self._random.choice(sorted(self.ledger.files)))

    def _unlink_open(self) -> None:
        """A file without a name that is still written: nothing of it may be left after the crash."""
        path = self._some()
        if path is None:
            return
        model = self.ledger.files[path]
        self.ledger.remove(path)
        self._port.unlink(path)
        handle = self._handles.pop(path)
        offset, data = self._random.randrange(NEAR_BYTES), self._data(LONGEST_WRITE)
        model.write(offset, data, whole=self._port.writes_whole)  # it may have another name
        self._port.write(handle, offset, data)
        self._port.fsync(handle, data_only=False)
        self.ledger.file_synced(model)
        self._acknowledged()
        self._port.close(handle)

    def _truncate(self) -> None:
        path = self._some()
        if path is None:
            return
        model = self.ledger.files[path]
        limit = model.size if self._random.random() < 0.7 else NEAR_BYTES
        size = self._random.randint(0, limit) // self._random.choice((1, 512, 4096, 65536))
        model.resize(size)
        self._port.truncate(self._handles[path], size)
        if self._random.random() < 0.4:
            self.fsync(path)

    def _punch(self) -> None:
        path = self._some()
        if path is None:
            return
        model = self.ledger.files[path]
        offset, length = self._range(model)
        mode = self._random.choice((PUNCH, PUNCH, ZERO, ALLOCATE))
        if mode != ALLOCATE:
            model.clear(offset, length)
        self._port.fallocate(self._handles[path], mode, offset, length)
        if self._random.random() < 0.4:
            self.fsync(path)

    def _clone(self) -> None:
        self._make_room()
        if not self.ledger.files:
            self._create()
            return
        source, target = self._random.choice(sorted(self.ledger.files)), self._new_path()
        self.ledger.put(target, self.ledger.files[source].copy())
        self._port.clone(source, target)
        if self._random.random() < 0.5:
            self.sync_directory(target.rpartition("/")[0])

    def _link(self) -> None:
        self._make_room()
        if not self.ledger.files:
            self._create()
            return
        old, new = self._random.choice(sorted(self.ledger.files)), self._new_path()
        self.ledger.put(new, self.ledger.files[old], new=False)
        self._port.link(old, new)

    def let_go(self) -> None:
        """Close what is open still, whatever the dead mount says to it."""
        for handle in self._handles.values():
            with contextlib.suppress(OSError, VmfsError):
                self._port.close(handle)
        self._handles.clear()

    # -- afterwards --------------------------------------------------------------------------------

    def problem(self, port: Port) -> str | None:
        """What is not there that was acknowledged, or is there and may not be, on the volume as it is now."""
        found = {f"{d}/{name}": port.read(f"{d}/{name}") for d in self.directories for name in port.list(d)}
        return self.ledger.problem(found) or self._tail_problem(port, found)

    def _tail_problem(self, port: Port, found: dict[str, bytes]) -> str | None:
        """What was behind the end of a file must not show when the file grows."""
        for path, content in found.items():
            handle = port.open(path)
            port.truncate(handle, len(content) + (64 << 10))
            port.close(handle)
            if any(port.read(path)[len(content) :]):
                return f"{path}: extended from {len(content)} bytes, it shows what is no zero"
        return None


class Load:
    """All workers. `on_ack(count)` is called by a worker whenever an fsync has been acknowledged."""

    def __init__(self, port: Port, seed: int, on_ack: Callable[[int], None], workers: int = WORKERS) -> None:
        self._on_ack = on_ack
        self._mutex = threading.Lock()
        self.count = 0
        self.stopped = threading.Event()
        self.workers = [Worker(port, f"w{i}", f"{seed}/{i}", self._acknowledged) for i in range(workers)]
        self._threads = [
            threading.Thread(target=w.run, args=(self.stopped,), name=f"load-{i}") for i, w in enumerate(self.workers)
        ]

    def _acknowledged(self) -> None:
        with self._mutex:
            self.count += 1
            count = self.count
        self._on_ack(count)

    def start(self) -> None:
        """Make the directories and begin."""
        for worker in self.workers:
            worker.prepare()
        for thread in self._threads:
            thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the crash to end every worker. AssertionError when one goes on, or fell over something else."""
        for thread in self._threads:
            thread.join(timeout)
        going_on = [w.doing for w, thread in zip(self.workers, self._threads, strict=True) if thread.is_alive()]
        self.stopped.set()
        assert not going_on, f"steps that do not end: {going_on}"
        ended = [(w.doing, w.failure) for w in self.workers]
        assert all(isinstance(failure, (OSError, VmfsError)) for _, failure in ended), f"not the crash: {ended}"

    def wait(self) -> None:
        """Wait for the workers after `stopped` was set, without a crash. Raises what one of them failed with."""
        for worker, thread in zip(self.workers, self._threads, strict=True):
            thread.join()
            if worker.failure is not None:
                raise worker.failure

    def close(self) -> None:
        """Let go of the files that are open, on a dead mount perhaps."""
        for worker in self.workers:
            worker.let_go()

    def failures(self) -> list[str]:
        """What ended the workers."""
        return [f"{w.doing}: {w.failure!r}" for w in self.workers]

    def problems(self, port: Port) -> list[str]:
        """What is wrong on the volume as it is after the crash."""
        return [p for w in self.workers if (p := w.problem(port)) is not None]
