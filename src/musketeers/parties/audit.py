"""All attacks on what a party published, and on what it could publish instead."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from musketeers.baselines.popularity import popularity
from musketeers.config import RunConfig, changed
from musketeers.data import files, readers
from musketeers.data.interactions import Interactions
from musketeers.data.pseudonyms import Secret
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, DataError
from musketeers.evaluation.evaluate import evaluate
from musketeers.parallel import available_threads, libraries_on_one_thread
from musketeers.parties import attacks, places
from musketeers.parties.agreement import agreed, settings_of
from musketeers.parties.attacks import Score, interval_of_mean
from musketeers.parties.defences import Defences, defended
from musketeers.parties.fold_in import Items
from musketeers.parties.home import Home
from musketeers.parties.publication import Publication, by_domain
from musketeers.pretrain.given import directions
from musketeers.ranking import Factors
from musketeers.results import RunResult
from musketeers.run_files import open_run
from musketeers.runs import Quiet, Watch
from musketeers.seeding import Seed

PUBLISHED = "as published"
_KNOWN = (100, 1000)
"""Users whose histories an attacker has."""
_SEEDS = 100
"""People whom an attacker knows in two tables."""
_DELTA = 1e-6
_EPSILONS = (32.0, 8.0, 1.0)
_MOST_IDS = 5000
_METRIC = "ndcg@10"


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What a party knows of its own users, those whom it published alone; and what it would give.

    Items are those beside which the vectors were learned or solved for; pairs of others are left
    out.
    """

    users: Vocabulary
    vectors: Float32[np.ndarray, "user dim"]
    items: Float32[np.ndarray, "item dim"]
    train: Interactions
    held_out: Interactions
    """For choosing and for measuring."""
    test: Interactions
    seen: Interactions

    @property
    def axes(self) -> Float32[np.ndarray, "dim dim"]:
        """Directions in which items differ, the most important first."""
        return directions(self.items)


def levels(truth: Truth, dim: int) -> dict[str, Defences]:
    """What a party could publish instead: what it does to vectors, by name.

    Noise takes a length to cut to; here it is the vectors' median, which a real release must not
    look up in the data.
    """
    middle = float(f"{np.median(np.linalg.norm(truth.vectors, axis=1)):.4g}")
    if not middle:
        raise DataError(
            "half of the users' vectors or more are 0, so there is no length to cut them to, and "
            "little to attack; train them with a weaker regularization"
        )
    noise = {
        f"epsilon {epsilon:g}": Defences(clip=middle, epsilon=epsilon, delta=_DELTA)
        for epsilon in _EPSILONS
    }
    return {
        "no defence": Defences(),
        f"{max(dim // 4, 1)} numbers": Defences(dims=max(dim // 4, 1)),
        "2 bits": Defences(bits=2),
        f"cut to {middle:.3g}": Defences(clip=middle),
        **noise,
    }


def audit(
    config: RunConfig,
    base: Path,
    domain: str,
    data: str | Path | None,
    secret: str | Path,
    published: Sequence[str],
    home: Home,
    *,
    attributes: Path | None = None,
    watch: Watch | None = None,
) -> pl.DataFrame:
    """How far each attack comes on the domain's publication, and where other defences were used.

    Among the places `published` is the domain's own publication; those of others are what its users
    are linked to.  `attributes` is a table of ids and of what is known of users, a column each;
    without it the attribute is how active a user is, in thirds.

    A row for each level of defence and attack: `level`, `attack`, `measure`, `value` with `low` and
    `high` (95 %), `floor` (what is reached without the vectors, or by chance; for A6 the epsilon
    stated), and `control` (the same attack on vectors that were mixed among users).  The first row
    of a level is no attack but what the vectors are worth: NDCG@10 of the domain's test users by
    them and the domain's items, with popularity as the floor.

    Raises what `read_publication` raises, and `ConfigError` if the domain's own is not among them.
    """
    watch = watch or Quiet()
    own, key = settings_of(config, domain, data, secret), Secret.read(Path(secret))
    found = by_domain(places.find(published), agreed(config).domains, dim=config.dim)
    if domain not in found:
        raise ConfigError(f"none of {', '.join(published)} is by {domain}; name its publication")
    mine = found.pop(domain)[1]
    truth = _truth(open_run(home.run(mine.sequence)), domain, mine, home)
    ids = readers.read(changed(own, {"data.secret": None}).data, base=base).domains.users.values
    known = _Known(
        _labels(attributes, own, domain, truth, key),
        {name: one for name, (_, one) in found.items()},
        ids.sample(min(len(ids), _MOST_IDS), seed=0),
    )
    rows: list[dict[str, object]] = []
    whole = {PUBLISHED: mine.about.defences, **levels(truth, config.dim)}
    with libraries_on_one_thread():
        for level, how in whole.items():
            seed = Seed(own.seed).child("audit", level)
            if level == PUBLISHED:
                vectors = mine.users[mine.keys.is_in(truth.users.values.implode()).to_numpy()]
                vectors = vectors[:, : how.dims]
            else:
                vectors = defended(truth.vectors, truth.axes, how)
            found_here = list(_rows(level, vectors, how, truth, known, mine, seed))
            watch.say(f"audit    {level}: {len(found_here) - 1} attacks")
            rows += found_here
    return pl.DataFrame(rows, schema_overrides={"control": pl.Float64})


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What attackers have beside vectors."""

    labels: Mapping[str, Int64[np.ndarray, " user"]]
    others: Mapping[str, Publication]
    ids: pl.Series


def _rows(
    level: str,
    vectors: Float32[np.ndarray, "user dim"],
    how: Defences,
    truth: Truth,
    known: _Known,
    mine: Publication,
    seed: Seed,
) -> Iterator[dict[str, Any]]:
    """All attacks at one level of defence."""
    items = truth.items @ truth.axes[:, : how.dims] if how.dims else truth.items
    yield {"level": level, **asdict(_worth(vectors, items, truth, seed)), "control": None}
    mixed = vectors[seed.child("mixed").numpy().permutation(len(vectors))]
    scores, controls = (
        list(_attacks(one, items, truth, known, seed.child("attacks").numpy()))
        for one in (vectors, mixed)
    )
    for score, control in zip(scores, controls, strict=True):
        yield {"level": level, **asdict(score), "control": control.value}
    of_all = [attacks.mechanism(how)]
    if level == PUBLISHED:
        of_all.append(attacks.dictionary(known.ids, mine.keys))
    for score in filter(None, of_all):
        yield {"level": level, **asdict(score), "control": None}


def _worth(
    vectors: Float32[np.ndarray, "user dim"],
    items: Float32[np.ndarray, "item dim"],
    truth: Truth,
    seed: Seed,
) -> Score:
    found, floor = (
        evaluate(scorer, truth.test, truth.seen, n_threads=available_threads()).values[_METRIC]
        for scorer in (Factors(vectors, items), popularity(truth.train))
    )
    low, high = interval_of_mean(found, seed.child("worth").numpy())
    return Score("own lists", "NDCG@10", float(found.mean()), low, high, float(floor.mean()))


def _attacks(
    vectors: Float32[np.ndarray, "user dim"],
    items: Float32[np.ndarray, "item dim"],
    truth: Truth,
    known: _Known,
    rng: np.random.Generator,
) -> Iterator[Score]:
    """A1 to A5."""
    yield from attacks.reconstruction(vectors, items, truth.train, rng)
    for n_known in _KNOWN:
        if 2 * n_known <= len(vectors):
            yield attacks.reconstruction_from_known(vectors, truth.train, n_known, rng)
    for name, labels in known.labels.items():
        # users who are all alike in it have nothing to guess
        if len(np.unique(labels[labels >= 0])) > 1:
            yield attacks.attribute(vectors, labels, name, rng)
    yield from attacks.membership(vectors, items, truth.train, truth.held_out, rng)
    for name, other in known.others.items():
        rows = truth.users.rows(other.keys)
        if (rows >= 0).sum() >= 2 * _SEEDS:
            yield attacks.linkage(
                vectors[rows[rows >= 0]], other.users[rows >= 0], _SEEDS, name, rng
            )


def _truth(run: RunResult, domain: str, mine: Publication, home: Home) -> Truth:
    """Of the users whom the domain published and trained on."""
    split, users = run.splits[domain], run.recommender.users
    rows = users.rows(mine.keys)
    rows = np.sort(rows[rows >= 0])
    made, catalogue = run.stages.alone[domain].factors, run.recommender.domains[domain].items
    vectors, items, places = made.users, made.items, np.arange(len(catalogue))
    if mine.about.defences.mode == "fold-in":
        kept = Items.load(home.items(mine.sequence))
        vectors = kept.users(split, catalogue, n_threads=available_threads())
        items, places = kept.vectors, kept.ids.rows(catalogue.values)
    own = np.full(split.train.n_users, -1, np.int64)
    own[rows] = np.arange(len(rows))
    part = split.moved(own, places, n_users=len(rows), n_items=len(items))
    return Truth(
        Vocabulary(users.ids(rows)), vectors[rows], items, part.train,
        part.valid.union(part.test), part.test, part.seen(),
    )  # fmt: skip


def _labels(
    file: Path | None, own: RunConfig, domain: str, truth: Truth, key: Secret
) -> dict[str, Int64[np.ndarray, " user"]]:
    """By attribute, each user's class; -1 of who has none."""
    if file is None:
        counts = truth.train.counts()
        return {"activity": np.searchsorted(np.quantile(counts, (1 / 3, 2 / 3)), counts)}
    column = str(own.data.column("user", domain))
    try:
        frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{file}: cannot be read ({files.one_line(error)}); give a Parquet or CSV table of ids "
            "and attributes"
        ) from None
    if column not in frame.columns:
        raise files.missing_column(file, column, frame.columns)
    rows = truth.users.rows(key.of(frame[column]))
    found: dict[str, Int64[np.ndarray, " user"]] = {}
    for name in frame.columns:
        classes = frame[name].cast(pl.String).rank("dense").fill_null(0).cast(pl.Int64) - 1
        if name != column:
            found[name] = np.full(len(truth.users), -1, np.int64)
            found[name][rows[rows >= 0]] = classes.to_numpy()[rows >= 0]
    return found
