"""Records cross the socket unchanged, and nothing else passes for one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.control.ramvolume import RamVolume
from tests.fuse.ramfs import RamFs
from vmfs.control.contract import HostInfo, LockInfo, VolumeInfo
from vmfs.control.errors import ProtocolError
from vmfs.control.records import from_json, to_json

LOCK: dict[str, Any] = {
    "what": "file", "inode": 7, "path": None, "mode": "exclusive", "holders": ["esx1"], "version": 3, "open_files": 1,
    "pins": 0,
}  # fmt: skip

texts = st.text(max_size=20)
counts = st.integers(min_value=0, max_value=(1 << 64) - 1)


def over_the_wire(value: object) -> Any:
    return json.loads(json.dumps(to_json(value)))


def test_an_info_survives_the_way() -> None:
    info = RamVolume(RamFs(), "/mnt/a").info()
    assert from_json(VolumeInfo, over_the_wire(info)) == info


@given(st.builds(HostInfo, counts, texts, st.uuids(), st.uuids(), counts, texts, counts, st.none() | st.floats(0, 1e9)))
def test_any_host_survives_the_way(host: HostInfo) -> None:
    assert from_json(HostInfo, over_the_wire(host)) == host


def test_a_name_that_is_no_utf8_survives_the_way() -> None:
    lock = LockInfo("file", 7, "/\udcff", "free", (), 1)
    assert from_json(LockInfo, over_the_wire(lock)) == lock


def test_unknown_members_are_passed_over_and_defaults_filled_in() -> None:
    fields = {k: v for k, v in LOCK.items() if k not in ("open_files", "pins")} | {"new_in_some_version": [1]}
    assert from_json(LockInfo, fields) == LockInfo("file", 7, None, "exclusive", ("esx1",), 3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": "3"}, "LockInfo.version: not int but str"),
        ({"version": True}, "LockInfo.version: not int but bool"),
        ({"version": 3.0}, "LockInfo.version: not int but float"),
        ({"version": None}, "LockInfo.version: not int but NoneType"),
        ({"inode": []}, "LockInfo.inode: not int but list"),
        ({"holders": "esx1"}, "LockInfo.holders: not an array but str"),
        ({"holders": [1]}, "LockInfo.holders: not str but int"),
        ({"path": {}}, "LockInfo.path: not str but dict"),
    ],
)
def test_a_member_of_another_type_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        from_json(LockInfo, LOCK | change)


@pytest.mark.parametrize("missing", ["what", "inode", "version"])
def test_a_missing_member_is_refused(missing: str) -> None:
    with pytest.raises(ProtocolError, match=rf"LockInfo\.{missing} is missing"):
        from_json(LockInfo, {k: v for k, v in LOCK.items() if k != missing})


@pytest.mark.parametrize("text", ["", "esx1", "6666", 5])
def test_what_is_no_uuid_is_refused(text: Any) -> None:
    with pytest.raises(ProtocolError, match="not a UUID"):
        from_json(UUID, text)


@dataclass(frozen=True)
class Pair:
    ends: tuple[int, int]


def test_a_tuple_of_another_length_is_refused() -> None:
    assert from_json(Pair, {"ends": [1, 2]}) == Pair((1, 2))
    with pytest.raises(ProtocolError, match="3 members, not 2"):
        from_json(Pair, {"ends": [1, 2, 3]})


def test_what_no_record_holds_is_not_sent() -> None:
    with pytest.raises(TypeError, match="set does not cross"):
        to_json({1, 2})
