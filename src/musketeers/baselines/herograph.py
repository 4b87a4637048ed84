"""HeroGRAPH-L: each domain's own vectors beside vectors smoothed along one graph of all domains."""

from collections.abc import Mapping
from dataclasses import dataclass

from musketeers.baselines.graph import Graph
from musketeers.baselines.graph_bpr import GraphBpr, GraphSettings
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit

SETTINGS = GraphSettings(regularization=0.02)
"""A good start: the domains' own vectors, which no graph smooths, must be held back ten times as
strongly as LightGCN's."""


@dataclass(frozen=True, slots=True, eq=False)
class HeroGraph:
    """All domains, trained together."""

    factors: Mapping[str, Factors]
    """Twice the dimensions: those of the shared graph, then the domain's own."""
    history: History
    """One for all domains."""


def herograph_l(
    splits: Mapping[str, Split],
    validations: Mapping[str, Validation],
    settings: GraphSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> HeroGraph:
    """The joint model with the best mean over domains of validation NDCG@10.

    A user's score for an item is G(u).G(i) + E_d(u).E_d(i): E_d are the domain's own vectors, G the
    vectors of one LightGCN graph (`Graph.smooth`) over all users and items.  Every step has a batch
    of each domain, in proportion to its pairs, and sums the domains' mean losses.

    HeroGRAPH (Cui et al., 2020) has two such sets; that "-L", the variant in the CAT-ART paper's
    table, stands for LightGCN as the graph's encoder, and the sum of the two products, are
    inferred: neither paper's text was at hand.  It pools the interactions of all domains, so raw
    data leaves every one of them.

    A user without history in a domain has the mean user's own vector there; one without any history
    has the mean vector of the graph too.  Cost and memory are those of `light_gcn` over all pairs,
    with a second table for each domain's users and items.  Bitwise the same on any number of
    threads.
    """
    names = list(splits)
    trains = [splits[name].train for name in names]
    graphs = {"graph": (Graph.pooled(trains), settings.layers), "own": (Graph.apart(trains), 0)}
    model = GraphBpr([validations[name] for name in names], graphs, settings, seed, dim=dim)
    history = fit(
        model,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        checkpoint=job.checkpoint("herograph-l"),
        on_epoch=job.on_epoch,
    )
    return HeroGraph(dict(zip(names, model.factors(), strict=True)), history)
