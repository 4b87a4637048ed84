"""Multi-target cross-domain recommendation: one for all, all for one.

Names are loaded when first used, so that `musketeers --help` need not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musketeers.config import RunConfig as RunConfig
    from musketeers.device import computing_on as computing_on
    from musketeers.errors import ArtifactError as ArtifactError
    from musketeers.errors import ConfigError as ConfigError
    from musketeers.errors import DataError as DataError
    from musketeers.errors import DivergedError as DivergedError
    from musketeers.errors import MusketeersError as MusketeersError
    from musketeers.errors import RunError as RunError
    from musketeers.errors import UnknownNameError as UnknownNameError
    from musketeers.own_items import OwnItems as OwnItems
    from musketeers.recommender import Recommender as Recommender
    from musketeers.results import RunResult as RunResult
    from musketeers.run_files import open_run as open_run
    from musketeers.runs import evaluate_run as evaluate_run
    from musketeers.runs import fit as fit
    from musketeers.runs import fit_run as fit_run
    from musketeers.sources import Explainer as Explainer
    from musketeers.sources import helped as helped
    from musketeers.synthesis import synth as synth
    from musketeers.told import Told as Told
    from musketeers.updates import add_domain as add_domain
    from musketeers.updates import refresh as refresh

_HOME = {
    "ArtifactError": "musketeers.errors",
    "ConfigError": "musketeers.errors",
    "DataError": "musketeers.errors",
    "DivergedError": "musketeers.errors",
    "Explainer": "musketeers.sources",
    "MusketeersError": "musketeers.errors",
    "OwnItems": "musketeers.own_items",
    "Recommender": "musketeers.recommender",
    "RunConfig": "musketeers.config",
    "RunError": "musketeers.errors",
    "RunResult": "musketeers.results",
    "Told": "musketeers.told",
    "UnknownNameError": "musketeers.errors",
    "add_domain": "musketeers.updates",
    "computing_on": "musketeers.device",
    "evaluate_run": "musketeers.runs",
    "fit": "musketeers.runs",
    "fit_run": "musketeers.runs",
    "helped": "musketeers.sources",
    "open_run": "musketeers.run_files",
    "refresh": "musketeers.updates",
    "synth": "musketeers.synthesis",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'musketeers' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
