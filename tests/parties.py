"""Three parties and a coordinator, as tests need them."""

from dataclasses import dataclass
from pathlib import Path

from musketeers import config as configuration
from musketeers.config import RunConfig
from musketeers.data.pseudonyms import Secret
from musketeers.data.synthetic import frames, planted
from musketeers.parties.align import align
from musketeers.parties.home import Home
from musketeers.parties.pretrain import pretrain
from musketeers.parties.transfer import transfer
from musketeers.seeding import Seed

NAMES = ("tv", "movie", "music")
SETTINGS = {
    "dim": 8,
    "pretrain": {"method": "bpr", "tries": 2, "max_epochs": 20},
    "cat": {"max_epochs": 5, "batch_size": 64},
    "art": {"max_epochs": 10, "batch_size": 64},
}


@dataclass(frozen=True)
class World:
    """A folder in which each has its own."""

    path: Path
    config: RunConfig

    @classmethod
    def make(cls, path, *, settings=SETTINGS, names=NAMES, **sizes):
        """Keys for everybody, data for the parties, and what all agreed on."""
        given = {"n_users": 160, "n_items": 40, "known": 0.7, "pairs_per_user": 10, **sizes}
        for name, frame in frames(planted(names, Seed(3), **given).domains).items():
            frame.write_parquet(path / f"{name}.parquet")
        Secret.make(path / "users.key")
        keys = {name: Home(path / "private" / name).make_key() for name in (*names, "coordinator")}
        config = configuration.parse(
            {
                **settings,
                "data": {
                    "domains": {name: f"{name}.parquet" for name in names},
                    "min_user": 2, "min_item": 1, "secret": "users.key",
                },
                "parties": {"coordinator": keys.pop("coordinator"), "domains": keys},
            },
            "parties.toml",
        )  # fmt: skip
        (path / "parties.toml").write_text(configuration.dump(config))
        return cls(path, config)

    @property
    def secret(self):
        return self.path / "users.key"

    def home(self, name):
        return Home(self.path / "private" / name)

    def data(self, name):
        return self.path / f"{name}.parquet"

    def published(self, name):
        return str(self.path / "publish" / name)

    @property
    def all_published(self):
        return [str(self.path / "publish" / "*")]

    @property
    def shared(self):
        return str(self.path / "shared")

    def pretrain(self, name, **options):
        return pretrain(
            self.config, self.path, name, self.data(name), self.secret, self.published(name),
            self.home(name), **{"threads": 1, **options},
        )  # fmt: skip

    def align(self, **options):
        given = {"published": self.all_published, "out": self.shared, "threads": 1, **options}
        return align(self.config, given.pop("published"), given.pop("out"),
                     self.home("coordinator"), **given)  # fmt: skip

    def transfer(self, name, **options):
        given = {
            "data": self.data(name), "secret": self.secret, "shared": self.shared,
            "published": self.all_published, "out": self.path / "model" / name, **options,
        }  # fmt: skip
        places = [given.pop(key) for key in ("data", "secret", "shared", "published", "out")]
        return transfer(
            self.config, self.path, name, *places, self.home(name), **{"threads": 1, **given}
        )
