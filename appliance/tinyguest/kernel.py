"""Finds the guest's kernel, and which of its modules must be loaded in which order.

A kernel tree is an unpacked kernel package: `boot/vmlinuz-RELEASE` beside `lib/modules/RELEASE/` or
`usr/lib/modules/RELEASE/`. Dependencies are read from the modules themselves (the `depends=` entry of their
`.modinfo` section), so that neither depmod's index nor kmod is needed.
"""

import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from appliance.tinyguest.errors import KernelNotFoundError, ModuleMissingError

_MODULE_NAME = re.compile(r"(?P<name>.+)\.ko(\.(xz|zst))?")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_LARGEST_MODULE_BYTES = 64 << 20  # a module is some hundred KiB; more is a damaged file


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """A kernel image and its modules."""

    release: str
    image: Path
    module_dir: Path

    def load_order(self, wanted: Iterable[str]) -> list[Path]:
        """The module files for the `wanted` drivers, each after what it depends on; built-in ones need none.

        Raises ModuleMissingError for a driver that this kernel does not have.
        """
        files = {_canonical(path): path for path in self.module_dir.rglob("*.ko*")}
        listed = (self.module_dir / "modules.builtin").read_text().split()
        builtin = {_canonical(Path(line)) for line in listed}
        order: dict[str, Path] = {}

        def visit(name: str) -> None:
            if name in order or name in builtin:
                return
            if name not in files:
                raise ModuleMissingError(name, self.release)
            for needed in _depends_of(read_module(files[name])):
                visit(needed)
            order[name] = files[name]

        for name in wanted:
            visit(name.replace("-", "_"))
        return list(order.values())


def find_kernel(tree: Path) -> GuestKernel:
    """The newest kernel in `tree` that has its modules beside it. Raises KernelNotFoundError."""
    found = []
    for image in tree.glob("boot/vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        for parent in ("lib/modules", "usr/lib/modules"):
            module_dir = tree / parent / release
            if (module_dir / "modules.builtin").is_file():
                found.append(GuestKernel(release, image, module_dir))
                break
    if not found:
        raise KernelNotFoundError(tree)
    return max(found, key=lambda kernel: [int(number) for number in re.findall(r"\d+", kernel.release)])


def read_module(path: Path) -> bytes:
    """The module's ELF bytes, decompressed: the guest's insmod takes plain ones only."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=_LARGEST_MODULE_BYTES)
    return data


def _depends_of(module: bytes) -> list[str]:
    match = _DEPENDS.search(module)
    return [name.decode().replace("-", "_") for name in match.group(1).split(b",") if name] if match else []


def _canonical(path: Path) -> str:
    match = _MODULE_NAME.fullmatch(path.name)
    return (match["name"] if match else path.name).replace("-", "_")
