"""The control plane of a mounted volume, and the data plane that it feeds.

Stands on `vmfs.ondisk` (formats), `vmfs.devices` (storage) and `vmfs.cluster` (leases and locks). From the bottom up:
`leased` (I/O under the lease), `objects` and `store` (metadata in memory), `journal`, `transactions` and `replay`,
`groups` (allocation), `filemap` and `directories` (structures), `inodes`, `namespace`, `layers`, `reaper` (operations),
`openfile`, `firstwrite` and `dataplane` (file data), `mounting` (all of it put together).
"""
