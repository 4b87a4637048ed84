"""What one domain observed: which user touched which item."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from musketeers.data import csr
from musketeers.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Implicit feedback of one domain, as row numbers in compressed sparse rows (CSR).

    The items of user `u` are ``items[indptr[u]:indptr[u + 1]]``, ascending and unique.
    Absence means "not observed", never "disliked".  Four bytes a pair; arrays are read-only.
    """

    indptr: Int64[np.ndarray, " user_plus_one"]
    items: Int32[np.ndarray, " pair"]
    n_items: int

    @classmethod
    def from_pairs(
        cls,
        users: Int[np.ndarray, " pair"],
        items: Int[np.ndarray, " pair"],
        *,
        n_users: int,
        n_items: int,
    ) -> "Interactions":
        """Sort, drop repeats, and check every row number against its range.

        Raises `DataError` for arrays of different length or rows out of range.
        """
        if users.shape != items.shape:
            raise DataError(f"{len(users)} users but {len(items)} items; one of each per pair")
        for name, rows, size in (("user", users, n_users), ("item", items, n_items)):
            if rows.size and not 0 <= rows.min() <= rows.max() < size:
                raise DataError(
                    f"{name} rows span {rows.min()}..{rows.max()}, outside 0..{size - 1}"
                )
        indptr, found, _ = csr.built(
            users.astype(np.int32, copy=False), items.astype(np.int32, copy=False), n_users=n_users
        )
        return cls.from_csr(indptr, found, n_items=n_items)

    @classmethod
    def from_sorted(
        cls,
        users: Int[np.ndarray, " pair"],
        items: Int[np.ndarray, " pair"],
        *,
        n_users: int,
        n_items: int,
    ) -> "Interactions":
        """Wrap distinct pairs that are sorted by user, then item, without checking them."""
        indptr = np.zeros(n_users + 1, dtype=np.int64)
        np.cumsum(np.bincount(users, minlength=n_users), out=indptr[1:])
        return cls.from_csr(indptr, items.astype(np.int32, copy=False), n_items=n_items)

    @classmethod
    def from_csr(
        cls, indptr: Int64[np.ndarray, " user_plus_one"], items: np.ndarray, *, n_items: int
    ) -> "Interactions":
        """Wrap arrays that already keep the rules above, without a copy."""
        indptr, items = indptr.view(), items.view()
        indptr.flags.writeable = items.flags.writeable = False
        return cls(indptr, items, n_items)

    @property
    def n_users(self) -> int:
        """Users of the vocabulary, those without any pair included."""
        return len(self.indptr) - 1

    def __len__(self) -> int:
        return len(self.items)

    def of(self, user: int) -> Int32[np.ndarray, " item"]:
        """The items of one user, ascending."""
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def users(self) -> Int64[np.ndarray, " pair"]:
        """The user of every pair, in the order of `items`."""
        return np.repeat(np.arange(self.n_users), self.counts())

    def counts(self) -> Int64[np.ndarray, " user"]:
        """How many items each user has."""
        return np.diff(self.indptr)

    def item_counts(self) -> Int64[np.ndarray, " item"]:
        """How many users each item has."""
        return csr.counts(self.items, size=self.n_items)

    def known_users(self) -> Bool[np.ndarray, " user"]:
        """Whether each user has any pair at all."""
        return self.counts() > 0

    def keys(self) -> Int64[np.ndarray, " pair"]:
        """One number for each pair, ascending; the same in all tables of as many items."""
        keys = self.users()
        keys *= self.n_items
        keys += self.items
        return keys

    def held_by(self, other: "Interactions") -> Bool[np.ndarray, " pair"]:
        """Whether each pair is in the other table, too, which has the same users and items."""
        return csr.held((self.indptr, self.items), (other.indptr, other.items))

    def only(self, keep: Bool[np.ndarray, " pair"]) -> "Interactions":
        """The pairs marked in `keep`."""
        indptr = csr.marked(self.indptr, keep)
        return Interactions.from_csr(indptr, self.items[keep], n_items=self.n_items)

    def within(self, start: int, stop: int) -> "Interactions":
        """The pairs of the items start..stop - 1, which count from 0 there."""
        keep = (self.items >= start) & (self.items < stop)
        items = self.items[keep] - np.int32(start)
        return Interactions.from_csr(csr.marked(self.indptr, keep), items, n_items=stop - start)

    def of_each(self, users: Int64[np.ndarray, " asked"]) -> "Interactions":
        """A table with a row for each of the asked users, in this order; empty for -1."""
        indptr, items = csr.gathered(self.indptr, self.items, users)
        return Interactions.from_csr(indptr, items, n_items=self.n_items)

    def moved(
        self,
        users: Int64[np.ndarray, " user"],
        items: Int64[np.ndarray, " item"],
        *,
        n_users: int,
        n_items: int,
    ) -> "Interactions":
        """The pairs under new row numbers: user `u` becomes ``users[u]``, item `i` ``items[i]``.

        What has no new row (-1) is left out.
        """
        user = np.repeat(users.astype(np.int32), self.counts())
        item = items.astype(np.int32)[self.items]
        kept = (user >= 0) & (item >= 0)
        return Interactions.from_pairs(user[kept], item[kept], n_users=n_users, n_items=n_items)

    def union(self, other: "Interactions") -> "Interactions":
        """The pairs of either table; both must have the same users and items."""
        indptr, items = csr.united((self.indptr, self.items), (other.indptr, other.items))
        return Interactions.from_csr(indptr, items, n_items=self.n_items)
