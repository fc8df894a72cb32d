"""Whether a history of swaps and reads of one register can be put into an order that a single register would give."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Op:
    """`result`: True or False of a swap, the value of a read; None: never answered, so it may count at any later time,
    or never."""

    kind: str
    old: int
    new: int
    began: int
    ended: int | None = None
    result: bool | int | None = None


def is_linearizable(ops: list[Op], first: int) -> bool:
    """Wing and Gong's search: the next in order is any operation that began before every unplaced one's answer."""
    everything = frozenset(range(len(ops)))
    seen: set[tuple[frozenset[int], int]] = set()
    stack = [(everything, first)]
    while stack:
        left, value = stack.pop()
        if all(ops[i].result is None for i in left):
            return True
        if (left, value) in seen:
            continue
        seen.add((left, value))
        first_answer = min(e for i in left if (e := ops[i].ended) is not None and ops[i].result is not None)
        for i in left:
            op = ops[i]
            if op.began > first_answer:
                continue
            if op.kind == "read":
                if op.result is None or op.result == value:
                    stack.append((left - {i}, value))
            elif op.result is None:
                stack.append((left - {i}, op.new if value == op.old else value))
            elif op.result == (value == op.old):
                stack.append((left - {i}, op.new if op.result else value))
    return False
