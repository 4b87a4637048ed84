"""Which domain helped: what is served, beside what would be had one other domain told nothing.

Nothing is trained anew.  A source is hidden from the inputs of linear models, and from CAT-ART's
attention and shared embedding: everybody is then served as those whom it does not know.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int32, Int64

from musketeers.art.train import attention
from musketeers.baselines.linear import Linear
from musketeers.data.domains import Split
from musketeers.data.vocabulary import Vocabulary
from musketeers.errors import ConfigError, UnknownNameError
from musketeers.evaluation.evaluate import PerUser
from musketeers.evaluation.metrics import hits_of, ndcg
from musketeers.evaluation.validation import MOST_USERS
from musketeers.exchange import UserEmbeddings
from musketeers.heads.blend import reblended, with_inputs, without_inputs
from musketeers.heads.candidates import Candidate
from musketeers.heads.gate import Gated, Model
from musketeers.models.registry import MODELS
from musketeers.parallel import libraries_on_one_thread
from musketeers.pipeline import new_here, served_with
from musketeers.ranking import Factors, top_k
from musketeers.recommender import STRATEGIES, Recommender, asked
from musketeers.results import Metrics, RunResult
from musketeers.scorers import Trained
from musketeers.seeding import Seed

_HIDEABLE = {"linear", "ials_head", "cat_art"}
"""Models from which a source can be hidden; from their blends too."""
_ALONE = "cat_art, linear or ials_head"
_MOST_LISTS = 40_000
"""Lists made of a domain with sources hidden, at most: with 32 domains each source was hidden from
10,000 users of each domain, which took 191 s where all training took 40 s."""
_PERSONALISED, _CROSS_DOMAIN, _ = STRATEGIES
_NDCG, _KEPT, _K = "ndcg@10", "kept@10", 10
_OLD = "the run was fitted by a version that kept too little to tell; fit it anew"


@dataclass(frozen=True, slots=True, eq=False)
class Explainer:
    """Which other domains moved a user's list in one domain; safe to use from threads.

    It holds tables of all users for each source: make it once, ask often.
    """

    run: RunResult
    domain: str
    hidden: Mapping[str, Recommender]
    """Source -> what answers `without` it; empty where nobody in the domain is told of others."""
    attention: Float32[np.ndarray, "user source"] | None
    """CAT-ART's, where it takes part in what anybody in the domain is served."""

    @classmethod
    def of(cls, run: RunResult, domain: str) -> "Explainer":
        """For a run in a folder or in memory, the same.  Raises what `check` raises."""
        check(run, domain)
        told = _told(run, domain)
        hidden = {source: without(run, domain, source) for source in _others(run, domain) if told}
        asks = any("cat_art" in found.kind for found in told.values())
        return cls(run, domain, hidden, _attention(run, domain) if asks else None)

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
        served, told = self.run.recommender, _told(self.run, self.domain)
        rows = _rows(user_ids, served.users)
        whole, strategies = served.ranked(self.domain, rows, k, n_threads=n_threads)
        less = {
            source: model.ranked(self.domain, rows, k, n_threads=n_threads)[0].items
            for source, model in self.hidden.items()
        }
        found: list[dict[str, Any]] = []
        for n, row in enumerate(rows.tolist()):
            strategy = STRATEGIES[strategies[n]]
            user = {"user_id": served.users.values[row], "strategy": strategy}
            is_told = strategy in told and self._passes(row, strategy)
            if not is_told:
                found.append(user)
            for source in self.hidden if is_told else ():
                change = self._change(whole.items[n], less[source][n])
                gain = self._gain(row, source) if strategy == _PERSONALISED else None
                asked = self._asked(row, source, told[strategy])
                found.append({**user, "source": source, **asked, **change, "gain": gain})
        items = pl.List(served.model(self.domain).items.values.dtype)
        schema = {
            "user_id": served.users.values.dtype, "strategy": pl.Enum(STRATEGIES),
            "source": pl.String, "attention": pl.Float64, "kept": pl.Float64,
            "leaves": items, "enters": items, "gain": pl.Float64,
        }  # fmt: skip
        return pl.DataFrame(found, schema=schema)

    def _passes(self, row: int, strategy: str) -> bool:
        """Whether the user is on the told side of a gate, if there is one."""
        scorer = self.run.recommender.model(self.domain).scorer
        if strategy == _PERSONALISED and isinstance(scorer, Gated):
            return bool(scorer.takes[row])
        return True

    def _change(
        self, whole: Int32[np.ndarray, " k"], less: Int32[np.ndarray, " k"]
    ) -> dict[str, Any]:
        """How a user's list changes; -1 is no item."""
        ids = self.run.recommender.model(self.domain).items.ids
        whole, less = whole[whole >= 0], less[less >= 0]
        leaves, enters = whole[~np.isin(whole, less)], less[~np.isin(less, whole)]
        kept = 1 - len(leaves) / len(whole) if len(whole) else None
        return {"kept": kept, "leaves": ids(leaves).to_list(), "enters": ids(enters).to_list()}

    def _gain(self, row: int, source: str) -> float | None:
        """What the source adds to the metric of a test user."""
        model = self.run.recommender.about["model"][self.domain]
        whole, less = (
            by[of][self.domain] for by, of in ((self.run.metrics, model), (self.run.hidden, source))
        )
        both = [one.values[_NDCG][one.users == row] for one in (whole, less)]
        # of very many test users only some were measured with the source hidden
        return float(both[0][0] - both[1][0]) if len(both[1]) else None

    def _asked(self, row: int, source: str, served: Candidate) -> dict[str, float]:
        if self.attention is None or "cat_art" not in served.kind:
            return {}
        return {"attention": float(self.attention[row, list(self.hidden).index(source)])}


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
    served, pairs = _told(run, domain).get(_PERSONALISED), run.by_source()
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
    shared = run.stages.told(run.splits) if run.stages.aligned else None
    for domain, split in run.splits.items():
        served = _told(run, domain).get(_PERSONALISED)
        if served is None or _fault(run, domain, served):
            continue
        scorer = run.recommender.domains[domain].scorer
        users = _some_of(np.flatnonzero(split.test.known_users()), run, domain)
        lists = partial(_lists, split, users, n_threads=n_threads)
        whole = lists(scorer)
        some = (users, shared.of(users)) if shared else None
        for source in _others(run, domain):
            less = lists(_retold(run, domain, _PERSONALISED, scorer, [source], some))
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
    model = served.domains[domain]
    with libraries_on_one_thread():
        scorer = _retold(run, domain, _PERSONALISED, model.scorer, sources)
        cold = _retold(run, domain, _CROSS_DOMAIN, model.cold, sources) if model.cold else None
    elsewhere = run.stages.known_elsewhere(domain, sources)
    changed = replace(model, scorer=scorer, cold=cast(Factors | None, cold), elsewhere=elsewhere)
    return replace(served, domains={**served.domains, **silent, domain: changed})


def check(run: RunResult, domain: str) -> None:
    """Raise unless it can be told what each source does for `domain`.

    `UnknownNameError` for an unknown domain; `ConfigError` for a run of one domain, and for what
    ``--only`` fitted, but for ``cat_art``, ``linear`` and ``ials_head``.
    """
    run.recommender.model(domain)
    if not _others(run, domain):
        raise ConfigError(
            f"{domain} is the only domain of the run, so no other can have helped it; fit with two"
        )
    told = _told(run, domain)
    for found in told.values():
        if fault := _fault(run, domain, found):
            raise ConfigError(f"{domain} is served by {found.kind}, {fault}")
    if _PERSONALISED in told and not any(domain in of for of in run.hidden.values()):
        raise ConfigError(f"{domain}: {_OLD}")


def _others(run: RunResult, domain: str) -> list[str]:
    shared = run.stages.shared
    return [name for name in (shared.domains if shared else run.splits) if name != domain]


def _told(run: RunResult, domain: str) -> dict[str, Candidate]:
    """Strategy -> what serves its users, if that is told of other domains."""
    verdict = run.learning.verdicts.get(domain)
    if verdict:
        here, cold = (verdict.chosen if verdict.transfers else None), verdict.cold
    else:
        kind = run.recommender.about["model"][domain]
        told = MODELS[kind].sees != "own data"
        here = cold = Candidate(kind, kind, math.nan) if told else None
    return {
        strategy: found
        for strategy, found in ((_PERSONALISED, here), (_CROSS_DOMAIN, cold))
        # a transfer that was not kept is the domain alone
        if found and (found.kind != "cat_art" or run.learning.kept.get(domain, True))
    }


def _fault(run: RunResult, domain: str, served: Candidate) -> str | None:
    """Why no source can be hidden from that model."""
    parts, stages = set(served.kind.split("+")), run.stages
    if parts - _HIDEABLE:
        return f"from which no domain can be hidden; fit without --only, or {_ALONE}"
    if "cat_art" in parts and domain not in stages.transferred:
        return "whose stages are not kept; fit without --only, or with --only cat_art alone"
    if "cat_art" in parts and stages.aligned and math.isnan(stages.aligned.length):
        return _OLD
    return None


def _retold(
    run: RunResult,
    domain: str,
    strategy: str,
    model: Trained,
    sources: Sequence[str],
    some: tuple[Int64[np.ndarray, " user"], UserEmbeddings] | None = None,
) -> Trained:
    """The model of that strategy's users, with the sources hidden from it.

    With `some`, users and what is exchanged of them, it need not be right for any others.
    """
    if isinstance(model, Gated):
        told = _retold(run, domain, strategy, model.told, sources, some)
        return replace(model, told=cast(Model, told))
    served = _told(run, domain).get(strategy)
    parts = served.kind.split("+") if served else ()
    if "linear" in parts or "ials_head" in parts:
        # the others' embeddings stand side by side, behind what the user did, or is, here
        dim = run.stages.alone[domain].factors.users.shape[1]
        own = model.n_items if isinstance(model, Linear) else dim * ("ials_head" in parts)
        for source in sources:
            start = own + dim * _others(run, domain).index(source)
            model = without_inputs(model, slice(start, start + dim))
        aligned = run.stages.aligned
        if sources and strategy == _PERSONALISED and run.config.choice.global_embedding and aligned:
            shared = run.stages.told(run.splits).hidden(*sources)
            known = shared.known.any(axis=1, keepdims=True)
            start = own + dim * len(_others(run, domain))
            told = np.float32(served.source_weight if served else 0) * known * aligned.of(shared)
            model = with_inputs(model, start, told)
    if served and "cat_art" in parts and some:
        vectors = _served_some(*some, sources, domain, run)
        model = vectors if served.weight is None else reblended(model, vectors, served.weight)
    elif served and "cat_art" in parts:
        everything = run.stages.told(run.splits)
        shared = everything.hidden(*sources) if sources else everything
        if strategy == _CROSS_DOMAIN:
            vectors = new_here(domain, run.splits[domain], run.stages, shared, run.config)
        else:
            vectors = served_with(shared, domain, run.stages, run.config)
        model = vectors if served.weight is None else reblended(model, vectors, served.weight)
    return model


def _served_some(
    users: Int64[np.ndarray, " user"],
    shared: UserEmbeddings,
    sources: Sequence[str],
    domain: str,
    run: RunResult,
) -> Factors:
    """CAT-ART with the sources hidden, and the vectors of these users alone; 0 for all others."""
    alone = run.stages.alone[domain]
    here = replace(alone, factors=Factors(alone.factors.users[users], alone.factors.items))
    stages = replace(run.stages, alone={**run.stages.alone, domain: here})
    some = served_with(shared.hidden(*sources), domain, stages, run.config)
    everybody = np.zeros(alone.factors.users.shape, np.float32)
    everybody[users] = some.users
    return Factors(everybody, some.items)


def _attention(run: RunResult, domain: str) -> Float32[np.ndarray, "user source"]:
    stages, shared = run.stages, run.stages.told(run.splits)
    if stages.aligned is None:
        raise ValueError("there is no stage 2")
    return attention(
        domain, stages.transferred[domain], stages.alone[domain], shared, stages.aligned.users,
        run.config,
    )  # fmt: skip


def _lists(
    split: Split, users: Int64[np.ndarray, " user"], scorer: Trained, *, n_threads: int
) -> Int32[np.ndarray, "user k"]:
    """As they are measured: test items are not skipped."""
    return top_k(scorer, users, k=_K, seen=split.seen(), n_threads=n_threads).items


def _kept(
    whole: Int32[np.ndarray, "user k"], less: Int32[np.ndarray, "user k"]
) -> Float64[np.ndarray, " user"]:
    """The share of each user's items that are in both lists; a test user has at least one."""
    stay = [(less == items[:, None]).any(axis=1) & (items >= 0) for items in whole.T]
    return np.sum(stay, axis=0) / np.maximum((whole >= 0).sum(axis=1), 1)


def _rows(user_ids: object, users: Vocabulary) -> Int64[np.ndarray, " user"]:
    """Each user once."""
    ids = asked(user_ids, users).unique(maintain_order=True)
    rows = users.rows(ids)
    if (unknown := ids.filter(pl.Series(rows < 0))).len():
        raise UnknownNameError(f"user {unknown[0]!r} is in no domain of this run; check the id")
    return rows
