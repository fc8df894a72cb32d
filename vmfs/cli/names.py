"""Which files of a mounted volume have given inode numbers, for people who know files by their names."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

# A volume of 256 virtual machines has some thousand files; a larger tree would keep a person waiting for a nicety.
MOST_ENTRIES_LOOKED_AT: Final = 20_000


def find_paths(mountpoint: str, inodes: Collection[int]) -> dict[int, str]:
    """Paths below `mountpoint`, from "/", of those `inodes` that were found; the first name of each.

    Looks at no more than MOST_ENTRIES_LOOKED_AT names. Directories that cannot be listed are passed over: what is in
    them stays without a name.
    """
    wanted = set(inodes)
    found: dict[int, str] = {}
    folders = [mountpoint]
    left = MOST_ENTRIES_LOOKED_AT
    if os.stat(mountpoint).st_ino in wanted:
        found[os.stat(mountpoint).st_ino] = "/"
    while folders and left > 0 and len(found) < len(wanted):
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    left -= 1
                    number = entry.inode()
                    if number in wanted:
                        found.setdefault(number, "/" + os.path.relpath(entry.path, mountpoint))
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue
    return found
