"""What mount(8) says to its helper, as `vmfsctl mount` takes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import click

VOLUME_PREFIXES: Final = ("vmfs:", "LABEL=", "UUID=")
"""Before a volume's name or UUID. The first is how /proc/mounts has it, so mount(8) sees what is mounted already. The
other two reach a helper only when it is run by hand: mount(8) asks libblkid for them, which knows no such format."""

_VALUED: Final = frozenset({
    "boot-id", "credentials", "host", "in-flight", "log-file", "log-format", "log-level", "metrics", "scan-in",
    "volume", "watchdog",
})  # fmt: skip
_FLAGS: Final = frozenset({"no-supervisor", "scan"})
_PASSED: Final = frozenset({"data_threads", "dev", "init_mask", "noexec", "ro", "suid"})
_UNDOES: Final = {"rw": "ro", "exec": "noexec", "nosuid": "suid", "nodev": "dev"}
"""The later of two wins, as in mount(8). `defaults` undoes nothing: volumes are mounted nosuid,nodev unless asked."""
_ALLOWS: Final = {"allow-suid": "suid", "allow-dev": "dev"}
"""mount(8) keeps plain `suid` and `dev` to itself: for it, they are what holds when nobody says anything."""
_OF_MOUNT: Final = frozenset({
    "_netdev", "async", "auto", "comment", "defaults", "group", "loud", "noatime", "noauto", "nodiratime", "nofail",
    "nogroup", "nomand", "noowner", "norelatime", "nostrictatime", "nouser", "nousers", "owner", "relatime", "silent",
    "user", "users",
})  # fmt: skip
"""What mount(8), systemd and others have read already, or what holds for every volume."""


@dataclass(frozen=True, slots=True)
class Request:
    """A mount that was asked for."""

    directory: str
    devices: tuple[str, ...]
    volume: str | None
    """The volume's name or UUID, where it was given by that."""
    options: tuple[str, ...] = ()
    """Of `vmfsctl mount`."""
    flags: tuple[str, ...] = field(default=())
    """For its -o."""

    def arguments(self) -> list[str]:
        """The command line behind `vmfsctl`."""
        given = ["mount", *self.options]
        if self.volume is not None:
            given.append(f"--volume={self.volume}")
        if self.flags:
            given += ["-o", ",".join(self.flags)]
        return [*given, "--", *self.devices, self.directory]


def translate(spec: str, directory: str, options: Sequence[str], *, sloppy: bool = False) -> Request:
    """`mount.vmfs SPEC DIRECTORY -o OPTIONS` as a request; with `sloppy`, unknown options are passed over.

    Raises click.UsageError: an empty spec, an option that is not known or lacks its value.
    """
    volume: str | None = None
    devices: list[str] = []
    prefix = next((p for p in VOLUME_PREFIXES if spec.startswith(p)), None)
    if prefix is not None:
        volume = _unquoted(spec.removeprefix(prefix))
    else:
        devices = [spec] if os.path.exists(spec) else spec.split(",")
    if volume == "" or "" in devices:
        raise click.UsageError(f"{spec!r} names no volume and no device")
    ours: list[str] = []
    flags: list[str] = []
    for option in filter(None, ",".join(options).split(",")):
        option = _ALLOWS.get(option, option)
        name, equals, value = option.partition("=")
        if name == "remount":
            raise click.UsageError("a mounted volume cannot be remounted: unmount it, and mount it with other options")
        if name in _OF_MOUNT or name.lower().startswith("x-"):
            continue
        if name in _UNDOES:
            flags = [flag for flag in flags if flag != _UNDOES[name]]
        elif name in _PASSED:
            flags = [flag for flag in flags if flag.partition("=")[0] != name] + [option]
        elif name in _FLAGS and not equals:
            ours.append(f"--{name}")
        elif (name in _VALUED or name == "extent") and value:
            if name == "extent":
                devices.append(value)
            elif name == "volume":
                volume = value
            else:
                ours.append(f"--{name}={value}")
        elif name in _VALUED or name == "extent":
            raise click.UsageError(f"-o {name} lacks its value: {name}=...")
        elif not sloppy:
            raise click.UsageError(f"-o {option}: is no option of vmfs mounts; docs/mounting.md has them all")
    return Request(directory, tuple(devices), volume, tuple(ours), tuple(flags))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value
