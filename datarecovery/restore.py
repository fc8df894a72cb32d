"""Restore the disks of a restore point as files: the operation behind `datarecovery restore`.

Every file is written under a temporary name beside its place (`.NAME.restoring-POINT`), as sparse as it was: zeros are
never written. Every chunk is proved by its id before it is written. Only when all disks are whole and flushed do they
get their names, and never over something that is there. On any error the temporary files are removed.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datarecovery import progress
from datarecovery.errors import DamagedError, TargetExistsError, UsageError, from_os_error
from datarecovery.store import durable
from datarecovery.store.manifest import Disk, Manifest
from datarecovery.store.record import ZERO_ID
from datarecovery.store.store import ChunkReader, Store
from datarecovery.tree import FANOUT, TreeReader, pages_at
from datarecovery.workers import in_order, worker_count


@dataclass(frozen=True, slots=True)
class RestoredDisk:
    """One file made: its path, its size and the bytes that were not zeros, and the seconds it took."""

    path: str
    size: int
    written: int
    seconds: float


class _Readers:
    """A chunk reader for each thread; `close` closes them all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[ChunkReader] = []

    def get(self) -> ChunkReader:
        """This thread's reader."""
        found = getattr(self._local, "reader", None)
        if not isinstance(found, ChunkReader):
            found = self._local.reader = self._store.reader()
            with self._lock:
                self._all.append(found)
        return found

    def close(self) -> None:
        """Close every reader; no thread may be using one."""
        for reader in self._all:
            reader.close()


def restore(
    store: Store, manifest: Manifest, target: Path, tell: progress.Progress = progress.silent, threads: int = 0
) -> list[RestoredDisk]:
    """Write all disks of a restore point into `target`, a folder that is made when missing.

    The folder above it must be there: a mistyped path, or a datastore that is not mounted, must not fill another disk.

    Raises UsageError, TargetExistsError, NoSpaceError, StoreIoError, DamagedError, and leaves no file then.
    """
    above = target.absolute().parent
    if not above.is_dir():
        raise UsageError(f"{above} is not there; make it, or mount what belongs there, and try again")
    finals = _finals(manifest, target)
    store.index.refresh()
    results = []
    done = [0]
    total = sum(disk.size for disk in manifest.disks)

    def advance(count: int) -> None:
        done[0] = min(done[0] + count, total)
        tell(done[0], total)

    with ExitStack() as undo:
        for folder in sorted({path.parent for path in finals}):
            _make_folder(folder, undo)
        ready: list[tuple[Path, Path]] = []
        for disk in manifest.disks:
            final = target / disk.folder / disk.name
            temporary = _temporary(final, manifest.id)
            undo.callback(temporary.unlink, missing_ok=True)
            results.append(_restore_disk(store, disk, temporary, final, advance, threads or worker_count()))
            ready.append((temporary, final))
            if disk.descriptor:
                ready.append(_descriptor(disk, target, manifest.id, undo))
        _name_all(ready, undo)
        undo.pop_all()
    return results


def _finals(manifest: Manifest, target: Path) -> list[Path]:
    """Where the files go. Raises TargetExistsError when one is there."""
    finals = []
    for disk in manifest.disks:
        folder = target / disk.folder
        finals += [folder / name for name in (disk.name, disk.descriptor.name if disk.descriptor else None) if name]
    for path in finals:
        if os.path.lexists(path):
            raise TargetExistsError(f"{path} exists already; give another folder, or move it away")
    return finals


def _temporary(final: Path, point: str) -> Path:
    # Cut so that a name as long as a file system allows still has a temporary one.
    return final.with_name(f".{final.name[:48]}.restoring-{point}")


def _make_folder(folder: Path, undo: ExitStack) -> None:
    missing = []
    at = folder
    while not os.path.lexists(at):
        missing.append(at)
        at = at.parent
    try:
        for one in reversed(missing):
            one.mkdir()
            undo.callback(_remove_if_empty, one)
        if not folder.is_dir():
            raise TargetExistsError(f"{folder} is not a folder; give another one")
    except OSError as error:
        raise from_os_error(error, f"creating {folder}") from error


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # somebody else put something there meanwhile; it is theirs


def _create(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise TargetExistsError(f"{path} exists: the same restore point is being restored here, or was and died; "
                                "remove it if it is not being written") from error
    except OSError as error:
        raise from_os_error(error, f"creating {path}") from error


def _descriptor(disk: Disk, target: Path, point: str, undo: ExitStack) -> tuple[Path, Path]:
    assert disk.descriptor is not None
    final = target / disk.folder / disk.descriptor.name
    temporary = _temporary(final, point + "-d")
    fd = _create(temporary)
    undo.callback(temporary.unlink, missing_ok=True)
    try:
        durable.write_all(fd, disk.descriptor.text.encode(), 0)
        os.fsync(fd)
    except OSError as error:
        raise from_os_error(error, f"writing {final}") from error
    finally:
        os.close(fd)
    return temporary, final


def _name_all(ready: list[tuple[Path, Path]], undo: ExitStack) -> None:
    """Give whole files their names; a name that came into use meanwhile is never replaced."""
    for temporary, final in ready:
        try:
            try:
                os.link(temporary, final)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
                if os.path.lexists(final):
                    raise FileExistsError(errno.EEXIST, "exists") from error
                os.rename(temporary, final)
            undo.callback(final.unlink, missing_ok=True)
        except FileExistsError as error:
            raise TargetExistsError(f"{final} has come into being meanwhile; give another folder") from error
        except OSError as error:
            raise from_os_error(error, f"naming {final}") from error
    try:
        for temporary, _ in ready:
            temporary.unlink(missing_ok=True)
        for folder in {final.parent for _, final in ready}:
            durable.sync_folder(folder)
    except OSError as error:
        raise from_os_error(error, "flushing the names of the restored files") from error


def _restore_disk(
    store: Store, disk: Disk, temporary: Path, final: Path, advance: Callable[[int], None], threads: int
) -> RestoredDisk:
    begun = time.monotonic()
    fd = _create(temporary)
    readers = _Readers(store)
    written = 0
    leaf_bytes = FANOUT * store.config.chunk_bytes
    try:
        os.ftruncate(fd, disk.size)
        with closing(in_order(_tasks(store, disk, fd, readers, advance), threads, "restore")) as counts:
            for count in counts:
                written += count
                advance(min(leaf_bytes, disk.size))
        os.fsync(fd)
    except DamagedError as error:
        raise type(error)(f"{final.name} cannot be restored: {error}") from error
    except OSError as error:
        raise from_os_error(error, f"writing {final}") from error
    finally:
        readers.close()
        os.close(fd)
    return RestoredDisk(str(final), disk.size, written, time.monotonic() - begun)


def _tasks(
    store: Store, disk: Disk, fd: int, readers: _Readers, advance: Callable[[int], None]
) -> Iterator[Callable[[], int]]:
    """The leaves to write; those of zeros are told to be done at once."""
    chunks = store.chunks_of(disk.size)
    tree = TreeReader(readers.get().get_page, disk.root, disk.levels, chunks)
    for number, leaf_id in zip(range(pages_at(chunks, 1)), tree.leaf_ids(), strict=True):
        if leaf_id == ZERO_ID:
            advance(min(FANOUT * store.config.chunk_bytes, disk.size))
        else:
            yield partial(_restore_leaf, store, disk, fd, readers, number, leaf_id)


def _restore_leaf(store: Store, disk: Disk, fd: int, readers: _Readers, number: int, leaf_id: bytes) -> int:
    """Write the chunks of one leaf; the bytes written. Chunks go out in runs, so that the medium gets large writes."""
    reader = readers.get()
    chunk = store.config.chunk_bytes
    tree = TreeReader(reader.get_page, disk.root, disk.levels, store.chunks_of(disk.size))
    places: dict[bytes, list[int]] = {}
    for at, identifier in enumerate(tree.leaf(number, leaf_id)):
        if identifier != ZERO_ID:
            places.setdefault(identifier, []).append(number * FANOUT + at)
    written = 0
    for identifier, plain in reader.get_chunks(places):
        for place in places[identifier]:
            if len(plain) != min(chunk, disk.size - place * chunk):
                raise DamagedError(f"chunk {identifier.hex()} has {len(plain)} bytes, not those of its place")
            durable.write_all(fd, memoryview(plain), place * chunk)
            written += len(plain)
    return written
