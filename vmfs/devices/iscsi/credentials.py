"""CHAP secrets, from a file that root alone can read. They are never in a URL, an argument, a log or a message.

The file is TOML, a table for each target, by "PORTAL/TARGET" or by "TARGET" alone (any portal):

    ["10.0.0.5:3260/iqn.2026-01.com.example:vol1"]
    user = "esx1"
    password = "at least twelve letters"
    target_user = "array1"               # both or neither: the target must prove itself too (mutual CHAP)
    target_password = "another secret"
    initiator = "iqn.2026-01.com.example:esx1"   # the name to log in by, instead of the host's own

With a Linux LIO target, libiscsi 1.19 takes mutual CHAP only if `target_user` has 2, 6, 10... letters: LIO fills its
answer up to a multiple of four bytes with rubbish, which the library tries to read.

All keys but `user` and `password` may be left out; these two as well where only `initiator` is given.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmfs.devices.iscsi.address import IscsiAddress, check_name
from vmfs.errors import CredentialsRefused

DEFAULT_FILE: Final = Path("/etc/azekura/iscsi-credentials.toml")
FILE_MAX_BYTES: Final = 1 << 20
SECRET_MAX_BYTES: Final = 255  # of libiscsi, for names too
_KEYS: Final = frozenset({"user", "password", "target_user", "target_password", "initiator"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to log in to one target. Secrets are left out of `repr`, so that no log or traceback shows them."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    target_user: str | None = None
    target_password: str | None = field(default=None, repr=False)
    initiator: str | None = None


_chosen: Path | None = None


def choose_file(file: Path | None) -> None:
    """Have this process look into `file`, not into DEFAULT_FILE, wherever no other one is given. None: as before."""
    global _chosen
    _chosen = file


def chosen_file() -> Path | None:
    """The file that was chosen for this process."""
    return _chosen


def load_credentials(address: IscsiAddress, file: Path | None = None) -> Credentials:
    """What `file` has for this target, else the chosen file, else DEFAULT_FILE if there is one; empty: nothing.

    Raises CredentialsRefused: the file is not there, is not root's alone, or is not as above.
    """
    path = file or _chosen or DEFAULT_FILE
    try:
        text = _read_guarded(path)
    except FileNotFoundError:
        if file is None and _chosen is None:
            return Credentials()
        raise CredentialsRefused(str(path), "it is not there") from None
    except OSError as error:
        raise CredentialsRefused(str(path), error.strerror or "it cannot be read") from None
    try:
        tables = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # The parser's message may quote the line.
        raise CredentialsRefused(str(path), "it is no valid TOML") from None
    for name in (f"{address.portal}/{address.target}", address.target):
        if name in tables:
            return _parse(path, name, tables[name])
    return Credentials()


def _read_guarded(path: Path) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CredentialsRefused(str(path), "it is no file")
        if status.st_uid != 0 or status.st_mode & 0o077:
            raise CredentialsRefused(str(path), "others than root could read or change it: chown root, chmod 600")
        text = file.read(FILE_MAX_BYTES + 1)
        if len(text) > FILE_MAX_BYTES:
            raise CredentialsRefused(str(path), f"it has more than {FILE_MAX_BYTES} bytes")
        return text


def _parse(path: Path, name: str, table: object) -> Credentials:
    def refuse(problem: str) -> CredentialsRefused:
        return CredentialsRefused(str(path), f"[{name!r}] {problem}")

    if not isinstance(table, dict):
        raise refuse("is no table")
    if unknown := table.keys() - _KEYS:
        raise refuse(f"has keys that are not known: {', '.join(sorted(unknown))}")
    for key, value in table.items():
        if not isinstance(value, str) or not 0 < len(value.encode()) <= SECRET_MAX_BYTES or "\0" in value:
            raise refuse(f"has a {key} that is no text of 1 to {SECRET_MAX_BYTES} bytes")
    found = Credentials(**table)
    if (found.user is None) != (found.password is None):
        raise refuse("needs user and password together")
    if (found.target_user is None) != (found.target_password is None):
        raise refuse("needs target_user and target_password together")
    if found.target_user is not None and found.user is None:
        raise refuse("has no user and password, which mutual CHAP needs as well")
    if found.initiator is not None:
        check_name(str(path), found.initiator)
    return found
