"""Users' vectors that depend on each user's own data alone, beside items that donors trained.

Items are learned by iALS from the training pairs of the donors, users who consent to it, and stay
as they are.  Every user's vector, a donor's too, is then the least-squares one for the user's own
training pairs.  What any other user did moves neither, as long as nobody decides by it which pairs
there are: items must not be dropped for having few users (`data.min_item`), and the draws of what
is held out must be nobody else's to know (`private_seed`).
"""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from musketeers import artifacts
from musketeers import config as configuration
from musketeers.config import RunConfig, changed
from musketeers.data import files
from musketeers.data.domains import Split
from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, DataError, RunError
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.ials import IalsSettings, ials, solve
from musketeers.seeding import Seed
from musketeers.training import Unwatched

_KIND, _IDS = "donors' items", "ids.parquet"
_LEAST_DONORS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What donors' histories say of items."""

    ids: Vocabulary
    vectors: Float32[np.ndarray, "item dim"]
    settings: IalsSettings

    def users(
        self, split: Split, items: Vocabulary, *, n_threads: int
    ) -> Float32[np.ndarray, "user dim"]:
        """The vectors of all users of a domain, from their training pairs; 0 of who has none."""
        rows = split.train.moved(
            np.arange(split.train.n_users), self.ids.rows(items.values),
            n_users=split.train.n_users, n_items=len(self.ids),
        )  # fmt: skip
        users = np.zeros((rows.n_users, self.vectors.shape[1]), np.float32)
        # who else has what must not count, not even in how strongly a vector is held back
        solve(
            rows, self.vectors, users, self.settings,
            n_threads=n_threads, n_columns=len(self.ids),
        )  # fmt: skip
        return users

    @property
    def mark(self) -> str:
        """The same for the same vectors, which depend on the donors alone."""
        return hashlib.sha256(np.ascontiguousarray(self.vectors).data).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Keep them for other users, or other data, later."""
        about = {
            "unobserved_weight": self.settings.unobserved_weight,
            "regularization": self.settings.regularization,
        }
        tensors = {"vectors": self.vectors}
        artifacts.save(folder, _KIND, tensors, about, files={_IDS: self.ids.to_bytes()})

    @classmethod
    def load(cls, folder: Path) -> "Items":
        """What `save` wrote."""
        if not folder.exists():
            raise RunError(
                f"{folder}: there are no donors' items of the last publication to go on with; "
                "name donors (--donors)"
            )
        found = artifacts.load(folder, _KIND)
        ids = Vocabulary.from_bytes(found.files[_IDS])
        return cls(ids, found.tensors["vectors"], IalsSettings(**found.about))


def private_seed(config: RunConfig, run: Path) -> RunConfig:
    """The settings with a seed that only this party knows, the same for a run that is begun."""
    begun = run / "config.toml"
    seed = configuration.load(begun).seed if begun.exists() else secrets.randbits(62)
    return changed(config, {"seed": seed})


def check(config: RunConfig) -> None:
    """Raise `ConfigError` where the data of one user decide which pairs of another there are."""
    if config.data.min_item > 1:
        raise ConfigError(
            f"data.min_item is {config.data.min_item}: which items are left depends on all users, "
            "so that a folded-in user's vector would tell of others; use 1"
        )


def donor_rows(
    file: Path, config: RunConfig, domain: str, users: Vocabulary, secret: Secret
) -> Int64[np.ndarray, " donor"]:
    """The rows of the donors whose ids are in `file`, in the column that the data have them in.

    Raises `DataError` where too few of them are users of the domain.
    """
    column = str(config.data.column("user", domain))
    parts = [
        part for path in files.find(str(file), Path()) for part in files.batches(path, [column])
    ]
    ids = pl.concat(parts)[column].drop_nulls().unique() if parts else pl.Series(dtype=pl.String)
    rows = users.rows(secret.of(ids))
    rows = np.unique(rows[rows >= 0])
    if len(rows) < _LEAST_DONORS:
        raise DataError(
            f"{file}: {len(rows)} of {len(ids)} donors are users of {domain}; items take "
            f"{_LEAST_DONORS} or more to train"
        )
    return rows


def donors_items(
    split: Split,
    items: Vocabulary,
    donors: Int64[np.ndarray, " donor"],
    seed: Seed,
    *,
    dim: int,
    n_threads: int,
) -> Items:
    """Items as the training pairs of the donors, and nobody else's, make them."""
    theirs = split.train.of_each(donors)
    kept = np.flatnonzero(theirs.item_counts())
    places = np.full(len(items), -1, np.int64)
    places[kept] = np.arange(len(kept))

    def moved(part: Split) -> Split:
        return part.moved(np.arange(len(donors)), places, n_users=len(donors), n_items=len(kept))

    own = moved(Split(theirs, split.valid.of_each(donors), split.test.of_each(donors)))
    looked_at = Validation.of(own, seed.child("validation"), n_threads=n_threads)
    made = ials(own, looked_at, IalsSettings(), seed.child("donors"), Unwatched(), dim=dim)
    return Items(Vocabulary(items.ids(kept)), made.factors.items, made.settings)
