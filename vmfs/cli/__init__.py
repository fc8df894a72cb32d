"""`vmfsctl`: a thin face over the operations of this package. One command (or group), one module.

    group        the commands and their one-line helps; a command's module is loaded when it is run
    failures     how errors become a message and an exit code
    output       tables, fields, JSON
    targets      a mount point, a device or a file: which one a command was given
    mounthelper  the other programs: what mount(8) and umount(8) run
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script `vmfsctl`."""
    from vmfs.cli.failures import run
    from vmfs.cli.group import vmfsctl

    sys.exit(run(vmfsctl))
