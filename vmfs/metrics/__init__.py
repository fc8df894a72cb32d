"""Metrics for Prometheus, off unless `mount --metrics`. docs/operations.md lists them.

    address      where they are served: ADDR:PORT
    meters       what is counted as it happens
    tally        latencies counted by many threads without a lock
    measured     the parts of a mount that count: the data plane, requests, storage I/O, journal, locks, heartbeats
    state        what is looked up when somebody asks: lease, hosts, locks held, space
    exporter     the HTTP server

Stands on `prometheus_client` (the extra `azekura[metrics]`), `vmfs.core` and `vmfs.cluster`. All but `address` is
imported only by a mount that wants it.
"""
