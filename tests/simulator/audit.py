"""Everything is read back, by a host that takes the locks: the end of a run."""

from __future__ import annotations

import os
from errno import EBUSY, ENOENT
from typing import TYPE_CHECKING

from tests.simulator.host import Process
from tests.simulator.model import SECTOR, Violation
from tests.simulator.registers import Register
from tests.simulator.worker import BLOCK, CONTEXT, FAR_BLOCK, FILE_BLOCKS
from tests.simulator.workload import Client

if TYPE_CHECKING:
    from tests.simulator.world import World

_TRIES = 200


def audit(world: World, process: Process) -> None:
    """Compare all names, sizes and sectors with the model. Raises Violation."""
    process.clock.sleep(2.0)  # what is published is seen by now
    client = Client(world, process, 99)
    for (directory, name), register in list(world.model.names.items()):
        _name(world, client, directory, name, register)


def _name(world: World, client: Client, directory: int, name: bytes, register: Register) -> None:
    try:
        entry = client.fs.lookup(CONTEXT, client._directory(directory), name)
    except OSError as error:
        if error.errno != ENOENT:
            raise Violation(f"{register.name} cannot be looked up: {error!r}") from error
        client._raise(register.settle(0, world.now, durable=True))
        return
    file = client._file_at((entry.nodeid, entry.generation), register)
    client._raise(register.settle(file.uid, world.now, durable=True))
    for attempt in range(_TRIES):
        try:
            fh = client.fs.open(CONTEXT, entry.nodeid, os.O_RDWR, False).fh
            break
        except OSError as error:
            if error.errno != EBUSY or attempt == _TRIES - 1:
                raise Violation(f"{register.name} cannot be opened: {error!r}") from error
            client.process.clock.sleep(0.05)
    size = client.fs.getattr(CONTEXT, entry.nodeid, fh).attr.size
    client._raise(file.size.settle(size, world.now, durable=True))
    for start in (0, FAR_BLOCK * BLOCK):
        data = client._get(fh, start, (FILE_BLOCKS + 4) * BLOCK)
        if len(data) != min(max(0, size - start), (FILE_BLOCKS + 4) * BLOCK):
            raise Violation(f"file {file.uid}: {len(data)} bytes from {start} on, of {size}")
        first = start // SECTOR
        marks = {n: file.sectors[n].mark() for n in range(first, first + len(data) // SECTOR) if n in file.sectors}
        world.model.check_read(file, first, data, world.now, since=world.now, marks=marks, durable=True)
    client.fs.release(entry.nodeid, fh, os.O_RDWR)
