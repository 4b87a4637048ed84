"""What the stages of a served run made: needed to fold in what was done elsewhere, and to explain.

It is read after the model, with which a server can answer before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musketeers import run_files
from musketeers.errors import ConfigError
from musketeers.latest import Latest
from musketeers.own_items import OwnItems
from musketeers.recommender import Recommender
from musketeers.sources import Explainer
from musketeers.told import Told


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """Domains that can be told more, or less, of a few users."""

    told: Mapping[str, Told]
    """Of those that can be told more."""
    explainers: Mapping[str, Explainer]
    """Of those that can be told less."""
    own: Mapping[str, OwnItems]
    """Of the same."""

    @classmethod
    def read(cls, place: Path, recommender: Recommender) -> "Stages":
        """Those of the run in the folder `place`, whose model is `recommender`.

        Raises `ArtifactError` if any of it is damaged.
        """
        run = run_files.open_run(place, recommender)
        told, explainers = dict[str, Told](), dict[str, Explainer]()
        own = dict[str, OwnItems]()
        latest: Latest | None = None
        for domain in recommender.domains:
            try:
                latest = latest or Latest.of(run)
                told[domain] = Told.of(run, domain, latest)
                own[domain] = OwnItems.of(run, domain)
                explainers[domain] = Explainer.of(run, domain, latest)
            except ConfigError:
                # of some models nothing can be taken away, nor anything added
                continue
        found = cls(told, explainers, own)
        found.probe(recommender)
        return found

    def probe(self, recommender: Recommender) -> None:
        """Explain somebody's list in each domain: what is computed first takes longest."""
        for name, explainer in self.explainers.items():
            known = np.flatnonzero(recommender.domains[name].known)[:1]
            user = recommender.users.ids(known)
            explainer.explain(user, n_threads=1)
            self.own[name].explain(user, most=1, n_threads=1)
            self.told[name].since(known, {})
