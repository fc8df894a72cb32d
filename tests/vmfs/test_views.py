"""A file's flattened map says of each block what walking down its layers block by block would say."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass, field

from vmfs.core.filemap import NodeSource
from vmfs.core.layers import MAX_DEPTH
from vmfs.core.views import INHERITED, flatten
from vmfs.ondisk.inode import NO_INHERIT_LIMIT, Inode
from vmfs.ondisk.node import POINTERS_PER_NODE, ROOT_POINTERS

ROUNDS = 200


class NoNodes:
    """Maps of height 0 have none."""

    def pointers(self, address: int, map_id: int, level: int, index: int) -> array[int]:
        raise AssertionError("a map of height 0 has no nodes")


@dataclass
class Chain:
    """Layers by number; the file is the last. A layer's parent has the number before it, the lowest has none."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    nodes: NodeSource = field(default_factory=NoNodes)

    def layer(self, number: int, generation: int) -> Inode:
        return self.inodes[number]

    def add(self, own: list[int], limit: int) -> Inode:
        number = len(self.inodes) + 1
        inode = Inode(number=number, root=array("Q", own), height=0, parent=number - 1, inherit_limit=limit)
        self.inodes[number] = inode
        return inode


def expected(chain: Chain, top: Inode, block: int) -> int:
    inode, is_inherited = top, 0
    while True:
        own = inode.root[block] if block < ROOT_POINTERS else 0
        if own or not inode.parent or block >= inode.inherit_limit:
            return own | is_inherited
        inode, is_inherited = chain.inodes[inode.parent], INHERITED


def test_random_chains() -> None:
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        chain = Chain()
        for _ in range(chance.randint(1, 6)):
            density = chance.choice((0.0, 0.3, 1.0))
            own = [chance.randrange(1, 100) << 16 | 1 if chance.random() < density else 0 for _ in range(ROOT_POINTERS)]
            limits = (NO_INHERIT_LIMIT, 0, chance.randrange(ROOT_POINTERS), POINTERS_PER_NODE, POINTERS_PER_NODE + 1)
            top = chain.add(own, chance.choice(limits))
        found = flatten(top, chain.nodes, chain, 0)
        assert list(found) == [expected(chain, top, b) for b in range(POINTERS_PER_NODE)], f"seed {seed}"


def test_as_many_layers_as_there_may_be() -> None:
    chain = Chain()
    for number in range(MAX_DEPTH + 1):
        own = [0] * ROOT_POINTERS
        own[number % ROOT_POINTERS] = number << 16 | 1
        top = chain.add(own, NO_INHERIT_LIMIT)
    found = flatten(top, chain.nodes, chain, 0)
    assert list(found) == [expected(chain, top, b) for b in range(POINTERS_PER_NODE)]
