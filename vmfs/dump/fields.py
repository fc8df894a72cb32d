"""Each record of `vmfs.ondisk` as named fields. `vmfsctl dump --json` promises these names: add, never rename."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Mapping

from vmfs.dump.structure import Fields, Value, bit_runs, text_of
from vmfs.lockmethod import MEANINGS
from vmfs.ondisk.chunk import ChunkHead
from vmfs.ondisk.directory import DirectoryBlock
from vmfs.ondisk.group import GroupBlock
from vmfs.ondisk.header import BlockType, Header
from vmfs.ondisk.inode import FLAG_INLINE, FLAG_LAYER, NO_INHERIT_LIMIT, Inode
from vmfs.ondisk.journal import JournalHeader
from vmfs.ondisk.lock import FLAG_KEPT_UNTIL_ASKED, Holder, LockRecord
from vmfs.ondisk.node import ADDRESS_MASK, LOST, PUNCHED, STATE_MASK, UNWRITTEN, WRITTEN
from vmfs.ondisk.orphans import OrphanKind
from vmfs.ondisk.slot import RequestKind, SlotRecord
from vmfs.ondisk.superblock import Superblock
from vmfs.volume import method_name

Incarnations = Mapping[int, SlotRecord]
"""The slots that could be read, by number: who a holder is, and whether its hold counts."""

_STATES = {WRITTEN: "written", UNWRITTEN: "unwritten", PUNCHED: "punched"}
_TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device", stat.S_IFCHR: "character device",
}  # fmt: skip


def header_fields(header: Header) -> dict[str, Value]:
    """What every metadata block begins with."""
    try:
        name = BlockType(header.type).name.lower()
    except ValueError:
        name = f"type {header.type}"
    return {
        "type": name, "layout_version": header.version, "own_address": header.address,
        "generation": header.generation, "volume": header.volume.hex(), "owner": header.owner, "role": header.role,
    }  # fmt: skip


def superblock_fields(sb: Superblock) -> Fields:
    """A superblock copy."""
    t = sb.timers
    return {
        "label": sb.label, "volume": str(sb.volume), "generation": sb.generation, "created_ns": sb.created_ns,
        "compat": sb.compat, "ro_compat": sb.ro_compat, "incompat": sb.incompat,
        "block_bytes": sb.block_bytes, "sector_bytes": sb.sector_bytes, "lock_block_bytes": sb.lock_block_bytes,
        "lock_method": method_name(sb.lock_method) if sb.lock_method in MEANINGS else str(sb.lock_method),
        "max_hosts": sb.max_hosts, "blocks_per_group": sb.blocks_per_group, "preempt_wait_ms": sb.preempt_wait_ms,
        "heartbeat_us": t.heartbeat_us, "lease_us": t.lease_us, "margin_us": t.margin_us, "break_us": t.break_us,
        "validity_us": t.validity_us, "quarantine_us": t.quarantine_us, "drift_ppm": t.drift_ppm,
        "superblock_lock_address": sb.superblock_lock, "probe_address": sb.probe_address,
        "slots_address": sb.slots_address, "orphans_address": sb.orphans_address,
        "journals_address": sb.journals_address, "journal_bytes": sb.journal_bytes, "root_inode": sb.root_inode,
        "extent": sb.extent_index,
        "extents": [
            {"extent": i, "uuid": str(e.uuid), "size_bytes": e.size_bytes, "flags": e.flags}
            for i, e in enumerate(sb.extents)
        ],
        "segments": [
            {
                "segment": i, "extent": s.extent, "start": s.start, "groups": s.group_count,
                "first_group": s.first_group, "last_group_blocks": s.last_group_blocks,
            }
            for i, s in enumerate(sb.segments)
        ],
    }  # fmt: skip


def slot_fields(record: SlotRecord) -> Fields:
    """A heartbeat slot."""
    by = record.recoverer
    return {
        "slot": record.slot, "state": record.state.name.lower(), "incarnation": record.incarnation,
        "sequence": record.sequence, "host": record.host_name, "host_uuid": str(record.host_uuid),
        "boot_id": str(record.boot_id), "pid": record.pid, "start_ticks": record.start_ticks,
        "pid_namespace": record.pid_namespace, "written_ns": record.wall_ns, "interval_us": record.interval_us,
        "lease_us": record.lease_us, "features": record.features,
        "recoverer_slot": None if by is None else by.slot,
        "recoverer_incarnation": None if by is None else by.incarnation,
        "requests": [
            {
                "kind": _request_name(r.kind), "to_slot": r.to_slot, "serial": r.serial, "target_address": r.target,
                "argument": r.argument,
            }
            for r in record.requests
        ],
    }  # fmt: skip


def _request_name(kind: int) -> str:
    try:
        return RequestKind(kind).name.lower()
    except ValueError:
        return f"kind {kind}"


def lock_fields(record: LockRecord, slots: Incarnations) -> Fields:
    """A lock, and whether its holds count (rule R7 of docs/locking.md)."""
    return {
        "guards": record.guards.name.lower(), "mode": record.mode.name.lower(), "version": record.version,
        "stamp": record.stamp, "kept_until_asked": bool(record.flags & FLAG_KEPT_UNTIL_ASKED),
        "waiter": None if record.waiter is None else _who(record.waiter, slots),
        "waiter_intent": record.waiter_intent.name.lower(), "hand_over": record.hand_over.name.lower(),
        "destination": None if record.destination is None else _who(record.destination, slots),
        "value": record.value.hex(),
        "holders": [_holder(h, slots) for h in record.all_holders],
    }  # fmt: skip


def _who(holder: Holder, slots: Incarnations) -> str:
    found = slots.get(holder.slot)
    name = found.host_name if found is not None and found.incarnation == holder.incarnation else ""
    return f"slot {holder.slot}, incarnation {holder.incarnation}" + (f" ({name})" if name else "")


def _holder(holder: Holder, slots: Incarnations) -> Fields:
    found = slots.get(holder.slot)
    same = found is not None and found.incarnation == holder.incarnation
    return {
        "slot": holder.slot, "incarnation": holder.incarnation,
        "host": found.host_name if found is not None and same else None,
        "void": None if found is None else found.incarnation > holder.incarnation,
    }  # fmt: skip


def group_fields(group: GroupBlock) -> Fields:
    """A group's block. Runs of blocks are [first, last]."""
    return {
        "group": group.index, "blocks": group.block_count, "free_blocks": group.free_blocks,
        "free_units": group.free_units, "used": bit_runs(group.used), "metadata": bit_runs(group.meta),
        "quarantine": bit_runs(group.quarantine),
    }  # fmt: skip


def chunk_fields(head: ChunkHead, inodes: Iterable[int]) -> Fields:
    """A chunk's head, and the numbers of the inodes that have their places there."""
    return {
        "group": head.group, "units": head.unit_count, "free_units": head.unit_count - head.used.bit_count(),
        "used": bit_runs(head.used), "lock_blocks_at": bit_runs(head.inodes), "inodes": list(inodes),
    }  # fmt: skip


def inode_fields(inode: Inode) -> Fields:
    """An inode. Its root's pointers are told as a map tells them."""
    flags = [name for bit, name in ((FLAG_LAYER, "layer"), (FLAG_INLINE, "inline")) if inode.flags & bit]
    return {
        "inode": inode.number, "in_use": inode.in_use, "file_type": _TYPES.get(stat.S_IFMT(inode.mode), "none"),
        "mode": oct(inode.mode), "uid": inode.uid, "gid": inode.gid, "links": inode.nlink,
        "inode_generation": inode.inode_generation, "flags": flags, "size": inode.size,
        "own_blocks": inode.own_blocks, "shared_blocks": inode.shared_blocks, "atime_ns": inode.atime_ns,
        "mtime_ns": inode.mtime_ns, "ctime_ns": inode.ctime_ns, "btime_ns": inode.btime_ns, "rdev": inode.rdev,
        "version": inode.version, "map_id": inode.map_id, "height": inode.height, "layer_depth": inode.layer_depth,
        "parent_inode": inode.parent or None, "parent_generation": inode.parent_generation,
        "children": inode.children,
        "inherit_limit": None if inode.inherit_limit == NO_INHERIT_LIMIT else inode.inherit_limit,
        "directory_parent": inode.directory_parent or None, "seed": inode.seed, "entries": inode.entry_count,
        "split": inode.split, "level": inode.level, "inline": text_of(inode.inline),
        "xattrs": [{"name": text_of(k), "value": text_of(v)} for k, v in inode.xattrs.items()],
        "root": pointer_runs(inode.root, 0, 1),
    }  # fmt: skip


def pointer_runs(pointers: array[int], first: int, step_bytes: int) -> list[Fields]:
    """Pointers that are no holes, `first` being the number of the first one; runs of neighbours are told together.

    `step_bytes`: how far apart the places of neighbours lie when they follow each other (a block).
    """
    runs: list[dict[str, Value]] = []
    last: tuple[int, int, int] | None = None  # (number, address, state) of the pointer before
    for number, pointer in enumerate(pointers, first):
        if not pointer:
            continue
        state, address = pointer & ~ADDRESS_MASK, pointer & ADDRESS_MASK
        follows = last is not None and last[0] == number - 1 and last[2] == state and state != 0
        if follows and last is not None and address == (0 if state == PUNCHED else last[1] + step_bytes):
            count = runs[-1]["count"]
            assert isinstance(count, int)
            runs[-1]["count"] = count + 1
        else:
            named = "lost" if pointer == LOST else _STATES.get(state, f"impossible ({pointer & ~ADDRESS_MASK:#x})")
            place = None if pointer == PUNCHED else address
            runs.append({"first": number, "count": 1, "state": named, "address": place})
        last = number, address, state
    return [dict(run) for run in runs]


def node_fields(level: int, index: int, map_id: int, pointers: array[int], block_bytes: int) -> Fields:
    """A map node. Its pointers are numbered as in the file's map of that level."""
    held = sum(1 for p in pointers if p & STATE_MASK)
    runs = pointer_runs(pointers, index * len(pointers), block_bytes if level == 0 else 0)
    return {"level": level, "index": index, "map_id": map_id, "pointers": held, "runs": runs}


def directory_fields(block: DirectoryBlock, bucket: int) -> Fields:
    """One block of a bucket of a directory."""
    return {
        "bucket": bucket, "bits": block.bits, "overflow_address": block.overflow or None,
        "used_bytes": block.used_bytes,
        "entries": [
            {
                "name": text_of(e.name), "inode": e.inode, "generation": e.generation,
                "file_type": _TYPES.get(e.type << 12, f"type {e.type}"), "hash": e.hash,
            }
            for e in block.entries.values()
        ],
    }  # fmt: skip


def orphans_fields(slot: int, entries: Mapping[tuple[int, int], OrphanKind]) -> Fields:
    """A slot's unfinished removals and truncations."""
    listed: list[Fields] = [
        {"inode": i, "generation": g, "what": kind.name.lower()} for (i, g), kind in entries.items()
    ]
    return {"slot": slot, "entries": listed}


def journal_header_fields(header: JournalHeader, *, counts: bool) -> Fields:
    """A copy of a journal's header; `counts`: replay starts from this one."""
    return {
        "slot": header.slot, "incarnation": header.incarnation, "tail_sequence": header.tail_sequence,
        "tail_position": header.tail_position, "counts": counts,
    }  # fmt: skip
