r"""A trained model told more of its users: nothing is trained, and nothing in the model changes.

A linear model takes the new pairs as inputs.  In a model of vectors the items stay, and the user's
vector is solved for.  With H the user's new items, n the number of pairs that the model knows of
the user, $u_0$ the vector so far (0 of a stranger), N items with mean $\bar v$ and covariance C, it
is the u that minimises

$$\sum_{i \in H} \frac{1}{N} \sum_{j=1}^N (m - u (v_i - v_j))^2
  + (u - u_0)^\top (2 n C + \lambda I) (u - u_0).$$

A new item is to stand above the others by the margin m, as in BPR, but with squares (as RankALS has
it; Takács and Tikk, RecSys 2012); n pairs that were learned from hold $u_0$ as n new ones would
pull at it.  m is the mean margin of what known users have; to a stranger's list it is all the same.
$\lambda$ is `HOLD` times the mean of the diagonal of C.  With $d_i = v_i - \bar v$,

$$u = \Bigl(\sum_H d_i d_i^\top + (|H| + 2n) C + \lambda I\Bigr)^{-1}
      \Bigl(m \sum_H d_i + (2 n C + \lambda I) u_0\Bigr).$$
"""

from dataclasses import replace
from typing import cast

import numpy as np
from jaxtyping import Bool, Int64
from scipy.linalg import solve
from scipy.sparse import csr_array

from musketeers.baselines.linear import Linear
from musketeers.data.interactions import Interactions
from musketeers.heads.blend import with_history
from musketeers.heads.gate import Gated, Model
from musketeers.ranking import Factors

HOLD = 30
"""How many pairs' worth holds every vector back.  On planted data strangers told of their training
pairs are served as well as by vectors learned from these; at a tenth of it worse, and at tenfold
those whom only other domains know no longer follow their history."""

_TYPICAL = 1000
"""Known users, spread evenly over all, who stand for all."""


def fold_in(
    model: Linear | Factors | Gated,
    rows: Int64[np.ndarray, " asked"],
    pairs: Interactions,
    *,
    seen: Interactions,
    known: Bool[np.ndarray, " user"],
) -> Linear | Factors | Gated:
    """The model of the users at `rows`, in this order, who have also done `pairs`.

    Row -1 is a user whom the model does not know.  `pairs` has a row for each of the asked, none of
    which is in `seen`, what the model knows of all its users; `known` are those whom it learned
    from.  Where these are all alike, as in popularity, so are the asked.  Behind a gate a stranger
    is served by the domain's own model, since nobody tells of one.
    """
    if isinstance(model, Gated):
        told, own = (
            cast(Model, fold_in(side, rows, pairs, seen=seen, known=known))
            for side in (model.told, model.own)
        )
        return Gated(told, own, model.takes[rows] & (rows >= 0))
    if isinstance(model, Linear):
        inputs = csr_array(model.inputs[rows.clip(0)])
        inputs.data *= np.repeat((rows >= 0).astype(np.float32), np.diff(inputs.indptr))
        return with_history(replace(model, inputs=inputs), pairs)
    typical = np.flatnonzero(known)
    typical = typical[:: max(1, len(typical) // _TYPICAL)]
    if (model.users[typical] == model.users[typical[0]]).all():
        return Factors(np.tile(model.users[typical[0]], (len(rows), 1)), model.items)
    apart = model.items.astype(np.float64)
    apart -= apart.mean(axis=0)
    covariance = apart.T @ apart / len(apart)
    dim = len(covariance)
    hold = (HOLD * np.trace(covariance) / dim or 1.0) * np.eye(dim)
    # by how much what known users have stands above the mean item
    margin = np.mean([(apart[seen.of(u)] @ model.users[u]).mean() for u in typical.tolist()])
    users = np.zeros((len(rows), dim), np.float32)
    for place, row in enumerate(rows.tolist()):
        new, start, prior = apart[pairs.of(place)], np.zeros(dim), hold
        if row >= 0:
            start, prior = model.users[row], hold + 2 * len(seen.of(row)) * covariance
        left = new.T @ new + len(new) * covariance + prior
        users[place] = solve(left, margin * new.sum(axis=0) + prior @ start, assume_a="pos")
    return Factors(users, model.items)
