"""Which domain helped: what is served, beside what would be had one other domain told nothing.

Nothing is trained anew.  A source is hidden from the inputs of linear models, and from CAT-ART's
attention and shared embedding: everybody is then served as those whom it does not know.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int32, Int64

from musketeers import told
from musketeers.art.train import attention
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, UnknownNameError
from musketeers.evaluation.evaluate import PerUser
from musketeers.evaluation.metrics import hits_of, ndcg
from musketeers.evaluation.validation import MOST_USERS
from musketeers.exchange import UserEmbeddings
from musketeers.heads.gate import Gated
from musketeers.latest import Latest
from musketeers.parallel import libraries_on_one_thread
from musketeers.ranking import Factors, top_k
from musketeers.recommender import STRATEGIES, Recommender, asked, ranked
from musketeers.results import Metrics, RunResult
from musketeers.seeding import Seed
from musketeers.told import CROSS_DOMAIN, PERSONALISED, Told, told_kinds

_MOST_LISTS = 40_000
"""Lists made of a domain with sources hidden, at most: with 32 domains each source was hidden from
10,000 users of each domain, which took 191 s where all training took 40 s."""
_NDCG, _KEPT, _K = "ndcg@10", "kept@10", 10


@dataclass(frozen=True, slots=True, eq=False)
class Explainer:
    """Which other domains moved a user's list in one domain; safe to use from threads.

    It holds the run's tables and no others, and computes for the asked users alone.
    """

    told: Told
    sources: tuple[str, ...]
    """Those that can be hidden; empty where nobody in the domain is told of others."""

    @classmethod
    def of(cls, run: RunResult, domain: str, latest: Latest | None = None) -> "Explainer":
        """For a run in a folder or in memory, the same; `latest` is made once for all domains.

        Raises what `check` raises.
        """
        check(run, domain)
        found = Told.of(run, domain, latest)
        return cls(found, tuple(_others(run, domain)) if found.kinds else ())

    def explain(
        self, user_ids: object, k: int = 10, *, n_threads: int | None = None
    ) -> pl.DataFrame:
        """What each source does to the users' lists of `k`: a row for each user and source.

        Columns: `user_id` (type as fitted; each user once, as asked), `strategy` (as
        `Recommender.recommend` has it), `source`, `attention` (CAT-ART's weight of the source
        for this user), `kept` (the share of the list that stays with the source hidden),
        `leaves` and `enters` (lists of the items that then go and come, best first), and `gain`
        (what of the user's NDCG@10 on test is lost then; above 0 where the source helped).

        A user whose list is told of no other domain has one row, without a source.  Other
        values are null where there is nothing to tell: no CAT-ART in what serves the user, no
        list, no test item.

        Raises `UnknownNameError` for an id that no domain knows, `DataError` for what is no
        column of ids, and `ConfigError` as `recommend` does.
        """
        run, domain, kinds = self.told.run, self.told.domain, self.told.kinds
        rows = rows_of(user_ids, run.recommender.users)
        whole, strategies = run.recommender.ranked(domain, rows, k, n_threads=n_threads)
        found: list[dict[str, Any]] = []
        for n, row in enumerate(rows.tolist()):
            strategy = STRATEGIES[strategies[n]]
            user = {"user_id": run.recommender.users.values[row], "strategy": strategy}
            if strategy not in kinds or not self._passes(row, strategy):
                found.append(user)
                continue
            # one user at a time, since vectors round by who else is asked for
            found += [{**user, **one} for one in self._sources(row, strategy, whole.items[n])]
        items = pl.List(run.recommender.model(domain).items.values.dtype)
        schema = {
            "user_id": run.recommender.users.values.dtype, "strategy": pl.Enum(STRATEGIES),
            "source": pl.String, "attention": pl.Float64, "kept": pl.Float64,
            "leaves": items, "enters": items, "gain": pl.Float64,
        }  # fmt: skip
        return pl.DataFrame(found, schema=schema)

    def _passes(self, row: int, strategy: str) -> bool:
        """Whether the user is on the told side of a gate, if there is one."""
        scorer = self.told.run.recommender.model(self.told.domain).scorer
        if strategy == PERSONALISED and isinstance(scorer, Gated):
            return bool(scorer.takes[row])
        return True

    def _sources(
        self, row: int, strategy: str, whole: Int32[np.ndarray, " k"]
    ) -> list[dict[str, Any]]:
        """What is to be said of each source to one user, whose list is `whole`."""
        latest = cast(Latest, self.told.latest)
        shared = latest.told(np.array([row]))
        asked = "cat_art" in self.told.kinds[strategy].kind
        weights = _attention(self.told, row, shared) if asked else None
        items = self.told.run.recommender.model(self.told.domain).items
        found: list[dict[str, Any]] = []
        for place, source in enumerate(self.sources):
            less = whole
            if shared.known[0, shared.index(source)]:
                less = self._list(row, shared.hidden(source), k=len(whole))
            one = {"source": source, **change(items, whole, less)}
            one["attention"] = float(weights[place]) if weights is not None else None
            one["gain"] = self._gain(row, source) if strategy == PERSONALISED else None
            found.append(one)
        return found

    def _list(self, row: int, shared: UserEmbeddings, *, k: int) -> Int32[np.ndarray, " k"]:
        """What is served to one user of whom this is `shared`; -1 where there is nothing more."""
        rows = np.array([row])
        seen = self.told.run.recommender.model(self.told.domain).seen.of_each(rows)
        parts = self.told.parts(rows, shared)
        return ranked(parts, 1, k=k, skip=seen, n_threads=1).items[0]

    def _gain(self, row: int, source: str) -> float | None:
        """What the source adds to the metric of a test user."""
        run, domain = self.told.run, self.told.domain
        model = run.recommender.about["model"][domain]
        values: list[float] = []
        for found in (run.metrics[model][domain], run.hidden[source][domain]):
            place = int(np.searchsorted(found.users, row))
            # of very many test users only some were measured with the source hidden
            if place == len(found.users) or found.users[place] != row:
                return None
            values.append(float(found.values[_NDCG][place]))
        return values[0] - values[1]


def helped(run: RunResult, domain: str) -> pl.DataFrame:
    """What each source does for the test users of `domain`: a row for each source.

    Columns: `source`, `users` (with a test item), `ndcg@10` (mean, of what is served), `gain` (what
    of it is lost with the source hidden; above 0 where the source helped), `low` and `high` (the
    95 % interval of the gain), `p` (corrected for all pairs of domains of the run), `changed` (the
    share of users whose ten items are then not the same), `kept` (the mean share of items that
    stay), and `attention` (CAT-ART's mean weight of the source, as `Transferred.attention` has it;
    null where CAT-ART takes no part in what is served).

    Without rows where what is served to the domain's own users is told of no other domain.
    Raises what `check` raises.
    """
    check(run, domain)
    served, pairs = told_kinds(run, domain).get(PERSONALISED), run.by_source()
    weights = run.learning.attention.get(domain, {}) if served and "cat_art" in served.kind else {}
    rows: list[dict[str, Any]] = []
    for source in _others(run, domain) if served else ():
        found, kept = pairs[domain, source], run.hidden[source][domain].values[_KEPT]
        rows.append(
            {
                "source": source, "users": found.users, _NDCG: found.mean_a,
                "gain": found.difference, "low": found.low, "high": found.high,
                "p": found.p_corrected, "changed": float((kept < 1).mean()),
                "kept": float(kept.mean()), "attention": weights.get(source),
            }
        )  # fmt: skip
    numbers = (_NDCG, "gain", "low", "high", "p", "changed", "kept", "attention")
    schema = {"source": pl.String, "users": pl.Int64, **dict.fromkeys(numbers, pl.Float64)}
    return pl.DataFrame(rows, schema=schema)


def measure(run: RunResult, *, n_threads: int) -> Metrics:
    """What `RunResult.hidden` holds; domains that `check` refuses have none."""
    found: dict[str, dict[str, PerUser]] = {}
    latest: Latest | None = None
    for domain, split in run.splits.items():
        if PERSONALISED not in told_kinds(run, domain) or told.fault(run, domain):
            continue
        latest = latest or Latest.of(run)
        anew = Told.of(run, domain, latest)
        users = _some_of(np.flatnonzero(split.test.known_users()), run, domain)
        # as they are measured: test items are not skipped
        of_ten = partial(top_k, k=_K, n_threads=n_threads)
        served, seen = run.recommender.domains[domain].scorer, split.seen()
        whole = of_ten(served, users, seen=seen).items
        seen, places, shared = seen.of_each(users), np.arange(len(users)), latest.told(users)
        for source in _others(run, domain):
            scorer = anew.scorer(PERSONALISED, users, shared.hidden(source))
            less = of_ten(scorer, places, seen=seen).items
            values = ndcg(hits_of(less, users, split.test), split.test.counts()[users])
            both = {_NDCG: values, _KEPT: _kept(whole, less)}
            found.setdefault(source, {})[domain] = PerUser(users, both)
    return found


def _some_of(
    users: Int64[np.ndarray, " user"], run: RunResult, domain: str
) -> Int64[np.ndarray, " user"]:
    """All, or as many as tell a source's worth well enough: ranking anew takes its time."""
    most = min(MOST_USERS, _MOST_LISTS // max(len(_others(run, domain)), 1))
    if len(users) <= most:
        return users
    stream = Seed(run.config.seed).child("hidden", domain)
    return np.sort(stream.numpy().choice(users, most, replace=False))


def without(run: RunResult, domain: str, *sources: str) -> Recommender:
    """What would answer in `domain`, and there alone, had the `sources` told it nothing.

    Without any it is what is served, bit by bit.  A user whom none but the sources knows gets what
    is popular.  Raises what `check` raises, `UnknownNameError` for an unknown source, and
    `ConfigError` for `domain` as its own.
    """
    check(run, domain)
    if domain in sources:
        raise ConfigError(f"{domain} is to be hidden from itself; hide another domain")
    served = run.recommender
    silent = {
        name: replace(served.model(name), known=np.zeros(len(served.users), np.bool_))
        for name in set(sources) & set(served.domains)
    }
    if unknown := set(sources) - set(_others(run, domain)):
        served.model(min(unknown))
    model, found = served.domains[domain], Told.of(run, domain)
    changed = replace(model, elsewhere=run.stages.known_elsewhere(domain, sources))
    if found.latest:
        everybody = np.arange(len(served.users))
        shared = found.latest.told(everybody)
        if sources:
            shared = shared.hidden(*sources)
        with libraries_on_one_thread():
            if PERSONALISED in found.kinds:
                changed = replace(changed, scorer=found.scorer(PERSONALISED, everybody, shared))
            if model.cold:
                cold = found.scorer(CROSS_DOMAIN, everybody, shared)
                changed = replace(changed, cold=cast(Factors, cold))
    return replace(served, domains={**served.domains, **silent, domain: changed})


def check(run: RunResult, domain: str) -> None:
    """Raise unless it can be told what each source does for `domain`.

    `UnknownNameError` for an unknown domain; `ConfigError` for a run of one domain, and for what
    `told.check` refuses.
    """
    run.recommender.model(domain)
    if not _others(run, domain):
        raise ConfigError(
            f"{domain} is the only domain of the run, so no other can have helped it; fit with two"
        )
    told.check(run, domain)
    measured = any(domain in of for of in run.hidden.values())
    if PERSONALISED in told_kinds(run, domain) and not measured:
        raise ConfigError(f"{domain}: {told.OLD}")


def _others(run: RunResult, domain: str) -> list[str]:
    shared = run.stages.shared
    return [name for name in (shared.domains if shared else run.splits) if name != domain]


def _attention(anew: Told, row: int, shared: UserEmbeddings) -> Float32[np.ndarray, " source"]:
    """CAT-ART's weights of the sources for one user, of whom this is `shared`."""
    stages, domain = anew.run.stages, anew.domain
    if stages.aligned is None:
        raise ValueError("there is no stage 2")
    alone = stages.alone[domain]
    here = replace(alone, factors=Factors(alone.factors.users[[row]], alone.factors.items))
    return attention(
        domain, stages.transferred[domain], here, shared, stages.aligned.users[[row]],
        anew.run.config,
    )[0]  # fmt: skip


def _kept(
    whole: Int32[np.ndarray, "user k"], less: Int32[np.ndarray, "user k"]
) -> Float64[np.ndarray, " user"]:
    """The share of each user's items that are in both lists; a test user has at least one."""
    stay = [(less == items[:, None]).any(axis=1) & (items >= 0) for items in whole.T]
    return np.sum(stay, axis=0) / np.maximum((whole >= 0).sum(axis=1), 1)


def change(
    items: Vocabulary, whole: Int32[np.ndarray, " k"], less: Int32[np.ndarray, " k"]
) -> dict[str, Any]:
    """`kept`, `leaves` and `enters` where a user's list becomes another; -1 is no item."""
    whole, less = whole[whole >= 0], less[less >= 0]
    leaves, enters = whole[~np.isin(whole, less)], less[~np.isin(less, whole)]
    kept = 1 - len(leaves) / len(whole) if len(whole) else None
    went, came = items.ids(leaves).to_list(), items.ids(enters).to_list()
    return {"kept": kept, "leaves": went, "enters": came}


def rows_of(user_ids: object, users: Vocabulary) -> Int64[np.ndarray, " user"]:
    """Each user once, as asked; `UnknownNameError` for one whom no domain knows."""
    ids = asked(user_ids, users).unique(maintain_order=True)
    rows = users.rows(ids)
    if (unknown := ids.filter(pl.Series(rows < 0))).len():
        raise UnknownNameError(f"user {unknown[0]!r} is in no domain of this run; check the id")
    return rows
