"""Stage 1 of one domain, by whichever method."""

from musketeers.config import RunConfig
from musketeers.data.domains import Split
from musketeers.evaluation.validation import Validation
from musketeers.pretrain.given import Given, factors
from musketeers.pretrain.ials import IalsSettings, ials
from musketeers.pretrain.mf import Pretrained, pretrain
from musketeers.pretrain.settled import settled
from musketeers.seeding import Seed
from musketeers.training import Epoch, History, Job


def learn_alone(
    name: str,
    split: Split,
    validation: Validation,
    given: Given | None,
    config: RunConfig,
    seed: Seed,
    job: Job,
) -> Pretrained:
    """The domain by itself, by its method in the settings; `given` are vectors made elsewhere."""
    method = config.pretrain.method_of(name)
    if method == "bpr":
        return pretrain(split, validation, config.pretrain, seed, job, dim=config.dim)
    if method == "ials":
        how = config.pretrain
        settings = IalsSettings(max_epochs=how.max_epochs, tries=how.tries)
        made = ials(split, validation, settings, seed, job, dim=config.dim)
        return settled(made.factors, split, how, seed, made.histories)
    if given is None:
        raise ValueError(f"no vectors are given for {name}")
    found = factors(given, split.train, dim=config.dim, n_threads=validation.n_threads)
    start = Epoch(0, None, validation.ndcg(found), 0.0, 0.0)
    job.on_epoch(start)
    return settled(found, split, config.pretrain, seed, (History((start,)),))
