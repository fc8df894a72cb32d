"""The control plane of a mounted volume, and the data plane that it feeds.

Stands on `vmfs.ondisk` (formats), `vmfs.devices` (storage) and `vmfs.cluster` (leases and locks). From the bottom up:
`leased` and `blockio` (I/O), `objects` and `store` (metadata in memory), `journal`, `transactions` and `replay`,
`groups` and `space` (allocation), `filemap`, `views` and `directories` (structures), `inodes`, `makeinode`,
`attributes`, `namespace`, `rename`, `layers` and `reaper` (operations), `openfile`, `writeranges`, `slowwrite`,
`fileops` and `dataplane` (file data), `operations` and `service` (the faces), `publisher`, `recovering` and `mounting`.
"""
