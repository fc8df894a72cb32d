"""Where the parts of a disk are: from a path that a person gave to the descriptor and to the flat extent."""

from __future__ import annotations

import os
from pathlib import Path

from thin import descriptor_file
from thin.descriptor import Descriptor
from thin.errors import FlatExtentUnusable, NameInvalid, NotADescriptor

DESCRIPTOR_SUFFIX = ".vmdk"
FLAT_SUFFIX = "-flat.vmdk"

PathLike = str | os.PathLike[str]


def is_descriptor_name(path: Path) -> bool:
    """Whether a file of this name is a descriptor: by the name alone, never by content.

    A raw disk's content is its guest's: probing it would let a guest pass its disk off as a descriptor
    and have a backup read a file of its choice.
    """
    name = path.name.casefold()
    return name.endswith(DESCRIPTOR_SUFFIX) and not name.endswith(FLAT_SUFFIX)


def real_path(path: PathLike) -> Path:
    """The path without symbolic links: "the descriptor's directory" is where the file itself lies."""
    return Path(os.path.realpath(_checked(path)))


def descriptor_of(real: Path) -> Path | None:
    """The descriptor that `real` is, or, for NAME-flat.vmdk, the NAME.vmdk beside it that names it."""
    if is_descriptor_name(real):
        return real
    if not real.name.casefold().endswith(FLAT_SUFFIX):
        return None
    beside = real.with_name(real.name[: -len(FLAT_SUFFIX)] + DESCRIPTOR_SUFFIX)
    if os.path.isfile(beside) and descriptor_file.read(beside).flat_name == real.name:
        return beside
    return None


def require_descriptor(path: PathLike) -> Path:
    """The descriptor of the disk at `path`. Raises NotADescriptor for a raw file, NameInvalid."""
    real = real_path(path)
    found = descriptor_of(real)
    if found is None:
        raise NotADescriptor(str(real))
    return found


def flat_path_of(descriptor_path: Path, descriptor: Descriptor) -> Path:
    """The flat extent that the descriptor at `descriptor_path` names: always in the same directory."""
    if descriptor.flat_name == descriptor_path.name:
        raise FlatExtentUnusable(str(descriptor_path), "the descriptor names itself as the flat extent")
    return descriptor_path.with_name(descriptor.flat_name)


def _checked(path: PathLike) -> str:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise NameInvalid(text, "not a path; give the disk's NAME.vmdk")
    return text
