"""What the parties agreed on: who they are, and settings that need nobody else's data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from musketeers.config import RunConfig, changed, of_party
from musketeers.errors import ConfigError
from musketeers.parties.home import Home
from musketeers.parties.keys import Signer, check_public


@dataclass(frozen=True, slots=True)
class Agreed:
    """Whose signatures count."""

    coordinator: str
    domains: Mapping[str, str]


def agreed(config: RunConfig) -> Agreed:
    """The public keys that the settings name; `ConfigError` if they are none."""
    coordinator, domains = config.parties.coordinator, config.parties.domains
    if coordinator is None or not domains:
        raise ConfigError(
            "the settings name no parties; add [parties] with the public key of the coordinator, "
            "and [parties.domains] with that of each party (musketeers party key prints it)"
        )
    check_public({**domains, "the coordinator": coordinator})
    return Agreed(coordinator, domains)


def signer_of(config: RunConfig, home: Home, domain: str | None) -> Signer:
    """The key in a party's folder, or the coordinator's.

    Raises `ConfigError` if it is not the one that the settings name: nobody would take its files.
    """
    parties, signer = agreed(config), home.signer()
    named = parties.domains.get(domain) if domain else parties.coordinator
    if signer.public != named:
        raise ConfigError(
            f"{home.path}: holds the key {signer.public}, the settings name {named} for "
            f"{domain or 'the coordinator'}; use the right private folder (--private), or correct "
            "the settings"
        )
    return signer


def settings_of(
    config: RunConfig, domain: str, data: str | Path | None, secret: str | Path
) -> RunConfig:
    """The party's own settings: its data, and its users under pseudonyms.

    Raises `ConfigError` for what takes the data of several parties.
    """
    if config.split.method == "time":
        raise ConfigError(
            "split.method is 'time', one moment for all domains, for which their data would have "
            "to be pooled; use 'last' or 'random'"
        )
    if config.split.cold:
        raise ConfigError(
            f"split.cold is {config.split.cold}; who is known elsewhere is not known before "
            "parties have exchanged anything: use 0"
        )
    own = of_party(config, domain, None if data is None else str(Path(data).absolute()))
    return changed(own, {"data.secret": str(Path(secret).absolute())})
