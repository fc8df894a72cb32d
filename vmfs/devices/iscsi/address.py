"""`iscsi://portal[:port]/target/lun`: which logical unit, and under which names this host meets it."""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmfs.errors import DeviceNotUsable

DEFAULT_PORT: Final = 3260  # RFC 7143, 4.2.7
LUN_MAX: Final = (1 << 14) - 1  # flat addressing (SAM-5, 4.7)
NAME_MAX_BYTES: Final = 223  # of an iSCSI name (RFC 7143, 4.2.7.1)
INITIATOR_FILE: Final = Path("/etc/iscsi/initiatorname.iscsi")
"""Where Linux hosts keep their iSCSI name, so that arrays know this program by the name they know the host by."""

_MACHINE_ID: Final = Path("/etc/machine-id")
_SCHEME: Final = "iscsi://"
_URL = re.compile(
    r"iscsi://(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^/:@%\[\]]+)(?::(?P<port>\d{1,5}))?/(?P<target>[^/]+)/(?P<lun>\d{1,5})"
)
_NAME = re.compile(r"(iqn\.\d{4}-\d{2}\.|eui\.|naa\.)[!-~]+")
_INITIATOR = re.compile(r"^\s*InitiatorName\s*=\s*(\S+)\s*$", re.MULTILINE)
_FORM: Final = "write iscsi://PORTAL[:PORT]/TARGET/LUN, such as iscsi://10.0.0.5/iqn.2026-01.com.example:vol1/0"


@dataclass(frozen=True, slots=True)
class IscsiAddress:
    """A logical unit by one portal. `portal` is host:port, an IPv6 host in brackets."""

    portal: str
    target: str
    lun: int

    def __str__(self) -> str:
        return f"{_SCHEME}{self.portal}/{self.target}/{self.lun}"


def is_iscsi(spec: str) -> bool:
    """Whether it is meant as an iSCSI URL."""
    return spec.startswith(_SCHEME)


def parse_address(spec: str) -> IscsiAddress:
    """DeviceNotUsable for what is no such URL. One with a user or password is refused, and not repeated in messages."""
    rest = spec.removeprefix(_SCHEME)
    authority, _, path = rest.partition("/")
    if "@" in authority or "%" in authority.partition("]")[2] or "?" in rest:
        shown = f"{_SCHEME}.../{path.partition('?')[0]}"
        hint = "put user and password into the credentials file (see `vmfsctl mount --help`)"
        raise DeviceNotUsable(shown, f"a device's URL carries no credentials and no options: {hint}")
    match = _URL.fullmatch(spec)
    if match is None:
        raise DeviceNotUsable(spec, f"is no iSCSI URL: {_FORM}")
    port, lun = int(match["port"] or DEFAULT_PORT), int(match["lun"])
    if not 0 < port < 1 << 16 or lun > LUN_MAX:
        raise DeviceNotUsable(spec, f"its port or LUN is out of range: {_FORM}")
    check_name(spec, match["target"])
    return IscsiAddress(f"{match['host']}:{port}", match["target"], lun)


def check_name(spec: str, name: str) -> None:
    """DeviceNotUsable when `name` is no iSCSI name of a target or initiator."""
    if _NAME.fullmatch(name) is None or len(name) > NAME_MAX_BYTES:
        raise DeviceNotUsable(spec, f"{name[:NAME_MAX_BYTES]!r} is no iSCSI name (iqn.YEAR-MONTH.DOMAIN:NAME)")


def own_name(lot: int, file: Path = INITIATOR_FILE) -> str:
    """This host's iSCSI name: the one in `file`, else one made of the host's name, its machine id and `lot`.

    A name that nobody has given cannot stand in an array's list of hosts either. So it is another for each opened
    device, which keeps reservations apart also on targets that go by the name alone (Linux LIO).
    """
    try:
        found = _INITIATOR.search(file.read_text())
        if found is not None and _NAME.fullmatch(found[1]) and len(found[1]) <= NAME_MAX_BYTES:
            return found[1]
    except (OSError, UnicodeDecodeError):
        pass
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower())[:64]
    try:
        machine = hashlib.sha256(_MACHINE_ID.read_bytes()).hexdigest()[:12]  # the id itself is not to be shown around
    except OSError:
        machine = "unknown"
    return f"iqn.2026-01.io.azekura:{host}.{machine}.{lot:06x}"
