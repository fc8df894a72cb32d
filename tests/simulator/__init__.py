"""A seeded simulation of a whole cluster: the production modules, unchanged, on simulated disks, clocks and threads.

    engine     Scheduler, Task: greenlets for threads, and simulated time
    threads    the names of `threading` and `time` that production modules use, replaced while a simulation runs
    lun, scsi  Lun: the disk that hosts share, its volatile cache, its reservations
    path       Path: one process' way to it, a `Device` with the faults of the way
    host       Machine, Process: clocks, mounts, crashes, pauses
    registers  Register: the values that something may have, now and after a crash
    model      what was done to files and names, and what may be read back
    worker, filework, workload    the clients of each host
    faults, chaos    which faults a seed brings, and what they do
    administrator    mounts, ends what has failed, mounts again
    oracle     what must never happen, watched at every request that reaches the disk
    audit      all names and files read back at the end
    world      one run of one seed
    plants     bugs, to prove that the oracle sees them

`python -m tests.simulator --seed 7 --trace` shows a run. docs/simulator.md tells the rest.
"""
