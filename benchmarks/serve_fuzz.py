"""Random and wrong requests to every endpoint of a real server, held against its OpenAPI document.

    python benchmarks/serve_fuzz.py --cases 20000

Fits a small run, serves it by the command with keys, --explain and --fresh, and has schemathesis
(pip install schemathesis) send what the document allows and what it forbids, with all its checks:
no 5xx, nothing that the document does not say (every error is a problem document), no wrong request
accepted, no right one refused.  Prints what failed, and as the last line one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musketeers import config as configuration
from musketeers.data.synthetic import frames, planted
from musketeers.runs import fit_run
from musketeers.seeding import Seed

NAMES = ("tv", "movie", "music")
"""Those of the examples in the document; planted users and items have the ids of these, too."""
KEY = "a-key-for-all-that-there-is-0123456789"
_CASES_OF_EACH = 150
"""Of each operation in a round: schemathesis does not repeat itself before."""
_CONFIG = """
[dictionaries]
domains = {{ values = {domains} }}
users = {{ values = {users} }}
items = {{ values = {items} }}

# else nearly all would be unknown
[parameters]
"path.domain" = {{ dictionary = "domains", probability = 0.8 }}
"path.user_id" = {{ dictionary = "users", probability = 0.7 }}
"path.item_id" = {{ dictionary = "items", probability = 0.7 }}
"body.user_id" = {{ dictionary = "users", probability = 0.7 }}
"body.domain" = {{ dictionary = "domains", probability = 0.8 }}
"""


def fuzzed(url: str, folder: Path, *, cases_of_each: int, seed: int) -> tuple[int, str]:
    """How many requests were sent to the server there, and what was found (empty: nothing)."""
    config, report = folder / "schemathesis.toml", folder / f"{seed}.json"
    config.write_text(
        _CONFIG.format(
            domains=json.dumps(NAMES),
            users=json.dumps([f"user-{n:03}" for n in range(120)]),
            items=json.dumps([f"{name}-{n:02}" for name in NAMES for n in range(40)]),
        )
    )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"), "--config-file", config, "--no-color",
            "run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
            "--checks", "all", "--max-examples", str(cases_of_each), "--seed", str(seed),
            "--request-timeout", "30", "--warnings", "off", "--continue-on-failure",
            "--report", "json", "--report-json-path", report,
        ],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    if not report.exists():
        raise SystemExit(f"schemathesis did not come to an end:\n{done.stdout}{done.stderr}")
    found = json.loads(report.read_text())["test_cases"]["generated"]
    return found, done.stdout if done.returncode else ""


@contextmanager
def served(folder: Path) -> Generator[str]:
    """The address of a server of a new run, once all of it is there."""
    environment = {**os.environ, "MUSKETEERS_ADMIN_KEY": KEY}
    command = [
        sys.executable, "-m", "musketeers", "serve", _fitted(folder), "--port", "0", "--explain",
        "--fresh", folder / "fresh.db", "--log", "json", "--deadline", "20",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env=environment)
    try:
        yield next(event["url"] for event in _events(log, process) if event["event"] == "ready")
    finally:
        process.terminate()
        process.wait()


def statuses(folder: Path) -> dict[str, int]:
    """How many requests were answered by which status, by the server's log."""
    lines = map(json.loads, (folder / "log").read_text().splitlines())
    found = Counter(str(line["status"]) for line in lines if line["event"] == "request")
    return dict(sorted(found.items()))


def main() -> None:
    """Round after round until there were enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="requests, at least")
    parser.add_argument("--seed", type=int, default=1, help="of the first round")
    asked = parser.parse_args()
    cases, faulty, begun = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as url:
        folder, seed = Path(name), asked.seed
        while cases < asked.cases:
            more, said = fuzzed(url, folder, cases_of_each=_CASES_OF_EACH, seed=seed)
            cases, faulty, seed = cases + more, faulty + bool(said), seed + 1
            print(f"{cases:,} requests, {time.perf_counter() - begun:.0f} s", said, flush=True)
        found = statuses(folder)
    server_errors = sum(n for status, n in found.items() if status >= "500")
    result = {
        "cases": cases, "rounds": seed - asked.seed, "rounds_with_faults": faulty,
        "server_errors": server_errors, "statuses": found,
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip
    print(json.dumps(result))


def _fitted(folder: Path) -> Path:
    data = planted(NAMES, Seed(0), n_users=120, n_items=40, known=0.7, common=0.9)
    for name, frame in frames(data.domains).items():
        frame.write_parquet(folder / f"{name}.parquet")
    settings = {
        "dim": 6,
        "pretrain": {"max_epochs": 6, "tries": 1, "regularization": 0.07},
        "cat": {"max_epochs": 4},
        "art": {"max_epochs": 4},
        "data": {"min_user": 2, "min_item": 2, "domains": {n: f"{n}.parquet" for n in NAMES}},
    }
    config = configuration.parse(settings, "serve_fuzz")
    return fit_run(config, folder, folder / "run", threads=1).path


def _events(log: Path, process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """Those of the log, as they come, from the end of the stages' reading on."""
    n_seen, is_read = 0, False
    while process.poll() is None:
        lines = log.read_text().splitlines()
        is_read = is_read or any('"event":"stages"' in line for line in lines)
        if is_read:
            yield from map(json.loads, lines[n_seen:])
            n_seen = len(lines)
        time.sleep(0.05)
    raise SystemExit(f"the server ended:\n{log.read_text()}")


if __name__ == "__main__":
    main()
