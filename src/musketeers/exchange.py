"""All that leaves a domain: its users' embeddings, and whether each user was known."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int

from musketeers.errors import DataError
from musketeers.group import total


@dataclass(frozen=True, slots=True, eq=False)
class UserEmbeddings:
    """One row per user, one slice per domain.  Holds no items and no interactions.

    Each domain's vectors are divided by their mean length over the users it knows (`lengths`),
    so that no domain speaks louder than another.  Users a domain does not know have zeros there.
    """

    domains: tuple[str, ...]
    values: Float32[np.ndarray, "user domain dim"]
    known: Bool[np.ndarray, "user domain"]
    lengths: Float32[np.ndarray, " domain"]

    @classmethod
    def collect(
        cls,
        tables: Mapping[str, Float32[np.ndarray, "user dim"]],
        known: Mapping[str, Bool[np.ndarray, " user"]],
    ) -> "UserEmbeddings":
        """Stack the domains' tables, in their order.

        Raises `DataError` if the tables differ in shape.  A domain that knows nobody, or whose
        vectors are all zero, has length 1.
        """
        shapes = {name: table.shape for name, table in tables.items()}
        if len(set(shapes.values())) != 1:
            raise DataError(f"domains disagree on the shape (users, dim): {shapes}")
        return cls.stacked(tables, known, lengths_of(tables, known))

    @classmethod
    def stacked(
        cls,
        tables: Mapping[str, Float32[np.ndarray, "user dim"]],
        known: Mapping[str, Bool[np.ndarray, " user"]],
        lengths: Float32[np.ndarray, " domain"],
    ) -> "UserEmbeddings":
        """The tables of all users, or the same of a few, in a unit that is given."""
        n_users, dim = next(iter(tables.values())).shape
        # filled domain by domain: all tables at once, and what is made of them, need twice as much
        values = np.empty((n_users, len(tables), dim), np.float32)
        for n, (name, table) in enumerate(tables.items()):
            values[:, n] = _heard(table, known[name])
            values[:, n] /= lengths[n]
        present = np.stack([known[name] for name in tables], axis=1)
        return cls(tuple(tables), values, present, lengths)

    def index(self, domain: str) -> int:
        """The slice of `domain`; `DataError` if there is none."""
        if domain not in self.domains:
            raise DataError(f"{domain!r} is not one of {', '.join(self.domains)}")
        return self.domains.index(domain)

    def without(self, target: str) -> "UserEmbeddings":
        """The other domains, as sources for `target`."""
        keep = [i for i in range(len(self.domains)) if i != self.index(target)]
        names = tuple(self.domains[i] for i in keep)
        return UserEmbeddings(names, self.values[:, keep], self.known[:, keep], self.lengths[keep])

    def of(self, users: Int[np.ndarray, " row"]) -> "UserEmbeddings":
        """The same domains and unit, with these users alone."""
        return UserEmbeddings(self.domains, self.values[users], self.known[users], self.lengths)

    def placed(self, rows: Int[np.ndarray, " user"], *, n_users: int) -> "UserEmbeddings":
        """The same users at these `rows` of `n_users`; all others are known nowhere."""
        values = np.zeros((n_users, *self.values.shape[1:]), np.float32)
        known = np.zeros((n_users, self.known.shape[1]), np.bool_)
        values[rows], known[rows] = self.values, self.known
        return UserEmbeddings(self.domains, values, known, self.lengths)

    def beside(self, name: str, values: Float32[np.ndarray, "user dim"]) -> "UserEmbeddings":
        """One source more, which knows everybody whom any domain knows."""
        anywhere = np.logical_or.reduce(self.known, axis=1)
        return UserEmbeddings(
            (*self.domains, name),
            np.concatenate([self.values, (values * anywhere[:, None])[:, None]], axis=1),
            np.concatenate([self.known, anywhere[:, None]], axis=1),
            np.append(self.lengths, np.float32(1)),
        )

    def hidden(self, *domains: str) -> "UserEmbeddings":
        """The same domains, but those, or all if none is named, knowing nobody.

        All hidden is what a control without transfer is given; one hidden, as if it were not there.
        """
        places = [self.index(name) for name in domains or self.domains]
        shown = np.isin(np.arange(len(self.domains)), places, invert=True)
        values = self.values * shown[:, None].astype(np.float32)
        return UserEmbeddings(self.domains, values, self.known & shown, self.lengths)


def lengths_of(
    tables: Mapping[str, Float32[np.ndarray, "user dim"]],
    known: Mapping[str, Bool[np.ndarray, " user"]],
) -> Float32[np.ndarray, " domain"]:
    """See `UserEmbeddings.lengths`."""
    lengths = np.ones(len(tables), np.float32)
    for n, (name, table) in enumerate(tables.items()):
        norms = np.linalg.norm(_heard(table, known[name]), axis=1)
        mean = total(norms.sum(dtype=np.float64)) / max(int(total(known[name].sum())), 1)
        lengths[n] = mean if mean > 0 else 1
    return lengths


def _heard(
    table: Float32[np.ndarray, "user dim"], known: Bool[np.ndarray, " user"]
) -> Float32[np.ndarray, "user dim"]:
    # not a product with 0, whose sign would tell what is not there
    return np.where(known[:, None], table, np.float32(0))
