"""The offline checker: whether a volume's metadata agrees with itself. Changes nothing.

`findings` is what it says; `source` is how it reads; `fixed` looks at what lies at fixed places, `space` at groups and
chunks, `inodes` at the inodes in them, `maps` at the blocks they point at, `layers`, `directories` and `orphans` at how
they refer to each other; `run` puts it together. A host that died leaves a journal: the volume is then judged as it
will be after recovery (`recovery`).

Stands on the format (`vmfs.ondisk`), `vmfs.volume`, `vmfs.liveness` and the replay rules of `vmfs.core.replay`.
"""

from vmfs.check.findings import Finding, Kind, Report, Severity
from vmfs.check.run import check_volume

__all__ = ["Finding", "Kind", "Report", "Severity", "check_volume"]
