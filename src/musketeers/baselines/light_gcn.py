"""LightGCN: matrix factorisation whose vectors are averaged along one domain's graph."""

from dataclasses import dataclass

from musketeers.baselines.graph import Graph, Smoothing
from musketeers.baselines.graph_bpr import GraphBpr, GraphSettings
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.ranking import Factors
from musketeers.seeding import Seed
from musketeers.training import History, Job, fit


@dataclass(frozen=True, slots=True, eq=False)
class LightGcn:
    """One domain's LightGCN model."""

    factors: Factors
    """Vectors as smoothed along the graph."""
    history: History


def light_gcn(
    split: Split,
    validation: Validation,
    settings: GraphSettings,
    seed: Seed,
    job: Job,
    *,
    dim: int,
) -> LightGcn:
    """The domain's best model by validation NDCG@10; a user without history is the mean user.

    He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation",
    SIGIR 2020: BPR with uniform negatives over the vectors of `Graph.smooth`.

    A step costs 4 dim layers multiplications for each pair of the domain.  Memory: eight times the
    vectors of users and items, and 24 bytes a pair.  Bitwise the same on any number of threads.
    """
    graph = Graph.pooled([split.train])
    encoder = Smoothing(graph, settings.layers, validation.n_threads)
    encoders = {"graph": (encoder, settings.regularization)}
    model = GraphBpr([validation], encoders, settings, seed, dim=dim)
    history = fit(
        model,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        checkpoint=job.checkpoint("light-gcn"),
        on_epoch=job.on_epoch,
    )
    return LightGcn(model.factors()[0], history)
