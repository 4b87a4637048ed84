"""The one moment at which something leaves: defended, signed, noted, and only then published."""

import secrets
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32

from musketeers.config import RunConfig
from musketeers.data.pseudonyms import Secret
from musketeers.errors import ConfigError, RunError
from musketeers.parties import places
from musketeers.parties.agreement import signer_of
from musketeers.parties.defences import Defences, defended
from musketeers.parties.guarantee import Mode, statement, together
from musketeers.parties.home import Home, Release
from musketeers.parties.publication import AboutUsers, Publication, publish, read_publication
from musketeers.pretrain.given import directions, narrowed, read_vectors
from musketeers.protocols import Rows, untold
from musketeers.run_folder import locked


def release(
    home: Home,
    sequence: int | None,
    out: str,
    domain: str,
    keys: pl.Series,
    users: Float32[np.ndarray, "user dim"],
    how: Defences,
    *,
    axes: Float32[np.ndarray, "dim dim"],
    space: str,
    secret: Secret,
    told: Rows = untold,
) -> Publication:
    """Publish a row of `users` for each pseudonym of `keys`, which ascend, at the place `out`.

    The file and its entry in the list of releases are in `home` before it leaves: whoever is
    interrupted then publishes the same noise again, by its number; None is the next one.  `axes`
    are the directions of `Defences.dims`, with noise those of items that no user moves; `space` is
    what the vectors can be compared by; `told` hears of users whose vectors have their noise.
    Raises `RunError` if that release was made before with other defences.
    """
    signer = home.signer()
    with locked(home.path):
        before = home.releases()
        sequence = sequence or len(before) + 1
        file = home.file(sequence)
        if len(before) < sequence:
            with told("noise", domain) as on_rows:
                made = defended(users, axes, how, on_rows)
            mode, mu = _together([*(one.defences or Defences() for one in before), how])
            about = AboutUsers(
                users=len(keys), dim=made.shape[1], space=space, secret=secret.check,
                defences=how, mode=mode, mu=mu, statement=statement(mode, mu, how.delta),
            )  # fmt: skip
            leaves = publish(str(file), keys, made, about, signer, domain=domain, sequence=sequence)
            home.release(Release(sequence=sequence, digest=leaves.digest, defences=how))
        elif before[sequence - 1].defences != how:
            raise RunError(
                f"{file}: was made with other defences; publish it as it is, or make a new one "
                "(without --resume)"
            )
        published = read_publication(str(file), {domain: signer.public}, dim=users.shape[1])
        places.write(out, [file.read_bytes()])
    return published


def publish_given(
    config: RunConfig,
    domain: str,
    embeddings: Path,
    secret: Path,
    out: str,
    home: Home,
    *,
    defences: Defences | None = None,
    told: Rows = untold,
) -> Publication:
    """Publish vectors that were made elsewhere, of any width, in a file as `pretrain.given` reads.

    Wider ones than the settings' dim are cut by a linear map.  The domain then tells others of its
    users; to be told itself it needs stage 1 (`pretrain.pretrain`, with ``pretrain.method`` given).
    Raises `DataError` for a file that is not so, and `ConfigError` for noise with a map or `dims`,
    which would be made of the data.
    """
    how = defences or Defences()
    how.check()
    ids, vectors = read_vectors(embeddings)
    if how.epsilon is not None and (how.dims is not None or vectors.shape[1] > config.dim):
        raise ConfigError(
            f"{embeddings}: vectors have {vectors.shape[1]} numbers, and with noise they are not "
            f"made narrower, for what to leave out would depend on the data; give {config.dim} "
            "numbers or fewer, and no dims"
        )
    signer_of(config, home, domain)
    key = Secret.read(secret)
    keys = key.of(ids)
    if (alike := keys.is_duplicated()).any():
        raise ConfigError(
            f"{embeddings}: {alike.sum()} ids differ in their Unicode form alone; write them alike"
        )
    order, users = keys.arg_sort().to_numpy(), narrowed(vectors, config.dim)
    return release(
        home, None, out, domain, keys.gather(order), users[order], how,
        axes=directions(users), space=secrets.token_hex(8), secret=key, told=told,
    )  # fmt: skip


def _together(releases: list[Defences]) -> tuple[Mode, float | None]:
    """The weaker mode of releases, and what they tell together; None if one has no noise."""
    mode: Mode = "vectors" if any(one.mode == "vectors" for one in releases) else "fold-in"
    mus = [one.mu for one in releases]
    return mode, None if None in mus else together(mu for mu in mus if mu is not None)
