"""Every setting of a run, with its default and its bounds, checked once at the door."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from musketeers.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
NotNegativeCount = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Column = str | dict[str, str]

_DEVICES = {"con", "prn", "aux", "nul", *(f"{p}{n}" for p in ("com", "lpt") for n in range(10))}


class _Section(BaseModel):
    # strict: a TOML true is no number, "3" is no integer
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class DataConfig(_Section):
    """Where the interactions are and which of them count."""

    domains: dict[str, str] = {}
    """Domain name -> a Parquet or CSV file (also .csv.gz), a folder of them, or a glob.  May be
    left out where the domains are parties that read their own (`parties`)."""
    secret: str | None = None
    """A file with a key (`musketeers party secret`): users are known by pseudonyms under it, from
    reading on."""
    user: Column = "user_id"
    """Column of the user ids: one name for all domains, or a table with one per domain."""
    item: Column = "item_id"
    """Column of the item ids, likewise."""
    timestamp: Column | None = None
    """Column of the times, likewise; needed by the `last` and `time` splits."""
    min_user: Count = 5
    """Users with fewer interactions in a domain are dropped from it (k-core); 1 = keep all."""
    min_item: Count = 5
    """Items with fewer interactions are dropped (k-core); 1 = keep all."""

    @field_validator("domains")
    @classmethod
    def _names_are_safe(cls, domains: dict[str, str]) -> dict[str, str]:
        seen: dict[str, str] = {}
        for name in domains:
            check_domain_name(name)
            if (other := seen.setdefault(name.casefold(), name)) != name:
                raise ValueError(
                    f"{other!r} and {name!r} are one file on some systems; rename one of them"
                )
        return domains

    def column(self, role: Literal["user", "item", "timestamp"], domain: str) -> str | None:
        """The column of `role` in `domain`'s files; None where no time is configured."""
        names: Column | None = getattr(self, role)
        return names.get(domain) if isinstance(names, dict) else names

    @model_validator(mode="after")
    def _columns_cover_domains(self) -> Self:
        for role in ("user", "item", "timestamp"):
            names = getattr(self, role)
            missing = self.domains and isinstance(names, dict)
            if missing and (wrong := set(names) ^ set(self.domains)):
                raise ValueError(
                    f"{role} must name one column for each domain; check {', '.join(sorted(wrong))}"
                )
        return self


class SplitConfig(_Section):
    """Which interactions are held out, for choosing (valid) and for measuring (test)."""

    method: Literal["random", "last", "time"] = "random"
    """random: a share of each user's items; last: each user's latest items; time: all
    interactions after one moment, the same for all domains."""
    test: Share = 0.2
    """Share of all interactions of a user (time: of all domains together)."""
    valid: Share = 0.16
    """Likewise."""
    cold: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of a domain's users, of those whom others know too, who are made new to it: their
    history there is held back, to measure what is served to cold users."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.test + self.valid >= 1:
            raise ValueError(
                f"test {self.test} + valid {self.valid} leave nothing to train on; keep below 1"
            )
        return self


class GivenConfig(_Section):
    """One domain's vectors that were made elsewhere; Parquet or safetensors."""

    users: str
    """The file of the users' vectors."""
    items: str | None = None
    """That of the items'; without it they are found by least squares for the users'."""


Method = Literal["bpr", "ials", "given"]
ItemTables = Literal["replicated", "sharded"]


class PretrainConfig(_Section):
    """Stage 1: one domain alone; by matrix factorisation (SMF), or with vectors made elsewhere."""

    method: Literal["auto"] | Method | dict[str, Method] = "auto"
    """One for all domains or a table with one per domain.  bpr: pairwise ranking, as in the paper;
    ials: least squares over all pairs; given: vectors made elsewhere.  auto: a fit takes bpr or
    ials, whichever gives the better models on validation; one model alone (--only) and a comparison
    learn by bpr.  The other settings are those of bpr."""
    given: dict[str, GivenConfig] = {}
    """Domain name -> the files, for the domains whose method is given."""
    learning_rate: Positive = 0.1
    """Adagrad's step before it is divided by the root of the summed squared gradients; the fastest
    that is tried."""
    regularization: NotNegative = 0.14
    """L2 strength per interaction; the strongest that is tried."""
    tries: Count = 10
    """Trainings at most, each at half the strength or a quarter of the rate of the best before it;
    1 trains as it is set here."""
    candidates: Count = 4
    """Uniform negatives drawn per interaction; the one scored highest is learned from."""
    item_tables: ItemTables = "replicated"
    """Of a run whose users are spread over machines, in stages 1 and 3: every machine has the
    vectors of all items, or each has a share and fetches the others it needs, which lets a
    catalogue be larger than a machine and sends more."""
    init_scale: Positive = 0.1
    """Expected length of a vector before training."""
    max_epochs: Count = 200
    """Of each try."""
    validate_every: Count = 3
    """Epochs from one validation to the next; a validation can cost more than an epoch."""
    patience: Count = 12
    """Epochs without a better validation NDCG@10 before training stops."""

    def method_of(self, domain: str) -> Method:
        """How this domain learns alone, if a fit has not found out what is better."""
        if isinstance(self.method, str):
            return "bpr" if self.method == "auto" else self.method
        # a domain that a control adds has no place in the table
        return self.method.get(domain, "bpr")


class CatConfig(_Section):
    """Stage 2: the contrastive autoencoder over all domains' user embeddings."""

    loss: Literal["full", "reconstruction"] = "full"
    """full: contrast and the reconstruction of both views; reconstruction: a plain autoencoder,
    of the whole view alone."""
    temperature: Positive = 0.1
    contrast_weight: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Weight of the contrastive loss; the two reconstruction losses share the rest."""
    learning_rate: Positive = 2e-3
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Users per step; contrast needs at least two."""
    max_epochs: Count = 100
    patience: Count = 5
    contrast_users: Literal["gathered", "local"] = "gathered"
    """Of a run whose users are spread over machines, whom a step tells a user apart from.
    gathered: the step's users on all machines, as on one; local: those on the user's own, which
    sends less."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of users that early stopping looks at and training never sees."""


class ArtConfig(_Section):
    """Stage 3: what a target domain takes from the others, by attention."""

    sources: Literal["attention", "mean", "sum", "none"] = "attention"
    """How the adapted vectors of the sources that know a user are combined; none: they are not
    used."""
    shared: bool = True
    """Whether the shared embedding takes part."""
    learning_rate: Positive = 2e-3
    """Adam's step for the network; the items go on with stage 1's own."""
    regularization: NotNegative = 0.02
    """L2 strength, per interaction, on what is added to a user's own vector."""
    batch_size: Count = 512
    """Users per step of the network; all of a user's items are in one step."""
    dropout: Share = 0.1
    """Share of attention weights that a training step drops."""
    target_dropout: Share = 0.1
    """Share of users for whom a training step hides the target's own vector."""
    items: Literal["tuned", "fixed"] = "tuned"
    """Whether the target's item embeddings go on learning."""
    max_epochs: Count = 100
    patience: Count = 10

    @model_validator(mode="after")
    def _something_is_transferred(self) -> Self:
        if self.sources == "none" and not self.shared:
            raise ValueError(
                "sources 'none' and shared false leave nothing to transfer; change one of them, "
                "or measure the domains alone (--only smf)"
            )
        return self


class ChoiceConfig(_Section):
    """What recommends in each domain: what there is to choose from, and for whom it is chosen."""

    global_embedding: bool = False
    """Whether the heads are told CAT's shared embedding beside the other domains' own."""
    gate: Literal["domain", "activity", "domains"] = "domain"
    """Who is told of others where that is surely better, all others by the domain's own model.
    domain: all its users or none; activity: each third of its users by how much they did; domains:
    users by how many domains know them."""


class PartiesConfig(_Section):
    """Domains that do not pool their data: who they are, and whose signatures count."""

    coordinator: str | None = None
    """The public key of who aligns, as `musketeers party key` prints it."""
    domains: dict[str, str] = {}
    """Domain name -> the party's public key; the order is that of what they share."""

    @field_validator("domains")
    @classmethod
    def _several(cls, domains: dict[str, str]) -> dict[str, str]:
        for name in domains:
            check_domain_name(name)
        return domains


class RunConfig(_Section):
    """A whole run, as one TOML file."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dim: Annotated[int, Field(ge=1, le=4096)] = 64
    """Width of every user and item embedding."""
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    pretrain: PretrainConfig = PretrainConfig()
    cat: CatConfig = CatConfig()
    art: ArtConfig = ArtConfig()
    choice: ChoiceConfig = ChoiceConfig()
    parties: PartiesConfig = PartiesConfig()

    @model_validator(mode="after")
    def _there_are_domains(self) -> Self:
        if not self.data.domains and not self.parties.domains:
            raise ValueError("data.domains: no domain is given; name at least one file")
        return self

    @model_validator(mode="after")
    def _every_domain_has_a_stage_1(self) -> Self:
        names = set(self.data.domains or self.parties.domains)
        methods = self.pretrain.method
        if isinstance(methods, dict) and (wrong := names ^ set(methods)):
            raise ValueError(
                "pretrain.method must name one method for each domain; "
                f"check {', '.join(sorted(wrong))}"
            )
        given = {name for name in names if self.pretrain.method_of(name) == "given"}
        if wrong := given ^ set(self.pretrain.given):
            raise ValueError(
                "pretrain.given must name files for the domains whose method is given, and for no "
                f"others; check {', '.join(sorted(wrong))}"
            )
        return self

    @model_validator(mode="after")
    def _split_has_times(self) -> Self:
        if self.split.method != "random" and self.data.timestamp is None:
            raise ValueError(
                f"split.method {self.split.method!r} needs times; "
                "set data.timestamp to their column"
            )
        return self


def check_domain_name(name: str) -> None:
    """Raise ValueError unless `name` can stand in a file name on any system."""
    plain = all(c.isalnum() or c in " ._-" for c in name) and name.strip(" .") == name
    if not plain or not 0 < len(name.encode()) <= 64 or name.split(".")[0].casefold() in _DEVICES:
        raise ValueError(
            f"{name!r} is no domain name; use letters, digits, inner spaces and dots, _ and -, "
            "at most 64 bytes, and no name of a Windows device"
        )


def load(path: Path) -> RunConfig:
    """Read a run's settings from a TOML file; relative data paths are kept as written.

    Raises `ConfigError` if the file is missing, is not TOML, or breaks a rule; all broken
    rules are named in one message.
    """
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")), path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not TOML for settings: nested too deeply") from None


def parse(settings: dict[str, Any], origin: Path | str) -> RunConfig:
    """Settings from a plain mapping; `origin` is what error messages call it."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(_fault(dict(e)) for e in error.errors())
        raise ConfigError(f"{origin}: {faults}") from None


def dump(config: RunConfig) -> str:
    """TOML text that `load` reads back to the same settings."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _fault(error: dict[str, Any]) -> str:
    """One broken rule as `key: what is wrong`, with the nearest known key for a typo."""
    parts = (str(part) for part in error["loc"])
    where = ".".join(p if p.isprintable() else repr(p) for p in parts) or "settings"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(str(error["loc"][-1]), _keys(error["loc"][:-1]), n=1)
        return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{where}: required key is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error["input"]
    shown = f" (found {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _keys(path: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in path:
        kind = section.model_fields[str(part)].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        section = kind
    return list(section.model_fields)


def of_party(config: RunConfig, domain: str, data: str | None = None) -> RunConfig:
    """The settings of one domain by itself, with its `data`, if any are given, in place of its own.

    Raises `ConfigError` if it is none of the parties, or has no data.
    """
    if domain not in config.parties.domains:
        names = ", ".join(config.parties.domains) or "none is"
        raise ConfigError(
            f"domain {domain!r} is no party of these settings ({names}); add it and its public key "
            "under [parties.domains]"
        )
    data = data or config.data.domains.get(domain)
    if data is None:
        raise ConfigError(f"domain {domain!r} has no data; name them (--data FILE)")
    columns = {f"data.{r}": config.data.column(r, domain) for r in ("user", "item", "timestamp")}
    given = {name: one for name, one in config.pretrain.given.items() if name == domain}
    method = config.pretrain.method if config.pretrain.method == "auto" else None
    return changed(
        config,
        {
            "data.domains": {domain: data},
            **columns,
            "pretrain.given": given,
            "pretrain.method": method or config.pretrain.method_of(domain),
        },
    )


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The settings with some of them replaced; keys are dotted, such as ``art.learning_rate``.

    Raises `ConfigError` for an unknown key or a value that breaks a rule.
    """
    tree = config.model_dump(exclude_none=True)
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return parse(tree, "settings")
