"""`musketeers party`: parse, call the library, print."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from musketeers.parties.defences import Defences
    from musketeers.parties.home import Home
    from musketeers.parties.publication import Publication

app = typer.Typer(
    no_args_is_help=True,
    help="Domains that may not pool their data: train apart, exchange one file each, audit it.",
)

_COORDINATOR = "coordinator"

Settings = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="What all parties agreed on: settings, and their public keys."
    ),
]
Domain = Annotated[str, typer.Option(help="The party's own domain.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Its data: a file, a folder or a glob; else as in settings."),
]
Key = Annotated[
    Path, typer.Option("--secret", metavar="KEYFILE", help="The key of the users' pseudonyms.")
]
Private = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="What stays here: key, stage 1, what left; by default private/DOMAIN."
    ),
]
Out = Annotated[
    str, typer.Option(metavar="URL", help="The file to publish: a path, s3://..., gs://...")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted attempt, to the same result.")
]
Threads = Annotated[
    int | None,
    typer.Option(help="Processors to use; all by default. Results repeat for the same number."),
]
Mode = Annotated[
    Literal["vectors", "fold-in"],
    typer.Option(
        help="vectors: as trained on everybody; fold-in: each user's solved for from own data, "
        "against items that donors alone trained."
    ),
]
Clip = Annotated[float | None, typer.Option(help="Cut vectors to this length.")]
Dims = Annotated[int | None, typer.Option(help="Publish so many numbers of each vector.")]
Bits = Annotated[int | None, typer.Option(help="Round each number to so many bits.")]
Epsilon = Annotated[float | None, typer.Option(help="Noise; with --delta and --clip.")]
Delta = Annotated[float | None, typer.Option(help="See --epsilon, such as 1e-6.")]

Format = Literal["table", "json", "csv", "parquet"]

AGREED = Path("parties.toml")


@app.command()
def secret(
    out: Annotated[Path, typer.Option(metavar="KEYFILE", help="The new file.")],
) -> None:
    """Make the key that turns users' ids into pseudonyms.

    All parties use the same one; neither the coordinator nor anybody else may have it. Whoever has
    it can find out which of the users that they can name are in a published file.

    Example: `musketeers party secret --out users.key`
    """
    from musketeers.data.pseudonyms import Secret

    Secret.make(out)
    typer.echo(f"{out}: give it to the parties, over a channel that you trust, and to nobody else")


@app.command()
def key(
    domain: Annotated[
        str | None, typer.Option(help="The party's domain; without: the coordinator.")
    ] = None,
    private: Private = None,
) -> None:
    """Make a party's own key; print its public one, a line for the settings.

    The coordinator's stands under [parties], a domain's under [parties.domains].

    Example: `musketeers party key --domain tv`
    """
    public = _home(private, domain or _COORDINATOR).make_key()
    typer.echo(f'{domain or _COORDINATOR} = "{public}"')


@app.command()
def pretrain(
    domain: Domain,
    secret: Key,
    out: Out,
    data: Data = None,
    settings: Settings = AGREED,
    private: Private = None,
    resume: Resume = False,
    threads: Threads = None,
    mode: Mode = "vectors",
    donors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With fold-in: ids of users who consent to train items; without, as last time.",
        ),
    ] = None,
    among: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Publish only users whom this publication knows; repeat for more."
        ),
    ] = None,
    clip: Clip = None,
    dims: Dims = None,
    bits: Bits = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
) -> None:
    """First, in a domain's own environment: learn alone, publish the users' vectors.

    Writes one signed file: vectors under pseudonyms and a manifest. Interactions, items and counts
    have no place in it. Without noise it guarantees nothing: see docs/privacy.md.

    Example: `musketeers party pretrain --domain tv --data tv.parquet --secret users.key --out
    publish/tv`
    """
    from musketeers import config
    from musketeers.parties.pretrain import pretrain
    from musketeers.progress import watching

    home = _home(private, domain)
    with watching(home.path, resume=False) as watch:
        published = pretrain(
            config.load(settings), settings.parent, domain, data, secret, out, home,
            defences=_defences(mode, clip, dims, bits, epsilon, delta), donors=donors,
            among=among or (), resume=resume, threads=threads, watch=watch, command=sys.argv,
        )  # fmt: skip
    typer.echo(_described(out, published))


@app.command()
def publish(
    domain: Domain,
    embeddings: Annotated[
        Path, typer.Option(metavar="FILE", help="Ids and vectors: Parquet or safetensors.")
    ],
    secret: Key,
    out: Out,
    settings: Settings = AGREED,
    private: Private = None,
    clip: Clip = None,
    dims: Dims = None,
    bits: Bits = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
) -> None:
    """Publish users' vectors that were made elsewhere, by any model, of any width.

    Example: `musketeers party publish --domain music --embeddings music-users.parquet --secret
    users.key --out publish/music`
    """
    from musketeers import config
    from musketeers.parties.release import publish_given
    from musketeers.progress import watching

    home = _home(private, domain)
    with watching(home.path, resume=False) as watch:
        published = publish_given(
            config.load(settings), domain, embeddings, secret, out, home,
            defences=_defences("vectors", clip, dims, bits, epsilon, delta), told=watch.rows,
        )  # fmt: skip
    typer.echo(_described(out, published))


@app.command()
def align(
    published: Annotated[
        list[str], typer.Argument(metavar="URL...", help="The latest file of each party.")
    ],
    out: Annotated[str, typer.Option(metavar="URL", help="The folder to write into.")],
    settings: Settings = AGREED,
    private: Private = None,
    per_party: Annotated[
        bool, typer.Option("--per-party", help="A file for each party, with its users alone.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use the encoder of the alignment in this folder."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Second, the coordinator, who has no interactions and no items: train CAT on them all.

    Example: `musketeers party align publish/* --out shared`
    """
    from musketeers import config
    from musketeers.parties.align import align
    from musketeers.progress import watching

    home = _home(private, _COORDINATOR)
    with watching(home.path, resume=False) as watch:
        written = align(
            config.load(settings), published, out, home,
            per_party=per_party, keep=keep, threads=threads, watch=watch,
        )  # fmt: skip
    typer.echo("\n".join(written))


@app.command()
def transfer(
    domain: Domain,
    secret: Key,
    shared: Annotated[str, typer.Option(metavar="URL", help="The folder of the alignment.")],
    published: Annotated[
        list[str], typer.Option(metavar="URL...", help="What was aligned; all of it.")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder to write; new or empty.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[URL...]", help="More of what was aligned.")
    ] = None,
    data: Data = None,
    settings: Settings = AGREED,
    private: Private = None,
    resume: Resume = False,
    threads: Threads = None,
) -> None:
    """Third, back in the domain: learn from the others, choose, measure.

    Writes a run like that of `musketeers fit`, with one domain; `recommend`, `evaluate` and
    `explain` take it. Without noise it is bitwise that domain of a fit on the data of all.

    Example: `musketeers party transfer --domain tv --data tv.parquet --secret users.key --shared
    shared --published publish/* --out model/tv`
    """
    from musketeers import config
    from musketeers.parties.transfer import transfer
    from musketeers.progress import watching
    from musketeers.report import tables

    with watching(out, resume=resume) as watch:
        result = transfer(
            config.load(settings), settings.parent, domain, data, secret, shared,
            [*published, *(more or [])], out, _home(private, domain),
            resume=resume, threads=threads, watch=watch, command=sys.argv,
        )  # fmt: skip
    tables.show(tables.of_run(result), tables.next_step(result, out))


@app.command()
def audit(
    domain: Domain,
    secret: Key,
    published: Annotated[
        list[str],
        typer.Option(metavar="URL...", help="The domain's file; with others', linked to them."),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[URL...]", help="More of what is published.")
    ] = None,
    data: Data = None,
    attributes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ids, and what is known of users: a column each."),
    ] = None,
    settings: Settings = AGREED,
    private: Private = None,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = "table",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to FILE, not to stdout.")
    ] = None,
) -> None:
    """Attack what a domain published, and what it could publish instead.

    A row for each attack and defence: how far it comes (with a 95 % interval), its floor without
    the vectors or by chance, and the same on mixed vectors as a control; before them how well the
    vectors rank for the domain's own users. Nothing of it leaves. docs/privacy.md has the attacks.

    Example: `musketeers party audit --domain tv --data tv.parquet --secret users.key --published
    publish/*`
    """
    from musketeers import config
    from musketeers.parties.audit import audit
    from musketeers.progress import watching
    from musketeers.report import answers

    home = _home(private, domain)
    with watching(home.path, resume=False) as watch:
        rows = audit(
            config.load(settings), settings.parent, domain, data, secret,
            [*published, *(more or [])], home, attributes=attributes, watch=watch,
        )  # fmt: skip
    answers.write(rows, form, out)


def _described(out: str, published: "Publication") -> str:
    about = published.about
    return (
        f"{out}: publication {published.sequence} of {published.domain}, {about.users:,} users, "
        f"{about.dim} numbers each\n{about.statement}"
    )


def _home(private: Path | None, name: str) -> "Home":
    from musketeers.parties.home import Home

    return Home(private or Path("private") / name)


def _defences(
    mode: Literal["vectors", "fold-in"],
    clip: float | None,
    dims: int | None,
    bits: int | None,
    epsilon: float | None,
    delta: float | None,
) -> "Defences":
    from musketeers.parties.defences import Defences

    return Defences.of(mode=mode, clip=clip, dims=dims, bits=bits, epsilon=epsilon, delta=delta)
