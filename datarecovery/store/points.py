"""The restore points of a store: `points/<first 32 digits of SHA-256 of the VM's name>/<id>.point`."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from datarecovery.errors import DamagedManifestError, PointNotFoundError, UnsupportedFeatureError, from_os_error
from datarecovery.store import document, durable, manifest
from datarecovery.store.manifest import Manifest

FOLDER = "points"
SUFFIX = ".point"
LATEST = "@latest"
_FILE_NAME = re.compile(r"[0-9a-f]{16}\.point")
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}")


class Points:
    """Finds and reads manifests."""

    def __init__(self, root: Path, store: uuid.UUID) -> None:
        self._folder = root / FOLDER
        self._store = store

    def _folder_of(self, vm: str) -> Path:
        return self._folder / hashlib.sha256(vm.encode(errors="surrogateescape")).hexdigest()[:32]

    def path_of(self, vm: str, point: str) -> Path:
        """Where the manifest of a restore point belongs."""
        return self._folder_of(vm) / (point + SUFFIX)

    def _files(self, folder: Path) -> Iterator[Path]:
        try:
            names = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise from_os_error(error, f"listing {folder}") from error
        yield from (folder / name for name in names if _FILE_NAME.fullmatch(name))

    def paths(self) -> Iterator[Path]:
        """The manifests of all VMs. Raises StoreIoError."""
        try:
            folders = sorted(os.listdir(self._folder))
        except OSError as error:
            raise from_os_error(error, f"listing {self._folder}") from error
        for name in folders:
            if _FOLDER_NAME.fullmatch(name):
                yield from self._files(self._folder / name)

    def load(self, path: Path) -> Manifest:
        """Read one manifest. Raises DamagedManifestError, UnsupportedFeatureError, StoreIoError."""
        try:
            found = manifest.decode(durable.read_file(path, document.FILE_LIMIT_BYTES))
        except UnsupportedFeatureError as error:
            raise UnsupportedFeatureError(f"restore point {path}: {error}") from error
        except ValueError as error:
            raise DamagedManifestError(f"restore point {path.stem}: its manifest {path} is damaged: {error}") from error
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        if found.store != self._store or self.path_of(found.vm, found.id) != path:
            raise DamagedManifestError(f"restore point {path.stem}: the manifest {path} belongs to another store or "
                                       "another place")
        return found

    def all(self, damaged: list[str] | None = None) -> list[Manifest]:
        """All restore points by VM and age. With `damaged`, unreadable ones are told there instead of raised."""
        found = []
        for path in self.paths():
            try:
                found.append(self.load(path))
            except (DamagedManifestError, UnsupportedFeatureError) as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
        return sorted(found, key=lambda one: (one.vm, one.sequence, one.id))

    def latest(self, vm: str) -> Manifest | None:
        """The newest restore point of a VM that can be read, or None.

        One that cannot be read is passed over: a damaged manifest must not stop the backups that come after it.
        """
        newest: Manifest | None = None
        for path in self._files(self._folder_of(vm)):
            try:
                one = self.load(path)
            except (DamagedManifestError, UnsupportedFeatureError):
                continue
            if newest is None or (one.sequence, one.id) > (newest.sequence, newest.id):
                newest = one
        return newest

    def exists(self, point: str) -> Path | None:
        """The manifest's path of a restore point with this full id, whatever its VM."""
        return next((path for path in self.paths() if path.stem == point), None)

    def resolve(self, wanted: str) -> Manifest:
        """The restore point that `wanted` means: an id, a unique prefix of one, or `VM@latest`.

        Raises PointNotFoundError, DamagedManifestError, UnsupportedFeatureError, StoreIoError.
        """
        if wanted.endswith(LATEST):
            vm = wanted.removesuffix(LATEST)
            # Here damage is not passed over: an older restore point must not be taken for the latest.
            points = [self.load(path) for path in self._files(self._folder_of(vm))]
            if not points:
                raise PointNotFoundError(f"there is no restore point of VM {vm!r}; see: datarecovery list")
            return max(points, key=lambda one: (one.sequence, one.id))
        matching = [path for path in self.paths() if wanted and path.stem.startswith(wanted.lower())]
        if not matching:
            raise PointNotFoundError(f"there is no restore point {wanted!r}; see: datarecovery list")
        if len(matching) > 1:
            names = ", ".join(path.stem for path in matching[:4])
            raise PointNotFoundError(f"{wanted!r} means {len(matching)} restore points ({names} ...); give more digits")
        return self.load(matching[0])
