"""Several sessions to one LUN as one SCSI transport: taken in turn, logged in again when they break.

What becomes of a command whose connection broke:

- It may have been executed, or may be still (`Repeat` says whether it may be sent again). A compare-and-write never is:
  its caller gets DeviceError and looks what is there. The others are sent again, on a new connection of the same nexus,
  until CALL_SECONDS are over; a write only while `may_write` allows it, so that each sending has a valid lease.
- A sending is given up after `attempt_seconds`, and the connection with it, by a reset: what this host had not sent is
  gone. What it had sent is in the target, or in the network for NETWORK_SECONDS at most. So no write lands later than
  `flight_bound_s` after its sending (F of rule A1); and none at all after the same nexus has logged in again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from vmfs.devices.contract import ReadableBuffer
from vmfs.devices.iscsi.address import IscsiAddress, own_name
from vmfs.devices.iscsi.credentials import Credentials
from vmfs.devices.iscsi.session import ConnectionLost, Session
from vmfs.devices.scsi.transport import Answer, Repeat
from vmfs.errors import DeviceError, DeviceGone, DeviceNotUsable

SESSIONS: Final = 4  # two keep a target on one core busy; more hide the time that each spends in this process
SPARE_SESSIONS: Final = 1  # for compare-and-writes alone: a heartbeat must not wait behind megabytes of data
ATTEMPT_SECONDS: Final = 3.0  # a heartbeat of the default lease may take 5.5 s (A4): this and one more try
ATTEMPT_LEAST_SECONDS: Final = 0.5  # of a lease of a second; disks that spin take as long now and then
NETWORK_SECONDS: Final = 1.0  # what switches and routers keep a packet for at most: their queues hold milliseconds
CALL_SECONDS: Final = 30.0  # one call, with all its repetitions: longer than an array's failover
LOGIN_SECONDS: Final = 10.0  # of the first login, which also looks the portal's name up
RECONNECT_PAUSE_SECONDS: Final = 0.05
RECONNECT_PAUSE_MAX_SECONDS: Final = 1.0
TEND_SECONDS: Final = 5.0  # targets ping an idle session every 15 s or so, and close one that stays silent

log = logging.getLogger("vmfs.devices")


def _always() -> None:
    """Without a lease to look at, writes may be repeated."""


class SessionPool:
    """A `ScsiTransport` over SESSIONS + SPARE_SESSIONS nexuses.

    `_free` is a condition that guards the list of idle sessions, `_idle`; a session that is not in it belongs to the
    thread that took it. The thread "iscsi-tend" answers pings on idle ones.
    """

    def __init__(self, address: IscsiAddress, credentials: Credentials) -> None:
        """Nothing is sent yet."""
        self._address = address
        self._name = str(address)
        initiator = credentials.initiator or own_name()
        lot = int.from_bytes(os.urandom(3), "big")  # a device that is opened again is other nexuses (rule R3)
        count = SESSIONS + SPARE_SESSIONS
        self._sessions = [Session(address, initiator, credentials, (lot, index)) for index in range(count)]
        self._idle = list(reversed(self._sessions))  # the last one is taken first: sessions not needed stay logged out
        self._free = threading.Condition()
        self._closed = threading.Event()
        self._broken: set[Session] = set()
        self.attempt_seconds = ATTEMPT_SECONDS
        self.may_write: Callable[[], None] = _always
        self._tender = threading.Thread(target=self._tend, name="iscsi-tend", daemon=True)

    @property
    def name(self) -> str:
        return self._name

    @property
    def flight_bound_s(self) -> float:
        """How long after its sending a write may land at the latest, also when its call has failed since."""
        return self.attempt_seconds + NETWORK_SECONDS

    def open(self) -> None:
        """Log in once. DeviceNotUsable with the target's reason."""
        session = self._take(None)
        try:
            session.connect(LOGIN_SECONDS)
        except ConnectionLost as error:
            raise DeviceNotUsable(self._name, _hinted(str(error))) from None
        finally:
            self._give_back(session)
        self._tender.start()

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """As the contract; also raises what `may_write` raises."""
        return self._execute(None, cdb, data_out, data_in, repeat)

    def nexuses(self) -> Sequence[Nexus]:
        """Each session as a transport of its own."""
        return [Nexus(self, session) for session in self._sessions]

    def close(self) -> None:
        """Log out. Calls under way must have ended."""
        self._closed.set()
        if self._tender.ident is not None:
            self._tender.join()
        for session in self._sessions:
            session.close()

    # -- one call ----------------------------------------------------------------------------------

    def _execute(
        self,
        only: Session | None,
        cdb: bytes,
        data_out: ReadableBuffer | None,
        data_in: memoryview | None,
        repeat: Repeat,
    ) -> Answer:
        # A compare-and-write whose caller has looked at the lease must not be sent much later than that.
        deadline = time.monotonic() + (self.attempt_seconds if repeat is Repeat.NEVER else CALL_SECONDS)
        session = self._take(only, spare=repeat is Repeat.NEVER, deadline=deadline)
        try:
            while True:
                self._connected(session, deadline)
                if repeat is Repeat.WITH_LEASE:
                    self.may_write()
                try:
                    return session.execute(cdb, data_out, data_in, self.attempt_seconds)
                except ConnectionLost as error:
                    self._note_broken(session, error)
                    if (repeat is Repeat.NEVER and error.was_sent) or time.monotonic() > deadline:
                        raise self._failed(cdb, f"{error}; whether it was done is not known") from None
        finally:
            self._give_back(session)

    def _connected(self, session: Session, deadline: float) -> None:
        """Log in again, as often as it takes. Raises DeviceError at the deadline."""
        pause = RECONNECT_PAUSE_SECONDS
        while not session.is_connected:
            if self._closed.is_set():
                raise DeviceGone(f"device {self._name}", "it was closed")
            try:
                session.connect(max(self.attempt_seconds, ATTEMPT_LEAST_SECONDS))
            except ConnectionLost as error:
                if time.monotonic() + pause > deadline:
                    raise DeviceError(self._name, "login", 0, 0, str(error)) from None
                log.debug("%s: %s", self._name, error)
                self._note_broken(session, error)
                self._closed.wait(pause)
                pause = min(2 * pause, RECONNECT_PAUSE_MAX_SECONDS)
        if session in self._broken:
            with self._free:
                self._broken.discard(session)
                healed = not self._broken
            if healed:
                log.info("%s: connected again", self._name)

    def _note_broken(self, session: Session, error: ConnectionLost) -> None:
        with self._free:
            first = not self._broken
            self._broken.add(session)
        if first:
            log.warning("%s: a connection is lost: %s", self._name, error)

    def _failed(self, cdb: bytes, reason: str) -> DeviceError:
        return DeviceError(self._name, f"SCSI command {cdb[0]:02x}", 0, 0, reason)

    # -- whose turn it is --------------------------------------------------------------------------

    def _take(self, only: Session | None, *, spare: bool = True, deadline: float | None = None) -> Session:
        """An idle session, or that one. Data leave SPARE_SESSIONS of them idle."""
        with self._free:
            while True:
                if only is None:
                    if len(self._idle) > (0 if spare else SPARE_SESSIONS):
                        return self._idle.pop()
                elif only in self._idle:
                    self._idle.remove(only)
                    return only
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise DeviceError(self._name, "wait for a session", 0, 0, "all of them are busy for too long")
                self._free.wait(left)

    def _give_back(self, session: Session) -> None:
        with self._free:
            self._idle.append(session)
            self._free.notify_all()

    def _tend(self) -> None:
        """Answer pings on sessions that nobody uses; what has broken logs in again when it is wanted."""
        while not self._closed.wait(TEND_SECONDS):
            with self._free:
                idle, self._idle = self._idle, []
            for session in idle:
                try:
                    session.tend()
                except ConnectionLost as error:
                    log.debug("%s: an idle connection has ended: %s", self._name, error)
            with self._free:
                self._idle = [*idle, *self._idle]
                self._free.notify_all()


class Nexus:
    """One session of a pool as a `ScsiTransport`: for what belongs to a nexus, as registrations do."""

    def __init__(self, pool: SessionPool, session: Session) -> None:
        self._pool = pool
        self._session = session

    @property
    def name(self) -> str:
        return self._pool.name

    def execute(
        self,
        cdb: bytes,
        *,
        data_out: ReadableBuffer | None = None,
        data_in: memoryview | None = None,
        repeat: Repeat = Repeat.FREELY,
    ) -> Answer:
        """As the contract, on this nexus only."""
        return self._pool._execute(self._session, cdb, data_out, data_in, repeat)


def _hinted(reason: str) -> str:
    """A login's failure with what to do."""
    if "uthentication" in reason or "CHAP" in reason:
        return f"{reason}; look at this target's user and password in the credentials file, and at the target's"
    return f"{reason}; is the portal reachable, and do target and LUN exist there for this initiator?"
