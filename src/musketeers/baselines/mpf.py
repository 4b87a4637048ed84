"""Multi-site probabilistic factorisation (MPF): a user's common taste plus one for each domain.

User u has the vector ubar_u + Delta_u^d in domain d.  The decomposition, Delta = 0 for those known
in one domain, and a prior for each domain are of Yang et al. (SIGIR 2017) and Yan et al. (TKDE
2021).  Inferred, since what is known of those and of the CAT-ART authors' adaptation does not
settle it: Gaussian priors, here as L2 strengths; BPR in place of their likelihood, as for the other
baselines; all domains trained at once, each with negatives of its own.  It sees the interactions of
all domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from musketeers.baselines.joint import Joint, mean_ndcg, n_threads, trains
from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.memory import on_cache_lines
from musketeers.pretrain import kernels
from musketeers.pretrain.lanes import Rows
from musketeers.pretrain.search import search
from musketeers.pretrain.tables import SQUARES_AT_START, Catalogue, Tables, Turn
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import Job


@dataclass(frozen=True, slots=True)
class MpfSettings:
    """How MPF learns."""

    bpr: PretrainConfig = field(default_factory=PretrainConfig)
    """As a domain alone learns; its search looks at the mean of the domains."""
    own_strength: float = 2.0
    """L2 strength of Delta as a multiple of the other vectors'; the larger, the more like CMF."""
    own_strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    """The same for domains that differ from the rest."""

    def __post_init__(self) -> None:
        for name, strength in {"own_strength": self.own_strength, **self.own_strengths}.items():
            if not 0 <= strength < np.inf:
                raise ConfigError(f"{name}: a strength of {strength}; use a number from 0")


def mpf(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: MpfSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> Joint:
    """Minimises the sum of the domains' BPR losses of (ubar + Delta^d).v.

    A user unknown in a domain has ubar alone there, one known nowhere the mean ubar of the others.
    Working memory is one more user table for each domain.  Raises `ConfigError` if a strength is
    given for no domain of `splits`, `DataError` where domains do not match.
    """
    tables = trains(splits, validations)
    if strange := set(settings.own_strengths) - set(tables):
        raise ConfigError(
            f"own_strengths names {', '.join(sorted(strange))}; domains are {', '.join(tables)}"
        )
    catalogues = [Catalogue(train, seed.child("domain", name)) for name, train in tables.items()]

    def at(setting: PretrainConfig) -> _Factorization:
        start = Tables(catalogues, seed, setting, dim=dim, n_lanes=n_threads(validations))
        return _Factorization(start, validations, settings, setting, list(tables))

    found = search(at, settings.bpr, job)
    found.model.tables.give_unknown_users_the_mean()
    return Joint(found.model.by_domain(), found.setting.regularization, found.history)


class _Factorization:
    """The `Trainable`: `Tables`, whose users are ubar, and Delta for every domain and user."""

    def __init__(
        self,
        tables: Tables,
        validations: Mapping[str, Validation],
        settings: MpfSettings,
        config: PretrainConfig,
        names: list[str],
    ) -> None:
        self.tables = tables
        self._validations, self._config, self._names = validations, config, names
        self._strength = np.float32(config.regularization)
        ratios = [settings.own_strengths.get(name, settings.own_strength) for name in names]
        self._own_strengths = [np.float32(config.regularization * ratio) for ratio in ratios]
        self.own = on_cache_lines(len(names), *tables.users.shape, dtype=np.float32)
        self.own[:] = 0
        self._own_squares = np.full(self.own.shape[:2], SQUARES_AT_START, np.float32)
        known = [catalogue.train.known_users() for catalogue in tables.catalogues]
        self._has_own = np.sum(known, axis=0) > 1

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        return self.tables.epoch(number, self._learn)

    def _learn(self, turn: Turn, part: slice, rows: Rows) -> float:
        """One lane's work in a turn (`tables.Learn`)."""
        domain = turn.catalogue
        train = self.tables.catalogues[domain].train
        return kernels.train_common_users(
            turn.users[part], train.indptr, train.items,
            self.tables.users, self.tables.user_squares,
            self.own[domain], self._own_squares[domain], self._has_own,
            rows.items, rows.squares, rows.touched, np.float32(self._config.learning_rate),
            self._strength, self._own_strengths[domain], self._config.candidates, turn.key,
        )  # fmt: skip

    def by_domain(self) -> dict[str, Factors]:
        """The model of every domain."""
        parts = zip(self._names, self.own, self.tables.lanes, strict=True)
        return {name: Factors(self.tables.users + own, lanes.items) for name, own, lanes in parts}

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return mean_ndcg(self._validations, self.by_domain())

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return {**self.tables.state(), "own": self.own, "own_squares": self._own_squares}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self.tables.restore(state)
        self.own[:], self._own_squares[:] = state["own"], state["own_squares"]
