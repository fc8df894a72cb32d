"""`python -m tests.simulator`: run seeds, and show what happened."""

from __future__ import annotations

import argparse
import time

from tests.simulator.faults import MODES
from tests.simulator.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the (first) seed")
    parser.add_argument("--rounds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--trace", action="store_true", help="print every event, not only the last ones of a violation")
    parser.add_argument("--digests", action="store_true", help="print each seed's digest, and no times")
    arguments = parser.parse_args()
    failed = 0
    began = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        result = World(seed, arguments.mode, keep_trace=arguments.trace).run()
        if arguments.trace and not result.violation:
            print("\n".join(result.trace))
        if result.violation:
            failed += 1
            print(result.report())
        if arguments.rounds == 1 or result.violation or arguments.digests:
            print(
                f"seed {seed} ({result.mode}): {result.steps} steps, {result.requests} requests, "
                f"{result.operations} operations, {result.recoveries} recoveries, {result.seconds:.1f} simulated "
                f"seconds, digest {result.digest}"
            )
    if arguments.rounds > 1 and not arguments.digests:
        took = time.monotonic() - began
        print(f"{arguments.rounds} seeds, {failed} violated, {took / arguments.rounds:.3f} s each")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
