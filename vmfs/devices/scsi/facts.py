"""Meeting a LUN: is it a disk, how large, what can it do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vmfs.devices.scsi import commands, pages
from vmfs.devices.scsi.issue import CommandRefused, issue, issue_read
from vmfs.devices.scsi.transport import ScsiTransport
from vmfs.errors import DeviceError, DeviceNotUsable

T = TypeVar("T")
log = logging.getLogger("vmfs.devices")


@dataclass(frozen=True, slots=True)
class LunFacts:
    """What a LUN says of itself."""

    identity: pages.Identity
    capacity: pages.Capacity
    limits: pages.BlockLimits
    provisioning: pages.Provisioning
    unit_name: str | None
    """Its name in all the world ("naa.6001405..."), the same by every path."""
    can_reserve: bool
    """It has persistent reservations of the kind that fencing needs, or says so at least."""

    @property
    def forgets_exclusion(self) -> bool:
        """Whether its COMPARE AND WRITEs exclude each other no more once one was refused by RESERVATION CONFLICT.

        Linux LIO (seen with 6.1): the refusal releases a lock that the command never took. See docs/iscsi.md.
        """
        return self.identity.vendor == "LIO-ORG"


def meet(transport: ScsiTransport) -> LunFacts:
    """Ask a LUN what it is. DeviceNotUsable for what is no disk, DeviceError when it does not answer sensibly."""
    raw = issue_read(transport, commands.inquiry(pages.INQUIRY_BYTES), "inquiry", pages.INQUIRY_BYTES)
    identity = _parsed(transport, "inquiry", raw, pages.parse_inquiry)
    if not identity.is_disk:
        raise DeviceNotUsable(transport.name, "there is no disk at this LUN (is its number right?)")
    issue(transport, commands.test_unit_ready(), "test unit ready")
    present = _page(transport, pages.PAGE_SUPPORTED, pages.parse_supported_pages) or frozenset()

    def page(number: int, parse: Callable[[bytes], T]) -> T | None:
        return _page(transport, number, parse) if number in present else None

    return LunFacts(
        identity,
        read_capacity(transport),
        page(pages.PAGE_BLOCK_LIMITS, pages.parse_block_limits) or pages.BlockLimits(),
        page(pages.PAGE_PROVISIONING, pages.parse_provisioning) or pages.Provisioning(),
        page(pages.PAGE_IDENTIFICATION, pages.parse_identification),
        _can_reserve(transport),
    )


def read_capacity(transport: ScsiTransport) -> pages.Capacity:
    """How large the LUN is now. Raises DeviceError."""
    cdb = commands.read_capacity_16(pages.CAPACITY_BYTES)
    raw = issue_read(transport, cdb, "read capacity", pages.CAPACITY_BYTES)
    return _parsed(transport, "read capacity", raw, pages.parse_capacity)


def _can_reserve(transport: ScsiTransport) -> bool:
    cdb = commands.persistent_reserve_in(commands.ReserveIn.REPORT_CAPABILITIES, pages.CAPABILITIES_BYTES)
    try:
        return pages.parse_capabilities(issue_read(transport, cdb, "reservations", pages.CAPABILITIES_BYTES))
    except CommandRefused as error:
        log.debug("%s: no persistent reservations: %s", transport.name, error.sense)
    except ValueError as error:
        log.warning("%s: persistent reservations are not used: %s", transport.name, error)
    return False


def _page(transport: ScsiTransport, number: int, parse: Callable[[bytes], T]) -> T | None:
    """A page of vital product data; None when the target has none, or nonsense in it."""
    try:
        raw = issue_read(transport, commands.inquiry(pages.PAGE_BYTES, number), "inquiry", pages.PAGE_BYTES)
        return parse(raw)
    except CommandRefused as error:
        log.debug("%s: page %02x: %s", transport.name, number, error.sense)
    except ValueError as error:
        log.warning("%s: page %02x is not used: %s", transport.name, number, error)
    return None


def _parsed(transport: ScsiTransport, operation: str, raw: bytes, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(raw)
    except ValueError as error:
        raise DeviceError(transport.name, operation, 0, len(raw), str(error)) from error
