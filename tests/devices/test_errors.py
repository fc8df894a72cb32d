"""Every error of the package has an exit code, an errno and a message of one line."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Iterator

import pytest

from vmfs import errors


def _classes() -> Iterator[type[errors.VmfsError]]:
    for _, found in inspect.getmembers(errors, inspect.isclass):
        if issubclass(found, errors.VmfsError) and found is not errors.VmfsError:
            yield found


@pytest.mark.parametrize("kind", list(_classes()), ids=lambda kind: kind.__name__)
def test_codes_and_docs(kind: type[errors.VmfsError]) -> None:
    assert kind.exit_code in (errors.EXIT_FAILED, errors.EXIT_NOT_TRIED)
    assert kind.errno in errno.errorcode
    assert kind.__doc__


@pytest.mark.parametrize(
    ("error", "says", "exit_code", "number"),
    [
        (errors.DeviceError("/dev/sdb", "read", 512, 4096, "gone bad"), "/dev/sdb: read of 4096", 1, errno.EIO),
        (errors.DamagedBlock(0x1000, "checksum"), "0x1000: checksum", 1, errno.EIO),
        (errors.LockedByOther("a.vmdk", "esx2"), "a.vmdk is locked by host esx2", 1, errno.EBUSY),
        (errors.NoSpace("ds1", "1 MiB"), "ds1 is full", 1, errno.ENOSPC),
        (errors.NameTooLong("x" * 300, 255), "more than 255 bytes", 1, errno.ENAMETOOLONG),
        (errors.NotAVmfsMount("/mnt"), "vmfsctl list", 2, errno.EINVAL),
        (errors.HostNameInUse("esx1", "ds1", "pid 7"), "another --host name", 2, errno.EBUSY),
    ],
)
def test_messages(error: errors.VmfsError, says: str, exit_code: int, number: int) -> None:
    assert says in str(error)
    assert "\n" not in str(error)
    assert (error.exit_code, error.errno) == (exit_code, number)
