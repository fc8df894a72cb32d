"""The sessions of one mount to one LUN as one SCSI transport, logged in again when they break.

One session, the writer, carries everything that changes the LUN, and all that belongs to its nexus: writes,
compare-and-writes, flushes, registrations. The others carry reads. Two reasons: a registration belongs to a nexus, and
one is to be taken away at once; and Linux LIO lets of several registered nexuses of one initiator's name only that one
write which made the reservation.

What becomes of a command whose connection broke:

- It may have been executed, or may be still (`Repeat` says whether it may be sent again). A compare-and-write never is:
  its caller gets DeviceError and looks what is there. The others are sent again, on a new connection of the same nexus,
  until CALL_SECONDS are over; a write only while `may_write` allows it, so that each sending has a valid lease. (One
  that is sent within PROMPT_SECONDS is covered by what its caller has seen of the lease; heartbeats have none.)
- A sending is given up after `attempt_seconds`, and the connection with it, by a reset: what this host had not sent is
  gone. What it had sent is in the target, or in the network for NETWORK_SECONDS at most. So no write lands later than
  `flight_bound_s` after its sending (F of rule A1); and none at all after the same nexus has logged in again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.iscsi.address import IscsiAddress, own_name
from vmfs.devices.iscsi.credentials import Credentials
from vmfs.devices.iscsi.session import ConnectionLost, Session
from vmfs.devices.scsi import commands
from vmfs.devices.scsi.transport import Answer, Repeat
from vmfs.errors import DeviceError, DeviceGone, DeviceNotUsable, NotSentAgain, VmfsError

READERS: Final = 2  # beside the writer: bulk reads do not queue behind bulk writes; more win nothing on two cores
ATTEMPT_SECONDS: Final = 3.0  # a heartbeat of the default lease may take 5.5 s (A4): this and one more try
ATTEMPT_LEAST_SECONDS: Final = 0.5  # of a lease of a second; disks that spin take as long now and then
NETWORK_SECONDS: Final = 1.0  # what switches and routers keep a packet for at most: their queues hold milliseconds
PROMPT_SECONDS: Final = 0.05  # P of rule A1: from a caller's look at the lease to the sending
CALL_SECONDS: Final = 30.0  # one call, with all its repetitions: longer than an array's failover
LOGIN_SECONDS: Final = 10.0  # of the first login, which also looks the portal's name up
RECONNECT_PAUSE_SECONDS: Final = 0.05
RECONNECT_PAUSE_MAX_SECONDS: Final = 1.0
TEND_SECONDS: Final = 5.0  # targets ping an idle session every 15 s or so, and close one that stays silent

_READS: Final = frozenset({commands.READ_16, commands.INQUIRY, commands.SERVICE_ACTION_IN_16})

log = logging.getLogger("vmfs.devices")


class SessionPool:
    """A `ScsiTransport` over the writer and READERS more sessions.

    `_mutex` guards the set of sessions whose connections are broken. The thread "iscsi-tend" answers pings.
    """

    def __init__(self, address: IscsiAddress, credentials: Credentials) -> None:
        """Nothing is sent yet."""
        self._name = str(address)
        self._address = address
        self._credentials = credentials
        lot = int.from_bytes(os.urandom(3), "big")  # a device that is opened again is other nexuses (rule R3)
        initiator = credentials.initiator or own_name(lot)
        self._sessions = [Session(address, initiator, credentials, (lot, index)) for index in range(1 + READERS)]
        self._writer, *self._readers = self._sessions
        self._mutex = threading.Lock()
        self._broken: set[Session] = set()
        self._closed = threading.Event()
        self._tender = threading.Thread(target=self._tend, name="iscsi-tend", daemon=True)
        self.attempt_seconds = ATTEMPT_SECONDS
        self.may_write: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def flight_bound_s(self) -> float:
        """How long after its sending a write may land at the latest, also when its call has failed since."""
        return self.attempt_seconds + NETWORK_SECONDS

    def open(self) -> None:
        """Log in once; the readers do when there is something to read. DeviceNotUsable with the target's reason."""
        try:
            self._writer.connect(LOGIN_SECONDS)
        except ConnectionLost as error:
            raise DeviceNotUsable(self._name, _hinted(str(error))) from None
        self._tender.start()

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """As the contract; NotSentAgain for a write that `may_write` did not allow again."""
        began = time.monotonic()
        # A compare-and-write whose caller has looked at the lease must not be sent much later than that.
        deadline = began + (self.attempt_seconds if repeat is Repeat.NEVER else CALL_SECONDS)
        session = self._reader() if cdb[0] in _READS else self._writer
        why = "the connection was away"

        def look_again() -> None:
            if self.may_write is not None and time.monotonic() - began > PROMPT_SECONDS:
                try:
                    self.may_write()
                except VmfsError as error:
                    raise self._failed(NotSentAgain, cdb, f"{why}, and {error}") from error

        before = look_again if repeat is Repeat.WITH_LEASE else None
        while True:
            self._connected(session, deadline)
            try:
                return session.execute(cdb, data_out, data_in, self.attempt_seconds, before)
            except ConnectionLost as error:
                if self._closed.is_set():
                    raise DeviceGone(f"device {self._name}", "it was closed") from None
                self._note_broken(session, error)
                why = str(error)
                if (repeat is Repeat.NEVER and error.was_sent) or time.monotonic() > deadline:
                    raise self._failed(DeviceError, cdb, f"{why}; whether it was done is not known") from None

    def again(self) -> SessionPool:
        """Other nexuses to the same LUN. Nothing is sent yet."""
        return SessionPool(self._address, self._credentials)

    def close(self) -> None:
        """Log out. Calls under way must have ended."""
        self._closed.set()
        if self._tender.ident is not None:
            self._tender.join()
        for session in self._sessions:
            session.close()

    def _failed(self, kind: type[DeviceError], cdb: bytes, reason: str) -> DeviceError:
        return kind(self._name, f"SCSI command {cdb[0]:02x}", 0, 0, reason)

    def _reader(self) -> Session:
        """The reader with the least to do; the first one while it is idle, so that the others stay logged out."""
        best, *others = self._readers
        if best.busy:
            for other in others:
                if other.busy < best.busy:
                    best = other
        return best

    def _connected(self, session: Session, deadline: float) -> None:
        """Log in again, as often as it takes. Raises DeviceError at the deadline."""
        pause = RECONNECT_PAUSE_SECONDS
        while not session.is_connected:
            if self._closed.is_set():
                raise DeviceGone(f"device {self._name}", "it was closed")
            try:
                session.connect(self.attempt_seconds)
            except ConnectionLost as error:
                self._note_broken(session, error)
                if time.monotonic() + pause > deadline:
                    raise DeviceError(self._name, "login", 0, 0, str(error)) from None
                self._closed.wait(pause)
                pause = min(2 * pause, RECONNECT_PAUSE_MAX_SECONDS)
        if session in self._broken:
            with self._mutex:
                self._broken.discard(session)
                healed = not self._broken
            if healed:
                log.info("%s: connected again", self._name)

    def _note_broken(self, session: Session, error: ConnectionLost) -> None:
        with self._mutex:
            first = not self._broken
            self._broken.add(session)
        if first:
            log.warning("%s: a connection is lost: %s", self._name, error)

    def _tend(self) -> None:
        """Answer pings on sessions that nobody uses; what has broken logs in again when it is wanted."""
        while not self._closed.wait(TEND_SECONDS):
            for session in self._sessions:
                session.tend()


def _hinted(reason: str) -> str:
    """A login's failure with what to do."""
    if "uthentication" in reason or "CHAP" in reason:
        return f"{reason}; look at this target's user and password in the credentials file, and at the target's"
    return f"{reason}; is the portal reachable, and do target and LUN exist there for this initiator?"
