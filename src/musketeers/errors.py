"""The exceptions callers may catch.

* MusketeersError
  - ConfigError        a setting is wrong; nothing has been computed yet
  - DataError          a table or file breaks a rule that its reader states
    - UnknownNameError a user, item or domain that the model has never seen
  - ArtifactError      a saved model is missing, damaged, or of another format
  - RunError           a run folder is busy, finished, or cannot be resumed
  - DivergedError      a loss stopped being a finite number
  - MissingExtraError  a feature needs packages that are not installed
  - ClusterError       a cluster is not there, is not fit for a run, or gave up a job
"""


class MusketeersError(Exception):
    """Base of every exception this package raises on purpose; its text is one clear line."""


class ConfigError(MusketeersError, ValueError):
    """A setting is wrong; nothing has been computed yet."""


class DataError(MusketeersError, ValueError):
    """A table or file breaks a rule that its reader states."""


class UnknownNameError(DataError, LookupError):
    """A user, item or domain that is not part of the fitted model."""


class ArtifactError(MusketeersError, OSError):
    """A saved model is missing, damaged, or of a format this version cannot read."""


class RunError(MusketeersError, RuntimeError):
    """A run folder is in use, already finished, or cannot be resumed with these settings."""


class DivergedError(MusketeersError, ArithmeticError):
    """A training loss stopped being a finite number."""


class MissingExtraError(MusketeersError, ImportError):
    """A feature needs packages that are not installed; the message names the extra."""


class ClusterError(MusketeersError, ConnectionError):
    """A cluster cannot be reached, is not fit for a run, or gave up one of its jobs."""
