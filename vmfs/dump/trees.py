"""Inodes and what hangs from them: maps with their layers, nodes, directories, and the way from a path to its inode."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmfs.dump.decode import problem_of
from vmfs.dump.fields import directory_fields, inode_fields, node_fields, pointer_runs
from vmfs.dump.fixed import Dumper
from vmfs.dump.places import place_of
from vmfs.dump.structure import Fields, Structure, Value
from vmfs.errors import DamagedBlock, NoSuchStructure, UnsupportedFormat
from vmfs.ondisk import directory, inode, node
from vmfs.ondisk.directory import DirectoryBlock
from vmfs.ondisk.header import METADATA_BLOCK_BYTES, BlockType, peek
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import ADDRESS_MASK, LOST, POINTERS_PER_NODE, WRITTEN

_LEVEL_SHIFT = 56  # a node's role: level, then index


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of a map on the way down; `pointers` is None where it cannot be read."""

    level: int
    index: int
    address: int
    pointers: array[int] | None
    problem: str = ""


class Trees:
    """What the inodes of a volume lead to. Raises as `Dumper` does."""

    def __init__(self, dumper: Dumper) -> None:
        self._dumper = dumper
        self._volume = dumper.volume

    # -- inodes ------------------------------------------------------------------------------------

    def inode(self, number: int) -> Structure:
        """An inode."""
        self._dumper.check_inode(number)
        uuid = self._volume.uuid
        return self._dumper.block_of(
            BlockType.INODE, inode_address(number),
            lambda b: inode.parse(b, number, uuid),
            lambda b, h: inode.parse(b, h.address >> inode.ADDRESS_SHIFT, h.volume),
            inode_fields,
        )  # fmt: skip

    def find(self, path: str) -> int:
        """The number of the inode that a path from the volume's root leads to. Symbolic links are not followed.

        Raises NoSuchStructure where no name leads there, or a damaged block is in the way.
        """
        number = self._volume.superblock.root_inode
        for name in (part for part in path.encode("utf-8", "surrogateescape").split(b"/") if part):
            try:
                found = self._lookup(self._parse_inode(number), name)
            except (DamagedBlock, UnsupportedFormat) as error:
                raise NoSuchStructure(self._volume.superblock.label, f"path {path} to be read", str(error)) from error
            if found is None:
                label, shown = self._volume.superblock.label, name.decode("utf-8", "backslashreplace")
                raise NoSuchStructure(label, f"path {path}", f"directory {number} has no readable entry {shown}")
            number = found
        return number

    def _lookup(self, folder: Inode, name: bytes) -> int | None:
        if not folder.is_directory:
            return None
        for _, block in self._buckets(folder, None):
            if isinstance(block, DirectoryBlock) and name in block.entries:
                return block.entries[name].inode
        return None

    def _parse_inode(self, number: int) -> Inode:
        self._dumper.check_inode(number)
        return inode.parse(self._read(inode_address(number)), number, self._volume.uuid)

    # -- maps --------------------------------------------------------------------------------------

    def map(self, number: int) -> list[Structure]:
        """The map of an inode, and of each layer below it, down to the last."""
        shown: list[Structure] = []
        seen: set[int] = set()
        while number and number not in seen:
            seen.add(number)
            if shown:
                try:
                    self._dumper.check_inode(number)
                except NoSuchStructure as error:
                    shown[-1] = replace(shown[-1], problems=(*shown[-1].problems, f"layer below: {error}"))
                    break
            address = inode_address(number)
            block = self._read(address)
            try:
                found = inode.parse(block, number, self._volume.uuid)
            except (DamagedBlock, UnsupportedFormat) as error:
                where, problem = place_of(self._volume, address), problem_of(error)
                shown.append(Structure("map", address, where, {"inode": number}, (problem,), block))
                break
            shown.append(self._map(found, block))
            number = found.parent
        if number in seen and number:
            shown[-1] = replace(shown[-1], problems=(*shown[-1].problems, f"layers go round: {number} again"))
        return shown

    def _map(self, found: Inode, block: bytes) -> Structure:
        problems: list[str] = []
        nodes: list[Fields] = []
        runs: list[Fields] = []
        block_bytes = METADATA_BLOCK_BYTES if found.is_directory else self._volume.superblock.block_bytes
        if found.height == 0:
            runs += pointer_runs(found.root, 0, block_bytes)
        for each in self._nodes(found):
            nodes.append({"level": each.level, "index": each.index, "address": each.address})
            if each.pointers is None:
                problems.append(f"node of level {each.level}, index {each.index} at {each.address:#x}: {each.problem}")
            elif each.level == 0:
                runs += pointer_runs(each.pointers, each.index * POINTERS_PER_NODE, block_bytes)
        fields: dict[str, Value] = {
            "inode": found.number, "map_id": found.map_id, "height": found.height, "size": found.size,
            "own_blocks": found.own_blocks, "shared_blocks": found.shared_blocks, "layer": found.is_layer,
            "layer_depth": found.layer_depth, "parent_inode": found.parent or None, "nodes": nodes, "runs": runs,
        }  # fmt: skip
        address = inode_address(found.number)
        return Structure("map", address, place_of(self._volume, address), fields, tuple(problems), block)

    def _nodes(self, found: Inode) -> Iterator[_Node]:
        """All nodes of a map, each before those below it."""
        if found.height:
            yield from self._below(found, found.root, found.height, 0)

    def _below(self, found: Inode, pointers: array[int], level: int, first: int) -> Iterator[_Node]:
        for index, pointer in enumerate(pointers, first):
            if not pointer:
                continue
            each = self._node(found, pointer, level - 1, index)
            yield each
            if each.pointers is not None and each.level:
                yield from self._below(found, each.pointers, each.level, index * POINTERS_PER_NODE)

    def _node(self, found: Inode, pointer: int, level: int, index: int) -> _Node:
        address = pointer & ADDRESS_MASK
        if pointer == LOST:
            return _Node(level, index, address, None, "lost: `check --repair` gave it up")
        if pointer & ~ADDRESS_MASK != WRITTEN:
            return _Node(level, index, address, None, f"impossible pointer {pointer:#x}")
        try:
            block = self._read(address)
            pointers, _ = node.parse(block, address, self._volume.uuid, found.map_id, level, index)
        except (DamagedBlock, UnsupportedFormat, NoSuchStructure) as error:
            problem = str(error) if isinstance(error, NoSuchStructure) else problem_of(error)
            return _Node(level, index, address, None, problem)
        return _Node(level, index, address, pointers)

    def node(self, address: int) -> Structure:
        """The map node at `address`, of whichever map."""
        block_bytes = self._volume.superblock.block_bytes
        stated = peek(self._read(address))
        level, index = stated.role >> _LEVEL_SHIFT, stated.role & (1 << _LEVEL_SHIFT) - 1
        return self._dumper.block_of(
            BlockType.NODE, address,
            lambda b: node.parse(b, address, self._volume.uuid, stated.owner, level, index),
            lambda b, h: node.parse(b, h.address, h.volume, h.owner, level, index),
            lambda parsed: node_fields(level, index, stated.owner, parsed[0], block_bytes),
        )  # fmt: skip

    # -- directories -------------------------------------------------------------------------------

    def directory(self, number: int, bucket: int | None) -> list[Structure]:
        """The blocks of a directory, or only those of one bucket; first its inode."""
        top = self.inode(number)
        try:
            folder = self._parse_inode(number)
        except (DamagedBlock, UnsupportedFormat):
            return [top]
        label = self._volume.superblock.label
        if not folder.is_directory:
            raise NoSuchStructure(label, f"directory {number}", "the inode of that number is none")
        total = (1 << folder.level) + folder.split
        if bucket is not None and not 0 <= bucket < total:
            raise NoSuchStructure(label, f"bucket {bucket} of directory {number}", f"it has {total}")
        broken = tuple(
            f"node at {n.address:#x}: {n.problem}" for n in self._nodes(folder) if n.pointers is None
        )  # fmt: skip
        shown = [replace(top, problems=(*top.problems, *broken))]
        for address, found in self._buckets(folder, bucket):
            shown.append(self.directory_block(address) if isinstance(found, DirectoryBlock) else found)
        return shown

    def directory_block(self, address: int) -> Structure:
        """The directory block at `address`, of whichever directory."""
        stated = peek(self._read(address))
        return self._dumper.block_of(
            BlockType.DIRECTORY, address,
            lambda b: directory.parse(b, address, self._volume.uuid, stated.owner, stated.role),
            lambda b, h: directory.parse(b, h.address, h.volume, h.owner, h.role),
            lambda parsed: directory_fields(parsed, stated.role),
        )  # fmt: skip

    def _buckets(self, folder: Inode, only: int | None) -> Iterator[tuple[int, DirectoryBlock | Structure]]:
        """(address, block) of each block of the buckets; a Structure for one that is not what it must be."""
        for first, pointers in self._leaves(folder):
            for number, pointer in enumerate(pointers, first):
                address, seen = pointer & ADDRESS_MASK, set[int]()
                while address and only in (None, number) and address not in seen:
                    seen.add(address)
                    block = self._directory_block(folder, number, address)
                    yield address, block
                    address = block.overflow if isinstance(block, DirectoryBlock) else 0

    def _directory_block(self, folder: Inode, bucket: int, address: int) -> DirectoryBlock | Structure:
        try:
            return directory.parse(self._read(address), address, self._volume.uuid, folder.map_id, bucket)
        except NoSuchStructure as error:
            return Structure("directory", address, "nothing", {"bucket": bucket}, (str(error),))
        except (DamagedBlock, UnsupportedFormat) as error:
            found = self.directory_block(address)
            return replace(found, problems=found.problems or (problem_of(error),))

    def _leaves(self, folder: Inode) -> Iterator[tuple[int, array[int]]]:
        if folder.height == 0:
            yield 0, folder.root
        for each in self._nodes(folder):
            if each.level == 0 and each.pointers is not None:
                yield each.index * POINTERS_PER_NODE, each.pointers

    def _read(self, address: int) -> bytes:
        return self._dumper.read(address, METADATA_BLOCK_BYTES)
