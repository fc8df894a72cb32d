"""A store, open: the one object through which the operations reach packs, index and restore points."""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from datarecovery.errors import DamagedRecordError, StoreExistsError, UsageError, from_os_error
from datarecovery.store import config, durable, pack, record
from datarecovery.store.config import StoreConfig
from datarecovery.store.index import Index
from datarecovery.store.pack import Location
from datarecovery.store.points import Points
from datarecovery.store.session import WriteSession

_FOLDERS = ("packs", "index", "points", "sessions", "tmp")
# Reads of neighbouring records are joined up to this, and over gaps that cost less to read than to skip.
_JOIN_BYTES = 8 << 20
_GAP_BYTES = 128 << 10
_OPEN_PACKS = 16


class Store:
    """An open store. Threads share it; `reader()` gives each thread its own reader."""

    def __init__(self, root: Path, settings: StoreConfig) -> None:
        self.root = root
        self.config = settings
        self.index = Index(root, settings.store)
        self.points = Points(root, settings.store)

    @classmethod
    def create(cls, root: Path, level: int, append_only: bool, now: datetime) -> Store:
        """Make a store in a new or empty folder.

        Raises StoreExistsError, UsageError, NoSpaceError, StoreIoError. The file `store` comes last: what a crash
        leaves is no store, and creating it again succeeds.
        """
        try:
            settings = config.new(level, append_only, now)
        except ValueError as error:
            raise UsageError(str(error)) from error
        above = root.absolute().parent
        if not above.is_dir():
            raise UsageError(f"{above} is not there; make it, or mount what belongs there, and try again")
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            # What a creation cut short may have left, and nothing else, is no obstacle.
            for name in os.listdir(root):
                folder = root / name
                if name not in _FOLDERS or not folder.is_dir() or (name != "tmp" and os.listdir(folder)):
                    raise StoreExistsError(f"{root} is not empty ({name} is in it); give a new or empty folder")
            for name in _FOLDERS:
                durable.make_folder(root / name)
            temporary = root / "tmp" / config.FILE_NAME
            temporary.unlink(missing_ok=True)
        except FileExistsError as error:
            raise StoreExistsError(f"{root} is a file; give a new or empty folder") from error
        except OSError as error:
            raise from_os_error(error, f"creating store {root}") from error
        durable.publish_file(temporary, root / config.FILE_NAME, config.encode(settings))
        return cls(root, settings)

    @classmethod
    def open(cls, root: Path, *, writing: bool = False) -> Store:
        """Open a store. Raises StoreNotFoundError, StoreUnusableError, UnsupportedFeatureError, StoreIoError."""
        return cls(root, config.load(root, writing=writing))

    def close(self) -> None:
        """Let go of the index's files; nothing may be using the store."""
        self.index.close()

    def session(self, point: str, vm: str) -> WriteSession:
        """Begin to write a restore point. Raises BusyError, NoSpaceError, StoreIoError, DamagedIndexError."""
        return WriteSession(self.root, self.config, self.index, point, vm)

    def reader(self) -> ChunkReader:
        """A reader for one thread."""
        return ChunkReader(self.root / "packs", self.config.store, self.index)

    def reindex(self) -> tuple[int, list[str]]:
        """Rebuild the index from the packs; entries given, and problems met. Raises NoSpaceError, StoreIoError."""
        return self.index.rebuild(f"reindex-{uuid.uuid4().hex}")

    def chunks_of(self, size: int) -> int:
        """How many chunks a disk of `size` bytes has."""
        return -(-size // self.config.chunk_bytes)


class ChunkReader:
    """Reads records by id and proves each. For one thread; `close` it."""

    def __init__(self, packs: Path, store: uuid.UUID, index: Index) -> None:
        self._packs = packs
        self._store = store
        self._index = index
        self._decoder = record.Decoder()
        self._open: OrderedDict[int, pack.PackReader] = OrderedDict()

    def close(self) -> None:
        """Close the packs."""
        while self._open:
            self._open.popitem()[1].close()

    def locate(self, identifier: bytes) -> Location:
        """Where a record lies. Raises DamagedRecordError when the index does not know, DamagedIndexError."""
        place = self._index.find(identifier)
        if place is None:
            raise DamagedRecordError(f"chunk {identifier.hex()} is not in the index; if packs are all there, rebuild "
                                     "it with: datarecovery store reindex")
        return place

    def pack(self, number: int) -> pack.PackReader:
        """An open pack. Raises DamagedPackError."""
        found = self._open.pop(number, None)
        if found is None:
            found = pack.PackReader(self._packs, self._store, number)
            if len(self._open) >= _OPEN_PACKS:
                self._open.popitem(last=False)[1].close()
        self._open[number] = found
        return found

    def get(self, identifier: bytes, kind: int) -> record.Buffer:
        """The plain bytes of one record. Raises DamagedError."""
        place = self.locate(identifier)
        data = self.pack(place.pack).read(place.offset, place.size)
        return self._decode(identifier, kind, place, memoryview(data))

    def get_page(self, identifier: bytes) -> record.Buffer:
        """The plain bytes of a page of ids. Raises DamagedError."""
        return self.get(identifier, record.KIND_PAGE)

    def get_chunks(self, ids: Iterable[bytes]) -> Iterator[tuple[bytes, record.Buffer]]:
        """The plain bytes of many chunks, in the order in which they lie. Raises DamagedError."""
        places = sorted((self.locate(one), one) for one in set(ids))
        at = 0
        while at < len(places):
            first = places[at][0]
            end = first.offset + first.size
            stop = at + 1
            while stop < len(places):
                place = places[stop][0]
                if place.pack != first.pack or place.offset > end + _GAP_BYTES:
                    break
                if place.offset + place.size - first.offset > _JOIN_BYTES:
                    break
                end = max(end, place.offset + place.size)
                stop += 1
            data = memoryview(self.pack(first.pack).read(first.offset, end - first.offset))
            for place, identifier in places[at:stop]:
                begin = place.offset - first.offset
                part = data[begin : begin + place.size]
                yield identifier, self._decode(identifier, record.KIND_CHUNK, place, part)
            at = stop

    def _decode(self, identifier: bytes, kind: int, place: Location, data: memoryview) -> record.Buffer:
        try:
            head = record.parse_header(data)
            if head.id != identifier or head.kind != kind:
                raise ValueError("another record lies there")
            return self._decoder.decode(head, data[record.HEADER_BYTES : record.HEADER_BYTES + head.stored_bytes])
        except ValueError as error:
            raise DamagedRecordError(f"chunk {identifier.hex()} in pack {pack.path_of(self._packs, place.pack)} at "
                                     f"{place.offset} is damaged: {error}") from error
