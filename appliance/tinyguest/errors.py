"""What can go wrong while the tiny guest is put together. Each error names the object and says what to do."""

import errno
from pathlib import Path


class TinyGuestError(Exception):
    """The tiny guest cannot be built."""

    exit_code = 1
    errno = errno.ENOENT


class KernelNotFoundError(TinyGuestError):
    """No guest kernel lies where it was looked for."""

    def __init__(self, searched: Path) -> None:
        super().__init__(f"no guest kernel under {searched}: run `make setup`, which unpacks one there")
        self.searched = searched


class ModuleMissingError(TinyGuestError):
    """The kernel has a needed driver neither built in nor as a module."""

    def __init__(self, module: str, release: str) -> None:
        super().__init__(
            f"kernel {release} has no driver {module}, built in or as a module: take another kernel package"
        )
        self.module = module


class GuestToolMissingError(TinyGuestError):
    """A program that goes into the guest is not on this machine, or cannot be taken along."""

    def __init__(self, tool: str, reason: str) -> None:
        super().__init__(f"{tool} cannot go into the tiny guest: {reason}; run `make setup`, which gets it")
        self.tool = tool
