"""The disk that the tiny guest with SCSI disks runs its task from: this Python, what the project needs, the project.

Everything lies where it lies on this machine, so that Python finds itself; the project is in /src, packages in /site.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

SIZE = "384M"  # sparse; what is used is some 60 MB
_ROOT = Path(__file__).resolve().parents[2]
_PROJECT = ("vmfs", "thin", "appliance", "demo", "tests")
_PACKAGES = (
    "click", "xxhash", "zstandard", "pytest", "_pytest", "pytest_timeout", "pluggy", "iniconfig", "packaging",
    "pygments", "py",
)  # fmt: skip
_LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "site-packages", "idlelib", "tkinter", "ensurepip", "lib2to3", "pydoc_data", "turtledemo",
    "config-3*", "*.opt-?.pyc", "*.a",
)  # fmt: skip
_PROGRAMS = ("blkid",)
_LIBRARY = re.compile(r"(?:\S+ => )?(?P<path>/\S+) \(0x[0-9a-f]+\)")
_COMMAND_SECONDS = 120
_TASK = """#!/bin/sh
cd /src
export PATH=/bin HOME=/tmp PYTHONPATH=/src:/site PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1
exec {python} -m pytest -p no:cacheprovider -p no:pastebin -p no:junitxml -p no:doctest -p no:unittest \
    -v -rN --assert=plain --tb=short --color=no -o console_output_style=classic --timeout=0 tests/sgio/inside/$1.py
"""


def make_task_disk(path: Path, busybox: Path) -> None:
    """An ext4 file system in the file `path`. Its task's argument names a file of tests in `tests/sgio/inside`."""
    root = path.with_suffix(".d")
    for name in ("proc", "sys", "dev", "run", "tmp", "bin", "etc", "src", "site"):
        (root / name).mkdir(parents=True)
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    standard = Path(sysconfig.get_path("stdlib"))
    _copy_tree(standard, _below(root, standard))
    for package in _PACKAGES:
        _copy_package(package, root / "site")
    for package in _PROJECT:
        ignored = shutil.ignore_patterns("*-pytest-*")
        shutil.copytree(_ROOT / package, root / "src" / package, ignore=ignored, copy_function=_link_or_copy)
    shutil.copy2(_ROOT / "pyproject.toml", root / "src")
    programs = [Path(_found(name)) for name in _PROGRAMS]
    for program in programs:
        shutil.copy2(program, root / "bin")
    _copy_files([python], root)
    shutil.copy2(busybox, root / "bin" / "sh")
    (root / "bin" / "sh").chmod(0o755)
    modules = [*(root / "site").rglob("*.so"), *_below(root, standard).rglob("*.so")]
    _copy_files(_libraries([python, *programs, *modules]), root)
    (root / "etc" / "machine-id").write_text("5d3c1f0e7a9b4c6d8e2f1a0b3c4d5e6f\n")
    (root / "etc" / "task").write_text(_TASK.format(python=python))
    path.touch()
    command = [
        _found("mke2fs"), "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", str(root), str(path), SIZE
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=_COMMAND_SECONDS)
    shutil.rmtree(root)


def _below(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=_LEFT_OUT, symlinks=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> str:
    """A link to the file, of which nothing is changed here, where one can be made: that is quicker."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _copy_package(name: str, target: Path) -> None:
    found = find_spec(name)
    assert found is not None, name
    assert found.origin is not None, name
    origin = Path(found.origin)
    installed = origin.parent if found.submodule_search_locations is None else origin.parent.parent
    for about in installed.glob(f"{name}-*.dist-info"):
        shutil.copytree(about, target / about.name)
    if found.submodule_search_locations is None:
        shutil.copy2(origin, target)
    else:
        _copy_tree(origin.parent, target / name)


def _copy_files(files: Iterable[Path], root: Path) -> None:
    for file in files:
        target = _below(root, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the loader finds for them on this machine."""
    command = ["ldd", *map(str, programs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    matches = (_LIBRARY.fullmatch(line.strip()) for line in done.stdout.splitlines())
    return {Path(match["path"]) for match in matches if match}


def _found(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found is not None, f"there is no {name}: run `make setup`"
    return found
