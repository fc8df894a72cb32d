"""Ids that sessions are storing right now, shared by all processes that back up into the store.

`sessions/inflight.db` is an SQLite database: table `claims` (id, session, and once the record is written pack, offset,
size) and `generation`, the number of times that an index segment was published. It is scratch, not state: nothing in
it is needed after a crash, so nothing in it is fsynced, and a session that finds itself alone starts it anew. SQLite
because it brings locking between processes, safe against kill -9, where a shared hash table of our own would need both
to be proved.

Rules: an id is claimed before it is stored, so two sessions never store the same chunk; a claim is followed by its
place as soon as the record is written (before it is durable: whoever relies on a foreign place fsyncs that pack before
its own manifest). Claims go when the index has them. The claim of a dead session without a place is taken over.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datarecovery.errors import DataRecoveryError, NoSpaceError, StoreIoError
from datarecovery.store.pack import Location

FILE_NAME = "inflight.db"
# Transactions take a millisecond; a process stopped in the middle of one must not fail the others at once.
_BUSY_TIMEOUT_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (id BLOB PRIMARY KEY, session BLOB NOT NULL, pack INT, offset INT, size INT)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS generation (value INT NOT NULL);
INSERT INTO generation SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM generation);
"""


@dataclass(slots=True)
class Claims:
    """The answer to a claim: what is ours to store, what lies where, and whose word is still awaited."""

    generation: int
    mine: list[bytes] = field(default_factory=list)
    located: dict[bytes, Location] = field(default_factory=dict)
    pending: dict[bytes, uuid.UUID] = field(default_factory=dict)


def remove(sessions: Path) -> None:
    """Forget everything; only when no session lives. Raises OSError."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        (sessions / (FILE_NAME + suffix)).unlink(missing_ok=True)


def _converted(error: sqlite3.Error, path: Path) -> DataRecoveryError:
    # A file size limit shows as a plain write error of SQLite's; the packs will say more about it.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return NoSpaceError(f"writing {path}: no space left; free some space and try again")
    return StoreIoError(f"using {path}: {error}")


class InFlight:
    """One session's view of the claims. `_lock` serialises its threads on the one connection."""

    def __init__(self, sessions: Path, session: uuid.UUID) -> None:
        """Open or create the database. Raises NoSpaceError, StoreIoError."""
        self._path = sessions / FILE_NAME
        self._session = session.bytes
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            # A rollback journal instead of WAL: WAL needs shared memory maps, which not every file system has.
            self._db.execute("PRAGMA journal_mode=PERSIST")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise _converted(error, self._path) from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def claim(self, ids: Iterable[bytes], dead: Sequence[uuid.UUID] = ()) -> Claims:
        """Claim ids; those of `dead` sessions without a place become ours. Raises NoSpaceError, StoreIoError."""
        gone = {one.bytes for one in dead}
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    return self._claim(ids, gone)
                finally:
                    self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise _converted(error, self._path) from error

    def _claim(self, ids: Iterable[bytes], gone: set[bytes]) -> Claims:
        run = self._db.execute
        (generation,) = run("SELECT value FROM generation").fetchone()
        answer = Claims(generation)
        for identifier in ids:
            mine = (identifier, self._session)
            if run("INSERT OR IGNORE INTO claims (id, session) VALUES (?, ?)", mine).rowcount == 1:
                answer.mine.append(identifier)
                continue
            row = run("SELECT session, pack, offset, size FROM claims WHERE id = ?", (identifier,)).fetchone()
            if row[1] is not None:
                answer.located[identifier] = Location(*row[1:])
            elif row[0] in gone:
                run("UPDATE claims SET session = ? WHERE id = ?", (self._session, identifier))
                answer.mine.append(identifier)
            else:
                answer.pending[identifier] = uuid.UUID(bytes=row[0])
        return answer

    def placed(self, places: Iterable[tuple[bytes, Location]]) -> None:
        """Tell the others where our claims lie now. Raises NoSpaceError, StoreIoError."""
        rows = [(at.pack, at.offset, at.size, identifier, self._session) for identifier, at in places]
        self._write("UPDATE claims SET pack = ?, offset = ?, size = ? WHERE id = ? AND session = ?", rows)

    def release(self, ids: Iterable[bytes]) -> None:
        """Give back claims that turned out not to be needed. Raises NoSpaceError, StoreIoError."""
        rows = [(self._session, one) for one in ids]
        self._write("DELETE FROM claims WHERE session = ? AND id = ? AND pack IS NULL", rows)

    def published(self, packs: Iterable[int]) -> None:
        """The index has what lies in these packs of ours: forget it, and tell the others to look there."""
        rows = [(self._session, number) for number in packs]
        self._write("DELETE FROM claims WHERE session = ? AND pack = ?", rows, publish=True)

    def abandon(self) -> None:
        """Forget all our claims. Raises NoSpaceError, StoreIoError."""
        self._write("DELETE FROM claims WHERE session = ?", [(self._session,)])

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]], *, publish: bool = False) -> None:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany(statement, rows)
                    if publish:
                        self._db.execute("UPDATE generation SET value = value + 1")
                finally:
                    self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise _converted(error, self._path) from error
