"""Members of a run as threads of this process: the same `Group` as processes have, without any."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from musketeers.data.domains import Split
from musketeers.group import member_of

PATIENCE = 60.0
"""Seconds after which a member that waits for nobody fails."""


@dataclass(frozen=True)
class Member:
    """One of some threads that meet at a barrier for all that they do together."""

    place: int
    size: int
    barrier: threading.Barrier
    table: list

    def add(self, *arrays):
        every = self._all([array.copy() for array in arrays])
        for n, array in enumerate(arrays):
            array[...] = 0
            for one in every:
                array += one[n]

    def gathered(self, array):
        return self._all(array)

    def exchanged(self, arrays):
        return [one[self.place] for one in self._all(list(arrays))]

    def _all(self, mine):
        self.table[self.place] = mine
        self.barrier.wait(PATIENCE)
        found = list(self.table)
        # nobody may write anew before all have read
        self.barrier.wait(PATIENCE)
        return found


def together(n, work):
    """``work(place)`` of each of `n` members, all at once; raises the first failure."""
    barrier, table = threading.Barrier(n), [None] * n

    def one(place):
        try:
            with member_of(Member(place, n, barrier, table)):
                return work(place)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(n) as pool:
        tasks = [pool.submit(one, place) for place in range(n)]
    failures = [task.exception() for task in tasks if task.exception()]
    told = [one for one in failures if not isinstance(one, threading.BrokenBarrierError)]
    if failures:
        raise (told or failures)[0]
    return [task.result() for task in tasks]


def rows_of(place, n, n_users):
    """Every n-th user, from that place on."""
    return np.arange(place, n_users, n)


def of_member(splits, place, n):
    """The same splits of every n-th user alone."""
    return {name: part(one, rows_of(place, n, one.train.n_users)) for name, one in splits.items()}


def part(split, rows):
    return Split(*(table.of_each(rows) for table in (split.train, split.valid, split.test)))
