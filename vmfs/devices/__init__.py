"""Block devices and files as the storage of a volume, behind one contract (`contract.Device`).

Stands on `vmfs.errors` alone.
"""
