"""The packs that one session writes, from several threads."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datarecovery.errors import from_os_error
from datarecovery.store import durable, pack, record
from datarecovery.store.pack import Entry, Location

# Linux takes at most 1024 pieces in one pwritev; each record is two.
_RECORDS_PER_WRITE = 500


@dataclass(slots=True)
class _OpenPack:
    number: int
    fd: int
    path: Path
    end: int = pack.HEADER_BYTES
    entries: list[Entry] = field(default_factory=list)


class PackAppender:
    """Appends records to the session's open pack, and seals packs as they fill.

    `_lock` guards the open pack and its end, and is held while records go to the page cache, so that records follow
    each other without gaps; sealing, with its fsync, is done outside it by whichever thread filled the pack.
    `announce` is told the number of a pack before it is created.
    """

    def __init__(
        self, packs: Path, store: uuid.UUID, session: uuid.UUID, announce: Callable[[int], None]
    ) -> None:
        self._packs = packs
        self._store = store
        self._session = session
        self._announce = announce
        self._lock = threading.Lock()
        self._open: _OpenPack | None = None
        self._next = 0
        self._failure: OSError | None = None
        self.own: set[int] = set()
        """The numbers of the packs that this session has created."""

    def append(self, records: Sequence[record.Encoded]) -> tuple[list[Location], list[Entry]]:
        """Append records; where they lie, and the entries of a pack that this call sealed.

        Raises NoSpaceError, StoreIoError; after that nothing can be appended any more.
        """
        full: _OpenPack | None = None
        try:
            with self._lock:
                if self._failure:
                    raise self._failure  # the first error is the one to tell, whichever thread tells it
                current = self._open or self._start()
                places = self._write(current, records)
                if current.end >= pack.FULL_BYTES:
                    full, self._open = current, None
            return places, self._seal(full) if full else []
        except OSError as error:
            self._failure = self._failure or error
            raise from_os_error(error, f"writing a pack in {self._packs}") from error

    def finish(self) -> list[Entry]:
        """Seal the open pack, if any, and return its entries. Raises NoSpaceError, StoreIoError."""
        with self._lock:
            current, self._open = self._open, None
        if current is None:
            return []
        try:
            return self._seal(current)
        except OSError as error:
            raise from_os_error(error, f"sealing {current.path}") from error

    def close(self) -> None:
        """Let go of the open pack without sealing it; the next session to open the store will."""
        with self._lock:
            current, self._open = self._open, None
        if current:
            os.close(current.fd)

    def _start(self) -> _OpenPack:
        first_try = self._next or pack.next_number(self._packs)
        number, fd = pack.create(self._packs, self._store, self._session, first_try, self._announce)
        self._next = number + 1
        self.own.add(number)
        self._open = _OpenPack(number, fd, pack.path_of(self._packs, number))
        return self._open

    def _write(self, current: _OpenPack, records: Sequence[record.Encoded]) -> list[Location]:
        places = []
        for start in range(0, len(records), _RECORDS_PER_WRITE):
            pieces: list[record.Buffer] = []
            at = current.end
            entries = []
            for one in records[start : start + _RECORDS_PER_WRITE]:
                pieces += (one.header, one.stored)
                entries.append(Entry(one.id, Location(current.number, at, one.total_bytes)))
                at += one.total_bytes
            done = os.pwritev(current.fd, pieces, current.end)
            if done < at - current.end:
                # The rest, or the error that stopped it half way.
                durable.write_all(current.fd, b"".join(pieces)[done:], current.end + done)
            current.end = at
            current.entries += entries
            places += [entry.location for entry in entries]
        return places

    def _seal(self, full: _OpenPack) -> list[Entry]:
        try:
            pack.seal(full.fd, full.path, full.end, full.entries)
        finally:
            os.close(full.fd)
        return full.entries
