"""Proof that fencing works on a LUN, by doing it: targets announce what they do not have.

A second nexus of this host registers a throw-away key and writes; the key is taken away with PREEMPT AND ABORT (with
PREEMPT, on a volume whose LUNs were formatted as having no more); the second nexus writes again and must be refused.
The place written is PROOF_OFFSET, which holds nothing on any extent. Where a device opens no second nexus (a kernel's
disk is one for the whole machine) registering, reserving and reading back are all that can be shown, and the caller
is told so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from vmfs.cluster.keys import KeyKind, key_of, kind_of, tool_key
from vmfs.devices import Device
from vmfs.devices.reservations import WRITE_EXCLUSIVE_ALL_REGISTRANTS, PlainPreempt, Reopenable, Reservations
from vmfs.errors import DeviceError, FencingUnusable, ReservationConflict, VmfsError
from vmfs.ondisk.header import METADATA_BLOCK_BYTES
from vmfs.ondisk.lock import Holder

PROOF_OFFSET: Final = 120 << 10  # behind the superblock's copies and before the first lock, on every extent
UNTRIED: Final = "opens no second connection on this path to prove them by"


class Unproved(VmfsError):
    """A LUN does not fence as it must. The message says what it does instead."""


def prove_for_mount(volume_name: str, *, plain: bool = False) -> Callable[[Device, Reservations, Holder], bool]:
    """The proof that `ReservationFence` makes at mount: False where it cannot be made, FencingUnusable where it fails.

    `plain`: by PREEMPT.
    """

    def prove(device: Device, theirs: Reservations, me: Holder) -> bool:
        try:
            return _prove(device, theirs, key_of(me, KeyKind.PROOF), plain=plain)
        except Unproved as problem:
            raise FencingUnusable(volume_name, device.name, str(problem)) from problem

    return prove


def try_out(device: Device, *, plain: bool = False) -> str | None:
    """Why a LUN that is about to be formatted cannot fence, as far as this path shows; None: it can, it was shown.

    Leaves neither registration nor reservation. Registrations that dead hosts of an older volume left are cleared:
    the caller has made sure that no host lives. Raises DeviceError when the LUN does not answer.
    """
    theirs = device.reservations()
    if theirs is None:
        return "has no persistent reservations on this path"
    try:
        with tool_registration(device):
            theirs.reserve()
            found = theirs.reservation()
            if found is None or found.type != WRITE_EXCLUSIVE_ALL_REGISTRANTS:
                return "does not take a reservation of type 7h (write exclusive, all registrants)"
            if not _prove(device, theirs, tool_key(os.urandom), plain=plain):
                return UNTRIED
    except Unproved as problem:
        return str(problem)
    except ReservationConflict as conflict:
        return str(conflict)
    return None


@contextmanager
def tool_registration(device: Device) -> Iterator[None]:
    """Let a tool write to a LUN that no host has mounted, though hosts that died may have left it reserved.

    Their registrations are cleared: the caller has made sure that none of them lives. Nothing where the device has no
    reservations. Raises Unproved for registrations that are not of ours, DeviceError when the LUN does not answer.
    """
    theirs = device.reservations()
    if theirs is None:
        yield
        return
    registered = theirs.keys()
    foreign = [key for key in registered if kind_of(key) is None]
    if foreign:
        shown = ", ".join(f"{key:#x}" for key in foreign[:4])
        raise Unproved(f"has others than Azekura registered with it (keys {shown})")
    key = tool_key(os.urandom)
    theirs.register(key)
    try:
        if registered:
            theirs.clear()
            theirs.register(key)
        yield
    finally:
        theirs.unregister()


def _prove(device: Device, theirs: Reservations, key: int, *, plain: bool) -> bool:
    """Whether it could be tried out. Raises Unproved when it does not work."""
    if not isinstance(device, Reopenable):
        return False
    if plain and not isinstance(theirs, PlainPreempt):
        raise Unproved("has no PREEMPT on this path")
    second = device.again()
    try:
        victim = second.reservations()
        if victim is None:
            raise Unproved("has no persistent reservations on a second connection")
        victim.register(key)
        try:
            _take_key_away(device, theirs, second, key, plain=plain)
        finally:
            victim.unregister()
    finally:
        second.close()
    return True


def _take_key_away(device: Device, theirs: Reservations, second: Device, key: int, *, plain: bool) -> None:
    content = device.read(PROOF_OFFSET, METADATA_BLOCK_BYTES)
    try:
        second.write(PROOF_OFFSET, content)
    except ReservationConflict as conflict:
        raise Unproved("refuses writes of a host that is registered") from conflict
    name = "PREEMPT" if plain else "PREEMPT AND ABORT"
    try:
        if plain:
            assert isinstance(theirs, PlainPreempt)
            taken = theirs.preempt(key)
        else:
            taken = theirs.preempt_and_abort(key)
    except ReservationConflict:
        raise
    except DeviceError as error:
        raise Unproved(f"has no working {name}: {error}") from error
    if not taken:
        raise Unproved(f"does not find a registered key to {name}")
    try:
        second.write(PROOF_OFFSET, content)
    except ReservationConflict:
        return
    raise Unproved(f"takes writes of a host whose key {name} took away")
