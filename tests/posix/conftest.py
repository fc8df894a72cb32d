"""The volumes of tests/vmfs, for the tests of this folder."""

from tests.vmfs.conftest import datastore, esx1, shared_datastore

__all__ = ["datastore", "esx1", "shared_datastore"]
