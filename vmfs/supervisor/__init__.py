"""The process that outlives a mount's process: it keeps the connection to the kernel, and starts another one.

    launch     `vmfsctl mount`: starts the supervisor and waits until the mount serves
    __main__   the supervisor: `python -m vmfs.supervisor`
    keeper     what it does: keep descriptors, wait, start again
    restarts   how soon it starts again, and when it gives up
    worker     the process that it starts: `python -m vmfs.supervisor.worker`
    memory     memory that is not paged out, and the kernel's choice of whom to kill without any

The supervisor opens no device and parses nothing but small messages of its own child: there is little in it that could
die. It imports as little, because its memory is locked.
"""
