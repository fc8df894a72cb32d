"""Live Storage vMotion: moving a running VM's disks between datastores. Stands on `vmfs` and `thin`."""
