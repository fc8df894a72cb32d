"""A session writes one restore point: chunks and pages first, its manifest last.

Its file `sessions/<session UUID>.session` is held under flock as long as the process lives, and is text: a line
`point ID`, then a line `pack NUMBER` for each number under which it tries to create a pack (flushed before it tries).
It is what recovery (recovery.py) goes by after a crash, and later the lease that keeps a clean-up away.
`sessions/vm-*.lock` keeps two sessions of one VM apart. `sessions/lock` is held while sessions come and go.

Durability, in this order: every pack of ours is sealed (fsync of file and folder), every foreign pack that we rely on
is fsynced; the index segment is published; the manifest is renamed into place. A crash at any moment leaves either no
restore point or a whole one; chunks that it leaves behind are kept and found by the next backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datarecovery.errors import BusyError, DataRecoveryError, StoreIoError, from_os_error
from datarecovery.store import durable, pack, record, recovery
from datarecovery.store.appender import PackAppender
from datarecovery.store.config import StoreConfig
from datarecovery.store.index import Index
from datarecovery.store.inflight import Claims, InFlight
from datarecovery.store.pack import Entry, Location

# Entries kept back before a segment is published, about 5 MiB: fewer and larger segments.
PUBLISH_ENTRIES = 16384
# How long a claim of another session may stay without a place before we ask whether its owner lives.
_PATIENCE_S = 0.05
_POLL_S = 0.001


@dataclass(slots=True)
class Stored:
    """What storing a batch took: new bytes in packs, and ids that were there or on their way already."""

    new_bytes: int = 0
    new_ids: frozenset[bytes] = frozenset()


def vm_lock_path(sessions: Path, vm: str) -> Path:
    """The lock file of a VM's name."""
    return sessions / f"vm-{hashlib.sha256(vm.encode()).hexdigest()[:32]}.lock"


class WriteSession:
    """Stores records for one restore point. `put` may be called from several threads.

    `_lock` guards `_sealed` (ours, durable, not in the index yet) and `_borrowed` (in packs of other sessions, not in
    the index yet), and is never held over input or output.
    """

    def __init__(self, root: Path, config: StoreConfig, index: Index, point: str, vm: str) -> None:
        """Clean up after dead sessions and begin. Raises BusyError, NoSpaceError, StoreIoError, DamagedIndexError."""
        self.uuid = uuid.uuid4()
        self.point = point
        self._root = root
        self._sessions = root / "sessions"
        self._index = index
        self._config = config
        self._lock = threading.Lock()
        self._sealed: dict[bytes, Location] = {}
        self._borrowed: dict[bytes, Location] = {}
        self._failure: BaseException | None = None
        self._generation = -1
        self._refresh_lock = threading.Lock()
        self._thread = threading.local()
        self._fd = -1
        self._vm_fd = -1
        try:
            self._begin(vm)
        except OSError as error:
            self._let_go()
            raise from_os_error(error, f"starting a session in {root}") from error
        except BaseException:
            self._let_go()
            raise

    def _begin(self, vm: str) -> None:
        vm_fd = durable.try_lock(vm_lock_path(self._sessions, vm))
        if vm_fd is None:
            raise BusyError(f"VM {vm!r} is being backed up into {self._root} already; wait for that to end")
        self._vm_fd = vm_fd
        with durable.exclusive(self._sessions / "lock"):
            recovery.recover(self._root, self._config.store, self._index)
            path = self._sessions / f"{self.uuid.hex}.session"
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._note(f"point {self.point}")
            durable.sync_folder(self._sessions)
        self._inflight = InFlight(self._sessions, self.uuid)
        self._appender = PackAppender(self._root / "packs", self._config.store, self.uuid, self._announced)

    def _note(self, line: str) -> None:
        data = (line + "\n").encode()
        if os.write(self._fd, data) != len(data):
            raise OSError(28, "session file cut short")
        os.fdatasync(self._fd)

    def _announced(self, number: int) -> None:
        self._note(f"pack {number}")

    def _let_go(self) -> None:
        for fd in (self._fd, self._vm_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._vm_fd = -1

    def put(self, kind: int, batch: Mapping[bytes, record.Buffer]) -> Stored:
        """Store those records of a batch, plain bytes by id, that are not in the store yet.

        On return each has its place, though it need not be durable. Raises NoSpaceError, StoreIoError,
        DamagedIndexError.
        """
        wanted = [one for one in batch if self._find(one) is None]
        if not wanted:
            return Stored()
        new_bytes = 0
        new: list[bytes] = []
        dead: list[uuid.UUID] = []
        since = time.monotonic()
        while wanted:
            claims = self._claim(wanted, dead)
            if claims.mine:
                new_bytes += self._store(kind, claims.mine, batch)
                new += claims.mine
                since = time.monotonic()
            wanted = list(claims.pending)
            if wanted:
                time.sleep(_POLL_S)
                if self._failure:
                    raise self._failure
                if time.monotonic() - since > _PATIENCE_S:
                    dead = [one for one in set(claims.pending.values()) if not self._alive(one)]
        return Stored(new_bytes, frozenset(new))

    def _find(self, identifier: bytes) -> Location | None:
        return self._sealed.get(identifier) or self._index.find(identifier)

    def _alive(self, session: uuid.UUID) -> bool:
        return session == self.uuid or recovery.is_alive(self._sessions / f"{session.hex}.session")

    def _claim(self, ids: Sequence[bytes], dead: Sequence[uuid.UUID]) -> Claims:
        """Claim ids and note whose packs we rely on; what was published meanwhile is not ours to store."""
        claims = self._inflight.claim(ids, dead)
        if claims.generation != self._generation:
            with self._refresh_lock:
                if claims.generation != self._generation:
                    self._index.refresh()
                    self._generation = claims.generation
        # Our look-up may be older than a segment of another session, whose claims are gone with it: look again.
        found = [one for one in claims.mine if self._find(one) is not None]
        if found:
            self._inflight.release(found)
            claims.mine = [one for one in claims.mine if one not in set(found)]
        foreign = {one: at for one, at in claims.located.items() if at.pack not in self._appender.own}
        if foreign:
            with self._lock:
                self._borrowed.update(foreign)
        return claims

    def _store(self, kind: int, ids: Sequence[bytes], batch: Mapping[bytes, record.Buffer]) -> int:
        encoder = getattr(self._thread, "encoder", None)
        if encoder is None:
            encoder = self._thread.encoder = record.Encoder(self._config.level)
        records = [encoder.encode(one, kind, batch[one]) for one in ids]
        try:
            places, sealed = self._appender.append(records)
            self._inflight.placed(zip(ids, places, strict=True))
            if sealed:
                self._keep(sealed, PUBLISH_ENTRIES)
        except BaseException as error:
            self._failure = self._failure or error
            raise
        return sum(one.total_bytes for one in records)

    def _keep(self, sealed: Sequence[Entry], publish_at: int) -> None:
        """Remember the entries of a sealed pack, and publish what has gathered once it is enough."""
        with self._lock:
            self._sealed.update((entry.id, entry.location) for entry in sealed)
            if len(self._sealed) + len(self._borrowed) < publish_at:
                return
            own = dict(self._sealed)
            foreign = dict(self._borrowed)
        # The index may only name what is durable: our packs are, once sealed; the others' must be made so.
        self._sync_foreign(foreign)
        self._index.publish({**foreign, **own}.items(), self.uuid.hex)
        self._inflight.published({place.pack for place in own.values()})
        with self._lock:
            for gathered, done in ((self._sealed, own), (self._borrowed, foreign)):
                for identifier in done:
                    gathered.pop(identifier, None)

    def seal(self) -> None:
        """Make everything that was put durable, and findable. Raises NoSpaceError, StoreIoError, DamagedIndexError."""
        self._keep(self._appender.finish(), 1)

    def _sync_foreign(self, foreign: Mapping[bytes, Location]) -> None:
        """Make durable what other sessions wrote and we rely on, and check that it is there."""
        by_pack: dict[int, list[tuple[bytes, Location]]] = {}
        for identifier, place in foreign.items():
            by_pack.setdefault(place.pack, []).append((identifier, place))
        for number, places in by_pack.items():
            reader = pack.PackReader(self._root / "packs", self._config.store, number)
            try:
                reader.sync()
                durable.sync_folder(reader.path.parent)
                for identifier, place in places:
                    head = record.parse_header(reader.read(place.offset, record.HEADER_BYTES))
                    if head.id != identifier:
                        raise ValueError("it holds another record where a chunk of ours was promised")
            except OSError as error:
                raise from_os_error(error, f"flushing {reader.path}") from error
            except ValueError as error:
                raise StoreIoError(f"pack {reader.path}: {error}; run the backup again") from error
            finally:
                reader.close()

    def publish(self, manifest_path: Path, data: bytes) -> None:
        """Put the manifest in its place: from here on the restore point exists. Raises NoSpaceError, StoreIoError."""
        try:
            durable.make_folder(manifest_path.parent)
        except OSError as error:
            raise from_os_error(error, f"creating {manifest_path.parent}") from error
        durable.publish_file(self._root / "tmp" / f"{self.uuid.hex}.point", manifest_path, data)

    def close(self) -> None:
        """End the session. What it stored stays for later backups, published or not; nothing is raised.

        A session that failed may not be able to seal its last pack (a full disk): the next session's recovery does.
        """
        try:
            self._finish()
            clean = True
        except (DataRecoveryError, OSError):
            clean = False
        self._appender.close()
        try:
            self._inflight.abandon()
        except DataRecoveryError:
            clean = False  # the claims go with the database, or when others find this session dead
        self._inflight.close()
        try:
            if clean:
                (self._sessions / f"{self.uuid.hex}.session").unlink(missing_ok=True)
        except OSError:
            clean = False  # left for recovery, like a crash
        self._let_go()

    def _finish(self) -> None:
        if self._failure:
            raise StoreIoError("the session failed") from self._failure
        self.seal()
