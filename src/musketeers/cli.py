"""The `musketeers` command: parse, call the library, print."""

import gc
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from musketeers.parties import commands as parties

if TYPE_CHECKING:
    from musketeers.comparison.workers import Workers
    from musketeers.execution import Executor

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.add_typer(parties.app, name="party")

Format = Literal["table", "json", "csv", "parquet"]
Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run's settings.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Processors to use; all by default. Results repeat for the same number."),
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, or cuda for a GPU: the three stages and lists are computed there, iALS and "
        "linear models not. The lists of a model are the same on both."
    ),
]
On = Annotated[
    Literal["here", "ray"],
    typer.Option(
        help="Where to train: here, or on a Ray cluster that is running, one domain on one node at "
        "a time, to the same result; RUN is then a folder that all its nodes see."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="With --on ray: the cluster. By default what RAY_ADDRESS says, or else the one that "
        "runs on this machine.",
    ),
]
Domain = Annotated[str, typer.Option(help="The domain's name.")]
Data = Annotated[
    str, typer.Option(metavar="FILE", help="Its data, all of them: a file, a folder or a glob.")
]
NewRun = Annotated[Path, typer.Option(metavar="NEW", help="The folder to write; new or empty.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run, to the same result.")
]
SecretKey = Annotated[
    Path | None,
    typer.Option(
        "--secret", metavar="KEYFILE",
        help="The key that the run's data were read with, if its users have pseudonyms.",
    ),
]  # fmt: skip
Sampled = Annotated[
    bool,
    typer.Option(
        "--sampled",
        help="Also rank each test item among 99 random ones (HR@10, NDCG@10), to stand beside "
        "papers that do. Not comparable with the full ranking: it can put models in another order "
        "(Krichene and Rendle, KDD 2020). Nothing is chosen by it.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"musketeers {version('musketeers')}")
        raise typer.Exit


def _check_extra(extra: str, *packages: str) -> None:
    """Raise `MissingExtraError` if any of its packages is not installed."""
    from musketeers.errors import MissingExtraError

    if absent := [package for package in packages if find_spec(package) is None]:
        raise MissingExtraError(
            f"this needs {absent[0]}, which is not installed: pip install 'musketeers[{extra}]'"
        )


def _on_ray(on: str, address: str | None) -> bool:
    """Whether a cluster is to do the jobs; raises `ConfigError` for an address without."""
    if on == "here" and address is not None:
        from musketeers.errors import ConfigError

        raise ConfigError(f"address is {address!r}, which is for --on ray; add that")
    return on == "ray"


def _executor(on: str, address: str | None) -> "Executor":
    """Who does the jobs; raises `MissingExtraError` if ray is wanted and not here."""
    if _on_ray(on, address):
        from musketeers.cluster.executor import RayExecutor

        return RayExecutor(address)
    from musketeers.execution import HERE

    return HERE


def _workers(
    on: str, address: str | None, out: Path, jobs: int | None, memory: str | None
) -> AbstractContextManager["Workers"]:
    """Who does the jobs of a comparison into `out`."""
    if not _on_ray(on, address):
        from musketeers.comparison.command import in_bytes
        from musketeers.comparison.workers import Processes

        return nullcontext(Processes.of(jobs, in_bytes(memory)))
    for name, value in (("jobs", jobs), ("memory", memory)):
        if value is not None:
            from musketeers.errors import ConfigError

            raise ConfigError(
                f"{name} is {value}, which is for processes of this machine; leave it out, a "
                "cluster's nodes say what they have"
            )
    from musketeers.cluster.comparison import on_cluster

    return on_cluster(address, out)


def _check_shards(on: str, given: Mapping[str, bool]) -> None:
    """Raise `ConfigError` for options that do not go with shards."""
    from musketeers.errors import ConfigError

    if on != "ray":
        raise ConfigError("shards are for a cluster; add --on ray, or leave them out")
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise ConfigError(f"{wrong[0]} is not for shards of users; leave out one of the two")


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Better recommendations in every domain, learned from all of them.

    Domains (shop departments, apps, videos, ...) that share users learn alone, exchange user
    embeddings and nothing else, and learn from each other (CAT-ART).

    `musketeers demo` runs everything on real data; `musketeers check` looks at
    yours first. Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a
    failure explained in one line, 2 wrong usage, 130 interrupted.
    """


@app.command()
def fit(
    config: Config,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder to write; new or empty.")],
    resume: Resume = False,
    threads: Threads = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Fit one model by itself, any that `musketeers compare` knows (smf, ease, ...).",
        ),
    ] = None,
    tune: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="With --only: train N times, the defaults first; validation chooses.",
        ),
    ] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Take at most about this long, such as 5m, and use the time for better settings "
            "of stage 1: by BPR or iALS, and with wider vectors, by successive halving.",
        ),
    ] = None,
    device: Device = "cpu",
    on: On = "here",
    address: Address = None,
    shards: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --on ray: spread the users over N members, for data that no machine holds. "
            "Each writes a run of its own users, RUN/shards/0 and so on.",
        ),
    ] = None,
) -> None:
    """Train and measure on your data; give each domain its best list, by validation.

    Trains every domain alone, then told of the others, and chooses in each domain what
    recommends: its own best model, unless one that is told of others is surely better.

    Reads the settings and the data files they name (Parquet or CSV, relative to the settings).
    Writes the folder RUN: models, metrics, and report.html. A finished run is never overwritten.

    A minimal CONFIG.toml:

        [data.domains]
        tv = "tv.parquet"       # columns user_id, item_id
        movie = "movie.parquet"

    Example: `musketeers fit settings.toml --out runs/first --budget 10m`
    """
    from musketeers import config as settings
    from musketeers import runs
    from musketeers.device import computing_on
    from musketeers.progress import watching
    from musketeers.report import tables

    if shards is not None:
        _check_shards(
            on, {"tune": tune > 1, "budget": budget is not None, "device": device != "cpu"}
        )
        from musketeers.cluster.sharded import KIND, fit_sharded

        with watching(out, resume=resume, kind=KIND) as watch:
            whole = fit_sharded(
                settings.load(config), config.parent, out, n_shards=shards, address=address,
                resume=resume, threads=threads, only=only, watch=watch, command=sys.argv,
            )  # fmt: skip
        tables.show(
            tables.comparison(whole.means, whole.differences),
            f"Run:    {out}\nShards: {out / 'shards'}, 0 to {shards - 1}, each a run of its users",
        )
        return
    with watching(out, resume=resume) as watch, computing_on(device):
        result = runs.fit_run(
            settings.load(config), config.parent, out,
            resume=resume, threads=threads, watch=watch, only=only, n_tries=tune, budget=budget,
            executor=_executor(on, address), command=sys.argv,
        )  # fmt: skip
    tables.show(tables.of_run(result), tables.next_step(result, out))


@app.command()
def add_domain(
    run: Run,
    domain: Domain,
    data: Data,
    out: NewRun,
    user: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its user ids, if not as in the run.")
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its item ids, likewise.")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its times, likewise.")
    ] = None,
    resume: Resume = False,
    threads: Threads = None,
) -> None:
    """Add a domain to a finished run; train only what must be.

    Reads the folder RUN and the new domain's data, not those of the other domains, whose stage 1
    and held-out interactions stay as they are. Writes the folder NEW, a run like any other, and
    says what changed in each domain.

    Example: `musketeers add-domain runs/first --domain music --data music.csv --out runs/second`
    """
    from musketeers import updates
    from musketeers.progress import watching
    from musketeers.report import tables

    with watching(out, resume=resume) as watch:
        result = updates.add_domain(
            run, domain, data, out,
            columns={"user": user, "item": item, "timestamp": timestamp},
            resume=resume, threads=threads, watch=watch, command=sys.argv,
        )  # fmt: skip
    tables.show(tables.of_run(result), tables.next_step(result, out))


@app.command()
def refresh(
    run: Run,
    domain: Domain,
    data: Data,
    out: NewRun,
    resume: Resume = False,
    threads: Threads = None,
) -> None:
    """Give a domain of a finished run its new data; train only what must be.

    Reads the folder RUN and all data of the domain as they are now, not those of the other domains,
    whose stage 1 and held-out interactions stay as they are. Writes the folder NEW, a run like any
    other, says what changed in each domain, and warns where a full fit is due.

    Example: `musketeers refresh runs/first --domain tv --data tv.parquet --out runs/second`
    """
    from musketeers import updates
    from musketeers.progress import watching
    from musketeers.report import tables

    with watching(out, resume=resume) as watch:
        result = updates.refresh(
            run, domain, data, out,
            resume=resume, threads=threads, watch=watch, command=sys.argv,
        )  # fmt: skip
    tables.show(tables.of_run(result), tables.next_step(result, out))


@app.command()
def evaluate(
    run: Run, threads: Threads = None, sampled: Sampled = False, device: Device = "cpu"
) -> None:
    """Measure a run's saved models again on its held-out interactions.

    Reads the folder RUN alone, not the data it was made from. Writes nothing.

    Example: `musketeers evaluate runs/first`
    """
    from musketeers import runs
    from musketeers.device import computing_on
    from musketeers.report import tables

    with computing_on(device):
        found = runs.evaluate_run(run, threads=threads, sampled=sampled)
    tables.show(tables.of_run(found))


@app.command()
def recommend(
    run: Run,
    domain: Annotated[str, typer.Option(help="The domain whose items are recommended.")],
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A user's id; repeat for more.")
    ] = None,
    all_users: Annotated[
        bool,
        typer.Option("--all-users", help="Everybody whom any domain knows, as Parquet into --out."),
    ] = False,
    k: Annotated[int, typer.Option(help="Items for each user.")] = 10,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = "table",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to FILE, not to stdout.")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also items that the user already has.")
    ] = False,
    secret: SecretKey = None,
) -> None:
    """Recommend the best items of one domain to some users, or to all.

    Reads the model in the folder RUN. Rows: user_id, rank, item_id, score, and strategy:
    personalised (the user has a history in this domain), cross_domain (only in others), or
    popular (unknown user). Ids are yours, as you type them.

    Example: `musketeers recommend runs/first --domain tv --user 17 --user 42 --k 5`

    Example: `musketeers recommend runs/first --domain tv --all-users --out tv-lists.parquet`
    """
    from musketeers.errors import ConfigError
    from musketeers.report import answers

    if bool(user) == all_users:
        raise ConfigError("name users (--user ID), or ask for all of them (--all-users)")
    model = answers.model_of(run)
    if not user:
        from musketeers.progress import watching

        blocks = model.recommend_all(domain, k, exclude_seen=not include_seen)
        with watching(run, resume=False) as watch, watch.rows("recommend", domain) as on_rows:
            answers.write_all(blocks, form, out, on_rows)
        return
    ids = answers.asked_for(user, model.users, secret)
    rows = model.recommend(domain, ids, k, exclude_seen=not include_seen)
    if secret:
        rows = answers.as_typed(rows, user, ids)
    answers.write(rows, form, out)
    answers.note_strangers(rows)


@app.command()
def explain(
    run: Run,
    domain: Annotated[str, typer.Option(help="The domain whose lists are explained.")],
    user: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A user's id; repeat for more. Without: all test users."),
    ] = None,
    k: Annotated[int, typer.Option(help="Length of each user's list.")] = 10,
    form: Annotated[Format, typer.Option("--format", help="How to write the rows.")] = "table",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to FILE, not to stdout.")
    ] = None,
    secret: SecretKey = None,
) -> None:
    """Tell which other domains helped one, by hiding each of them from what serves it.

    Nothing is trained anew. Without --user a row for each source: NDCG@10 on test, its gain from
    the source (above 0: it helped) with interval and p, the share of users whose ten items are
    changed, the mean share that is kept, and attention. With --user a row for each user and
    source: which items leave and enter the list when the source is hidden.
    Attention is where CAT-ART looks, which need not be what helps. What serves a domain may be
    told of no other; then there is nothing to hide, and a note says so.

    Example: `musketeers explain runs/first --domain tv --user 17 --user 42 --k 5`
    """
    from musketeers import run_files, sources
    from musketeers.report import answers

    found = run_files.open_run(run)
    if user:
        ids = answers.asked_for(user, found.recommender.users, secret)
        rows = sources.Explainer.of(found, domain).explain(ids, k)
        if secret:
            rows = answers.as_typed(rows, user, ids)
    else:
        rows = sources.helped(found, domain)
    answers.write(rows, form, out)
    answers.note_untold(rows, domain)


@app.command()
def export(
    run: Run,
    to: Annotated[
        Literal["parquet", "faiss", "pgvector", "redis"], typer.Option(help="The system.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of parquet and faiss: the folder to write; new or empty."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="MUSKETEERS_EXPORT_URL",
            metavar="URL",
            help="Of pgvector and redis: postgresql://... or redis://...; other users of the "
            "machine see a command line, but not its environment.",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="A domain; repeat for more. All by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="smf or cat_art: what stage 1 or 3 made, not what the domain is served."),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(help="Of pgvector and redis: what the names of tables or keys begin with."),
    ] = "musketeers",
) -> None:
    """Write vectors with which another system gives the same lists.

    The inner product of a user's and an item's vector is the score of `recommend`, whatever the
    user's strategy; what users already have is written too, to be left out. An export replaces
    an older one at once, or after a failure not at all. Linear models have no small vectors and are
    refused: see --model.

    Example: `musketeers export runs/first --to faiss --out vectors`

    Example: `musketeers export runs/first --to pgvector --url postgresql://shop@db/shop`
    """
    from musketeers.exports import command
    from musketeers.progress import watching

    with watching(run, resume=False) as watch:
        done = command.run(
            run, to, watch=watch, out=out, url=url, domains=domain or (), model=model, prefix=prefix
        )
    typer.echo(done)


@app.command()
def compare(
    config: Config,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Models by name; all by default. smf is always in."),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The models of the paper's tables, ablations included.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Splits and starts, each tuned anew.")] = 5,
    tune: Annotated[
        int, typer.Option(help="Trainings that each model may choose from; the first: defaults.")
    ] = 20,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted comparison.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(help="Processes side by side; one for each processor by default.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="What all processes may take together, such as 8G; by default nine tenths of what "
            "is available. A model that needs more is named with what it needs; the others go on.",
        ),
    ] = None,
    sampled: Sampled = False,
    on: On = "here",
    address: Address = None,
) -> None:
    """Compare models honestly: same splits, same tuning budget, several seeds, tests.

    Every model is tuned on validation data and measured on test data. Writes results.parquet (a
    row for each user), results.json, table.md, table.tex and report.html. What a comparison has
    finished is kept, and --resume goes on. A model that fails is named; the others count.
    With --on ray the trainings run on a Ray cluster, with the same results.

    Example: `musketeers compare settings.toml --models ease,cat_art --seeds 3 --tune 5 --out cmp`
    """
    from musketeers import config as settings
    from musketeers.comparison import command

    found = settings.load(config)
    with _workers(on, address, out, jobs, memory) as workers:
        command.run(
            found, config.parent, out,
            models=command.chosen(models, paper=paper), n_seeds=seeds, n_tries=tune,
            workers=workers, sampled=sampled, resume=resume, words=sys.argv,
        )  # fmt: skip


@app.command()
def check(config: Config) -> None:
    """Look at settings and data before training: sizes, shared users, warnings.

    Reads what `fit` would read. Writes and trains nothing. Warnings do not fail.

    Example: `musketeers check settings.toml`
    """
    from musketeers import config as settings
    from musketeers import runs
    from musketeers.report import tables

    found = settings.load(config)
    _, overlap = runs.read_data(found, config.parent)
    typer.echo(settings.dump(found))
    tables.show(tables.overlap(overlap))


@app.command()
def serve(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A finished run, a link to one, or a folder of runs with a file CURRENT.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who may ask for what (TOML; `musketeers key` makes one). Beside it, "
            "MUSKETEERS_KEY and MUSKETEERS_ADMIN_KEY of the environment count. Without any key "
            "only this machine is served, and nobody may administer.",
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Also tell what moved a list, and what is known of a user."),
    ] = False,
    fresh: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Take and keep what users do since the fit, and let it count: a file, or "
            "redis://HOST:PORT/N.",
        ),
    ] = None,
    stages: Annotated[
        bool,
        typer.Option(
            help="Also read what the run's stages made, to fold in what users just did in other "
            "domains, and to explain. Without, the server takes about half the memory."
        ),
    ] = True,
    secret: SecretKey = None,
    watch: Annotated[
        float, typer.Option(min=0, help="Look for another version every so many seconds; 0: never.")
    ] = 0.5,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="That make lists; by default all processors but one."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second for each key; others get 429.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests worked on at once.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; others get 503.")] = 64,
    deadline: Annotated[float, typer.Option(help="Seconds for a request; then 504.")] = 0.5,
    log: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="One line for each request; by default text on a terminal, else JSON."),
    ] = None,
) -> None:
    """Recommend over HTTP.

    Reads the run's model, checks it, and serves it until it is interrupted. A page to explore it
    is at /, the OpenAPI document at /openapi.json. Another version is served, without a request
    lost, once the link or the file CURRENT names it; one that is damaged is refused.

    Example: `musketeers serve runs/first --explain`
    """
    _check_extra("serve", "fastapi", "uvicorn", "prometheus_client")
    # all that is made until the model is there stays: to look for what does not costs a fifth
    gc.disable()
    from musketeers.serving import command
    from musketeers.serving.limits import Limits
    from musketeers.serving.options import Options

    command.serve(
        run,
        Options(
            host=host, port=port, keys=keys, secret=secret, fresh=fresh, explains=explain,
            stages=stages, threads=threads, watch=watch, log=log,
        ),
        Limits(concurrency=concurrency, queue=queue, deadline=deadline, rate=rate),
    )  # fmt: skip


@app.command()
def key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets it; what logs say.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read (by default), explain, write or admin; repeat for more."),
    ] = None,
) -> None:
    """Make a key for `musketeers serve`.

    Writes the lines for the file of keys to stdout; they hold only its hash. The key itself goes
    to stderr, once, and is kept nowhere.

    Example: `musketeers key shop --scope read --scope write >> keys.toml`
    """
    _check_extra("serve", "fastapi", "uvicorn", "prometheus_client")
    from musketeers.serving.keys import new_key

    made, lines = new_key(name, scope or ["read"])
    typer.echo(lines, nl=False)
    typer.echo(f"the key, which is shown this once: {made}", err=True)


@app.command()
def interactions(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="What `serve --fresh` writes: a file, or redis://..."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    prune: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS", help="Then drop from STORE what is older, and now in the files."
        ),
    ] = None,
    user: Annotated[str, typer.Option(metavar="COLUMN", help="Name for user ids.")] = "user_id",
    item: Annotated[str, typer.Option(metavar="COLUMN", help="Name for item ids.")] = "item_id",
    timestamp: Annotated[str, typer.Option(metavar="COLUMN", help="Name for times.")] = "timestamp",
    text: Annotated[
        bool, typer.Option("--text", help="Keep ids text, even where all are integers.")
    ] = False,
    dates: Annotated[
        bool, typer.Option("--dates", help="Times as dates (UTC), not as integer seconds.")
    ] = False,
) -> None:
    """Write what users did since the model was fitted as data for the next fit.

    Reads the store that `musketeers serve` fills, which may go on doing so. Writes the folder DIR:
    a Parquet file for each domain, to be read beside the data of before. Nothing leaves the store
    but by --prune, once the files are on the disk.

    Example: `musketeers interactions fresh.db --out data/2026-11-28 --prune 30`
    """
    from musketeers.serving import harvest

    layout = harvest.Layout(user, item, timestamp, text=text, dates=dates)
    for domain, rows in harvest.from_place(store, out, layout, prune=prune).items():
        typer.echo(f"{domain}: {rows:,} interactions")


@app.command()
def doctor() -> None:
    """Say what this installation computes with: versions, threads, libraries, GPU.

    Paste it into a bug report.

    Example: `musketeers doctor`
    """
    from rich.console import Console

    from musketeers.report.environment import as_table, environment

    Console(highlight=False).print(as_table(environment()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="RUN", help="The folder to write.")] = Path(
        "runs/demo"
    ),
    threads: Threads = None,
) -> None:
    """Run the whole method on a year of purchases in six departments of a grocery.

    Needs the data package: pip install 'musketeers[demo]'. Writes the folder RUN and beside it
    RUN-data with the data as Parquet files and settings to edit. A run that was interrupted goes
    on; a finished one is shown again.

    Example: `musketeers demo`
    """
    from musketeers.demo import run_demo

    run_demo(out, threads=threads)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")],
    preset: Annotated[
        str, typer.Option(help="paper (dense) or sparse: domains and their sizes.")
    ] = "paper",
    scale: Annotated[
        float, typer.Option(help="Share of its users and pairs; of its items the square root.")
    ] = 0.01,
    domains: Annotated[
        int | None, typer.Option(metavar="N", help="So many domains, the preset's in turn.")
    ] = None,
    users: Annotated[
        int | None, typer.Option(help="So many users, in place of the scale's.")
    ] = None,
    items: Annotated[int | None, typer.Option(help="So many items in each domain.")] = None,
    pairs: Annotated[int | None, typer.Option(help="So many distinct pairs in each.")] = None,
    known: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Probability that a domain knows a user."),
    ] = None,
    common: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of taste that is the same in all domains."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    ids: Annotated[str, typer.Option(help="integer, or text: such as user-0000123.")] = "integer",
    threads: Annotated[
        int | None, typer.Option(help="Processors to use; all by default. The files do not differ.")
    ] = None,
) -> None:
    """Write data of any size whose best possible ranking is known.

    Users like genres and genres have items, with long tails of both; part of the taste is the same
    in all domains. Writes the folder DIR: a Parquet file for each domain, settings.toml to fit, and
    ideal.toml, which measures the best ranking that there is. The preset paper at scale 1 has the
    sizes of the paper, 309 million pairs.

    Example: `musketeers synth --preset paper --scale 0.001 --out workload`
    """
    from musketeers import synthesis

    written = synthesis.synth(
        out, preset, scale=scale, domains=domains, users=users, items=items, pairs=pairs,
        known=known, common=common, seed=seed, ids=ids, threads=threads,
    )  # fmt: skip
    typer.echo(synthesis.summary(written))
