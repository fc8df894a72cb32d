"""Putting `mount.vmfs` and its kin where mount(8) and umount(8) look: links in /sbin to this installation's scripts.

umount(8) goes by the type in /proc/mounts, which is fuse.vmfs; mount(8) by the one it is given, which may be either.
"""

from __future__ import annotations

import errno
import os
import sysconfig
from pathlib import Path
from typing import Final

from vmfs.errors import EXIT_NOT_TRIED, VmfsError

DIRECTORY: Final = "/sbin"
"""libmount looks there, in /sbin/fs.d and in /sbin/fs, wherever the rest is installed."""
HELPERS: Final = {
    "mount.vmfs": "mount.vmfs",
    "mount.fuse.vmfs": "mount.vmfs",
    "umount.fuse.vmfs": "umount.fuse.vmfs",
}
"""Name in the directory: the script that it is."""


class HelperNotOurs(VmfsError):
    """A program of another origin has a helper's name."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.EEXIST

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is {what}, not of this installation; nothing was changed. Remove it first")


class HelperMissing(VmfsError):
    """This installation lacks a script that pip should have made."""

    exit_code = EXIT_NOT_TRIED
    errno = errno.ENOENT

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing; install azekura anew by pip, then try again")


def install(directory: str = DIRECTORY, *, dry_run: bool = False) -> list[tuple[str, str]]:
    """Make the links that are not there yet; (path, what it leads to) of each that was made, or would be.

    Raises HelperNotOurs, HelperMissing; then nothing was changed. OSError: the directory cannot be written to.
    """
    made = []
    for name, script in HELPERS.items():
        path, leads_to = Path(directory, name), Path(sysconfig.get_path("scripts"), script)
        if not leads_to.is_file():
            raise HelperMissing(leads_to)
        if not _is_ours(path):
            made.append((str(path), str(leads_to)))
    for link, target in made if not dry_run else ():
        Path(link).unlink(missing_ok=True)
        os.symlink(target, link)
    return made


def remove(directory: str = DIRECTORY, *, dry_run: bool = False) -> list[str]:
    """Take away the links of this installation; the paths that went, or would go.

    Raises HelperNotOurs; then nothing was changed. OSError: the directory cannot be written to.
    """
    found = [path for path in (Path(directory, name) for name in HELPERS) if _is_ours(path)]
    for path in found if not dry_run else ():
        path.unlink()
    return [str(path) for path in found]


def _is_ours(path: Path) -> bool:
    """Whether the link is there and leads to this installation. Raises HelperNotOurs when anything else is there.

    A link to where such a script was once, before the program moved, counts as not there.
    """
    if not os.path.lexists(path):
        return False
    if not path.is_symlink():
        raise HelperNotOurs(path, "a file")
    leads_to = Path(os.readlink(path))
    if leads_to == Path(sysconfig.get_path("scripts"), HELPERS[path.name]):
        return True
    if leads_to.name == HELPERS[path.name] and not path.exists():
        return False
    raise HelperNotOurs(path, f"a link to {leads_to}")
