"""The fitted whole: recommends in every domain, whatever trained it."""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int8, Int64

from musketeers import artifacts, scorers
from musketeers.artifacts import Artifact
from musketeers.baselines.popularity import for_everyone, popularity, ranked_by
from musketeers.config import check_domain_name
from musketeers.data.columns import checked_ids, kind
from musketeers.data.domains import Domain
from musketeers.data.interactions import Interactions
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from musketeers.heads.fold_in import Folding, of_rows, unseen
from musketeers.parallel import available_threads
from musketeers.ranking import Factors, Ranking, top_k
from musketeers.scorers import Layout, Trained

KIND = "recommender"
"""What `artifacts` calls a saved recommender."""

STRATEGIES = ("personalised", "cross_domain", "popular")
"""From the user's own history in the domain; from other domains alone; the same for everyone."""

_PERSONALISED, _CROSS_DOMAIN, _POPULAR = range(len(STRATEGIES))
_VERSION_DIGITS = 12
_USERS_FILE = "users.parquet"
_USERS_AT_A_TIME = 1 << 17
"""In a block of all users: a ranking prepares the items once a block."""


@dataclass(frozen=True, slots=True, eq=False)
class DomainModel:
    """What one domain needs to answer; a user has the same row number in every domain."""

    items: Vocabulary
    scorer: Trained
    """Of all users of the vocabulary, those this domain never saw included."""
    seen: Interactions
    """All that the domain knows of each user, held-out pairs included."""
    popularity: Factors
    """By all users that there are; of a sharded run `seen` has some of them."""
    known: Bool[np.ndarray, " user"]
    """Whether the user has interactions in this domain's training data."""
    transfers: bool
    """Whether `scorer` scores other users too, by what the domains that know them tell of them."""
    cold: Factors | None = None
    """What scores such users in its place."""
    elsewhere: Bool[np.ndarray, " user"] | None = None
    """Whom domains know that are not part of the recommender, if there are such."""

    @classmethod
    def of(
        cls,
        domain: Domain,
        scorer: Trained,
        *,
        train: Interactions,
        transfers: bool,
        cold: Factors | None = None,
        elsewhere: Bool[np.ndarray, " user"] | None = None,
    ) -> "DomainModel":
        """The model `scorer`, trained on `train`, of `domain`; `Recommender.of` checks it."""
        pairs = domain.pairs
        known, popular = train.known_users(), popularity(pairs)
        return cls(domain.items, scorer, pairs, popular, known, transfers, cold, elsewhere)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The asked users of one strategy, and what serves them."""

    strategy: str
    places: Int64[np.ndarray, " user"]
    """Where among the asked they are, ascending."""
    scorer: Trained
    """Its user n is the one at ``places[n]``.  Items and weights are the domain model's own arrays,
    so whatever is prepared of these holds here."""


@dataclass(frozen=True, slots=True, eq=False)
class Recommender:
    """One fitted model for each domain, over one vocabulary of users; safe to use from threads."""

    users: Vocabulary
    domains: Mapping[str, DomainModel]
    about: Mapping[str, Any]
    """Where it comes from, as plain JSON: the model in each domain, versions, seed."""

    @classmethod
    def of(
        cls, users: Vocabulary, domains: Mapping[str, DomainModel], about: Mapping[str, Any]
    ) -> "Recommender":
        """The parts, without copies.

        Raises `DataError` for a name that `config.check_domain_name` refuses, for no domain or
        no user, and for parts that disagree on the number of users, items or dimensions.
        """
        if fault := _fault(users, domains):
            raise DataError(f"{fault}; take all parts from one reading of the data")
        return cls(users, dict(domains), dict(about))

    def recommend(
        self,
        domain: str,
        user_ids: object,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        n_threads: int | None = None,
    ) -> pl.DataFrame:
        """The best `k` items of `domain` for each user, one row per item, users as asked.

        `user_ids` is a list or any kind of column, also for one user; a repeated id is answered
        each time.  Columns: `user_id` (type as asked, categories as text), `rank` (from 1),
        `item_id` (type as fitted), `score` and `strategy`:

        * ``personalised``: the user has a history in this domain's training data;
        * ``cross_domain``: only in that of others, from which the user's vector comes
          (of models that transfer; the others count such a user as ``popular``);
        * ``popular``: in none; items by their number of users, which is the score.

        Scores of different strategies or domains do not compare.  With `exclude_seen`, whatever
        the domain knows a user to have is left out, so a user may get fewer than `k` rows, even
        none.  Results do not depend on `n_threads` (None: all processors).

        Raises `UnknownNameError` for an unknown domain, `ConfigError` for a `k` or `n_threads`
        that is no integer of at least 1, and `DataError` for a single id, missing ids, and ids
        of a type that no user of this model can have.
        """
        model, ids = self.model(domain), asked(user_ids, self.users)
        ranking, strategies = self.ranked(
            domain, self.users.rows(ids), k, exclude_seen=exclude_seen, n_threads=n_threads
        )
        return _frame(ids, model.items, ranking, strategies)

    def recommend_all(
        self,
        domain: str,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        n_threads: int | None = None,
    ) -> Generator[pl.DataFrame]:
        """What `recommend` gives for every user of the model, in order, a block of them at a time.

        Raises what `recommend` does.
        """
        model = self.model(domain)
        for start in range(0, len(self.users), _USERS_AT_A_TIME):
            rows = np.arange(start, min(start + _USERS_AT_A_TIME, len(self.users)))
            ranking, strategies = self.ranked(
                domain, rows, k, exclude_seen=exclude_seen, n_threads=n_threads
            )
            yield _frame(self.users.ids(rows), model.items, ranking, strategies)

    def ranked(
        self,
        domain: str,
        rows: Int64[np.ndarray, " asked"],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        n_threads: int | None = None,
    ) -> tuple[Ranking, Int8[np.ndarray, " asked"]]:
        """What `recommend` gives, as rows: of users, -1 for one that no domain knows, and of items.

        The second is each user's place in `STRATEGIES`.
        """
        model = self.model(domain)
        k = min(_count("k", k), max(len(model.items), 1))
        threads = available_threads() if n_threads is None else _count("n_threads", n_threads)
        parts = self.parts(domain, rows)
        skip = model.seen.of_each(rows) if exclude_seen else None
        ranking = ranked(parts, len(rows), k=k, skip=skip, n_threads=threads)
        return ranking, strategies_of(parts, len(rows))

    def fold_in(
        self,
        domain: str,
        user_ids: object,
        item_ids: object,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        n_threads: int | None = None,
    ) -> pl.DataFrame:
        """The best `k` items of `domain` for users who have just done what is given, untrained.

        `user_ids` and `item_ids` are two columns of equal length, a pair in each row: of users whom
        the model does not know, or what known users have done since.  Items that the domain does
        not have, and pairs that it knows, tell nothing; who has none but such is answered as by
        `recommend`.  All others are ``personalised``: a linear model takes their pairs as inputs;
        in a model of vectors the user's is solved for (`heads.fold_in`).  In a blend of both the
        user's vector stays as it is, for a stranger 0.

        The answer is as that of `recommend`, each user once, ids ascending.  With `exclude_seen`
        the given items are left out, too.  The model is not changed.  Raises what `recommend` does,
        and `DataError` for columns of different length and items of no type of ids.
        """
        model = self.model(domain)
        k = min(_count("k", k), max(len(model.items), 1))
        threads = available_threads() if n_threads is None else _count("n_threads", n_threads)
        ids, items = asked(user_ids, self.users), model.items.rows(item_ids)
        if len(ids) != len(items):
            raise DataError(f"{len(ids)} user ids but {len(items)} item ids; one of each per pair")
        users = Vocabulary.of(ids)
        rows = self.users.rows(users.values)
        given = Interactions.from_pairs(
            users.rows(ids)[items >= 0], items[items >= 0],
            n_users=len(users), n_items=len(model.items),
        )  # fmt: skip
        folding = Folding.of(model.scorer, seen=model.seen, known=model.known)
        parts = self.parts_since(domain, rows, given, folding)
        skip = model.seen.of_each(rows).union(given) if exclude_seen else None
        ranking = ranked(parts, len(rows), k=k, skip=skip, n_threads=threads)
        strategies = strategies_of(parts, len(rows))
        return _frame(users.values, model.items, ranking, strategies)

    def made_ready(self) -> "Recommender":
        """The same, for many requests of a few users: what rankings need of the items is worked out
        once, and takes about half as much memory again as these.

        Raises `DataError` for items that are not finite.
        """
        domains = {
            name: replace(
                model,
                scorer=scorers.made_ready(model.scorer),
                cold=model.cold and model.cold.made_ready(),
                popularity=model.popularity.made_ready(),
            )
            for name, model in self.domains.items()
        }
        return replace(self, domains=domains)

    def save(self, path: Path | str) -> None:
        """Write everything to the new folder `path`; `load` gives it back bit by bit.

        Raises `ArtifactError` if `path` holds something already, if the disk refuses, or if
        `about` is not plain JSON.
        """
        tensors: dict[str, np.ndarray] = {}
        files = {_USERS_FILE: self.users.to_bytes()}
        for name, model in self.domains.items():
            tensors |= {_tensor_name(name, part): array for part, array in _arrays(model).items()}
            files[_items_file(name)] = model.items.to_bytes()
        about = {"domains": list(self.domains), "about": dict(self.about)}
        artifacts.save(Path(path), KIND, tensors, about, files=files)

    @classmethod
    def load(cls, path: Path | str) -> "Recommender":
        """What `save` wrote.  Raises `ArtifactError` for anything missing, damaged or foreign."""
        folder = Path(path)
        found = artifacts.load(folder, KIND)
        names, about = _described(folder, found)
        _check_parts(folder, found, names)
        users = _vocabulary(folder, found, _USERS_FILE)
        domains = {name: _domain_model(folder, found, name, n_users=len(users)) for name in names}
        if fault := _fault(users, domains):
            raise _damaged(folder, fault)
        return cls(users, domains, about)

    def model(self, domain: object) -> DomainModel:
        """That of `domain`; raises `UnknownNameError` if there is none."""
        if isinstance(domain, str) and domain in self.domains:
            return self.domains[domain]
        near = get_close_matches(str(domain), self.domains, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "name one of those"
        known = ", ".join(map(repr, self.domains))
        raise UnknownNameError(f"domain {domain!r} is not among {known}; {remedy}")

    def parts(self, domain: str, rows: Int64[np.ndarray, " asked"]) -> tuple[Part, ...]:
        """What serves the asked users in `domain`, each of whom is in one of the parts.

        Row -1 is a user whom no domain knows.  Raises `UnknownNameError` for an unknown domain.
        """
        model = self.model(domain)
        strategies = self.strategies(domain, rows)
        popular = strategies == _POPULAR
        new = (strategies == _CROSS_DOMAIN) & (model.cold is not None)
        found: list[Part] = []
        for strategy, scorer, chosen in (
            (_PERSONALISED, model.scorer, strategies == _PERSONALISED),
            (_CROSS_DOMAIN, model.scorer, (strategies == _CROSS_DOMAIN) & ~new),
            (_CROSS_DOMAIN, model.cold, new),
            # the same for everyone, whoever is in no vocabulary included
            (_POPULAR, model.popularity, popular),
        ):
            if scorer and chosen.any():
                places = np.flatnonzero(chosen)
                of = of_rows(scorer, rows[places].clip(0))
                found.append(Part(STRATEGIES[strategy], places, of))
        return tuple(found)

    def parts_since(
        self,
        domain: str,
        rows: Int64[np.ndarray, " asked"],
        recent: Interactions | None,
        folding: Folding,
    ) -> tuple[Part, ...]:
        """The same, now that they have also done in `domain` what is `recent`, a row for each.

        Whoever did anything that the domain does not know is told of it by `folding`, which is of
        the domain's model, and ``personalised``.
        """
        new = unseen(self.model(domain).seen, rows, recent) if recent else None
        if not new:
            return self.parts(domain, rows)
        told = new.known_users()
        there, rest = np.flatnonzero(told), np.flatnonzero(~told)
        others = (
            replace(part, places=rest[part.places]) for part in self.parts(domain, rows[rest])
        )
        scorer = folding.told(rows[there], new.of_each(there))
        return *others, Part(STRATEGIES[_PERSONALISED], there, scorer)

    def strategies(
        self, domain: str, rows: Int64[np.ndarray, " asked"]
    ) -> Int8[np.ndarray, " asked"]:
        """Each user's place in `STRATEGIES`; users and errors as of `parts`."""
        model = self.model(domain)
        fitted = rows >= 0
        anywhere = np.zeros(len(rows), dtype=np.bool_)
        if model.transfers or model.cold:
            for other in self.domains.values():
                anywhere |= other.known[rows] & fitted
            if model.elsewhere is not None:
                anywhere |= model.elsewhere[rows] & fitted
        here = model.known[rows] & fitted
        return np.select([here, anywhere], [_PERSONALISED, _CROSS_DOMAIN], _POPULAR).astype(np.int8)


def version_of(folder: Path) -> str:
    """What tells a saved recommender from any other: the first 12 digits of the SHA-256 of its
    manifest, which has those of all its files.

    Raises `ArtifactError` for a folder without one.
    """
    try:
        manifest = (folder / artifacts.MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{folder}: is no finished run and no saved model: {error.strerror}; give the folder "
            "of one"
        ) from None
    return hashlib.sha256(manifest).hexdigest()[:_VERSION_DIGITS]


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} is {value!r}, no integer; give one of at least 1")
    if value < 1:
        raise ConfigError(f"{name} is {value}; give at least 1")
    return int(value)


def described(path: Path | str) -> tuple[Mapping[str, Any], Vocabulary]:
    """A saved recommender's `about` and users, without its vectors; raises as `load` does."""
    folder = Path(path)
    found = artifacts.load_without_tensors(folder, KIND)
    _, about = _described(folder, found)
    return about, _vocabulary(folder, found, _USERS_FILE)


def asked(user_ids: object, users: Vocabulary) -> pl.Series:
    """The ids as one column of a kind that could be found among `users`."""
    try:
        if user_ids is None or isinstance(user_ids, str | bytes):
            raise TypeError
        ids = pl.Series(values=user_ids)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError, pa.ArrowException, pl.exceptions.PolarsError):
        raise DataError(
            f"user_ids is of type {type(user_ids).__name__}, no column of ids of one type; give "
            "a list or array, also for a single user"
        ) from None
    if ids.is_empty() and (ids.dtype == pl.Null or ids.dtype.is_float()):
        return users.values.clear()  # an empty list or array says nothing about its type
    ids = checked_ids(ids, "user_ids")
    asked, fitted = kind(ids), kind(users.values)
    # text and bytes may stand for ids of any kind, and these for them
    if asked != fitted and not {asked, fitted} & {"text", "bytes"}:
        raise DataError(f"user_ids are {asked}, those of this model {fitted}; convert them")
    return ids


def ranked(
    parts: Sequence[Part], n: int, *, k: int, skip: Interactions | None, n_threads: int
) -> Ranking:
    """The lists of `n` asked users, all of whom are in `parts`, each without its row of `skip`."""
    ranking = Ranking(np.full((n, k), -1, dtype=np.int32), np.full((n, k), np.nan))
    for part in parts:
        skipped = skip and skip.of_each(part.places)
        for side, chosen in scorers.sides(part.scorer, len(part.places)):
            places = part.places[chosen]
            found = top_k(side, chosen, k=k, seen=skipped, n_threads=n_threads)
            ranking.items[places], ranking.scores[places] = found.items, found.scores
    return ranking


def strategies_of(parts: Sequence[Part], n: int) -> Int8[np.ndarray, " asked"]:
    """The place in `STRATEGIES` of what serves each of `n` asked users; all are in `parts`."""
    found = np.zeros(n, np.int8)
    for part in parts:
        found[part.places] = STRATEGIES.index(part.strategy)
    return found


def _frame(
    ids: pl.Series, items: Vocabulary, ranking: Ranking, strategies: Int8[np.ndarray, " asked"]
) -> pl.DataFrame:
    user, place = np.nonzero(ranking.items >= 0)
    names = pl.Series(STRATEGIES, dtype=pl.Enum(STRATEGIES))
    return pl.DataFrame(
        {
            "user_id": ids.gather(user),
            "rank": (place + 1).astype(np.int32),
            "item_id": items.ids(ranking.items[user, place]),
            "score": ranking.scores[user, place],
            "strategy": names.gather(strategies[user]),
        }
    )


def _fault(users: Vocabulary, domains: Mapping[str, DomainModel]) -> str | None:
    """What makes the parts no whole."""
    if not domains or not len(users):
        return f"there are {len(domains)} domains and {len(users)} users, one of each is needed"
    for name, model in domains.items():
        try:
            check_domain_name(name)
        except ValueError as error:
            return str(error)
        if fault := _disagreement(model, n_users=len(users)):
            return f"domain {name}: {fault}"
    return None


def _disagreement(model: DomainModel, *, n_users: int) -> str | None:
    parts, seen, n_items = _arrays(model), model.seen, len(model.items)
    if fault := scorers.layout_fault(parts, _layout(parts)):
        return fault
    if fault := _scorers_fault(parts, n_users=n_users, n_items=n_items):
        return fault
    n_elsewhere = n_users if model.elsewhere is None else len(model.elsewhere)
    popular = len(model.popularity.items)
    sizes = (
        (f"{n_items} items", n_items, "items by popularity", popular),
        (f"{n_users} users", n_users, "rows of seen items", seen.n_users),
        (f"{n_users} users", n_users, "marks of known users", len(model.known)),
        (f"{n_users} users", n_users, "marks of users known elsewhere", n_elsewhere),
        (f"{n_items} items", n_items, "items that users may have seen", seen.n_items),
    )
    for whole, wanted, part, found in sizes:
        if found != wanted:
            return f"{found} {part} for {whole}"
    return None


_LAYOUT: Layout = {
    "seen_indptr": (np.int64, 1),
    "seen_items": (np.int32, 1),
    "known": (np.bool_, 1),
    "transfers": (np.bool_, 0),
}
"""Each domain's arrays beside those of its scorer."""

_POPULARITY = "popularity"
"""The name of the array of `DomainModel.popularity`, where it is not what is counted in `seen`."""

_ELSEWHERE = "elsewhere"
"""The name of the array of `DomainModel.elsewhere`, where there is one."""
_COLD = "cold/"
"""What the names of the arrays of `DomainModel.cold` begin with, where there are any."""


def _layout(names: Mapping[str, object]) -> Layout:
    """What the arrays of a domain among which these are should be."""
    new = scorers.layout({}) if any(name.startswith(_COLD) for name in names) else {}
    new = {f"{_COLD}{name}": kind for name, kind in new.items()}
    further: Layout = {_ELSEWHERE: (np.bool_, 1), _POPULARITY: (np.float32, 2)}
    further = {name: kind for name, kind in further.items() if name in names}
    return {**scorers.layout(names), **_LAYOUT, **further, **new}


def _of_cold(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(_COLD): array for name, array in arrays.items() if name.startswith(_COLD)
    }


def _scorers_fault(arrays: Mapping[str, np.ndarray], *, n_users: int, n_items: int) -> str | None:
    """What keeps arrays of the right types from being the scorers of so many users and items."""
    new = _of_cold(arrays)
    fault = scorers.fault(new, n_users=n_users, n_items=n_items) if new else None
    return fault or scorers.fault(arrays, n_users=n_users, n_items=n_items)


def _arrays(model: DomainModel) -> dict[str, np.ndarray]:
    seen = model.seen
    own = seen.indptr, seen.items, model.known, np.array(model.transfers)
    new = scorers.arrays(model.cold) if model.cold else {}
    popular = model.popularity.items
    counted = np.array_equal(popular, ranked_by(seen.item_counts(), n_users=0).items)
    return {
        **scorers.arrays(model.scorer),
        **dict(zip(_LAYOUT, own, strict=True)),
        **({} if model.elsewhere is None else {_ELSEWHERE: model.elsewhere}),
        **({} if counted else {_POPULARITY: popular}),
        **{f"{_COLD}{name}": array for name, array in new.items()},
    }


def _tensor_name(domain: str, part: str) -> str:
    return f"{domain}/{part}"


def _items_file(domain: str) -> str:
    return f"items-{domain}.parquet"


def _described(folder: Path, found: Artifact) -> tuple[list[str], dict[str, Any]]:
    names, about = found.about.get("domains"), found.about.get("about")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(folder, "'domains' is no list of names")
    if len(set(names)) < len(names):
        raise _damaged(folder, "'domains' repeats a name")
    if not isinstance(about, dict):
        raise _damaged(folder, "'about' is no mapping")
    return names, about


def _check_parts(folder: Path, found: Artifact, names: list[str]) -> None:
    tensors = {
        _tensor_name(name, part) for name in names for part in _layout(_of_domain(found, name))
    }
    files = {_USERS_FILE, *(_items_file(name) for name in names)}
    if wrong := (tensors ^ set(found.tensors)) | (files ^ set(found.files)):
        raise _damaged(folder, f"{min(wrong)!r} is missing, or belongs to no domain")


def _of_domain(found: Artifact, name: str) -> dict[str, np.ndarray]:
    start = _tensor_name(name, "")
    return {
        key.removeprefix(start): array
        for key, array in found.tensors.items()
        if key.startswith(start)
    }


def _domain_model(folder: Path, found: Artifact, name: str, *, n_users: int) -> DomainModel:
    tensors = _of_domain(found, name)
    items = _vocabulary(folder, found, _items_file(name))
    indptr, seen = tensors["seen_indptr"], tensors["seen_items"]
    if fault := scorers.layout_fault(tensors, _layout(tensors)):
        raise _damaged(folder, f"domain {name}: {fault}")
    if fault := scorers.csr_fault(indptr, seen, n_columns=len(items)):
        raise _damaged(folder, f"domain {name}: seen items {fault}")
    if fault := _scorers_fault(tensors, n_users=n_users, n_items=len(items)):
        raise _damaged(folder, f"domain {name}: {fault}")
    pairs = Interactions.from_csr(indptr, seen, n_items=len(items))
    scorer = scorers.scorer_of(tensors, n_items=len(items))
    known, transfers = tensors["known"], bool(tensors["transfers"])
    new = _of_cold(tensors)
    cold = Factors(new["users"], new["items"]) if new else None
    popular = tensors.get(_POPULARITY)
    return DomainModel(
        items, scorer, pairs,
        popularity(pairs) if popular is None else for_everyone(popular, n_users=n_users),
        known, transfers, cold, tensors.get(_ELSEWHERE),
    )  # fmt: skip


def _vocabulary(folder: Path, found: Artifact, name: str) -> Vocabulary:
    try:
        return Vocabulary.from_bytes(found.files[name])
    except ArtifactError as error:
        raise ArtifactError(f"{folder / name}: {error}") from None


def _damaged(folder: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"{folder}: {fault}; save the model again")
