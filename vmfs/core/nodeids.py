"""Node ids: the names by which the kernel's requests, and NFS handles, call an inode.

    bits 0..51   the inode's number (see `vmfs.ondisk.inode`)
    bits 52..63  the low bits of its generation

The number alone would not do: when a file is removed on another host and its number becomes another file's, this kernel
may still have the old one open, and would ask for the new file's bytes in its name, or give up both. The generation
grows by one with each file of a number, so the same id comes again after 4096 of them at the earliest. An id depends on
nothing but the inode, so that NFS handles outlive the mount. The root's is the one that FUSE prescribes.
"""

from __future__ import annotations

from typing import Final

from vmfs.ondisk.inode import Inode

_NUMBER_BITS: Final = 52  # an address has 64 bits, a number is an address by 4096
_TAG_BITS: Final = 12
_NUMBER_MASK: Final = (1 << _NUMBER_BITS) - 1
_TAG_MASK: Final = (1 << _TAG_BITS) - 1


def nodeid_of(inode: Inode) -> int:
    """The node id of an inode that is not the root."""
    return (inode.inode_generation & _TAG_MASK) << _NUMBER_BITS | inode.number


def number_of(nodeid: int) -> int:
    """The inode number in a node id."""
    return nodeid & _NUMBER_MASK


def is_of(nodeid: int, inode: Inode) -> bool:
    """Whether the id is that of this inode, and not of an earlier file with its number."""
    return nodeid == nodeid_of(inode)
