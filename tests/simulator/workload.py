"""The clients of a host: each opens, writes, reads, syncs, renames, removes, truncates and clones files, and checks.

They call the file system as the FUSE adapter does. Two clients never work on one name at a time, and nobody truncates
a file that another client is writing to: the model would not know in which order that happened. All else they do at
once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EBUSY, EEXIST

from tests.simulator.filework import FileWork
from tests.simulator.model import FileModel, Violation
from tests.simulator.registers import Change, Register
from tests.simulator.worker import CONTEXT, Busy
from vmfs.core.nodeids import nodeid_of, number_of
from vmfs.errors import VmfsError


class Client(FileWork):
    """One thread of one process that works until the world drains."""

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        world = self.world
        while not world.draining and not self.process.failed:
            pause = world.think * (0.3 if world.plan.style == "clones" else 1.0)
            self.process.clock.sleep(self.rng.expovariate(1.0) * pause)
            actions = (
                self.session, self.read_only, self.create, self.unlink, self.rename, self.clone, self.look, self.recycle
            )  # fmt: skip
            self._guarded(self.rng.choices(actions, self._weights())[0])

    def _weights(self) -> tuple[int, ...]:
        """Of session, read_only, create, unlink, rename, clone, look, recycle."""
        style = self.world.plan.style
        if style == "clones":
            return (6, 2, 2, 2, 1, 6, 1, 0)
        if style == "churn":
            return (0, 10, 1, 0, 0, 0, 1, 0) if self.number else (4, 1, 4, 3, 2, 0, 1, 8)
        return (6, 4, 4, 2, 2, 2, 1, 1)

    def _guarded(self, action: Callable[[], None]) -> None:
        world = self.world
        began = world.now
        world.running[self] = (action.__name__, began)
        try:
            action()
        except Busy:
            pass
        except (OSError, VmfsError) as error:
            self._judge(error, action.__name__)
        finally:
            world.running.pop(self, None)
        self.operations += 1
        world.operations += 1

    # -- names --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look a name up, without locks."""
        directory, name = self._some_name()
        self._lookup(directory, name)

    def create(self) -> None:
        """Make a new file, write to it, sync it perhaps."""
        key = self._some_name()
        with self._names(key) as (register,):
            change = Change("create", self.process, self.world.now)
            file = self.model.new_file(change)
            directory = self._directory(key[0])
            try:
                with self._change(f"create {key[1].decode()} in {key[0]} as file {file.uid}", [(register, file.uid)]):
                    entry, opened = self.fs.create(
                        CONTEXT, directory, key[1], 0o644, os.O_RDWR | os.O_EXCL, False
                    )
            except OSError as error:
                if error.errno == EEXIST and not any(register.possible()):
                    raise Violation(f"{register.name} was removed, and exists") from error
                if error.errno == EBUSY:  # of the open that follows the creation: another host was faster
                    register.begin(file.uid, change)
                    register.fail(self.world.now)
                raise
            self.model.placed(file, (entry.nodeid, entry.generation))
            if 0 not in register.values()[:-1]:
                raise Violation(f"{register.name} was created, and existed: {register.values()}")
            self._durable_by_handover(key[0])
        self._work_on(file, entry.nodeid, opened.fh)

    def unlink(self) -> None:
        """Remove a name."""
        key = self._some_name()
        with self._names(key) as (register,):
            possible = register.possible()
            with self._change(f"unlink {key[1].decode()} in {key[0]}", [(register, 0)]):
                self.fs.unlink(CONTEXT, self._directory(key[0]), key[1])
            if not any(possible):
                raise Violation(f"{register.name} was removed, and did not exist")
            self._durable_by_handover(key[0])
            self._maybe_sync_directory(key[0])

    def rename(self) -> None:
        """Move a file to another name, over another file perhaps."""
        old, new = self._some_name(), self._some_name()
        if old == new:
            return
        with self._names(old, new) as (source, target):
            possible = [v for v in source.possible() if v]
            if len(possible) != 1:
                return  # not known which file it is: the model could not follow
            pushes = [(source, 0), (target, possible[0])]
            with self._change(f"rename {old} to {new}", pushes, joint=True):
                self.fs.rename(CONTEXT, self._directory(old[0]), old[1], self._directory(new[0]), new[1], 0)
            for directory in {old[0], new[0]}:
                self._durable_by_handover(directory)
            self._maybe_sync_directory(new[0])
            if old[0] != new[0]:
                self._maybe_sync_directory(old[0])

    def _maybe_sync_directory(self, index: int) -> None:
        if self.rng.random() < 0.5:
            self._sync_directory(index)

    def _sync_directory(self, index: int) -> None:
        """fsync of a directory: what this host did in it is durable."""
        node = self._directory(index)
        marks = [
            (r, r.mark())
            for (where, _), r in self.model.names.items()
            if where == index and r.mark().change.by is self.process and not r.under_way
        ]
        self.fs.fsyncdir(CONTEXT, node, 0, False)
        for register, mark in marks:
            register.synced(mark, self.world.now)
        self.world.note("synced", self.process.name, self.number, "directory", index)

    # -- clones -------------------------------------------------------------------------------------------------

    def clone(self) -> None:
        """Clone a file, whoever writes to it meanwhile."""
        key, new = self._some_name(), self._some_name()
        if key == new:
            return
        with self._names(new) as (target,):
            here = self.world.open_for_writing.get(self.process)
            file = self.rng.choice(here) if here and self.rng.random() < 0.7 else self._lookup(*key)
            if file is None or file.uid in self.world.truncating:
                return
            self._clone(file, new, target)

    def _clone(self, file: FileModel, new: tuple[int, bytes], target: Register) -> None:
        assert file.node is not None
        made = self.model.new_file(Change("clone", self.process, self.world.now))
        self.model.copy_into(made, file)
        under_way = self.model.cloning.setdefault(file.uid, [])
        under_way.append(made)
        root = self.volume.core.volume.superblock.root_inode
        directory = root if new[0] == 0 else number_of(self.world.subdirectory)
        try:
            with self._change(f"clone file {file.uid} as {new} file {made.uid}", [(target, made.uid)]):
                number = self.volume.cloner.clone(number_of(file.node[0]), directory, new[1], 0, 0)
        except (OSError, VmfsError) as error:
            if error.errno == EEXIST and not any(target.possible()):
                raise Violation(f"{target.name} was removed, and exists") from error
            raise
        finally:
            under_way.remove(made)
        if 0 not in target.values()[:-1]:
            raise Violation(f"{target.name} was made by a clone, and existed: {target.values()}")
        inode = self.volume.inodes.look(number).inode
        self.model.placed(made, (nodeid_of(inode), inode.inode_generation))
        self._durable_by_handover(new[0])
        if self.world.plan.style != "clones" and self.rng.random() < 0.5:
            self._sync_directory(new[0])
        else:  # what it holds now must never change by itself
            node = nodeid_of(inode)
            self._work_on(made, node, self.fs.open(CONTEXT, node, os.O_RDWR, False).fh, reads=True)
