"""What users are served in a domain that has no history of theirs, though others know them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Float32
from scipy.linalg import solve

from musketeers.baselines.linear import history
from musketeers.baselines.popularity import popularity
from musketeers.data.interactions import Interactions
from musketeers.evaluation.validation import Validation
from musketeers.exchange import UserEmbeddings
from musketeers.group import everywhere, group, total
from musketeers.heads.candidates import LEVEL, Candidate, Candidates
from musketeers.ranking import Factors
from musketeers.seeding import Seed

_REGULARIZATIONS = (3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True, slots=True, eq=False)
class ColdChoice:
    """The model of users without a history in the domain."""

    scorer: Factors | None
    """None where nothing is surely better than what is popular."""
    best: Candidate | None
    """What validation said of it, with histories hidden."""
    popular: float
    """Validation NDCG@10 of popularity for the same users."""


def choose_cold(
    target: str,
    validation: Validation,
    shared: UserEmbeddings,
    hidden: Factors,
    *,
    seed: Seed,
    max_bytes: int,
) -> ColdChoice | None:
    """The best model of cold users by validation; None if no validation user is known elsewhere.

    To choose from are CAT-ART as it serves users whose history is hidden (`hidden`), `cold_linear`
    at five regularisations, and blends of the two.  Looked at are users who have a history, which
    nothing here is told.  Unless one is surely better, as `choose` has it, popularity is enough.
    Where the linear model needs more than `max_bytes`, CAT-ART is all there is.
    """
    told, train = shared.without(target), validation.split.train
    users = validation.users[told.known[validation.users].any(axis=1)]
    if not total(len(users)):
        return None
    looked_at = replace(validation, users=users)
    found = Candidates(looked_at)
    found.enter("cat_art", "cat_art", hidden)
    if everywhere(bytes_needed(train, told) <= max_bytes):
        at = cold_linear(train, told)
        for strength in _REGULARIZATIONS:
            found.enter("linear", f"linear({strength:g})", at(strength))
        found.enter_blends("linear", "cat_art")
    popular = looked_at.by_user(popularity(train))
    if found.p_over(popular, seed) < LEVEL:
        return ColdChoice(cast(Factors, found.model), found.best, float(popular.mean()))
    return ColdChoice(None, None, float(popular.mean()))


def cold_linear(train: Interactions, told: UserEmbeddings) -> Callable[[float], Factors]:
    r"""Items by least squares on what the other domains tell of a user, and nothing else.

    As a function of the regularisation, so that all share the sums over users.

    With R the training pairs and E the embeddings side by side, of the users whom both know, C and
    b minimise

    $$\|R - E C - 1 b^\top\|^2 + \lambda \|C\|^2.$$

    So b is what all of them like, near to popularity, and C what others say of a user's taste.
    Unlike the linear head's, these weights are made for users without a history: there, much of
    what the embeddings tell is left to the history to tell.
    """
    both = train.known_users() & told.known.any(axis=1)
    users = inputs(told)
    of_both = users[both].astype(np.float64)
    products, targets = of_both.T @ of_both, (history(train)[both].T @ of_both).T
    group().add(products, targets)
    # where nobody is in both, all is 0
    products[-1, -1] = max(products[-1, -1], 1)

    def at(regularization: float) -> Factors:
        held = np.full(len(products), regularization)
        held[-1] = 0
        weights = solve(products + np.diag(held), targets, assume_a="pos")
        return Factors(users, np.ascontiguousarray(weights.T, dtype=np.float32))

    return at


def bytes_needed(train: Interactions, told: UserEmbeddings) -> int:
    """What `cold_linear` takes, with the best one beside it and a blend."""
    width = told.values[0].size + 1
    return 20 * width * train.n_users + 40 * width * train.n_items


def inputs(told: UserEmbeddings) -> Float32[np.ndarray, "user input"]:
    """What `cold_linear` is told of users: the embeddings side by side, and a 1."""
    n_users = len(told.values)
    return np.hstack([told.values.reshape(n_users, -1), np.ones((n_users, 1), np.float32)])
