"""The kernel's FUSE protocol spoken directly on /dev/fuse: an adapter that knows nothing of the volume.

    contract.py    what the file system must offer (`Operations`, `DataPlane`)
    records.py     the records that pass between the two
    protocol.py    opcodes, flags and limits of linux/fuse.h 7.x
    layouts.py     its structs: bounds-checked decoding of requests, encoding of replies
    negotiate.py   INIT: each kernel capability on its own, and the record of what was agreed
    mount.py       mount(2) and umount2(2)
    session.py     one mount's life: the threads, the end
    dataloop.py    the hot path: READ and WRITE inline, everything else handed on
    control.py     the pool of threads for everything else
    slowpath.py    what data threads hand on: to the pool, or to wait
    dispatch.py    one control request: decode, call `Operations`, encode
    listing.py     directory entries into the kernel's buffer
    notify.py      invalidations sent to the kernel
    errors.py      what can go wrong, with exit codes

Stands on `vmfs.errors` and the standard library alone.
Source: include/uapi/linux/fuse.h and fs/fuse of Linux 6.1 to 6.18.
"""
