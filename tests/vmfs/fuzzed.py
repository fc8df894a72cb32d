"""Random operations on files of a volume, each compared with the model.

`Fuzzer` chooses them from a seed; a `Backend` carries them out: `KernelFiles` through a mount, `InProcessFiles` by
calling the file system as the FUSE adapter does, for many more of them in the same time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.vmfs.filemodel import BLOCK, PAGE, FileModel
from vmfs.client import Mount as Client

FILES_MAX = 8
WRITE_MAX_BYTES = 300_000
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
# Where a map gets higher, and where leaves meet: 64 blocks, 504, 64 * 504.
ISLANDS = (0, 64 * BLOCK, 504 * BLOCK, 1008 * BLOCK, 64 * 504 * BLOCK)
ISLAND_BYTES = 24 * BLOCK

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


class Backend(Protocol):
    """Files by name. Errors are OSError."""

    def create(self, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def clone(self, name: str, new: str) -> None: ...
    def reopen(self, name: str) -> None:
        """Close it and open it again: its lock goes, its map is read anew."""

    def read(self, name: str, offset: int, length: int, *, direct: bool) -> bytes: ...
    def write(self, name: str, offset: int, data: bytes, *, direct: bool) -> None: ...
    def truncate(self, name: str, size: int) -> None: ...
    def fallocate(self, name: str, mode: int, offset: int, length: int) -> None: ...
    def copy(self, name: str, offset: int, new: str, new_offset: int, length: int) -> int: ...
    def seek(self, name: str, offset: int, whence: int) -> int: ...
    def sync(self, name: str) -> None: ...
    def stat(self, name: str) -> tuple[int, int]:
        """(size, bytes allocated)"""


class KernelFiles:
    """Files of a mount, through the kernel: buffered, and with O_DIRECT."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client = Client.for_path(folder)
        self._fds: dict[str, tuple[int, int]] = {}
        self._memory = mmap.mmap(-1, 4 << 20)

    def _open(self, name: str) -> None:
        path = self._folder / name
        self._fds[name] = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)

    def _close(self, name: str) -> None:
        for fd in self._fds.pop(name):
            os.close(fd)

    def close(self) -> None:
        for name in list(self._fds):
            self._close(name)
        self._memory.close()

    def create(self, name: str) -> None:
        os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        self._open(name)

    def delete(self, name: str) -> None:
        self._close(name)
        (self._folder / name).unlink()

    def clone(self, name: str, new: str) -> None:
        self._client.clone(self._folder / name, self._folder / new)
        self._open(new)

    def reopen(self, name: str) -> None:
        self._close(name)
        self._open(name)

    def read(self, name: str, offset: int, length: int, *, direct: bool) -> bytes:
        if direct:
            with memoryview(self._memory)[:length] as view:
                return bytes(view[: os.preadv(self._fds[name][1], [view], offset)])
        found = b""
        while len(found) < length and (part := os.pread(self._fds[name][0], length - len(found), offset + len(found))):
            found += part
        return found

    def write(self, name: str, offset: int, data: bytes, *, direct: bool) -> None:
        if direct:
            with memoryview(self._memory)[: len(data)] as view:
                view[:] = data
                assert os.pwritev(self._fds[name][1], [view], offset) == len(data)
        else:
            assert os.pwrite(self._fds[name][0], data, offset) == len(data)

    def truncate(self, name: str, size: int) -> None:
        os.ftruncate(self._fds[name][0], size)

    def fallocate(self, name: str, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self._fds[name][0], mode, offset, length):
            raise OSError(ctypes.get_errno(), f"fallocate {mode} {offset} {length}")

    def copy(self, name: str, offset: int, new: str, new_offset: int, length: int) -> int:
        return os.copy_file_range(self._fds[name][0], self._fds[new][0], length, offset, new_offset)

    def seek(self, name: str, offset: int, whence: int) -> int:
        return os.lseek(self._fds[name][0], offset, whence)

    def sync(self, name: str) -> None:
        os.fsync(self._fds[name][0])

    def stat(self, name: str) -> tuple[int, int]:
        found = os.stat(self._folder / name)
        return found.st_size, found.st_blocks * 512


class Fuzzer:
    """Chooses operations, has them done, compares. Everything follows from the seed."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self._backend = backend
        self._random = random.Random(seed)
        self.models: dict[str, FileModel] = {}
        self._made = 0
        self.done = 0
        self.trail: list[str] = []
        """What was done, the last of it: shown when a comparison fails."""
        self._choices: list[tuple[Callable[[str], None], int]] = [
            (self._write, 34), (self._read, 30), (self._truncate, 6), (self._punch, 6), (self._zero, 4),
            (self._allocate, 4), (self._copy, 4), (self._seek, 4), (self._clone, 2), (self._delete, 2),
            (self._reopen, 3), (self._sync, 2), (self._stat, 3), (self._create, 1),
        ]  # fmt: skip

    def run(self, operations: int) -> None:
        """Do that many operations, and compare everything at the end."""
        actions = [a for a, _ in self._choices]
        weights = [w for _, w in self._choices]
        for _ in range(operations):
            if not self.models:
                self._create("")
            self._random.choices(actions, weights)[0](self._random.choice(sorted(self.models)))
            self.done += 1
        self.compare_all()

    def delete_all(self) -> None:
        """Delete every file."""
        for name in sorted(self.models):
            self._delete(name)

    def compare_all(self) -> None:
        """Every byte that is not a hole in the model, and around the islands, and every size and block count."""
        for name, model in sorted(self.models.items()):
            for island in ISLANDS:
                for at in range(island, min(island + 3 * ISLAND_BYTES, model.size), 1 << 20):
                    self._compare(name, at, 1 << 20, direct=False)
            self._stat(name)

    # -- choosing ----------------------------------------------------------------------------------

    def _offset(self, direct: bool) -> int:
        island = self._random.choice(ISLANDS[:2] * 3 + ISLANDS)
        at = island - 2 * BLOCK if island else 0
        at += self._random.choice((
            self._random.randrange(ISLAND_BYTES), self._random.randrange(ISLAND_BYTES // BLOCK) * BLOCK,
            self._random.randrange(4 * BLOCK),
        ))  # fmt: skip
        return at & ~511 if direct else at

    def _length(self, direct: bool) -> int:
        length = self._random.choice((
            self._random.randint(1, 9000), self._random.randint(1, WRITE_MAX_BYTES), BLOCK, 4096, 512,
        ))  # fmt: skip
        return max(512, length & ~511) if direct else length

    def _range(self) -> tuple[int, int]:
        return self._offset(False), self._random.choice((self._length(False), self._random.randint(1, ISLAND_BYTES)))

    def _note(self, what: str) -> None:
        self.trail = [*self.trail[-59:], f"{self.done}: {what}"]

    def _fail(self, problem: str) -> None:
        raise AssertionError(f"{problem}\nafter:\n" + "\n".join(self.trail))

    def _compare(self, name: str, offset: int, length: int, *, direct: bool) -> None:
        got = self._backend.read(name, offset, length, direct=direct)
        want = self.models[name].read(offset, length)
        if got != want:
            at = next((i for i, (g, w) in enumerate(zip(got, want, strict=False)) if g != w), min(len(got), len(want)))
            self._fail(
                f"{name} from {offset}: {len(got)} bytes, wanted {len(want)}; differs at {offset + at} (block"
                f" {(offset + at) // BLOCK}): {got[at : at + 16].hex()}, wanted {want[at : at + 16].hex()}"
            )

    # -- operations --------------------------------------------------------------------------------

    def _create(self, _: str) -> None:
        if len(self.models) >= FILES_MAX:
            return
        self._made += 1
        name = f"f{self._made}"
        self._note(f"create {name}")
        self._backend.create(name)
        self.models[name] = FileModel()

    def _clone(self, name: str) -> None:
        if len(self.models) >= FILES_MAX:
            self._delete(self._random.choice(sorted(self.models)))
        if name not in self.models:
            return
        self._made += 1
        new = f"f{self._made}"
        self._note(f"clone {name} {new}")
        self._backend.clone(name, new)
        self.models[new] = self.models[name].clone()

    def _delete(self, name: str) -> None:
        self._note(f"delete {name}")
        self._backend.delete(name)
        del self.models[name]

    def _reopen(self, name: str) -> None:
        self._note(f"reopen {name}")
        self._backend.reopen(name)

    def _sync(self, name: str) -> None:
        self._note(f"sync {name}")
        self._backend.sync(name)

    def _write(self, name: str) -> None:
        direct = self._random.random() < 0.5
        offset, length = self._offset(direct), self._length(direct)
        data = self._random.randbytes(16) * (length // 16 + 1)
        data = data[:length]
        self._note(f"write {name} {offset} {length} direct={direct}")
        self._backend.write(name, offset, data, direct=direct)
        self.models[name].write(offset, data)

    def _read(self, name: str) -> None:
        direct = self._random.random() < 0.5
        offset, length = self._offset(direct), self._length(direct)
        self._note(f"read {name} {offset} {length} direct={direct}")
        self._compare(name, offset, length, direct=direct)

    def _truncate(self, name: str) -> None:
        size = self._random.choice((0, self._offset(False), self._offset(False), self._offset(True)))
        self._note(f"truncate {name} {size} from {self.models[name].size}")
        self._backend.truncate(name, size)
        self.models[name].truncate(size)

    def _punch(self, name: str) -> None:
        offset, length = self._range()
        self._note(f"punch {name} {offset} {length}")
        self._backend.fallocate(name, PUNCH_HOLE | KEEP_SIZE, offset, length)
        self.models[name].punch(offset, length)

    def _zero(self, name: str) -> None:
        offset, length = self._range()
        keep = self._random.random() < 0.5
        self._note(f"zero {name} {offset} {length} keep={keep}")
        self._backend.fallocate(name, ZERO_RANGE | KEEP_SIZE * keep, offset, length)
        self.models[name].zero(offset, length, keep_size=keep)

    def _allocate(self, name: str) -> None:
        offset, length = self._range()
        keep = self._random.random() < 0.5
        self._note(f"allocate {name} {offset} {length} keep={keep}")
        self._backend.fallocate(name, KEEP_SIZE * keep, offset, length)
        self.models[name].allocate(offset, length, keep_size=keep)

    def _copy(self, name: str) -> None:
        new = self._random.choice(sorted(self.models))
        offset, length = self._range()
        new_offset = self._offset(False)
        if name == new and offset < new_offset + length and new_offset < offset + length:
            return  # the kernel refuses ranges that overlap
        self._note(f"copy {name} {offset} {new} {new_offset} {length}")
        data = self.models[name].read(offset, length)
        done = 0
        while done < len(data):  # not on to what a copy within one file has put behind its old end
            count = self._backend.copy(name, offset + done, new, new_offset + done, len(data) - done)
            if not count:
                break
            done += count
        if done != len(data):
            self._fail(f"copied {done} bytes of {len(data)}")
        self.models[new].write(new_offset, data)

    def _seek(self, name: str) -> None:
        model = self.models[name]
        offset = self._offset(False)
        self._note(f"seek {name} {offset}")
        try:
            data = self._backend.seek(name, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = -1
        end = data if data >= 0 else model.size
        if not model.all_zero(offset, end) or data >= model.size or -1 < data < offset:
            self._fail(f"SEEK_DATA from {offset} led to {data}, over data")
        if offset >= model.size:
            return
        hole = self._backend.seek(name, offset, os.SEEK_HOLE)
        behind = min(model.size, (hole // BLOCK + 1) * BLOCK)
        if not offset <= hole <= model.size or not model.all_zero(hole, behind):
            self._fail(f"SEEK_HOLE from {offset} led to {hole}, which is none")

    def _stat(self, name: str) -> None:
        size, allocated = self._backend.stat(name)
        model = self.models[name]
        if (size, allocated) != (model.size, len(model.blocks) * BLOCK):
            self._fail(
                f"{name}: {size} bytes, {allocated // BLOCK} blocks, wanted {model.size} and {len(model.blocks)}:"
                f" {sorted(model.blocks)}"
            )


__all__ = ["PAGE", "Backend", "Fuzzer", "KernelFiles"]
