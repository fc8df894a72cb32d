"""The checker: whether a volume's metadata agrees with itself; and its repair.

`kinds` and `findings` are what it says; `source` is how it reads; `fixed` looks at what lies at fixed places, `space`
at groups and chunks, `inodes` at the inodes in them, `maps` at the blocks they point at, `layers`, `inheritance`,
`directories` and `orphans` at how they refer to each other; `survey` puts it together, `run` checks a volume that
nobody has mounted, `scrub` one that is in use. A host that died leaves a journal: the volume is then judged as it will
be after recovery (`recovery`).

`repair` mends: `alone` keeps everybody else out, `atomic` writes, `shop` finds room, the `mend_` modules do the work,
`buildtree` lays out a directory. `dryrun` is a disk to try it on.

Stands on the format (`vmfs.ondisk`), `vmfs.volume`, `vmfs.liveness`, `vmfs.cluster` (a repair is a member like any
mount) and of `vmfs.core` the journal, its replay and the search for free runs.
"""

from vmfs.check.findings import Finding, Kind, Report, Severity
from vmfs.check.repair import Repaired, repair_volume
from vmfs.check.run import check_volume

__all__ = ["Finding", "Kind", "Repaired", "Report", "Severity", "check_volume", "repair_volume"]
