"""What can go wrong when a file system is mounted, served and unmounted."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOTDIR, EPERM, EPROTO, ESTALE

from vmfs.errors import EXIT_NOT_TRIED, VmfsError


class FuseError(VmfsError):
    """The root of this package's errors."""


class NotRoot(FuseError):
    """mount(2) and umount2(2) are the superuser's."""

    exit_code = EXIT_NOT_TRIED
    errno = EPERM

    def __init__(self, doing: str) -> None:
        super().__init__(f"{doing} needs root (CAP_SYS_ADMIN); run it with sudo")


class FuseMissing(FuseError):
    """There is no usable /dev/fuse."""

    exit_code = EXIT_NOT_TRIED
    errno = ENODEV

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(
            f"{device} cannot be opened ({reason}); load the module with `modprobe fuse`, "
            f"in a container pass the device in (`mknod {device} c 10 229`)"
        )


class MountPointMissing(FuseError):
    exit_code = EXIT_NOT_TRIED
    errno = ENOENT

    def __init__(self, target: str) -> None:
        super().__init__(f"mount point {target} does not exist; create it with `mkdir -p {target}`")


class MountPointNotADirectory(FuseError):
    exit_code = EXIT_NOT_TRIED
    errno = ENOTDIR

    def __init__(self, target: str) -> None:
        super().__init__(f"mount point {target} is not a directory; give the path of a directory")


class MountPointInUse(FuseError):
    exit_code = EXIT_NOT_TRIED
    errno = EBUSY

    def __init__(self, target: str, source: str) -> None:
        super().__init__(f"{source} is mounted at {target} already; unmount it first, or mount elsewhere")


class MountPointStale(FuseError):
    """A FUSE mount whose process died still lies there: each access is ENOTCONN."""

    exit_code = EXIT_NOT_TRIED
    errno = ESTALE

    def __init__(self, target: str) -> None:
        super().__init__(f"a mount whose process has died lies at {target}; clear it with `umount {target}`")


class MountRefused(FuseError):
    """The kernel refused mount(2)."""

    errno = EINVAL

    def __init__(self, source: str, target: str, reason: str) -> None:
        super().__init__(f"the kernel refused to mount {source} at {target}: {reason}; see `dmesg`")


class NotMounted(FuseError):
    exit_code = EXIT_NOT_TRIED
    errno = EINVAL

    def __init__(self, target: str) -> None:
        super().__init__(f"nothing is mounted at {target}; `findmnt -t fuse.vmfs` lists the mounted volumes")


class MountBusy(FuseError):
    errno = EBUSY

    def __init__(self, target: str) -> None:
        super().__init__(
            f"{target} is in use; `fuser -vm {target}` says by whom; close those files, "
            "or unmount lazily to let it go when the last of them is closed"
        )


class UnmountRefused(FuseError):
    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"the kernel refused to unmount {target}: {reason}")


class ProtocolTooOld(FuseError):
    """The kernel speaks a FUSE protocol that this adapter does not."""

    errno = EPROTO

    def __init__(self, kernel: str, needed: str) -> None:
        super().__init__(f"the kernel speaks FUSE {kernel}, at least {needed} is needed; use Linux 6.1 or later")


class HandshakeFailed(FuseError):
    """The connection ended, or spoke nonsense, before INIT was through."""

    errno = EPROTO

    def __init__(self, reason: str) -> None:
        super().__init__(f"FUSE was not negotiated: {reason}; mount again")


class Malformed(FuseError):
    """A request whose bytes do not make sense. Its caller gets EIO."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"malformed FUSE request {what}: {reason}")
