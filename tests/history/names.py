"""Judges the history of a group of names: is there an order of all operations that each one's answer agrees with?

Operations that change names are one after the other somewhere between their call and their answer (that of the fsync
behind them), all names of a group together, so that a rename is seen to be one step. One without an answer may have
happened up to the recovery of its mount, or not at all. The search keeps every state that the group may be in after
each event (just-in-time linearization, as Lowe describes it: "Testing for linearizability", 2016).

Looking is another thing: hosts see what others do soon (docs/consistency.md), so what was seen must have been possible
at some time between SOON_S before the call and the answer. That is far more than what is promised, for a machine that
is overloaded comes on top, and finds what comes back after it was gone. EEXIST and ENOENT are looks, too: the kernel
asks for a name before it asks for the change, and answers by itself. So it does when a rename's two names were one file
a moment ago, as far as it knows: it changes nothing, and calls that a success as POSIX does for two names of one file.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from errno import EEXIST, ENOENT
from math import inf
from typing import Final

from tests.history.records import Life, NameOp

SOON_S: Final = 10.0
_State = tuple[tuple[str, str], ...]  # (name, token), sorted
_Config = tuple[_State, frozenset[int]]  # and which of the operations under way have happened in it


class Group:
    """The search over one group's operations."""

    def __init__(self, ops: list[NameOp], over: Mapping[Life, float]) -> None:
        """`over`: until when an operation of that mount may have happened."""
        self._ops = [op for op in ops if op.kind != "read" and not op.result]
        self._looks = [op for op in ops if (op.kind == "read" or op.result) and op.ended is not None]
        self._names = {op.name for op in self._ops} | {op.other for op in self._ops if op.other}
        self._over = over
        self._possible: dict[str, dict[str | None, list[list[float]]]] = {}
        """When each name may have been what: [from, until], one after the other."""

    def problems(self) -> Iterator[str]:
        """Where no order is left, and what was read that was not there."""
        broken = self._search()
        if broken is not None:
            yield broken
            return
        for look in self._looks:
            if not self._was_possible(look):
                when = {token: spans[-2:] for token, spans in self._possible.get(look.name, {}).items()}
                yield f"{look}: in the {SOON_S:g} s before it and during it that was not so; the last was {when}"

    def _search(self) -> str | None:
        events = sorted(self._events())
        configs: set[_Config] = {((), frozenset())}
        under_way: set[int] = set()
        when = -inf
        for at, is_end, number in events:
            self._note(when, at, configs)
            when = at
            op = self._ops[number]
            if not is_end:
                under_way.add(number)
                configs = self._closed(configs, under_way)
                continue
            under_way.discard(number)
            kept = {(s, done - {number}) for s, done in configs if number in done or op.result is None}
            if not kept:
                states = sorted({s for s, _ in configs})[:4]
                return (
                    f"no order of operations explains {op}: before it the names were one of {states}, under way: "
                    f"{[self._ops[n] for n in under_way]}"
                )
            configs = self._closed(kept, under_way)
        self._note(when, inf, configs)
        return None

    def _events(self) -> Iterator[tuple[float, bool, int]]:
        for number, op in enumerate(self._ops):
            if op.result is None:
                end = self._over.get(op.life, inf)
            else:
                assert op.ended is not None
                end = op.ended
            yield op.began, False, number
            yield max(end, op.began), True, number

    def _closed(self, configs: set[_Config], under_way: set[int]) -> set[_Config]:
        """With everything that may have happened by now."""
        found, new = set(configs), list(configs)
        while new:
            state, done = new.pop()
            for number in under_way - done:
                for after in self._outcomes(state, self._ops[number]):
                    if (config := (after, done | {number})) not in found:
                        found.add(config)
                        new.append(config)
        return found

    def _outcomes(self, state: _State, op: NameOp) -> Iterator[_State]:
        after = _apply(state, op)
        if after is not None:
            yield after
        if op.kind == "rename" and op.result == 0:
            names = dict(state)
            here, there = names.get(op.name), names.get(op.other)
            if self._lately(op.name, there, op.began) or self._lately(op.other, here, op.began):
                yield state

    def _lately(self, name: str, token: str | None, when: float) -> bool:
        spans = self._possible.get(name, {}).get(token, [])
        return token is not None and bool(spans) and spans[-1][1] >= when - SOON_S

    def _note(self, since: float, until: float, configs: set[_Config]) -> None:
        states = [dict(state) for state in {s for s, _ in configs}]
        for name in self._names:
            spans = self._possible.setdefault(name, {})
            for token in {state.get(name) for state in states}:
                of_token = spans.setdefault(token, [])
                if of_token and of_token[-1][1] == since:
                    of_token[-1][1] = until
                else:
                    of_token.append([since, until])

    def _was_possible(self, look: NameOp) -> bool:
        assert look.ended is not None
        spans = self._possible.get(look.name, {None: [[-inf, inf]]})
        if look.result == EEXIST:
            return any(self._was(of_token, look) for token, of_token in spans.items() if token is not None)
        return self._was(spans.get(None if look.result == ENOENT else look.token, []), look)

    @staticmethod
    def _was(spans: list[list[float]], look: NameOp) -> bool:
        assert look.ended is not None
        before = bisect.bisect_right(spans, look.ended, key=lambda span: span[0])
        return before > 0 and spans[before - 1][1] >= look.began - SOON_S


def _apply(state: _State, op: NameOp) -> _State | None:
    """The state after it; None when it cannot have happened in this one."""
    names = dict(state)
    there = names.get(op.name)
    if (there is None) != (op.kind == "make"):
        return None
    if op.kind == "make":
        assert op.token is not None
        names[op.name] = op.token
    else:
        del names[op.name]
        if op.kind == "rename":
            assert there is not None
            names[op.other] = there
    return tuple(sorted(names.items()))
