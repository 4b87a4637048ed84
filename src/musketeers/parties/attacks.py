"""What published vectors tell: attacks on them, each with what it reaches where there is nothing.

Every attack is given vectors `users`, a row for each user of the domain's tables, and tells how far
it comes on average over users, with a 95 % interval by bootstrap over users, beside its floor: what
the same attack reaches without the vectors, or what chance does.
"""

import hashlib
import hmac
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Float64, Int64
from scipy import stats

from musketeers.data.interactions import Interactions
from musketeers.errors import MissingExtraError
from musketeers.parties.defences import Defences, defended

try:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler
except ImportError:
    raise MissingExtraError(
        "attacks learn by scikit-learn, which is not installed: pip install 'musketeers[parties]'"
    ) from None

_MOST_USERS = 2000
"""Users that an attack is measured on, drawn at random."""
_NEGATIVES = 500
"""Items drawn for each user, of those that the user does not have."""
_RESAMPLES, _FEW_RESAMPLES = 1000, 200
"""For means, and for what takes longer to compute."""
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, in units of the mean eigenvalue; the attacker is granted the best one."""
_DRAWS = 100_000


@dataclass(frozen=True, slots=True)
class Score:
    """How far an attack comes."""

    attack: str
    measure: str
    value: float
    low: float
    high: float
    """95 % interval."""
    floor: float
    """Without the vectors, or by chance."""


def reconstruction(
    users: Float32[np.ndarray, "user dim"],
    items: Float32[np.ndarray, "item dim"],
    train: Interactions,
    rng: np.random.Generator,
) -> list[Score]:
    """A1.  Who also has the items' vectors: are a user's items those of the largest products?

    AUC of the user's training items against others, and recall among as many items as the user
    has; the floors are those of popularity.
    """
    some = _some(np.flatnonzero(train.known_users()), rng)
    popular = train.item_counts().astype(np.float32)
    seed = rng.integers(2**32)

    def reached(of: Callable[[int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return _reached(of, some, train, np.random.default_rng(seed))

    found, floor = reached(lambda user: items @ users[user]), reached(lambda _: popular)
    return [
        _score("A1 with items", measure, found[n], floor[n], rng)
        for n, measure in enumerate(("AUC", "recall@n"))
    ]


def reconstruction_from_known(
    users: Float32[np.ndarray, "user dim"],
    train: Interactions,
    n_known: int,
    rng: np.random.Generator,
) -> Score:
    """A2.  Who has no items, but the histories of `n_known` users: what do they say of others?

    By ridge regression from vectors to histories; AUC over the other users.  The floor is the
    popularity among the known users.
    """
    order = rng.permutation(np.flatnonzero(train.known_users()))
    known, others = order[:n_known], _some(order[n_known:], rng)
    histories = np.zeros((len(known), train.n_items), np.float32)
    for row, user in enumerate(known.tolist()):
        histories[row, train.of(user)] = 1
    given = users[known].astype(np.float64)
    gram, right = given.T @ given, given.T @ histories
    scale, seed = np.trace(gram) / len(gram), rng.integers(2**32)

    def auc(of: Callable[[int], np.ndarray]) -> Float64[np.ndarray, " user"]:
        return _reached(of, others, train, np.random.default_rng(seed))[0]

    def by_ridge(strength: float) -> Float64[np.ndarray, " user"]:
        told = np.linalg.solve(gram + strength * scale * np.eye(len(gram)), right)

        def guess(user: int) -> np.ndarray:
            return users[user] @ told

        return auc(guess)

    found = max(map(by_ridge, _STRENGTHS), key=np.mean)
    popular = histories.mean(axis=0)
    return _score(f"A2 {len(known)} known", "AUC", found, auc(lambda _: popular), rng)


def attribute(
    users: Float32[np.ndarray, "user dim"],
    labels: Int64[np.ndarray, " user"],
    name: str,
    rng: np.random.Generator,
) -> Score:
    """A3.  What else is known of a user, from other users of whom it is known.

    Balanced accuracy on three tenths of the users, of the better of logistic regression and a
    network of one layer; the floor is one by the number of classes.  Users with a label below 0
    have none.
    """
    rows = rng.permutation(np.flatnonzero(labels >= 0))[: 5 * _MOST_USERS]
    cut = len(rows) * 7 // 10
    train, test = rows[:cut], rows[cut:]
    scaled = StandardScaler().fit(users[train])
    seed = int(rng.integers(2**31))
    models: list[Any] = [
        LogisticRegression(max_iter=500, class_weight="balanced"),
        MLPClassifier((64,), max_iter=60, early_stopping=True, random_state=seed),
    ]
    best: tuple[float, np.ndarray] = (-1.0, labels[test])
    for model in models:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaled.transform(users[train]), labels[train])
        guess = np.asarray(model.predict(scaled.transform(users[test])))
        best = max(best, (_balanced(labels[test], guess), guess), key=lambda one: one[0])
    value, guess = best

    def again(of: np.ndarray) -> float:
        return _balanced(labels[test][of], guess[of])

    low, high = _interval(again, len(test), rng)
    n_classes = len(np.unique(labels[rows]))
    return Score(f"A3 {name}", "balanced", value, low, high, 1 / n_classes)


def membership(
    users: Float32[np.ndarray, "user dim"],
    items: Float32[np.ndarray, "item dim"],
    train: Interactions,
    held_out: Interactions,
    rng: np.random.Generator,
) -> list[Score]:
    """A4.  Which of a user's items were trained on, and which came later?

    A user's training items against as many held-out ones of about the same popularity, by how far
    their products stand above the user's mean: AUC, and the share of training items found where one
    in a hundred others is taken for one.
    """
    popular, middle = train.item_counts(), items.mean(axis=0)
    both = train.known_users() & held_out.known_users()
    inside: list[np.ndarray] = []
    outside: list[np.ndarray] = []
    for user in _some(np.flatnonzero(both), rng).tolist():
        own, later = train.of(user), held_out.of(user)
        order = own[np.argsort(popular[own], kind="stable")]
        places = np.searchsorted(popular[order], popular[later]).clip(max=len(order) - 1)
        vector = users[user]
        inside.append((items[order[places]] - middle) @ vector)
        outside.append((items[later] - middle) @ vector)

    def auc(of: np.ndarray) -> float:
        a, b = (np.concatenate([part[n] for n in of]) for part in (inside, outside))
        ranks = stats.rankdata(np.concatenate([a, b]))
        return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))

    def found(of: np.ndarray) -> float:
        a, b = (np.concatenate([part[n] for n in of]) for part in (inside, outside))
        return float((a > np.quantile(b, 0.99)).mean())

    everybody = np.arange(len(inside))
    return [
        Score(
            "A4 membership", measure, of(everybody),
            *_interval(of, len(inside), rng, n=_FEW_RESAMPLES), floor,
        )
        for measure, of, floor in (("AUC", auc, 0.5), ("TPR at 1 %", found, 0.01))
    ]  # fmt: skip


def linkage(
    users: Float32[np.ndarray, "user dim"],
    others: Float32[np.ndarray, "user other_dim"],
    n_seeds: int,
    name: str,
    rng: np.random.Generator,
) -> Score:
    """A5.  Who has vectors of the same people from elsewhere: whose are these?

    With `n_seeds` people known in both, the one table is turned onto the other (Procrustes), and
    each further person is taken for the nearest one: share of those found.  The floor is one by the
    number of candidates.
    """
    order = rng.permutation(len(users))
    seeds, rest = order[:n_seeds], _some(order[n_seeds:], rng)
    here, there = _unit(users), _unit(others)
    width = max(here.shape[1], there.shape[1])
    here, there = (np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in (here, there))
    left, _, right = np.linalg.svd(here[seeds].T @ there[seeds])
    turned = here[rest] @ (left @ right)
    hits = ((turned @ there[rest].T).argmax(axis=1) == np.arange(len(rest))).astype(np.float64)
    return _score(
        f"A5 to {name}", "top-1", hits,
        np.full(len(rest), 1 / max(len(rest), 1)), rng,
    )  # fmt: skip


def mechanism(how: Defences) -> Score | None:
    """A6.  Is the noise what it is said to be?  None without noise.

    Two vectors as far apart as there are, a hundred thousand releases of each: the largest epsilon
    that their difference proves (Clopper and Pearson, 97.5 % on either side).  `floor` is the
    epsilon that is stated, which it must not exceed.
    """
    if how.epsilon is None or how.delta is None or how.clip is None:
        return None
    plain = how.model_copy(update={"dims": None, "bits": None})
    axis = np.ones((1, 1), np.float32)
    ends = [
        defended(np.full((_DRAWS, 1), sign * how.clip, np.float32), axis, plain)[:, 0]
        for sign in (1, -1)
    ]
    half = _DRAWS // 2
    # the threshold is chosen on one half of the draws and counts on the other
    cuts = np.quantile(np.concatenate([end[:half] for end in ends]), np.linspace(0.01, 0.99, 99))

    def proven(cut: float, part: slice) -> float:
        above, above_other = (int((end[part] > cut).sum()) for end in ends)
        return _proven(above, above_other, half, how)

    best = max(cuts.tolist(), key=lambda cut: proven(cut, slice(half)))
    value = proven(best, slice(half, None))
    return Score("A6 noise", "epsilon", value, value, value, how.epsilon)


def dictionary(ids: pl.Series, keys: pl.Series) -> Score:
    """A7.  Who can name users, but lacks the key: which pseudonyms are theirs?

    Tries the hashes that people use without a key, and keys that people use; share of ids found.
    """
    there = set(keys)
    texts = [str(one).encode() for one in ids]
    guesses: list[Callable[[bytes], bytes]] = [
        *(lambda text, by=by: hashlib.new(by, text).digest() for by in ("md5", "sha1", "sha256")),
        *(
            lambda text, key=key, purpose=purpose: hmac.digest(key, purpose + text, "sha256")
            for key in (b"", b"\0" * 16, b"\0" * 32, b"secret", b"musketeers")
            for purpose in (b"", b"musketeers/user\0")
        ),
    ]
    length = len(keys[0]) // 2
    hits = [any(guess(text)[:length].hex() in there for guess in guesses) for text in texts]
    share = float(np.mean(hits))
    # nothing found in n tries: the rule of three
    return Score("A7 ids", "share", share, share, 3 / len(texts), 0.0)


def _reached(
    of: Callable[[int], np.ndarray],
    users: Int64[np.ndarray, " user"],
    train: Interactions,
    rng: np.random.Generator,
) -> tuple[Float64[np.ndarray, " user"], Float64[np.ndarray, " user"]]:
    """By user: AUC of own items against drawn others, and recall among as many as there are."""
    aucs, recalls = np.empty(len(users)), np.empty(len(users))
    for n, user in enumerate(users.tolist()):
        scores, own = of(user), train.of(user)
        drawn = np.setdiff1d(rng.integers(train.n_items, size=_NEGATIVES), own)
        others = np.sort(scores[drawn])
        below = np.searchsorted(others, scores[own], "left")
        level = np.searchsorted(others, scores[own], "right") - below
        aucs[n] = ((below + level / 2) / max(len(others), 1)).mean()
        top = np.argpartition(-scores, len(own) - 1)[: len(own)]
        recalls[n] = np.isin(top, own).mean()
    return aucs, recalls


def _some(rows: Int64[np.ndarray, " row"], rng: np.random.Generator) -> Int64[np.ndarray, " row"]:
    if len(rows) <= _MOST_USERS:
        return rows
    return np.sort(rng.choice(rows, _MOST_USERS, replace=False))


def _score(
    attack: str,
    measure: str,
    found: Float64[np.ndarray, " user"],
    floor: Float64[np.ndarray, " user"],
    rng: np.random.Generator,
) -> Score:
    low, high = interval_of_mean(found, rng)
    return Score(attack, measure, float(found.mean()), low, high, float(floor.mean()))


def interval_of_mean(
    values: Float64[np.ndarray, " user"], rng: np.random.Generator
) -> tuple[float, float]:
    """The 95 % interval of a mean over users, by bootstrap."""
    return _interval(lambda of: float(values[of].mean()), len(values), rng)


def _interval(
    value: Callable[[np.ndarray], float],
    n_users: int,
    rng: np.random.Generator,
    n: int = _RESAMPLES,
) -> tuple[float, float]:
    """The middle 95 % of the value over resampled users."""
    again = [value(rng.integers(n_users, size=n_users)) for _ in range(n)]
    low, high = np.quantile(again, (0.025, 0.975))
    return float(low), float(high)


def _balanced(truth: np.ndarray, guess: np.ndarray) -> float:
    classes = np.unique(truth)
    return float(np.mean([(guess[truth == one] == one).mean() for one in classes]))


def _unit(table: Float[np.ndarray, "row dim"]) -> Float64[np.ndarray, "row dim"]:
    table = table.astype(np.float64) - table.mean(axis=0)
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def _proven(above: int, above_other: int, n: int, how: Defences) -> float:
    """The epsilon below which counts like these are as good as impossible; 0 if none is."""
    if how.delta is None:
        return 0.0
    likely = float(stats.beta.ppf(0.025, above, n - above + 1)) if above else 0.0
    unlikely = (
        float(stats.beta.ppf(0.975, above_other + 1, n - above_other)) if above_other < n else 1.0
    )
    if likely <= how.delta or not unlikely:
        return 0.0
    return max(0.0, math.log((likely - how.delta) / unlikely))
