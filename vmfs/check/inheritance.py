"""What files inherit from the layers below them: counted rightly, and nothing behind their end.

A file shows a block of a layer where its own map says nothing, below its inherit limit. So what each inode shows is
known from its parent's view and its own leaves, from the lowest layer up.
"""

from __future__ import annotations

from collections import defaultdict

from vmfs.check.findings import Kind, Report
from vmfs.check.inodes import InodeFacts, Inodes
from vmfs.ondisk.inode import inode_address
from vmfs.ondisk.node import POINTERS_PER_NODE

_View = dict[int, tuple[int, int]]
"""By a leaf's first block: (blocks allocated, blocks with data), as bits."""


def check_inheritance(inodes: Inodes, block_bytes: int, report: Report) -> None:
    """Every inode whose layers are all there and whole."""
    children: dict[int, list[InodeFacts]] = defaultdict(list)
    for facts in inodes.facts.values():
        if facts.parent:
            children[facts.parent].append(facts)
    # From the lowest layers up; a view is kept for as long as children wait for it.
    ready = [(f, _own_view(f, {})) for f in inodes.facts.values() if f.is_layer and not f.parent and f.map.whole]
    while ready:
        layer, view = ready.pop()
        for child in children[layer.number]:
            if child.parent_generation != layer.generation or not child.map.whole:
                continue
            inherited = _below(view, child)
            _check(child, inherited, block_bytes, report)
            if child.is_layer:
                ready.append((child, _own_view(child, inherited)))


def _below(view: _View, child: InodeFacts) -> _View:
    """What of its parent's view a child does not hide."""
    found: _View = {}
    for first, (allocated, written) in view.items():
        if first >= child.inherit_limit:
            continue
        seen = -1
        if child.inherit_limit - first < POINTERS_PER_NODE:
            seen = (1 << (child.inherit_limit - first)) - 1
        own = child.map.leaves.get(first)
        if own is not None:
            seen &= ~own.present
        if allocated & seen:
            found[first] = allocated & seen, written & seen
    return found


def _own_view(facts: InodeFacts, inherited: _View) -> _View:
    view = dict(inherited)
    for first, own in facts.map.leaves.items():
        allocated, written = inherited.get(first, (0, 0))
        view[first] = allocated | own.allocated, written | own.written
    return view


def _check(facts: InodeFacts, inherited: _View, block_bytes: int, report: Report) -> None:
    number = facts.number
    shared = sum(allocated.bit_count() for allocated, _ in inherited.values())
    # A file that is being removed lets go of its own blocks one by one, and nobody counts what shows beneath them.
    removed = not facts.nlink and not facts.is_layer
    if shared != facts.shared_blocks and not removed:
        message = f"inode {number} counts {facts.shared_blocks} blocks that it shares with layers and has {shared}"
        report.add(
            Kind.SHARED_COUNT_WRONG, message, address=inode_address(number), inode=number, shared_blocks=shared
        )
    end = -(-facts.size // block_bytes)
    last = max((first + written.bit_length() for first, (_, written) in inherited.items() if written), default=0)
    if last > end:
        message = f"inode {number} of {facts.size} bytes inherits data up to block {last - 1}"
        report.add(
            Kind.INHERITS_BEYOND_END, message, address=inode_address(number), inode=number, inherit_limit=end
        )
