"""Layers: that every one below a file is there, and that each counts rightly who stands on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set as AbstractSet

from vmfs.check.findings import Kind, Report
from vmfs.check.inodes import InodeFacts, Inodes
from vmfs.ondisk.inode import inode_address


def check_layers(inodes: Inodes, waiting: AbstractSet[int], report: Report) -> None:
    """`waiting`: the inodes that are in an orphan list to be removed."""
    children: Counter[int] = Counter(f.parent for f in inodes.facts.values() if f.parent)
    for facts in inodes.facts.values():
        if facts.parent:
            _check_parent(facts, inodes, report)
        if facts.is_layer and facts.children != children[facts.number]:
            _add(report, Kind.LAYER_CHILDREN_WRONG, facts,
                 f"layer {facts.number} counts {facts.children} children and has {children[facts.number]}",
                 children=children[facts.number])  # fmt: skip
        elif facts.is_layer and not facts.children and facts.number not in waiting:
            _add(report, Kind.LAYER_LOST, facts, f"nothing stands on layer {facts.number}, and nobody is removing it")
        if facts.is_layer and facts.nlink:
            message = f"layer {facts.number} counts {facts.nlink} names; it can have none"
            _add(report, Kind.LINKS_WRONG, facts, message, nlink=0)
    _check_cycles(inodes.facts, report)


def _check_parent(facts: InodeFacts, inodes: Inodes, report: Report) -> None:
    parent = inodes.facts.get(facts.parent)
    who = f"inode {facts.number} stands on layer {facts.parent}"
    if parent is None:
        state = "is damaged" if facts.parent in inodes.damaged else "is not there"
        _add(report, Kind.LAYER_MISSING, facts, f"{who}, which {state}")
    elif not parent.is_layer:
        _add(report, Kind.LAYER_MISSING, facts, f"{who}, which is no layer")
    elif parent.generation != facts.parent_generation:
        message = f"{who} of generation {facts.parent_generation}, which is of generation {parent.generation} now"
        _add(report, Kind.LAYER_MISSING, facts, message)
    elif facts.depth != parent.depth + 1:
        message = f"inode {facts.number} counts {facts.depth} layers below it and has {parent.depth + 1}"
        _add(report, Kind.LAYER_DEPTH_WRONG, facts, message, layer_depth=parent.depth + 1)


def _check_cycles(facts: dict[int, InodeFacts], report: Report) -> None:
    good: set[int] = {0}
    for start in facts:
        path: dict[int, None] = {}  # in order, and quick to look up
        at = start
        while at not in good and at in facts:
            if at in path:
                # Cut by a generation that its parent does not have: reads of what is inherited fail from then on.
                cut = facts[at].parent_generation ^ 1
                message = f"the layers below layer {at} lead back to it"
                _add(report, Kind.LAYER_CYCLE, facts[at], message, parent_generation=cut)
                break
            path[at] = None
            below = facts.get(facts[at].parent)
            at = below.number if below is not None and below.generation == facts[at].parent_generation else 0
        good.update(path)


def _add(report: Report, kind: Kind, facts: InodeFacts, message: str, **fix: int) -> None:
    report.add(kind, message, address=inode_address(facts.number), inode=facts.number, **fix)
