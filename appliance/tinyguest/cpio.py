"""The "newc" cpio archive that the Linux kernel unpacks as its first root file system.

Format (Documentation/driver-api/early-userspace/buffer-format.rst in the Linux source): each member is a
header of 110 ASCII bytes, the name with a NUL, padding to 4 bytes, the data, padding to 4 bytes. The header
is the magic `070701` and 13 fields of 8 hexadecimal digits each: inode, mode, uid, gid, nlink, mtime, data
size, device major and minor, rdev major and minor, name size with its NUL, checksum (0 in this variant). A
member `TRAILER!!!` ends it.

Archives are reproducible: owner and times are zero and inode numbers count up, so equal input gives equal
bytes.
"""

import stat

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT_BYTES = 4
_LARGEST_MEMBER_BYTES = 0xFFFF_FFFF  # the size field has eight hexadecimal digits


class Archive:
    """Collects members in order, parents before their children; `image()` returns the whole archive."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._next_inode = 1
        self._directories: set[str] = set()

    def directory(self, path: str) -> None:
        """Add `path` and every missing parent, mode 0755. Adding one twice is harmless."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name and name not in self._directories:
                self._directories.add(name)
                self._member(name, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file. Raises ValueError for data over 4 GiB - 1, which the format cannot hold."""
        if len(data) > _LARGEST_MEMBER_BYTES:
            raise ValueError(f"{path}: {len(data)} bytes do not fit a newc member")
        self._parent(path)
        self._member(path.strip("/"), stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parent(path)
        self._member(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def image(self) -> bytes:
        """The archive with its trailer; the object can be added to afterwards."""
        return b"".join(self._parts) + self._encode(_TRAILER, 0, b"", inode=0)

    def _parent(self, path: str) -> None:
        parent = path.strip("/").rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _member(self, name: str, mode: int, data: bytes) -> None:
        self._parts.append(self._encode(name, mode, data, self._next_inode))
        self._next_inode += 1

    @staticmethod
    def _encode(name: str, mode: int, data: bytes, inode: int) -> bytes:
        raw_name = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(raw_name), 0)
        head = _MAGIC + b"".join(b"%08X" % field for field in fields) + raw_name
        return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT_BYTES)
