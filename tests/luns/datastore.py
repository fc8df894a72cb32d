"""A volume on a LUN, mounted by hosts that each have a network of their own to it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.luns.lun import Lun
from tests.luns.relay import Relay
from tests.vmfs.datastore import Datastore, Mount, vmfsctl


class LunDatastore(Datastore):
    """As its base, on a LUN. Each host counts as a machine of its own, so that nobody knows who is alive."""

    def __init__(self, folder: Path, lun: Lun, *options: str, options_everywhere: tuple[str, ...] = ()) -> None:
        """`options` are format's; `options_everywhere` all commands' that open the device."""
        self.folder = folder
        self.lun = lun.url
        self.mounts = []
        self._expected = []
        self._target = lun
        self._everywhere = options_everywhere
        done = vmfsctl("format", "--name", "ds1", "--yes", "--json", *options_everywhere, *options, lun.url)
        self.formatted: dict[str, Any] = json.loads(done.stdout)
        self._stack = ExitStack()

    def mount_by_relay(self, host: str, *options: str) -> tuple[Mount, Relay]:
        """Mount it by a network that the test can cut."""
        relay = self._stack.enter_context(self._target.relay())
        mounted = self.mount(host, *options, boot_id=uuid.uuid4(), device=self._target.url_by(relay.portal))
        return mounted, relay

    def check(self) -> str:
        """`vmfsctl check` must find nothing. The volume is mounted nowhere."""
        done = vmfsctl("check", *self._everywhere, self.lun, check=False)
        assert done.returncode == 0, f"check exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Put everything away, whatever happened. Mounts first: some wait for their network."""
        super().close()
        self._stack.close()


@contextmanager
def datastore_on(
    lun: Lun, folder: Path, *options: str, options_everywhere: tuple[str, ...] = ()
) -> Iterator[LunDatastore]:
    """A volume that must be clean, and its logs too, when all was well so far."""
    datastore = LunDatastore(folder, lun, *options, options_everywhere=options_everywhere)
    try:
        yield datastore
        datastore.umount_all()
        datastore.check()
        problems = datastore.problems()
        assert not problems, "log lines that the test did not ask for:\n" + "\n".join(problems)
    finally:
        datastore.close()
