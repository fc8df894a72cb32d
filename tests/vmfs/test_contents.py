"""Files hold what was written to them, whatever else was done: random operations against a model.

AZEKURA_SEED=N repeats a run; each prints its seed.
"""

from __future__ import annotations

import os
import re
import secrets
import time

import pytest

from tests.vmfs.datastore import Datastore
from tests.vmfs.fuzzed import Fuzzer, KernelFiles
from tests.vmfs.inprocess import InProcessFiles, InProcessHost

KERNEL_OPERATIONS = 3_000
IN_PROCESS_OPERATIONS = 17_000
SOAK_FACTOR = 50
REMOUNT_EVERY = 2_500


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("AZEKURA_SEED") or secrets.randbelow(1 << 32))
    print(f"AZEKURA_SEED={chosen}")
    return chosen


def _through_the_kernel(datastore: Datastore, seed: int, operations: int) -> None:
    mount = datastore.mount("esx1")
    files = KernelFiles(mount.path)
    fuzzer = Fuzzer(files, seed)
    began = time.monotonic()
    try:
        fuzzer.run(operations)
        print(f"{operations} operations through the kernel in {time.monotonic() - began:.1f} s")
        fuzzer.delete_all()
    finally:
        files.close()
    mount.umount()
    _check_empty(datastore)


def _check_empty(datastore: Datastore) -> None:
    """Clean, and all space is free again: no block and no layer was lost."""
    report = datastore.check()
    assert not re.search(r"layers|data blocks", report), report  # what there is none of is not counted


def _in_process(datastore: Datastore, seed: int, operations: int) -> None:
    """Mounted anew now and then, by one of two hosts, with everything compared each time."""
    hosts = 0
    host = InProcessHost(datastore.lun, "esx0", seed=seed)
    files = InProcessFiles(host)
    fuzzer = Fuzzer(files, seed)
    began = time.monotonic()
    try:
        while operations > 0:
            fuzzer.run(min(REMOUNT_EVERY, operations))
            operations -= REMOUNT_EVERY
            names = files.names()
            files.move_to(None)
            host.leave()
            hosts += 1
            host = InProcessHost(datastore.lun, f"esx{hosts % 2}", seed=seed + hosts)
            files.use(host, names)
            fuzzer.compare_all()
    except BaseException:
        host.abandon()
        raise
    print(f"{fuzzer.done} operations in process in {time.monotonic() - began:.1f} s")
    fuzzer.delete_all()
    host.leave()
    _check_empty(datastore)


def test_random_operations_through_the_kernel(datastore: Datastore, seed: int) -> None:
    _through_the_kernel(datastore, seed, KERNEL_OPERATIONS)


def test_random_operations_in_process(datastore: Datastore, seed: int) -> None:
    _in_process(datastore, seed, IN_PROCESS_OPERATIONS)


@pytest.mark.soak
def test_a_million_random_operations(datastore: Datastore, seed: int) -> None:
    _through_the_kernel(datastore, seed, KERNEL_OPERATIONS * SOAK_FACTOR)
    _in_process(datastore, seed, IN_PROCESS_OPERATIONS * SOAK_FACTOR)
