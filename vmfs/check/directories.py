"""The tree of directories: every name hashed to its place, every entry leading to what it says, every link counted."""

from __future__ import annotations

import stat
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from vmfs.check.findings import Kind, Report
from vmfs.check.inodes import FILE_TYPES, InodeFacts, Inodes
from vmfs.check.maps import Maps
from vmfs.check.source import Source
from vmfs.check.space import Space
from vmfs.errors import DamagedBlock, DeviceError
from vmfs.ondisk import directory
from vmfs.ondisk.directory import DirectoryBlock, Entry, name_hash
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.inode import Inode, inode_address
from vmfs.ondisk.node import ADDRESS_MASK, WRITTEN

_STATE_AND_RESERVED = 0xFFF


def bucket_of(hash_: int, level: int, split: int) -> int:
    """The bucket of a hash in a table of that level and split point."""
    bucket = hash_ & ((1 << level) - 1)
    return hash_ & ((2 << level) - 1) if bucket < split else bucket


def bucket_bits(bucket: int, level: int, split: int) -> int:
    """How many bits of the hash decide that bucket."""
    return level + 1 if bucket < split or bucket >= 1 << level else level


class Directories:
    """Walks the tree from the root. What it claims goes to `space`."""

    def __init__(self, source: Source, space: Space, maps: Maps, inodes: Inodes, report: Report) -> None:
        self._source = source
        self._space = space
        self._maps = maps
        self._inodes = inodes
        self._report = report
        self.names: Counter[int] = Counter()
        """By inode: how many names lead to it."""
        self._subdirectories: Counter[int] = Counter()
        self.found_in: dict[int, int] = {}
        """By directory: the one that holds its name."""
        self._found_as: dict[int, bytes] = {}
        self.complete = True
        """Every directory block could be read."""
        self.broken: set[int] = set()
        """Directories to be made anew from their names."""
        self.drop: dict[int, set[bytes]] = defaultdict(set)
        """By directory: names to be left out then."""
        self.lost: list[int] = []
        """Inodes in use to which no name leads."""
        self.to_damaged: dict[int, tuple[int, Entry]] = {}
        """By damaged inode: a directory that names it, and how."""

    def check(self, step: Callable[[int, int], None]) -> None:
        """Walk all directories, those that no name leads to as well; `step` gets (directories done, all)."""
        facts = self._inodes.facts
        root = self._source.volume.superblock.root_inode
        everything = [n for n, f in facts.items() if f.is_directory]
        self._report.counts.directories = len(everything)
        found = facts.get(root)
        if root not in self._inodes.damaged and (found is None or not found.is_directory):
            self._report.add(
                Kind.INODE_STATE_WRONG, f"the root, inode {root}, is no directory in use",
                address=inode_address(root), inode=root,
            )  # fmt: skip
        for done, number in enumerate(everything, 1):
            self.check_one(facts[number])
            step(done, len(everything))
        self._check_reachable(root)
        self._check_links(root)

    # -- one directory -----------------------------------------------------------------------------

    def check_one(self, facts: InodeFacts) -> None:
        """One directory's table and names."""
        try:
            inode = self._inodes.read(facts.number)
        except (DamagedBlock, DeviceError):
            self.complete = False  # it was readable a moment ago: the storage is failing, and says so elsewhere
            return
        if inode.level > 62 or inode.split >= 1 << inode.level:
            message = f"directory {inode.number} has split point {inode.split} at level {inode.level}"
            self._add(Kind.DIRECTORY_SHAPE_WRONG, message, inode)
            self.complete = False
            self.broken.add(inode.number)
            return
        count = blocks = 0
        whole = True
        for bucket, pointer in self._buckets(inode):
            names: set[bytes] = set()
            for address, block in self._chain(inode, bucket, pointer):
                if block is None:
                    whole = False
                    continue
                self._check_block(inode, bucket, address, block, names)
                count += len(block.entries)
                blocks += 1
        if not whole or inode.number in self._maps.broken:
            self.complete = False
            self.broken.add(inode.number)
        else:
            self._check_counts(inode, count, blocks)
        self._report.counts.entries += count

    def _check_counts(self, inode: Inode, entries: int, blocks: int) -> None:
        if entries != inode.entry_count:
            message = f"directory {inode.number} counts {inode.entry_count} names and has {entries}"
            self._add(Kind.ENTRY_COUNT_WRONG, message, inode, entry_count=entries)
        if blocks != inode.own_blocks:
            message = f"directory {inode.number} counts {inode.own_blocks} blocks and has {blocks}"
            self._add(Kind.BLOCK_COUNT_WRONG, message, inode, own_blocks=blocks)
        if inode.size != blocks * METADATA_BLOCK_BYTES:
            message = f"directory {inode.number} of {blocks} blocks has a size of {inode.size}"
            self._add(Kind.SIZE_WRONG, message, inode, size=blocks * METADATA_BLOCK_BYTES)

    def _buckets(self, inode: Inode) -> Iterator[tuple[int, int]]:
        total = (1 << inode.level) + inode.split
        pointers: array[int]
        for first, pointers in self._maps.leaves(inode):
            for at, pointer in enumerate(pointers):
                if not pointer:
                    continue
                bucket = first + at
                if bucket >= total or pointer & _STATE_AND_RESERVED != WRITTEN:
                    what = f"bucket {bucket} of directory {inode.number}: "
                    problem = f"there are only {total} buckets" if bucket >= total else f"pointer {pointer:#x}"
                    self._add(Kind.DIRECTORY_SHAPE_WRONG, what + problem, inode)
                    self.broken.add(inode.number)
                    continue
                yield bucket, pointer & ADDRESS_MASK

    def _chain(self, inode: Inode, bucket: int, address: int) -> Iterator[tuple[int, DirectoryBlock | None]]:
        """The blocks of one bucket; None for one that cannot be read (and ends the chain)."""
        what = f"block of bucket {bucket}"
        while address:
            if not self._space.is_unit(address, what, inode.number):
                yield address, None
                return
            block = self._read_block(inode, bucket, address)
            # A chain that comes back to itself meets a unit that is claimed already.
            if block is not None and not self._space.claim_units(address, 1, what, inode.number):
                block = None
            yield address, block
            address = block.overflow if block is not None else 0

    def _read_block(self, inode: Inode, bucket: int, address: int) -> DirectoryBlock | None:
        try:
            return directory.parse(
                self._source.unit(address), address, self._source.volume.uuid, inode.map_id, bucket
            )
        except DamagedBlock as error:
            kind, problem = Kind.DIRECTORY_DAMAGED, error.what
        except DeviceError as error:
            kind, problem = Kind.READ_FAILED, str(error)
        message = f"directory {inode.number}, bucket {bucket}: {problem}"
        self._report.add(kind, message, address=address, inode=inode.number)
        return None

    def _check_block(
        self, inode: Inode, bucket: int, address: int, block: DirectoryBlock, names: set[bytes]
    ) -> None:
        if block.bits != bucket_bits(bucket, inode.level, inode.split):
            self.broken.add(inode.number)
            message = f"directory {inode.number}: a block of bucket {bucket} stands for {block.bits} bits of the hash"
            self._report.add(Kind.DIRECTORY_SHAPE_WRONG, message, address=address, inode=inode.number)
        for entry in block.entries.values():
            problem = None
            if entry.name in (b".", b".."):
                problem = "no directory holds that name"
            elif entry.hash != name_hash(entry.name, inode.seed):
                problem = "its hash is wrong"
            elif bucket_of(entry.hash, inode.level, inode.split) != bucket:
                problem = f"it is in bucket {bucket}, where nobody looks for it"
            elif entry.name in names:
                problem = "it is there twice"
            if problem:
                self.broken.add(inode.number)
                message = f"{_name(entry)} in directory {inode.number}: {problem}"
                self._report.add(Kind.ENTRY_WRONG, message, address=address, inode=entry.inode)
            names.add(entry.name)
            self._check_entry(inode, address, entry)

    def _check_entry(self, inode: Inode, address: int, entry: Entry) -> None:
        target = self._inodes.facts.get(entry.inode)
        problem = None
        if entry.inode in self._inodes.damaged:
            problem = "is damaged"
            self.to_damaged[entry.inode] = inode.number, entry
        elif target is None:
            problem = "is not in use"
            if self._space.is_headless(inode_address(entry.inode)):
                # With the chunk's bitmaps gone too, an inode that is damaged does not show.
                problem = "cannot be found in a damaged chunk"
                self._inodes.damaged.add(entry.inode)
                self.to_damaged[entry.inode] = inode.number, entry
        elif target.is_layer:
            problem = "is a layer"
        elif target.generation != entry.generation:
            problem = f"is of generation {target.generation} now, not {entry.generation}"
        elif stat.S_IFMT(target.mode) >> 12 != entry.type:
            problem = f"is of type {stat.S_IFMT(target.mode) >> 12}, not {entry.type}"
            if stat.S_IFMT(target.mode) not in FILE_TYPES:
                self.to_damaged[entry.inode] = inode.number, entry
        if problem or target is None:
            if entry.inode not in self._inodes.damaged:
                self.broken.add(inode.number)
            message = f"{_name(entry)} in directory {inode.number} leads to inode {entry.inode}, which {problem}"
            self._report.add(Kind.ENTRY_DANGLING, message, address=address, inode=entry.inode)
            return
        self.names[entry.inode] += 1
        if target.is_directory:
            self._note_home(inode.number, entry, target)

    def _note_home(self, directory: int, entry: Entry, target: InodeFacts) -> None:
        """A directory has one name: of several, the one in the directory that it says it lies in, or the first."""
        before = self.found_in.get(entry.inode)
        self._subdirectories[directory] += 1
        if before is not None:
            if target.directory_parent == directory != before:
                self.drop[before].add(self._found_as[entry.inode])
                self.broken.add(before)
            else:
                self.drop[directory].add(entry.name)
                self.broken.add(directory)
                return
        self.found_in[entry.inode] = directory
        self._found_as[entry.inode] = entry.name

    # -- all of them -------------------------------------------------------------------------------

    def _check_reachable(self, root: int) -> None:
        """Directories whose way up does not end at the root: a cycle, or a lost subtree's top."""
        reaches: set[int] = {root}
        for start in self.found_in:
            path: dict[int, None] = {}  # in order, and quick to look up
            at: int | None = start
            while at is not None and at not in reaches and at not in path:
                path[at] = None
                at = self.found_in.get(at)
            if at in path:
                message = f"directory {at} lies within itself: no name from the root leads to it"
                self._report.add(Kind.INODE_LOST, message, address=inode_address(at), inode=at)
                self.drop[self.found_in[at]].add(self._found_as[at])
                self.broken.add(self.found_in[at])
            reaches.update(path)

    def _check_links(self, root: int) -> None:
        for number, facts in self._inodes.facts.items():
            if facts.is_layer:
                continue
            names = self.names[number] + (1 if number == root else 0)
            if not names:
                # With a directory that cannot be read, its names are gone, and not the files' fault.
                if facts.nlink and self.complete:
                    self._lost(facts)
                continue
            if facts.is_directory:
                self._check_directory_links(facts, root, names)
            elif facts.nlink != names and (self.complete or facts.nlink < names):
                message = f"inode {number} counts {facts.nlink} names and has {names}"
                self._report.add(
                    Kind.LINKS_WRONG, message, address=inode_address(number), inode=number, nlink=names
                )

    def _lost(self, facts: InodeFacts) -> None:
        self.lost.append(facts.number)
        kind = "directory" if facts.is_directory else "inode"
        message = f"no name leads to {kind} {facts.number}, which counts {facts.nlink}"
        self._report.add(Kind.INODE_LOST, message, address=inode_address(facts.number), inode=facts.number)

    def _check_directory_links(self, facts: InodeFacts, root: int, names: int) -> None:
        number = facts.number
        wanted = 2 + self._subdirectories[number]
        if names > 1:
            message = f"{names} names lead to directory {number}"
            self._report.add(Kind.LINKS_WRONG, message, address=inode_address(number), inode=number)
        elif facts.nlink != wanted and self.complete:
            message = f"directory {number} counts {facts.nlink} links and has {wanted}"
            self._report.add(Kind.LINKS_WRONG, message, address=inode_address(number), inode=number, nlink=wanted)
        home = root if number == root else self.found_in[number]
        if facts.directory_parent != home:
            message = f"directory {number} says that it lies in {facts.directory_parent}, and lies in {home}"
            self._report.add(
                Kind.PARENT_WRONG, message, address=inode_address(number), inode=number, directory_parent=home
            )

    def _add(self, kind: Kind, message: str, inode: Inode, **fix: int) -> None:
        self._report.add(kind, message, address=inode_address(inode.number), inode=inode.number, **fix)


def _name(entry: Entry) -> str:
    return repr(entry.name.decode("utf-8", "backslashreplace"))
