"""Implicit alternating least squares (iALS): squared error over every pair, rows solved exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import no_type_check

import numpy as np
from jaxtyping import Float32, Float64
from numba import njit

from musketeers.data.domains import Split
from musketeers.data.interactions import Interactions
from musketeers.errors import ConfigError
from musketeers.evaluation.validation import Validation
from musketeers.parallel import each
from musketeers.pretrain.lanes import even_parts
from musketeers.pretrain.search import climb
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit

_PARTS_PER_THREAD = 8
"""Rows are shared out in more parts than threads, since guesses of their cost are rough."""

_STRENGTH_STEP, _WEIGHT_STEP = 2.0, 4.0
"""Between neighbours in the search; powers of two, so that there and back is where it was."""

_LANES = 4
"""Interactions whose products are added to a row's system in one pass over it."""


@dataclass(frozen=True, slots=True)
class IalsSettings:
    """How much what was not observed counts, and how strongly vectors are held back."""

    unobserved_weight: float = 0.1
    """Weight of a pair's squared score where observed ones have 1; above 0."""
    regularization: float = 0.02
    """L2 strength for each unit of weight that a row sees; above 0."""
    init_scale: float = 0.1
    """Expected length of an item's vector before training."""
    max_epochs: int = 50
    """One epoch solves all users, then all items."""
    patience: int = 5
    """Epochs without a better validation NDCG@10 before training stops."""
    tries: int = 1
    """Trainings at most, at other strengths and weights than these; 1 trains with these."""

    def __post_init__(self) -> None:
        for name in ("unobserved_weight", "regularization", "init_scale"):
            value: float = getattr(self, name)
            if not 0 < value < np.inf:
                raise ConfigError(
                    f"{name} is {value}; it must be a number above 0, or rows have no one solution"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Ials:
    """One domain's iALS model, with the settings that validation chose."""

    factors: Factors
    settings: IalsSettings
    histories: tuple[History, ...]
    """One for each setting tried, in that order."""

    @property
    def history(self) -> History:
        """Of the setting that was chosen."""
        return max(self.histories, key=lambda history: history.best.valid)


def ials(
    split: Split,
    validation: Validation,
    settings: IalsSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> Ials:
    r"""The domain's best model by validation NDCG@10; a user without history is the mean user.

    Minimises, with observed pairs S, $c_u$ items of user u, and w for `unobserved_weight`,

    $$\sum_{(u,i) \in S} (x_{ui} - 1)^2 + w \sum_{u,i} x_{ui}^2
      + \lambda \sum_u (c_u + w |I|) |p_u|^2 + \lambda \sum_i (c_i + w |U|) |q_i|^2,
      \quad x_{ui} = p_u \cdot q_i,$$

    by turns exactly over all users and all items (Hu, Koren and Volinsky, ICDM 2008), with the
    regularisation that grows with a row's weight of Rendle, Krichene, Zhang and Koren, RecSys 2022
    (their exponent 1).  U and I are those with any training pair.  The mean loss in the history is
    this sum for each observed pair.

    With more than one of `settings.tries` it is the best that a climb from these settings finds, at
    twice or half the strength, and four times or a quarter of the weight.  Between the data sets
    tried the best strengths are thirtyfold apart, and a step too far costs a tenth and more.

    An epoch costs |S| dim^2 + (|U| + |I|) dim^3 / 3 multiplications; memory is linear in pairs and
    rows.  The result is bitwise the same on any number of threads.

    Raises `DivergedError` if a row's system cannot be solved in float32, which takes a
    `regularization` many orders below the default.
    """
    by_item = transposed(split.train)

    def train(model: _Ials, tried: IalsSettings) -> History:
        return fit(
            model,
            max_epochs=settings.max_epochs,
            patience=settings.patience,
            checkpoint=job.checkpoint(f"{tried.regularization:g}-{tried.unobserved_weight:g}"),
            on_epoch=job.on_epoch,
            remedy="regularization is probably too small, start again with a larger one",
        )

    found = climb(
        lambda setting: _Ials(split.train, by_item, validation, setting, seed, dim=dim),
        settings, (_stronger, _weaker, _heavier, _lighter), train, tries=settings.tries,
    )  # fmt: skip
    model, known = found.model, split.train.known_users()
    # least squares give them 0, which ranks nothing
    model.users[~known] = model.users[known].mean(axis=0)
    return Ials(Factors(model.users, model.items), found.setting, found.history)


def _stronger(settings: IalsSettings) -> IalsSettings:
    return replace(settings, regularization=settings.regularization * _STRENGTH_STEP)


def _weaker(settings: IalsSettings) -> IalsSettings:
    return replace(settings, regularization=settings.regularization / _STRENGTH_STEP)


def _heavier(settings: IalsSettings) -> IalsSettings:
    return replace(settings, unobserved_weight=settings.unobserved_weight * _WEIGHT_STEP)


def _lighter(settings: IalsSettings) -> IalsSettings:
    return replace(settings, unobserved_weight=settings.unobserved_weight / _WEIGHT_STEP)


class _Ials:
    """The `Trainable` of iALS."""

    def __init__(
        self,
        train: Interactions,
        by_item: Interactions,
        validation: Validation,
        settings: IalsSettings,
        seed: Seed,
        *,
        dim: int,
    ) -> None:
        self._train, self._by_item = train, by_item
        self._settings, self._validation = settings, validation
        scale = np.float32(settings.init_scale / np.sqrt(dim))
        rng = seed.child("init").numpy()
        self.users = np.zeros((train.n_users, dim), np.float32)
        self.items = scale * rng.standard_normal((train.n_items, dim), dtype=np.float32)
        # nobody's items would weigh in the first users' systems, and never again
        self.items[self._by_item.counts() == 0] = 0

    def epoch(self, number: int) -> float:  # noqa: ARG002  nothing here is random
        """See `Trainable.epoch`; all users, then all items."""
        self._solve(self._train, self.items, self.users)
        minima = self._solve(self._by_item, self.users, self.items)
        # the items' minima hold all of the objective but what holds the users back
        strengths = _strengths(self._train, self._settings)
        lengths = np.einsum("ud,ud->u", self.users, self.users, dtype=np.float64)
        return (minima.sum() + strengths @ lengths) / max(len(self._train), 1)

    def validate(self) -> float:
        """See `Trainable.validate`."""
        return self._validation.ndcg(Factors(self.users, self.items))

    def state(self) -> Mapping[str, np.ndarray]:
        """See `Trainable.state`; users follow from items, but the best ones are handed over."""
        return {"users": self.users, "items": self.items}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Trainable.restore`."""
        self.users[:], self.items[:] = state["users"], state["items"]

    def _solve(
        self,
        rows: Interactions,
        fixed: Float32[np.ndarray, "column dim"],
        solved: Float32[np.ndarray, "row dim"],
    ) -> Float64[np.ndarray, " row"]:
        return solve(rows, fixed, solved, self._settings, n_threads=self._validation.n_threads)


def solve(
    rows: Interactions,
    fixed: Float32[np.ndarray, "column dim"],
    solved: Float32[np.ndarray, "row dim"],
    settings: IalsSettings,
    *,
    n_threads: int,
    n_columns: int | None = None,
) -> Float64[np.ndarray, " row"]:
    """Make every row of `solved` the best for `fixed`; each row's part of the objective.

    `n_columns` is how many columns count as seen by a row; by default those that any row has.

    Half an epoch of `ials`: `rows` has the observed columns of each row, and `fixed` zeros for
    columns that no row has.  Bitwise the same on any number of threads.
    """
    weight = np.float32(settings.unobserved_weight)
    minima = np.zeros(len(solved))
    part = partial(
        _solve_rows,
        rows.indptr, rows.items, fixed, weight * (fixed.T @ fixed),
        _strengths(rows, settings, n_columns).astype(np.float32), solved, minima,
    )  # fmt: skip
    # a factorisation costs about as much as this many interactions
    parts = even_parts(rows.counts() + fixed.shape[1] // 3, n_threads * _PARTS_PER_THREAD)
    each(lambda n: part(parts[n].start, parts[n].stop), len(parts), n_threads=n_threads)
    return minima


def transposed(train: Interactions) -> Interactions:
    """The users of every item, as rows."""
    order = np.argsort(train.items, kind="stable")
    return Interactions.from_sorted(
        train.items[order], train.users()[order], n_users=train.n_items, n_items=train.n_users
    )


def _strengths(
    rows: Interactions, settings: IalsSettings, n_columns: int | None = None
) -> Float64[np.ndarray, " row"]:
    others = np.count_nonzero(rows.item_counts()) if n_columns is None else n_columns
    return settings.regularization * (rows.counts() + settings.unobserved_weight * others)


# Compiled loops: `no_type_check` keeps the tests' shape checker, which Numba cannot compile, out.
# Sums may be reordered and fused; NaN keeps its meaning, so that a failed row is noticed.

_loop = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


@_loop
@no_type_check
def _solve_rows(indptr, columns, fixed, gram, strengths, solved, minima, start, stop):
    """Rows start..stop - 1 of `solved`: (gram + sum of q q' + strength) p = sum of q.

    ``minima[row]`` is the least value itself, the number of columns minus (sum of q) . p.
    """
    dim = fixed.shape[1]
    system = np.empty((dim, dim), np.float32)
    right = np.empty(dim, np.float32)
    for row in range(start, stop):
        liked = columns[indptr[row] : indptr[row + 1]]
        solution = solved[row]
        if len(liked) == 0:
            solution[:] = 0
            continue
        system[:] = gram
        for d in range(dim):
            system[d, d] += strengths[row]
        _add_products(fixed, liked, system)
        right[:] = 0
        for column in liked:
            for d in range(dim):
                right[d] += fixed[column, d]
        _factorize(system)
        solution[:] = right
        _substitute(system, solution)
        reached = 0.0
        for d in range(dim):
            reached += np.float64(right[d]) * np.float64(solution[d])
        minima[row] = len(liked) - reached


@_loop
@no_type_check
def _add_products(fixed, liked, system):
    """Add q q' of every liked column to the lower triangle."""
    dim = len(system)
    whole = len(liked) - len(liked) % _LANES
    for p in range(0, whole, _LANES):
        q, r = fixed[liked[p]], fixed[liked[p + 1]]
        s, t = fixed[liked[p + 2]], fixed[liked[p + 3]]
        for a in range(dim):
            line = system[a]
            for b in range(a + 1):
                line[b] += q[a] * q[b] + r[a] * r[b] + s[a] * s[b] + t[a] * t[b]
    for p in range(whole, len(liked)):
        q = fixed[liked[p]]
        for a in range(dim):
            line = system[a]
            for b in range(a + 1):
                line[b] += q[a] * q[b]


@_loop
@no_type_check
def _factorize(system):
    """Cholesky's factor L, L L' = system, over the lower triangle; NaN if there is none."""
    for a in range(len(system)):
        for b in range(a + 1):
            rest = system[a, b]
            for d in range(b):
                rest -= system[a, d] * system[b, d]
            system[a, b] = np.sqrt(rest) if a == b else rest / system[b, b]


@_loop
@no_type_check
def _substitute(lower, vector):
    """Solve L L' x = vector in place."""
    for a in range(len(vector)):
        rest = vector[a]
        for d in range(a):
            rest -= lower[a, d] * vector[d]
        vector[a] = rest / lower[a, a]
    for a in range(len(vector) - 1, -1, -1):
        vector[a] /= lower[a, a]
        for d in range(a):
            vector[d] -= lower[a, d] * vector[a]
