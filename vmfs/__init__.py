"""The cluster file system: on-disk format, locks and heartbeats, transactions, data plane, FUSE, devices, `vmfsctl`.

Stands on `thin` (disk images) and on nothing else in this project.
"""
