"""Everything read back from a store is untrusted: any bytes give a value or the error of that parser, in bounds."""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from datarecovery.errors import DamagedError, UnsupportedFeatureError
from datarecovery.extents import Cursor, Extent, chunk_runs, intersect, subtract, with_tail
from datarecovery.store import config, document, manifest, pack, record, segment
from datarecovery.store.config import StoreConfig
from datarecovery.store.manifest import Descriptor, Disk, Figures, Manifest
from datarecovery.store.pack import Entry, Location
from datarecovery.store.record import KIND_CHUNK, KIND_PAGE, ZERO_ID
from datarecovery.tree import FANOUT, TreeBuilder, TreeReader, levels_for, pages_at

STORE = uuid.UUID(int=7)
CONFIG = StoreConfig(STORE, "2026-01-01T00:00:00+00:00", 65536, 1, False)
DISK = Disk(
    "a.raw", "", 70000, bytes(range(32)), 1, Descriptor("a.vmdk", "text"), "/x/a.raw", "full-read", "why", True,
    {"kind": "vmfs-clone"}, Figures(1, 2, 3, 4, 5, 6.5),
)
MANIFEST = Manifest(STORE, "00112233445566aa", "vm", 3, "then", "now", None, (DISK,))


def mangled(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes near to valid ones: cut, lengthened, or with some places overwritten."""

    def overwrite(edits: list[tuple[int, int]]) -> bytes:
        out = bytearray(data)
        for offset, value in edits:
            out[offset] = value
        return bytes(out)

    places = st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255))
    return st.one_of(
        st.binary(max_size=300),
        st.integers(0, len(data)).map(lambda n: data[:n]),
        st.binary(min_size=1, max_size=20).map(lambda more: data + more),
        st.lists(places, min_size=1, max_size=4).map(overwrite),
    )


def test_documents_round_trip() -> None:
    assert config.decode(config.encode(CONFIG)) == CONFIG
    assert manifest.decode(manifest.encode(MANIFEST)) == MANIFEST


@given(mangled(manifest.encode(MANIFEST)))
def test_manifest_parser(data: bytes) -> None:
    try:
        assert manifest.decode(data) == MANIFEST
    except (ValueError, UnsupportedFeatureError):
        return
    assert data == manifest.encode(MANIFEST)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
DISK_KEYS = ["name", "folder", "size", "root", "levels", "descriptor", "source", "rung", "baseline", "figures"]
KEYS = ["format", "store", "id", "vm", "sequence", "created", "disks", "quiesced", "configuration", "previous"]


@given(st.sampled_from([*KEYS, *(f"disk {key}" for key in DISK_KEYS)]), JSON)
def test_manifest_with_sound_checksums_and_hostile_fields(key: str, value: object) -> None:
    _, body = document.decode(manifest.MAGIC, document.Features(), manifest.encode(MANIFEST))
    disks = body["disks"]
    assert isinstance(disks, list)
    target = disks[0] if key.startswith("disk ") else body
    target[key.removeprefix("disk ")] = value
    try:
        found = manifest.decode(document.encode(manifest.MAGIC, document.Features(), body))
    except (ValueError, UnsupportedFeatureError):
        return
    assert all(manifest.is_file_name(disk.name) for disk in found.disks)
    assert all(0 <= disk.size <= manifest.DISK_LIMIT_BYTES for disk in found.disks)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\0b", "x" * 256])
def test_manifest_cannot_leave_the_target_folder(name: str) -> None:
    for field in ("name", "folder", "descriptor"):
        if field == "folder" and not name:
            continue  # no folder: the target itself
        _, body = document.decode(manifest.MAGIC, document.Features(), manifest.encode(MANIFEST))
        disks = body["disks"]
        assert isinstance(disks, list)
        disks[0][field] = {"name": name, "text": ""} if field == "descriptor" else name
        with pytest.raises(ValueError):
            manifest.decode(document.encode(manifest.MAGIC, document.Features(), body))


@given(mangled(config.encode(CONFIG)))
def test_config_parser(data: bytes) -> None:
    try:
        assert config.decode(data) == CONFIG
    except (ValueError, UnsupportedFeatureError):
        return
    assert data == config.encode(CONFIG)


def test_unknown_features_are_refused() -> None:
    _, body = document.decode(config.MAGIC, document.Features(), config.encode(CONFIG))
    for features, reading, writing in (
        (document.Features(compat=4), True, True),
        (document.Features(ro_compat=4), True, False),
        (document.Features(incompat=4), False, False),
    ):
        data = document.encode(config.MAGIC, features, body)
        for allowed, mode in ((reading, False), (writing, True)):
            if allowed:
                assert config.decode(data, writing=mode) == CONFIG
            else:
                with pytest.raises(UnsupportedFeatureError, match="newer"):
                    config.decode(data, writing=mode)
    body["encryption"] = {"kdf": "scrypt"}
    with pytest.raises(UnsupportedFeatureError):
        config.decode(document.encode(config.MAGIC, document.Features(), body))


def encoded(plain: bytes, kind: int = KIND_CHUNK) -> bytes:
    one = record.Encoder(1).encode(record.identity(kind, plain), kind, plain)
    return one.header + bytes(one.stored)


RECORD = encoded(b"text " * 500)


@given(mangled(RECORD))
def test_record_parser(data: bytes) -> None:
    try:
        head = record.parse_header(data)
        plain = record.Decoder().decode(head, data[64 : 64 + head.stored_bytes])
    except ValueError:
        return
    assert bytes(plain) == b"text " * 500


def forged(stored: bytes, plain_bytes: int, identifier: bytes = b"i" * 32) -> tuple[record.Header, bytes]:
    head = record.HEADER.pack(
        record.MAGIC, 1, 1, 0, len(stored), plain_bytes, identifier, xxhash.xxh3_64_intdigest(stored)
    )
    return record.parse_header(head + record.SUM.pack(xxhash.xxh3_64_intdigest(head))), stored


def test_decompression_bombs_are_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 30))
    for plain_bytes in (len(bomb), 65536, config.CHUNK_LIMIT_BYTES):
        with pytest.raises(ValueError):
            record.Decoder().decode(*forged(bomb, max(plain_bytes, len(bomb))))
    sized = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(ValueError, match="not of the size"):
        record.Decoder().decode(*forged(sized, 65536))
    with pytest.raises(ValueError, match="not possible"):
        forged(sized, config.CHUNK_LIMIT_BYTES + 1)


def test_chunk_and_page_of_the_same_bytes_have_different_ids() -> None:
    assert record.identity(KIND_CHUNK, b"x" * 8192) != record.identity(KIND_PAGE, b"x" * 8192)


def make_pack(folder: Path) -> tuple[Path, list[Entry]]:
    number, fd = pack.create(folder, STORE, uuid.UUID(int=1), 1, lambda n: None)
    entries, at, body = [], pack.HEADER_BYTES, b""
    for text in (b"one" * 50, b"two" * 50, b"three" * 50):
        data = encoded(text)
        entries.append(Entry(record.identity(KIND_CHUNK, text), Location(number, at, len(data))))
        at += len(data)
        body += data
    path = pack.path_of(folder, number)
    with open(path, "r+b") as file:
        file.seek(pack.HEADER_BYTES)
        file.write(body)
    pack.seal(fd, path, at, entries)
    return path, entries


@settings(max_examples=200)
@given(st.data())
def test_pack_parser(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("packs")
    path, entries = make_pack(folder)
    path.write_bytes(data.draw(mangled(path.read_bytes())))
    try:
        reader = pack.PackReader(folder, STORE, 1)
    except DamagedError:
        return
    try:
        assert list(reader.scan()) == entries[: len(list(reader.scan()))]
        assert reader.footer() == entries
    except DamagedError:
        return
    finally:
        reader.close()


@given(st.data())
def test_segment_parser(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("index") / "a.seg"
    ids = sorted(record.identity(KIND_CHUNK, bytes([n])) for n in range(200))
    places = {one: Location(n, n + 1, n + 65) for n, one in enumerate(ids)}
    segment.write(path, STORE, [segment.pack_entry(one, at) for one, at in places.items()], 200, 1, 1)
    path.write_bytes(data.draw(mangled(path.read_bytes())))
    try:
        found = segment.Segment(path, STORE)
        for one, place in places.items():
            assert found.find(one) == place
        assert len(list(found.entries())) == 200
    except DamagedError:
        return


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=400), st.integers(0, 3))
def test_segments_find_all_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, ids: list[bytes], skew: int
) -> None:
    """Also where ids are not spread evenly: `skew` first bytes are equal, so that pages spill."""
    ids = sorted({bytes(skew) + one[skew:] for one in ids})
    path = tmp_path_factory.mktemp("index") / "a.seg"
    entries = [segment.pack_entry(one, Location(1, n, n)) for n, one in enumerate(ids)]
    assert segment.write(path, STORE, entries, len(ids), 1, 1) == len(ids)
    found = segment.Segment(path, STORE)
    assert list(found.entries()) == entries
    for n, one in enumerate(ids):
        assert found.find(one) == Location(1, n, n)
        other = one[:31] + bytes([one[31] ^ 1])
        assert other in ids or found.find(other) is None


@given(st.integers(0, 3 * FANOUT + 5), st.sets(st.integers(0, 3 * FANOUT + 4), max_size=20))
def test_trees_give_back_their_ids(chunks: int, filled: set[int]) -> None:
    ids = [n.to_bytes(32, "big") if n in filled else ZERO_ID for n in range(1, chunks + 1)]
    pages: dict[bytes, bytes] = {}
    builder = TreeBuilder(pages.__setitem__)
    for leaf in range(pages_at(chunks, 1)):
        builder.add_leaf(builder.page(ids[leaf * FANOUT : (leaf + 1) * FANOUT]))
    root, levels = builder.finish()
    assert levels == levels_for(chunks)
    reader = TreeReader(pages.__getitem__, root, levels, chunks)
    found = [one for number, leaf in enumerate(reader.leaf_ids()) for one in reader.leaf(number, leaf)]
    assert found == ids


def test_tall_tree() -> None:
    leaves = FANOUT * FANOUT + 3
    chunks = (leaves - 1) * FANOUT + 9
    pages: dict[bytes, bytes] = {}
    builder = TreeBuilder(pages.__setitem__)
    for leaf in range(leaves):
        builder.add_leaf(leaf.to_bytes(32, "big"))
    root, levels = builder.finish()
    assert levels == levels_for(chunks) == 4
    reader = TreeReader(pages.__getitem__, root, levels, chunks)
    assert list(reader.leaf_ids()) == [leaf.to_bytes(32, "big") for leaf in range(leaves)]


RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8).map(
    lambda pairs: sorted({n for first, length in pairs for n in range(first, first + length)})
)


def as_runs(numbers: list[int]) -> list[tuple[int, int]]:
    return list(chunk_runs((Extent(n, 1) for n in numbers), 1, 1000))


def as_set(runs: list[tuple[int, int]]) -> set[int]:
    return {n for first, last in runs for n in range(first, last)}


@given(RUNS, RUNS, st.integers(0, 70))
def test_arithmetic_of_runs(one: list[int], other: list[int], tail: int) -> None:
    a, b = as_runs(one), as_runs(other)
    assert as_set(a) == set(one)
    assert as_set(intersect(a, b)) == set(one) & set(other)
    assert as_set(subtract(a, b)) == set(one) - set(other)
    assert as_set(list(with_tail(a, (tail, 70)))) == {n for n in one if n < tail} | set(range(tail, 70))
    cursor = Cursor(a)
    windows = [cursor.within(low, low + 7) for low in range(0, 77, 7)]
    assert [as_set(found) for found in windows] == [{n for n in one if i * 7 <= n < i * 7 + 7} for i in range(11)]


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 900)), max_size=6), st.integers(1, 4000))
def test_extents_become_the_chunks_that_they_touch(pairs: list[tuple[int, int]], size: int) -> None:
    extents = [Extent(offset, length) for offset, length in sorted(pairs)]
    touched = {
        byte // 100 for e in extents for byte in range(e.offset, min(e.offset + e.length, size))
    }
    runs = list(chunk_runs(extents, 100, size))
    assert as_set(runs) == touched
    assert all(x[1] < y[0] for x, y in itertools.pairwise(runs))
