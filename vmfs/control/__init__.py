"""The control socket of a running mount: what it answers (`contract`), how (`protocol`), and who serves it (`server`).

Stands on `vmfs.errors` alone; the file system that answers is handed in as a `VolumeService`. The other end is
`vmfs.client`.
"""
