"""How much memory a model's training takes, told before it starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from musketeers.data.domains import Domains
from musketeers.disk import check_room
from musketeers.errors import ConfigError
from musketeers.heads.linear import bytes_needed
from musketeers.ranking import TILE_BYTES

_GB = 10**9
_PROCESS = 2**29
"""Bytes of a process that has torch and the compiled loops, and nothing to learn yet."""
MOST_NEIGHBORS = 500
"""The most of them that ItemKNN is tuned with."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much one training is about; enough to tell what memory it needs."""

    n_users: int
    n_items: tuple[int, ...]
    """Of each domain that is trained."""
    n_pairs: int
    """Of these domains together."""
    dim: int
    n_domains: int
    """Of all domains, trained or not."""

    @classmethod
    def of(cls, domains: Domains, trained: Sequence[str], *, dim: int) -> "Size":
        """The size of a training on some of the domains."""
        chosen = [domains.domains[name] for name in trained]
        return cls(
            len(domains.users),
            tuple(len(domain.items) for domain in chosen),
            sum(len(domain.pairs) for domain in chosen),
            dim,
            len(domains.domains),
        )


def refusal(model: str, needed: int, held: int, memory: int) -> str:
    """What to tell of a model that does not fit beside what its process holds."""
    return (
        f"{model} needs about {needed:,} bytes beside {held:,} of its process, more than the "
        f"{memory:,} there are; give more memory, keep fewer items (data.min_item), or leave it out"
    )


Needs = Callable[[Size], int]
"""A bound of the bytes that a training takes beside the data, tuning and measuring included."""


def vectors(tables: int) -> Needs:
    """So many tables of vectors, one row for each user and item of each domain."""

    def needs(size: Size) -> int:
        rows = sum(size.n_users + n_items for n_items in size.n_items)
        return 2 * TILE_BYTES + 4 * tables * size.dim * rows + 64 * size.n_pairs

    return needs


FACTORS = vectors(8)
"""Enough for a model of users' and items' vectors, trained here."""


def one_domain(size: Size, *, n_threads: int) -> int:
    """Stage 1 or 3 of one domain in a process of its own, beside what it is given.

    Each thread has its own copy of the items' vectors while they learn.
    """
    return _PROCESS + FACTORS(size) + 4 * n_threads * size.dim * sum(size.n_items)


def wide_vectors(size: Size) -> int:
    """As many dimensions as all domains have together."""
    return FACTORS(replace(size, dim=size.dim * size.n_domains))


def attentive(size: Size) -> int:
    """As `ga_mtcdr` says, for its batches of 4,096 users."""
    attention = 40 * size.n_domains**2 * size.dim * size.n_users
    return vectors(16)(size) + attention + 12 * 4096 * max(size.n_items)


def squares(size: Size) -> int:
    """The inverse (8 bytes a cell), its weights, and those of the best try (4 each)."""
    n_items = sum(size.n_items)
    inverse = 8 * min(n_items, size.n_users) ** 2
    return 2 * TILE_BYTES + inverse + 8 * n_items**2 + 64 * size.n_pairs


def widened_squares(n_models: int) -> Needs:
    """So many linear heads of the largest domain, beside one of each domain that is done."""

    def needs(size: Size) -> int:
        largest, width = max(size.n_items), size.dim * size.n_domains
        heads = bytes_needed(size.n_users, largest, width, n_models=n_models)
        done = sum(
            4 * n_items * (n_items + width) + 12 * width * size.n_users for n_items in size.n_items
        )
        return FACTORS(size) + heads + done

    return needs


def neighbors_kept(size: Size) -> int:
    """As `item_knn` says, for the most neighbours that are tried, and the best try's own."""
    kept = sum(n_items * min(n_items, MOST_NEIGHBORS) for n_items in size.n_items)
    return 2 * TILE_BYTES + 48 * kept + 64 * size.n_pairs


def whole_fit(size: Size, *, transfers: bool) -> int:
    """The stages of all domains, measured and saved; stage 1 alone unless it `transfers`.

    A table of users for each domain that learned alone, and if it transfers for each that is
    exchanged and for each that learned from the others; three copies of one table in training; and
    for each pair what ranking must skip and what is written of it.
    """
    n_tables = size.n_domains * (3 if transfers else 1) + 3
    return 2 * TILE_BYTES + _tables(size, n_tables, 6) + 6 * size.n_pairs


def shard_fit(size: Size, n_shards: int, *, transfers: bool, sharded_items: bool) -> int:
    """`whole_fit` of a member with one of so many shards of the users.

    If items are in shards too, it has its own, as many that it has fetched, and a few numbers for
    each; the others are on the disk.
    """
    users, pairs = size.n_users // n_shards, size.n_pairs // n_shards
    mine = replace(size, n_users=users, n_pairs=pairs)
    if not sharded_items:
        return whole_fit(mine, transfers=transfers)
    held = tuple(2 * n_items // n_shards for n_items in size.n_items)
    numbers = 32 * sum(size.n_items)
    return whole_fit(replace(mine, n_items=held), transfers=transfers) + numbers


def run_folder(size: Size, *, transfers: bool) -> int:
    """Bytes on disk of such a fit: its vectors, the model's, and twice stage 1's in progress."""
    n_tables = 5 * size.n_domains + 1 if transfers else 4 * size.n_domains
    return _tables(size, n_tables, 5) + 6 * size.n_pairs


def _tables(size: Size, of_users: int, of_items: int) -> int:
    """So many tables of vectors of all users, and of all domains' items."""
    return 4 * size.dim * (of_users * size.n_users + of_items * sum(size.n_items))


def check_fit(size: Size, out: Path, memory: int, *, transfers: bool) -> None:
    """Raise `ConfigError` unless `memory` is enough for a whole fit, and the disk for its run."""
    if (needed := whole_fit(size, transfers=transfers)) > memory:
        raise ConfigError(
            f"the fit needs about {needed / _GB:.1f} GB of memory beside the data, "
            f"{memory / _GB:.1f} GB are free; close other programs, take narrower vectors (dim), "
            "or keep fewer users (data.min_user)"
        )
    check_room(out, run_folder(size, transfers=transfers))
