"""Matrix factorisation of one domain alone (SMF): a user's taste for an item is u.v, by BPR."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from musketeers.config import PretrainConfig
from musketeers.data.domains import Split
from musketeers.device import gpu
from musketeers.evaluation.validation import Validation
from musketeers.group import mean_of
from musketeers.pretrain import kernels
from musketeers.pretrain.lanes import Rows, lanes_for
from musketeers.pretrain.search import search
from musketeers.pretrain.tables import Catalogue, Tables, Turn
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """One domain that learned alone, and what its next stage goes on from."""

    factors: Factors
    item_squares: Float32[np.ndarray, " item"]
    """Adagrad's sums of the items: how far each has settled."""
    regularization: float
    """The strength that validation chose."""
    learning_rate: float
    """The rate that validation chose."""
    history: tuple[History, ...]
    """One for each pair of them tried, in that order."""

    def placed(self, rows: Int64[np.ndarray, " user"], *, n_users: int) -> "Pretrained":
        """Its users at these ascending `rows` of `n_users`; all others get the mean user."""
        learned = self.factors.users
        users = np.tile(mean_of(learned), (n_users, 1))
        users[rows] = learned
        return replace(self, factors=Factors(users, self.factors.items))


def pretrain(
    split: Split,
    validation: Validation,
    config: PretrainConfig,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> Pretrained:
    """The best model by validation NDCG@10, at the strength and the rate that `search` finds."""
    catalogues = [Catalogue(split.train, seed)]

    def value(tables: Tables) -> float:
        return validation.ndcg(Factors(tables.users, tables.lanes[0].table()))

    def at(setting: PretrainConfig) -> Factorization:
        n_lanes = lanes_for(validation.n_threads)
        tables = Tables(catalogues, seed, setting, dim=dim, n_lanes=n_lanes)
        return Factorization(tables, value, setting)

    found = search(at, config, job)
    tables = found.model.tables
    tables.give_unknown_users_the_mean()
    lanes = tables.lanes[0]
    factors = Factors(tables.users, lanes.table())
    chosen = found.setting
    return Pretrained(
        factors, lanes.all_squares(), chosen.regularization, chosen.learning_rate, found.history
    )


class Factorization:
    """The `Trainable` of BPR with one vector per user, whatever the catalogue."""

    def __init__(
        self,
        tables: Tables,
        value: Callable[[Tables], float],
        config: PretrainConfig,
    ) -> None:
        self.tables = tables
        self._value, self._config = value, config
        device = gpu()
        self._on_gpu = None
        if device is not None:
            from musketeers.pretrain.on_gpu import OnGpu  # without a GPU there may be no Triton

            self._on_gpu = OnGpu(tables, config, device)

    def epoch(self, number: int) -> float:
        """See `Trainable.epoch`."""
        if self._on_gpu:
            return self._on_gpu.epoch(number)
        return self.tables.epoch(number, self._learn)

    def _learn(self, turn: Turn, part: slice, rows: Rows) -> float:
        """One lane's work in a turn (`tables.Learn`)."""
        train = self.tables.catalogues[turn.catalogue].train
        return kernels.train_users(
            turn.users[part], train.indptr, train.items,
            self.tables.users, self.tables.user_squares, *rows,
            np.float32(self._config.learning_rate), np.float32(self._config.regularization),
            self._config.candidates, turn.key,
        )  # fmt: skip

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._value(self.tables)

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`."""
        return self.tables.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self.tables.restore(state)
