"""What a crash may leave: a model of files and names that knows what was acknowledged, and what may be there or not.

*Files* by sectors of 512 bytes, the unit that a disk writes wholly or not at all. After an fsync a sector has one
allowed content; each later write adds one, for it may have reached the disk or not, alone or with others.

*Names* as a sequence of states, for the journal keeps their order: after a crash they are as they were at one moment
that is not before the last acknowledged one. An fsync of a directory acknowledges all changes of it, and so all that
went before; an fsync of a file acknowledges that it was created.

Whatever is about to be done is entered before it is done: the crash may come in between. One ledger belongs to one
worker, which alone uses the names in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SECTOR = 512
_ZEROS = bytes(SECTOR)


class FileModel:
    """The contents and sizes that a file may have after a crash; the last of each is what it has now."""

    def __init__(self) -> None:
        self.sizes: list[int] = [0]
        self._sectors: dict[int, list[bytes]] = {}
        self._growths: list[range] = []

    @property
    def size(self) -> int:
        return self.sizes[-1]

    def write(self, offset: int, data: bytes, *, whole: bool = True) -> None:
        """Data is about to be written; not `whole`: the kernel may cut the write into several."""
        self._patch(offset, data)
        end = offset + len(data)
        if end > self.size:
            if not whole:
                self._growths.append(range(max(offset, self.size), end))
            self.sizes.append(end)

    def clear(self, offset: int, length: int) -> None:
        """A range is about to be punched or zeroed; the size stays."""
        end = min(offset + length, self.size)
        if end > offset:
            self._patch(offset, bytes(end - offset))

    def resize(self, size: int) -> None:
        """The file is about to be cut or extended."""
        if size < self.size:
            self._patch(size, bytes(self.size - size))
        self.sizes.append(size)

    def synced(self) -> None:
        """An fsync has been acknowledged: what is there now stays."""
        self.sizes = [self.size]
        self._growths = []
        self._sectors = {n: seen[-1:] for n, seen in self._sectors.items() if seen[-1] != _ZEROS}

    def copy(self) -> FileModel:
        """The file as it is now and nothing else: what a clone holds if it is there at all."""
        other = FileModel()
        other.sizes = [self.size]
        other._sectors = {n: seen[-1:] for n, seen in self._sectors.items() if seen[-1] != _ZEROS}
        return other

    def problem(self, content: bytes) -> str | None:
        """What of `content`, read after a crash, may not be; None when all of it may."""
        if len(content) not in self.sizes and not any(len(content) in growth for growth in self._growths):
            return f"its size is {len(content)}, not one of {sorted(set(self.sizes))}"
        rest = bytearray(content)
        for number, seen in self._sectors.items():
            start = number * SECTOR
            got = content[start : start + SECTOR]
            if all(s[: len(got)] != got for s in seen):
                allowed = " or ".join(map(_show, seen))
                return f"sector {number} of {-(-len(content) // SECTOR)} is {_show(got)}, not {allowed}"
            rest[start : start + len(got)] = bytes(len(got))
        if any(rest):
            at = next(i for i, b in enumerate(rest) if b)
            start = at // SECTOR * SECTOR
            return f"sector {at // SECTOR} was never written, and is {_show(content[start : start + SECTOR])}"
        return None

    def _patch(self, offset: int, data: bytes) -> None:
        at = offset
        while at < offset + len(data):
            number, inner = divmod(at, SECTOR)
            part = data[at - offset : at - offset + SECTOR - inner]
            seen = self._sectors.setdefault(number, [_ZEROS])
            new = seen[-1][:inner] + part + seen[-1][inner + len(part) :]
            if new != seen[-1]:
                seen.append(new)
            at += len(part)


def _show(sector: bytes) -> str:
    return "zeros" if not any(sector) else f"{sector[:20]!r}..{sector[-4:]!r}"


@dataclass(slots=True)
class _Names:
    """One state of the names, and what led to it."""

    files: dict[str, FileModel]
    directories: frozenset[str]
    created: FileModel | None = None


@dataclass(slots=True)
class Ledger:
    """The files of one worker, by path."""

    _states: list[_Names] = field(default_factory=lambda: [_Names({}, frozenset())])

    @property
    def files(self) -> dict[str, FileModel]:
        """What there is now. Not to be changed."""
        return self._states[-1].files

    def put(self, path: str, model: FileModel, *, new: bool = True) -> None:
        """A name is about to be given to a file."""
        self._enter({**self.files, path: model}, model if new else None, path)

    def remove(self, path: str) -> None:
        """A name is about to be removed."""
        self._enter({p: m for p, m in self.files.items() if p != path}, None, path)

    def rename(self, old: str, new: str) -> None:
        """A file is about to be renamed, over another one perhaps."""
        moved = self.files[old]
        self._enter({p: m for p, m in self.files.items() if p != old} | {new: moved}, None, old, new)

    def directory_synced(self, directory: str) -> None:
        """An fsync of a directory has been acknowledged."""
        self._known_since(max((i for i, s in enumerate(self._states) if directory in s.directories), default=0))

    def file_synced(self, model: FileModel) -> None:
        """An fsync of a file has been acknowledged."""
        model.synced()
        self._known_since(max((i for i, s in enumerate(self._states) if s.created is model), default=0))

    def problem(self, found: dict[str, bytes]) -> str | None:
        """What of the files read after a crash may not be; None when all of it may."""
        first: str | None = None
        for state in self._states:
            if state.files.keys() != found.keys():
                continue
            wrong = ((path, model.problem(found[path])) for path, model in state.files.items())
            problem = next((f"{path}: {text}" for path, text in wrong if text), None)
            if problem is None:
                return None
            first = first or problem
        if first is not None:
            return first
        wanted = " or ".join(str(sorted(s.files)) for s in self._states[:8])
        return f"the names are {sorted(found)}, and may be ({len(self._states)} states) {wanted}"

    def _enter(self, files: dict[str, FileModel], created: FileModel | None, *paths: str) -> None:
        directories = frozenset(p.rpartition("/")[0] for p in paths)
        self._states.append(_Names(files, directories, created))

    def _known_since(self, index: int) -> None:
        self._states = self._states[index:]
