"""What clients do with the contents of files, and how what they read is judged."""

from __future__ import annotations

import os

from tests.simulator.model import SECTOR, FileModel, Violation, content
from tests.simulator.registers import Candidate, Change
from tests.simulator.worker import BLOCK, BLOCK_SECTORS, CONTEXT, FAR_BLOCK, FILE_BLOCKS, Worker
from vmfs.fuse.contract import BUFFER_SLACK_BYTES, SetAttr, WouldBlock


class FileWork(Worker):
    """Opens, writes, reads, syncs and cuts files."""

    def session(self) -> None:
        """Open a file for writing and work on it."""
        key = self._some_name()
        file = self._lookup(*key)
        if file is None or file.node is None:
            return
        node = file.node[0]
        opened = self.fs.open(CONTEXT, node, os.O_RDWR, False)
        self._work_on(file, node, opened.fh)

    def _work_on(
        self, file: FileModel, node: int, fh: int, *, reads: bool = False, empty: bool | None = None
    ) -> None:
        """Write, read, sync, truncate; the file is open for writing here.

        `reads`: nothing but read. `empty`: nothing but make it empty (True), or fill its first blocks (False).
        """
        opened = self.world.open_for_writing.setdefault(self.process, [])
        opened.append(file)
        try:
            if self.plane_generation(fh) != (file.node or (0, 0))[1]:
                return  # the inode is another file's by now: the name was looked up without a lock
            self._handed_over(file)
            if not self._settle_size(file, node, fh):
                return
            if empty is not None:
                if empty:
                    self._cut(file, node, 0)
                    self._sync(file, node, fh)
                else:
                    self._write_at(file, fh, 0, 2 * BLOCK_SECTORS)
                return
            if reads:
                self._read_at(file, fh, 0, BLOCK_SECTORS)
            elif self.world.plan.style == "clones" and self.rng.random() < 0.6:
                self._burst(file, node, fh)
            for _ in range(self.rng.randrange(1, 6)):
                choice = (0, 1, 0, 0) if reads else (6, 3, 3, 1)
                action = self.rng.choices((self._write, self._read, self._sync, self._truncate), choice)[0]
                action(file, node, fh)
        finally:
            opened.remove(file)
            if not self._is_killed():
                self.fs.release(node, fh, os.O_RDWR)

    def plane_generation(self, fh: int) -> int:
        return self.volume.files.handles[fh].file.generation

    def _handed_over(self, file: FileModel) -> None:
        """This host has the file's lock: what others did to it before is settled."""
        if file.handed_to is not self.process:
            if file.handed_to is not None:
                for register in file.registers():
                    if not register.under_way and len(register.possible()) == 1:
                        register.synced(register.mark(), self.world.now)
            file.handed_to = self.process

    def _settle_size(self, file: FileModel, node: int, fh: int) -> bool:
        """Learn the file's size, of which after a crash the model knows only what it may be."""
        if file.size.under_way:
            return len(file.size.possible()) == 1
        mark = file.size.mark()
        size = self.fs.getattr(CONTEXT, node, fh).attr.size
        if file.size.mark() is mark and not file.size.under_way:
            self._raise(file.size.settle(size, self.world.now, durable=False))
        return len(file.size.possible()) == 1

    def _write(self, file: FileModel, node: int, fh: int) -> None:
        first = self._some_block() + self.rng.choice((0, 0, 3, 64, 120))
        self._write_at(file, fh, first, self.rng.choice((1, 1, 2, 5, 16, BLOCK_SECTORS)))

    def _write_at(self, file: FileModel, fh: int, first: int, count: int) -> None:
        world = self.world
        if file.uid in world.truncating:
            return
        token = self.model.number()
        self.model.writers[token] = file.uid
        data = content(token, first, count)
        pushes = [(file.sector(first + i), token) for i in range(count)]
        known = max(file.size.values()[file.size.certain :])
        end = (first + count) * SECTOR
        if end > known:
            pushes.append((file.size, end))
        world.writing[file.uid] = world.writing.get(file.uid, 0) + 1
        for clone in self.model.cloning.get(file.uid, ()):
            self._may_be_in(clone, first, count, token, end)
        try:
            with self._change(f"write {token} to file {file.uid} sectors {first}+{count}", pushes, in_part=True):
                self._put(fh, data, first * SECTOR)
        finally:
            world.writing[file.uid] -= 1

    def _burst(self, file: FileModel, node: int, fh: int) -> None:
        """Many small writes into one block: all but the first go in place."""
        for _ in range(self.rng.randrange(8, 30)):
            self._write_at(file, fh, self.rng.randrange(BLOCK_SECTORS - 4), self.rng.choice((1, 2, 4)))

    def _may_be_in(self, clone: FileModel, first: int, count: int, token: int, end: int) -> None:
        """A write begins while its file is being cloned: the clone may have it or not."""
        change = Change(f"write {token}", self.process, self.world.now)
        for number in range(first, first + count):
            clone.sector(number).candidates.append(Candidate(token, change))
        known = clone.size.values()
        for size in dict.fromkeys(max(end, value) for value in known):
            if size not in known:
                clone.size.candidates.append(Candidate(size, change))

    def _put(self, fh: int, data: bytes, offset: int) -> None:
        buffer = memoryview(bytearray(data) + bytes(BUFFER_SLACK_BYTES))
        try:
            done = self.plane.write(fh, buffer, offset, len(data))
        except WouldBlock:
            done = self.plane.write_slow(fh, buffer, offset, len(data))
        if done != len(data):
            raise Violation(f"a write of {len(data)} bytes says that it wrote {done}")

    def _read(self, file: FileModel, node: int, fh: int) -> None:
        self._read_at(file, fh, self._some_block(), self.rng.choice((8, BLOCK_SECTORS, 300)))

    def _read_at(self, file: FileModel, fh: int, first: int, count: int) -> None:
        """Read what this host has open for writing: the truth, unless somebody writes just now."""
        marks = {n: file.sector(n).mark() for n in range(first, first + count) if n in file.sectors}
        under_way = {n for n in marks if file.sectors[n].under_way}
        since = self.world.now
        size_mark, size_busy = file.size.mark(), file.size.under_way
        data = self._get(fh, first * SECTOR, count * SECTOR)
        if not (size_busy or file.size.under_way) and file.size.mark() is size_mark:
            lengths = {min(max(0, s - first * SECTOR), count * SECTOR) for s in file.size.possible()}
            if len(data) not in lengths:
                raise Violation(f"{len(data)} bytes of {file.size.name} from sector {first}, not one of {lengths}")
        sure = {n: m for n, m in marks.items() if n not in under_way and not file.sectors[n].under_way}
        self.model.check_read(file, first, data, self.world.now, since=since, marks=sure)

    def _get(self, fh: int, offset: int, length: int) -> bytes:
        buffer = memoryview(bytearray(length + BUFFER_SLACK_BYTES))
        try:
            count = self.plane.read(fh, buffer, offset, length)
        except WouldBlock:
            count = self.plane.read_slow(fh, buffer, offset, length)
        return bytes(buffer[:count])

    def _sync(self, file: FileModel, node: int, fh: int) -> None:
        marks = [(r, r.mark()) for r in file.registers() if not r.under_way]
        names = [
            (r, r.mark())
            for r in self.model.names.values()
            if r.mark().value == file.uid and r.mark().change.by is self.process
            and r.mark().change.what.startswith("create") and not r.under_way
        ]  # fmt: skip
        self.fs.fsync(CONTEXT, node, fh, False)
        for register, mark in marks + names:
            register.synced(mark, self.world.now)
        self.world.note("synced", self.process.name, self.number, "file", file.uid)

    def _truncate(self, file: FileModel, node: int, fh: int) -> None:
        blocks = FAR_BLOCK if file.size.mark().value > FAR_BLOCK * BLOCK else FILE_BLOCKS
        size = self.rng.choice((0, self.rng.randrange(blocks) * BLOCK, self.rng.randrange(20) * 32 * SECTOR))
        self._cut(file, node, size)

    def _cut(self, file: FileModel, node: int, size: int) -> None:
        world = self.world
        if world.writing.get(file.uid) or self.model.cloning.get(file.uid) or file.uid in world.truncating:
            return
        pushes = [(r, 0) for n, r in file.sectors.items() if n * SECTOR >= size]
        pushes.append((file.size, size))
        world.truncating.add(file.uid)
        try:
            with self._change(f"truncate file {file.uid} to {size}", pushes, in_part=True):
                self.fs.setattr(CONTEXT, node, None, SetAttr(size=size))
        finally:
            world.truncating.discard(file.uid)

    def read_only(self) -> None:
        """Open a file for reading, as any host may, and read it for a while, whatever becomes of it."""
        file = self._lookup(*self._some_name())
        if file is None or file.node is None:
            return
        node = file.node[0]
        fh = self.fs.open(CONTEXT, node, os.O_RDONLY, False).fh
        try:
            if self.plane_generation(fh) != file.node[1]:
                return
            for _ in range(self.rng.randrange(1, 4 if self.world.plan.style != "churn" else 12)):
                first, count = self._some_block(), self.rng.choice((8, BLOCK_SECTORS))
                since = self.world.seen_since() - self.world.validity
                data = self._get(fh, first * SECTOR, count * SECTOR)
                self.model.check_read(file, first, data, self.world.now, since=since)
                self.process.clock.sleep(self.rng.expovariate(1.0) * self.world.think * 0.1)
        finally:
            if not self._is_killed():
                self.fs.release(node, fh, os.O_RDONLY)

    def recycle(self) -> None:
        """Empty a file, and write to another one, which may get its blocks."""
        for empty in (True, False):
            key = self._some_name()
            file = self._lookup(*key)
            if file is None or file.node is None:
                continue
            node = file.node[0]
            fh = self.fs.open(CONTEXT, node, os.O_RDWR, False).fh
            self._work_on(file, node, fh, empty=empty)
