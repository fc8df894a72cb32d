"""Makes every call of `calls` on every kind of object in a folder, and prints what came of each as JSON.

    python -m tests.posix.battery FOLDER

One line of the result: [what was done, what the call answered or its errno's name, the folder afterwards].
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.posix.calls import ONE_PATH, TWO_PATHS
from tests.posix.objects import LONG_NAME, MAKERS, OLD_NS, OTHER, OWNER, Found, described, make, walk

Result = tuple[str, object, list[str]]

# Calls that a plain user makes in folders of others: enough of them to see each permission asked for.
_PLAIN_CALLS = (
    "open read", "open write", "open create", "open truncate", "open directory", "mkdir", "mkdir set-id sticky",
    "rmdir", "unlink", "mkfifo", "mknod file", "mknod character device", "symlink", "readlink", "chmod 7777",
    "chmod 2755", "chown", "chown group", "lchown", "truncate 5", "utime old", "utime now", "access read",
    "access all", "list", "set attribute", "get attribute", "set trusted attribute", "append", "fallocate",
)  # fmt: skip
_PLAIN_KINDS = ("nothing", "file", "empty directory")
_PATH_CALLS = ("open read", "open create", "mkdir", "rmdir", "unlink", "mkfifo", "symlink", "truncate 0", "list")
_FEW = ("nothing", "file")
_REFUSED_ONTO_ANY = ("rename no replace", "rename contradiction", "link")
"""Calls that ask only whether the second name is there: each first kind with few second ones, and the reverse."""
_CHANGES_FOLDER = (
    "open create", "mkdir", "mkdir set-id sticky", "rmdir", "unlink", "mkfifo", "mknod file", "mknod character device",
    "symlink",
)  # fmt: skip
"""Those of the plain user's calls that ask for more than the search permission of the folder."""
_SEARCH_MODES = (0o777, 0o333)
_FOLDER_MODES = (0o777, 0o755, 0o1777, 0o2777, 0o333)


def outcome(call: Callable[[], object]) -> object:
    """What the call answers, or its errno's name."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    except ValueError as error:  # Python's own word for what it does not pass on
        return str(error)


class Battery:
    """Runs one case after the other, each in an empty folder. They share one: making one costs most of a case."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0
        self._empty: tuple[Path, int] | None = None
        """A folder that the next case may have, and its mode."""

    def case(
        self,
        what: str,
        prepare: Callable[[Path], None],
        call: Callable[[Path], object],
        *,
        uid: int = 0,
        mode: int = 0o755,
    ) -> Result:
        """Take an empty folder, prepare it as root, make the call (as user `uid`), and see."""
        folder = self._folder(mode & ~stat.S_ISGID)
        prepare(folder)
        if mode & stat.S_ISGID:  # not before: what is made in the folder would have it too
            folder.chmod(mode)
        os.utime(folder, ns=(OLD_NS, OLD_NS))
        if uid:
            os.setegid(uid)
            os.seteuid(uid)
        try:
            answer = outcome(lambda: call(folder))
        finally:
            if uid:
                os.seteuid(0)
                os.setegid(0)
        found = list(walk(folder))
        after = described(found)
        self._clear(folder, found)
        return what, answer, after

    def _folder(self, mode: int) -> Path:
        if self._empty is None:
            self._count += 1
            folder, has = self._root / f"folder{self._count}", 0
            folder.mkdir()
        else:
            folder, has = self._empty
        if has != mode:
            folder.chmod(mode)
        return folder

    def _clear(self, folder: Path, found: list[Found]) -> None:
        """Leave the folder empty for the next case; or remove it too, if the case has changed its owner."""
        for name, path, seen in reversed(found):
            if name != ".":
                (os.rmdir if stat.S_ISDIR(seen.st_mode) else os.unlink)(path)
        own = found[0][2]
        self._empty = folder, stat.S_IMODE(own.st_mode)
        if (own.st_uid, own.st_gid) != (0, 0):
            self._empty = None
            folder.rmdir()

    def run(self) -> Iterator[Result]:
        yield from self._one_path()
        yield from self._path_forms()
        yield from self._two_paths()
        yield from self._plain_user()
        yield from self._sticky()

    def _one_path(self) -> Iterator[Result]:
        for name, call in ONE_PATH.items():
            for kind in MAKERS:
                if name == "read" and kind == "device":
                    continue  # whether a device may be opened is a mount option, and another test's matter
                yield self.case(
                    f"{name}: {kind}", lambda f, k=kind: make(f / "a", k), lambda f, c=call: c(str(f / "a"))
                )

    def _path_forms(self) -> Iterator[Result]:
        forms: dict[str, Callable[[Path], str]] = {
            "a slash at the end": lambda f: f"{f}/a/",
            "a dot at the end": lambda f: f"{f}/a/.",
            "two dots at the end": lambda f: f"{f}/a/..",
            "below it": lambda f: f"{f}/a/below",
            "255 bytes": lambda f: f"{f}/{LONG_NAME}",
            "256 bytes": lambda f: f"{f}/{LONG_NAME}n",
            "4096 bytes": lambda f: f"{f}/" + "d/" * 2048,
            "empty": lambda f: "",
        }
        for form, path in forms.items():
            for kind in ("nothing", "file", "empty directory", "link to a directory", "link to itself"):
                for name in _PATH_CALLS:
                    call = ONE_PATH[name]
                    yield self.case(
                        f"{name}: {form}: {kind}", lambda f, k=kind: make(f / "a", k), lambda f, c=call, p=path: c(p(f))
                    )

    def _two_paths(self) -> Iterator[Result]:
        for name, call in TWO_PATHS.items():
            for first in MAKERS:
                for second in MAKERS:
                    if name in _REFUSED_ONTO_ANY and first not in _FEW and second not in _FEW:
                        continue

                    def prepare(folder: Path, first: str = first, second: str = second) -> None:
                        make(folder / "a", first)
                        (folder / "sub").mkdir()
                        make(folder / "sub" / "b", second)
                        os.utime(folder / "sub", ns=(OLD_NS, OLD_NS))

                    yield self.case(
                        f"{name}: {first} -> {second}",
                        prepare,
                        lambda f, c=call: c(str(f / "a"), str(f / "sub" / "b")),
                    )
            for what, a, b in (
                ("onto itself", "a", "a"),
                ("onto its other name", "a", "a.other"),
                ("into itself", "d", "d/in"),
                ("into its child", "d", "d/c/in"),
                ("onto its parent", "d/c", "d"),
                ("to a dot", "d", "d/."),
                ("from dots", "d/..", "x"),
            ):

                def family(folder: Path) -> None:
                    make(folder / "a", "hard link")
                    (folder / "d" / "c").mkdir(parents=True)

                yield self.case(f"{name}: {what}", family, lambda f, c=call, x=a, y=b: c(f"{f}/{x}", f"{f}/{y}"))

    def _plain_user(self) -> Iterator[Result]:
        for mode in _FOLDER_MODES:
            for owner in (OWNER, OTHER):
                for name in _PLAIN_CALLS if mode in _SEARCH_MODES else _CHANGES_FOLDER:
                    for kind in _PLAIN_KINDS:
                        call = ONE_PATH[name]
                        yield self.case(
                            f"plain user, folder {mode:o}, {'own' if owner == OWNER else 'foreign'}: {name}: {kind}",
                            lambda f, k=kind, o=owner: make(f / "a", k, owner=o),
                            lambda f, c=call: c(str(f / "a")),
                            uid=OWNER,
                            mode=mode,
                        )

    def _sticky(self) -> Iterator[Result]:
        """Who may remove, rename and replace in a directory with the sticky bit."""
        for folder_owner in (OWNER, OTHER):
            for first_owner in (OWNER, OTHER):
                for second_owner in (OWNER, OTHER):
                    for name in ("rename", "rename exchange", "link"):
                        for kind in ("file", "empty directory"):

                            def prepare(
                                folder: Path,
                                kind: str = kind,
                                owners: tuple[int, ...] = (folder_owner, first_owner, second_owner),
                            ) -> None:
                                make(folder / "a", kind, owner=owners[1])
                                make(folder / "b", kind, owner=owners[2])
                                os.chown(folder, owners[0], owners[0])

                            call = TWO_PATHS[name]
                            who = f"{folder_owner}/{first_owner}/{second_owner}"
                            yield self.case(
                                f"sticky {who}: {name}: {kind}", prepare,
                                lambda f, c=call: c(str(f / "a"), str(f / "b")), uid=OWNER, mode=0o1777,
                            )  # fmt: skip


def main() -> None:
    """Run the battery in the folder that the argument names."""
    os.umask(0o022)
    os.setgroups([])
    root = Path(sys.argv[1])
    root.chmod(0o755)
    json.dump(list(Battery(root).run()), sys.stdout)


if __name__ == "__main__":
    main()
