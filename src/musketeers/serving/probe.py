"""A version asked once for all that it will be asked for, before it serves."""

import numpy as np

from musketeers.serving.lists import Asked, lists, similar
from musketeers.serving.version import Version

_USERS = 3


def probe(version: Version) -> None:
    """Make lists of every kind for some users of every domain.

    It also loads the compiled loops, for which the first requests would wait.  Raises
    `MusketeersError` where that fails.
    """
    for name, model in version.recommender.domains.items():
        known = np.flatnonzero(model.known)[:_USERS]
        items = version.items[name].ids(np.arange(min(len(model.items), 2)))
        users = [*version.users.ids(known), ""]
        asked = [
            *(Asked(user) for user in users),
            *(Asked(user, recent={name: items[:1]}, exclude=items[1:]) for user in users),
            Asked(users[0], allow=items),
        ]
        for one in asked:
            lists(version, name, [one])
        lists(version, name, asked)
        for item in items:
            similar(version, name, item, 1)
