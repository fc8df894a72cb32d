"""The memory that outlives a mount's process: a memfd, mapped by whoever serves the mount.

A mount's process may be killed at any moment, and the machine goes on: programs and guests wait, and have been told
things that are in no journal yet. So all that the kernel or a program was told, and that is not on the disk, is here
before they are told.

Layout, in words of 8 bytes (little-endian):

      word  0  magic "AZESTATE"          word  1  layout version (1)
      word  2  1 once the session serves word  3  number of the last batch that is in the journal
      word  4  number of holders         word  5  how many requests were ever noted as done
      word  6  bytes of the session's record, JSON at byte 1,024
      word  7  a number above that of every file ever opened
      word  8  how many processes have served
    byte     4,096  holders: (slot, incarnation), 64 at most
    byte     8,192  ring of 8,192 requests that are done (FUSE's "unique")
    byte   128 KiB  open files: records of 6 words, see `vmfs.estate.handles`
    byte     4 MiB  two areas of 16 MiB: batches of changes, see `vmfs.estate.shadow`; batch N is in area N % 2

Crash rule: everything is written first and then *published* by one aligned store of a word, which a kill cannot cut in
two (it ends a process between two instructions, and a store is one). Nobody maps this memory while its writer lives.

Pages cost memory from their first use: a quiet mount needs 20 KiB, a busy one what 0.3 s of its changes take.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import asdict, fields
from typing import Any, Final

from vmfs.errors import VmfsError
from vmfs.estate.memory import AREA_BYTES, AREAS_AT, MAGIC, SIZE_BYTES, VERSION, WORD, create_memory
from vmfs.fuse.records import Negotiated
from vmfs.ondisk.lock import Holder

HOLDERS_MAX: Final = 64  # more incarnations than a supervisor starts without one of them ever serving
APPLIED_MAX: Final = 8192  # a request is answered at once when it is done: this many others do not come in between
HANDLES_MAX: Final = 65536
HANDLE_WORDS: Final = 6
AREA_HEADER_BYTES: Final = 4096

_SERVING, _COMMITTED, _HOLDERS, _APPLIED, _SESSION_BYTES = 2, 3, 4, 5, 6
_TAKEOVERS: Final = 8
_SESSION_AT: Final = 1024
_SESSION_MAX_BYTES: Final = 3072
_HOLDERS_AT: Final = 4096
_APPLIED_AT: Final = 8192
HANDLES_AT: Final = 128 << 10


class EstateUnusable(VmfsError):
    """What the process before this one left is not what this version understands."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the former process of this mount left something unusable ({why}); unmount, and mount again")


class Estate:
    """The mapped memory. One process at a time; within it, each part says which lock guards it."""

    def __init__(self, fd: int) -> None:
        """Map an estate. Takes `fd` over. Raises EstateUnusable."""
        self.fd = fd
        if os.fstat(fd).st_size != SIZE_BYTES:
            raise EstateUnusable(f"{os.fstat(fd).st_size} bytes")
        self.memory = memoryview(mmap.mmap(fd, SIZE_BYTES))
        self.words = self.memory.cast("Q")
        if (self.words[0], self.words[1]) != (MAGIC, VERSION):
            raise EstateUnusable(f"layout {self.words[1]}")

    @classmethod
    def create(cls) -> Estate:
        """A new one: nothing is left yet."""
        fd = create_memory()
        return cls(fd)

    # -- the session -----------------------------------------------------------------------------------

    def publish_session(self, agreed: Negotiated) -> None:
        """The kernel has its INIT answer: from now on the mount can be taken over."""
        text = json.dumps(asdict(agreed)).encode()
        if len(text) > _SESSION_MAX_BYTES:
            raise ValueError(f"a session's record of {len(text)} bytes")
        self.memory[_SESSION_AT : _SESSION_AT + len(text)] = text
        self.words[_SESSION_BYTES] = len(text)
        self.words[_SERVING] = 1

    @property
    def takeovers(self) -> int:
        """How many processes have taken this mount over."""
        return self.words[_TAKEOVERS]

    def note_takeover(self) -> None:
        """This process takes it over."""
        self.words[_TAKEOVERS] += 1

    def session(self) -> Negotiated | None:
        """What was agreed with the kernel; None when nobody has served yet. Raises EstateUnusable."""
        if not self.words[_SERVING]:
            return None
        text = bytes(self.memory[_SESSION_AT : _SESSION_AT + self.words[_SESSION_BYTES]])
        found: dict[str, Any] = json.loads(text)
        known = {f.name for f in fields(Negotiated)}
        # A flag that this version knows and the former one did not is one that it did not ask for.
        values = dict.fromkeys(known, False) | {k: v for k, v in found.items() if k in known}
        return Negotiated(**values)

    # -- who has served --------------------------------------------------------------------------------

    def holders(self) -> tuple[Holder, ...]:
        """The incarnations that may hold locks of open files, oldest first."""
        at = _HOLDERS_AT // WORD
        return tuple(
            Holder(self.words[at + 2 * i], self.words[at + 2 * i + 1]) for i in range(self.words[_HOLDERS])
        )

    def add_holder(self, holder: Holder) -> None:
        """This incarnation begins to take locks over. Raises EstateUnusable after too many."""
        count = self.words[_HOLDERS]
        if count == HOLDERS_MAX:
            raise EstateUnusable(f"{count} incarnations, and none of them served")
        self._put_holder(count, holder)
        self.words[_HOLDERS] = count + 1

    def settle_holders(self, holder: Holder) -> None:
        """All open files' locks are this incarnation's, or lost."""
        self._put_holder(0, holder)
        self.words[_HOLDERS] = 1

    def _put_holder(self, index: int, holder: Holder) -> None:
        at = _HOLDERS_AT // WORD + 2 * index
        self.words[at], self.words[at + 1] = holder.slot, holder.incarnation

    # -- requests that are done ------------------------------------------------------------------------

    def note_applied(self, unique: int) -> None:
        """A request's change is in a batch that is published. Guarded by the control mutex."""
        count = self.words[_APPLIED]
        self.words[_APPLIED_AT // WORD + count % APPLIED_MAX] = unique
        self.words[_APPLIED] = count + 1

    def applied(self) -> set[int]:
        """The requests noted as done, the last of them at least."""
        count = min(self.words[_APPLIED], APPLIED_MAX)
        at = _APPLIED_AT // WORD
        return set(self.words[at : at + count].tolist())

    # -- batches ---------------------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """The number of the last batch that the journal has."""
        return self.words[_COMMITTED]

    @committed.setter
    def committed(self, number: int) -> None:
        self.words[_COMMITTED] = number

    def area(self, number: int) -> memoryview:
        """The area of batch `number`."""
        start = AREAS_AT + number % 2 * AREA_BYTES
        return self.memory[start : start + AREA_BYTES]
