"""Check a store and name the restore points that suffer: the operation behind `datarecovery verify`.

Quick: manifests, trees of ids, index, and that every chunk's pack is there, sound at both ends and long enough. Full:
also every record of every pack, read, decompressed and proved by its id, whether a restore point uses it or not.
Manifests are listed first, so that a backup that goes on meanwhile is never reported as damage.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from datarecovery import progress
from datarecovery.errors import DamagedError, DamagedIndexError, DataRecoveryError
from datarecovery.packcheck import Damage, PackReport, check_pack
from datarecovery.store import pack, recovery
from datarecovery.store.manifest import Disk, Manifest
from datarecovery.store.record import ZERO_ID
from datarecovery.store.store import ChunkReader, Store
from datarecovery.tree import FANOUT, TreeReader
from datarecovery.workers import in_order, worker_count

# Sound pages of ids remembered, so that what restore points share is walked once: some 50 MiB.
_MEMO_PAGES = 300_000
# Findings told one by one; a store that is damaged all over is told in numbers beyond.
FINDINGS_LIMIT = 1000
# Damaged places kept for one pack; with more, the whole pack counts as damaged.
_PLACES_LIMIT = 4096


@dataclass(slots=True)
class Finding:
    """One thing that is wrong, and the ids of the restore points that cannot be restored whole because of it."""

    kind: str
    detail: str
    points: set[str] = field(default_factory=set)
    harmless: bool = False


@dataclass(slots=True)
class Report:
    """What a verification saw."""

    points: int = 0
    packs: int = 0
    records: int = 0
    bytes_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0
    damaged_points: dict[str, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings


def verify(
    store: Store, quick: bool = False, tell: progress.Progress = progress.silent, threads: int = 0
) -> Report:
    """Check everything. Damage is in the report, not raised. Raises StoreIoError when the store cannot be listed."""
    return _Verification(store, quick, tell, threads or worker_count()).run()


class _Verification:
    def __init__(self, store: Store, quick: bool, tell: progress.Progress, threads: int) -> None:
        self._store = store
        self._quick = quick
        self._tell = tell
        self._threads = threads
        self._report = Report()
        self._places: dict[int, list[Damage]] = {}
        self._by_key: dict[str, Finding] = {}
        self._sound: set[tuple[bytes, int, int]] = set()
        self._end_of = lru_cache(8192)(partial(_pack_end, store.root / "packs"))

    def run(self) -> Report:
        manifests = self._manifests()
        self._report.points = len(manifests)
        index_ok = self._check_index()
        self._check_packs()
        reader = self._store.reader()
        try:
            for one in manifests:
                for disk in one.disks:
                    if index_ok:
                        self._walk_disk(one, disk, reader)
                    elif disk.root != ZERO_ID:
                        self._blame(one, "index", "the index cannot be used, so chunks cannot be found")
        finally:
            reader.close()
        return self._report

    def _manifests(self) -> list[Manifest]:
        found = []
        for path in self._store.points.paths():
            try:
                found.append(self._store.points.load(path))
            except DataRecoveryError as error:
                finding = self._find("manifest", str(error))
                finding.points.add(path.stem)
                self._report.damaged_points[path.stem] = "unknown"
        return found

    def _find(self, kind: str, detail: str, harmless: bool = False) -> Finding:
        key = f"{kind}:{detail}"
        found = self._by_key.get(key)
        if found is None:
            found = Finding(kind, detail, harmless=harmless)
            if len(self._report.findings) < FINDINGS_LIMIT:
                self._report.findings.append(found)
                self._by_key[key] = found
            else:
                self._report.more_findings += 1
        return found

    def _blame(self, one: Manifest, kind: str, detail: str) -> None:
        self._find(kind, detail).points.add(one.id)
        self._report.damaged_points[one.id] = one.vm

    def _check_index(self) -> bool:
        try:
            self._store.index.refresh()
            for segment in self._store.index.segments():
                last = b""
                count = 0
                for entry in segment.entries():
                    if entry <= last:
                        raise DamagedIndexError(f"index segment {segment.path} is not in order; rebuild it with: "
                                                "datarecovery store reindex")
                    last = entry
                    count += 1
                if count != segment.count:
                    raise DamagedIndexError(f"index segment {segment.path} holds {count} entries, not {segment.count}; "
                                            "rebuild it with: datarecovery store reindex")
        except DamagedIndexError as error:
            self._find("index", str(error))
            return False
        return True

    def _check_packs(self) -> None:
        root = self._store.root / "packs"
        try:
            numbers = list(pack.numbers(root))
            sizes = sum(pack.path_of(root, number).stat().st_size for number in numbers)
            unsealed = recovery.noted_packs(self._store.root)
        except OSError as error:
            self._find("pack", f"packs {root} cannot be listed: {error.strerror}")
            return
        tasks = (
            partial(check_pack, self._store, number, number in unsealed, self._quick) for number in numbers
        )
        with closing(in_order(tasks, self._threads, "verify")) as reports:
            for one in reports:
                self._report.packs += 1
                self._report.records += one.records
                self._report.bytes_read += 0 if self._quick else one.size
                self._note(one)
                self._tell(self._report.bytes_read, sizes)

    def _note(self, one: PackReport) -> None:
        damage = one.damage
        if len(damage) > _PLACES_LIMIT:
            damage = (Damage(0, 1 << 62, f"pack {one.number:010x}: {len(damage)} damaged places"),)
        for part in damage:
            if not part.if_used:
                self._find("pack", part.detail, part.harmless)
        if damage:
            self._places[one.number] = list(damage)

    def _walk_disk(self, one: Manifest, disk: Disk, reader: ChunkReader) -> None:
        try:
            tree = TreeReader(reader.get_page, disk.root, disk.levels, self._store.chunks_of(disk.size))
            self._walk(one, tree, disk.root, disk.levels, 0)
        except DamagedIndexError as error:
            self._blame(one, "index", str(error))
        except DamagedError as error:
            self._blame(one, "tree", f"disk {disk.label}: {error}")

    def _walk(self, one: Manifest, tree: TreeReader, page_id: bytes, level: int, number: int) -> bool:
        """Check a page and what lies below it; whether all of it is sound."""
        if page_id == ZERO_ID:
            return True
        key = (page_id, level, tree.entries(level, number))
        if key in self._sound:
            return True
        if not self._placed(one, page_id):
            return False
        try:
            ids = tree.ids(page_id, level, number) or []
        except DamagedIndexError:
            raise
        except DamagedError as error:
            self._blame(one, "page", str(error))
            return False
        sound = True
        for at, child in enumerate(ids):
            if level == 1:
                sound &= child == ZERO_ID or self._placed(one, child)
            else:
                sound &= self._walk(one, tree, child, level - 1, number * FANOUT + at)
        if sound and len(self._sound) < _MEMO_PAGES:
            self._sound.add(key)
        return sound

    def _placed(self, one: Manifest, identifier: bytes) -> bool:
        """Whether a record is where the index says, as far as was checked."""
        place = self._store.index.find(identifier)
        if place is None:
            self._blame(one, "index", "chunks of restore points are not in the index; rebuild it with: datarecovery "
                                      "store reindex")
            return False
        end = self._end_of(place.pack)
        if end < place.offset + place.size:
            path = pack.path_of(Path("packs"), place.pack)
            self._blame(one, "pack", f"pack {path} is missing" if end < 0 else f"pack {path} is cut short")
            return False
        sound = True
        for damage in self._places.get(place.pack, ()):
            if damage.touches(place):
                self._find("pack", damage.detail, damage.harmless).points.add(one.id)
                if not damage.harmless:
                    self._report.damaged_points[one.id] = one.vm
                    sound = False
        return sound


def _pack_end(packs: Path, number: int) -> int:
    """The size of a pack in bytes, -1 when it is not there."""
    try:
        return pack.path_of(packs, number).stat().st_size
    except OSError:
        return -1
