"""What dead sessions left behind: found and put in order whenever a session begins.

For each session file that nobody holds: its packs are sealed as far as their records are whole (an empty one is
removed), all that they hold is published in the index, its temporary files are removed, and last the session file
itself. Every step can be done again, so a crash in here costs nothing. Nothing that a restore point needs is ever
removed: a pack that another session relies on has at least that record, and keeps it.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from datarecovery.errors import DamagedPackError
from datarecovery.store import durable, inflight, pack
from datarecovery.store.index import Index, entries_of
from datarecovery.store.pack import Entry

SUFFIX = ".session"
# A session notes a line a pack: 16 MiB of them are 60 TiB of packs.
_FILE_LIMIT_BYTES = 16 << 20


def is_alive(path: Path) -> bool:
    """Whether some process holds this session file. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _lines(path: Path) -> list[list[str]]:
    try:
        data = durable.read_file(path, _FILE_LIMIT_BYTES)
    except (ValueError, FileNotFoundError):
        return []
    # A last line without its end was being written when the session died; its pack then has no record yet.
    return [line.split() for line in data.decode(errors="replace").split("\n")[:-1]]


def live_points(root: Path) -> set[str]:
    """The ids of the restore points that live sessions are making. Raises OSError."""
    found = set()
    for path in (root / "sessions").glob(f"*{SUFFIX}"):
        if is_alive(path):
            found |= {words[1] for words in _lines(path) if len(words) == 2 and words[0] == "point"}
    return found


def noted_packs(root: Path) -> set[int]:
    """The packs of sessions that live, or that died and were not cleaned up after: they may be unsealed."""
    return {
        number for path in (root / "sessions").glob(f"*{SUFFIX}") for number in _pack_numbers(path)
    }


def _pack_numbers(path: Path) -> list[int]:
    return [int(w[1]) for w in _lines(path) if len(w) == 2 and w[0] == "pack" and w[1].isdecimal() and len(w[1]) < 19]


def recover(root: Path, store: uuid.UUID, index: Index) -> None:
    """Put in order what dead sessions left. `sessions/lock` is held by the caller.

    Raises OSError, NoSpaceError, StoreIoError, DamagedIndexError.
    """
    index.refresh()
    sessions = root / "sessions"
    paths = list(sessions.glob(f"*{SUFFIX}"))
    dead = [path for path in paths if not is_alive(path)]
    if len(dead) == len(paths):
        inflight.remove(sessions)
    live = {path.name.removesuffix(SUFFIX) for path in paths if path not in dead}
    for path in (root / "tmp").iterdir():
        if path.name.partition(".")[0] not in live:
            path.unlink(missing_ok=True)
    wanted = {number for path in paths if path not in dead for number in _pack_numbers(path)}
    for path in dead:
        entries = []
        for number in _pack_numbers(path):
            entries += _mend(root / "packs", store, number, path.name.removesuffix(SUFFIX), number in wanted)
        if entries:
            index.publish(((e.id, e.location) for e in entries), path.name.removesuffix(SUFFIX))
        path.unlink(missing_ok=True)


def _mend(packs: Path, store: uuid.UUID, number: int, session: str, wanted: bool) -> list[Entry]:
    """Seal a dead session's pack as far as it is whole; what it holds. Raises OSError.

    The session noted the number before it created the file, so the pack may also be another's, or not be there. One
    without a whole header has no owner's name: it goes if it is empty and no living session is about to fill it
    (`wanted`: one has noted that number too; a number noted from now on is only used once the file is gone).
    """
    path = pack.path_of(packs, number)
    try:
        reader = pack.PackReader(packs, store, number)
    except DamagedPackError:
        # With more than a header in it the file is damaged: `verify` names it if anything relies on it.
        if not wanted and path.exists() and path.stat().st_size <= pack.HEADER_BYTES:
            path.unlink()
        return []
    if reader.session.hex != session:
        reader.close()
        return []
    try:
        entries = list(entries_of(reader, []))
        sealed = reader.is_sealed()
    finally:
        reader.close()
    if sealed:
        return entries
    if not entries:
        path.unlink(missing_ok=True)
        return []
    end = entries[-1].location.offset + entries[-1].location.size
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, end)
        pack.seal(fd, path, end, entries)
    finally:
        os.close(fd)
    return entries
