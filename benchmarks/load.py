"""Requests to a server on this machine, and how long each of them took.

Run it as ``python benchmarks/load.py [--quick]`` to see what the generator itself costs and whether
it can be trusted; other scripts import it.  README.md beside it says what is measured and how to
read it.  The last line is one JSON object.
"""

import argparse
import asyncio
import json
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HOST = "127.0.0.1"
FAULTS = ("answered", "refused", "closed", "late", "garbled", "unsent")
"""What may become of a request, as load.c numbers it; an answer of any status is an answer."""
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}

_HEADER = struct.Struct("=qqdQQ")
_RECORD = np.dtype(
    [
        ("due", "i8"), ("sent", "i8"), ("done", "i8"), ("body_at", "u8"), ("body_length", "u4"),
        ("request", "u4"), ("status", "u2"), ("fault", "u2"), ("unused", "u4"),
    ]
)  # fmt: skip


# 1. Sending


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What became of every request, in the order in which they were due."""

    started: float
    """On the clock of `time.monotonic`, in seconds, as `ended`."""
    ended: float
    """When the last request could have been due; answers may have come later."""
    processor: float
    """The share of one core that the generator took."""
    records: np.ndarray
    bodies: bytes

    @property
    def status(self) -> np.ndarray:
        """Of each answer; 0 where none came."""
        return np.where(self.records["fault"] == 0, self.records["status"], 0)

    def milliseconds(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """From the moment when a request was due to the end of its answer; of 200s, or as chosen.

        In the open loop that includes what a request waited for a free connection.
        """
        found = self.records[self.status == 200 if chosen is None else chosen]
        return (found["done"] - found["due"]) / 1e6

    def outcomes(self) -> dict[str, int]:
        """How many answers of each status, and how many requests without one, by fault."""
        counts = Counter(self.status[self.status > 0].tolist())
        lost = Counter(self.records["fault"][self.status == 0].tolist())
        return {str(status): counts[status] for status in sorted(counts)} | {
            FAULTS[fault]: lost[fault] for fault in sorted(lost)
        }

    def rate(self, status: int = 200) -> float:
        """Answers of `status` a second while requests were due."""
        done = self.records["done"][self.status == status] / 1e9
        return int((done <= self.ended).sum()) / max(self.ended - self.started, 1e-9)

    def each(self) -> Iterator[tuple[int, int, bytes]]:
        """Of every answer: which request it is to, its status and, if kept, its body."""
        for one in self.records[self.status > 0]:
            start, length = int(one["body_at"]), int(one["body_length"])
            yield int(one["request"]), int(one["status"]), self.bodies[start : start + length]

    def summary(self) -> dict[str, Any]:
        """Rate, latencies in milliseconds of the 200s, and outcomes, for a JSON line.

        ``behind_p99`` is how long after it was due a request was sent.
        """
        return {
            "rate": round(self.rate(), 1),
            **percentiles(self.milliseconds()),
            "behind_p99": percentiles((self.records["sent"] - self.records["due"]) / 1e6)["p99"],
            "outcomes": self.outcomes(),
            "generator": round(self.processor, 3),
        }


def percentiles(milliseconds: np.ndarray) -> dict[str, float]:
    """`PERCENTILES`, each a latency that occurred; none of none."""
    if not len(milliseconds):
        return {}
    found = np.percentile(milliseconds, list(PERCENTILES.values()), method="inverted_cdf")
    return dict(zip(PERCENTILES, np.round(found, 3).tolist(), strict=True))


def post(path: str, body: object) -> bytes:
    """A request to send."""
    return request("POST", path, json.dumps(body).encode())


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A request to send, as bytes."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """A generator at work."""

    process: "subprocess.Popen[bytes]"

    def answers(self, *, stop: bool = False) -> Answers:
        """Wait for the end, which `stop` makes now; requests under way are still waited for."""
        if stop:
            self.process.terminate()
        data, _ = self.process.communicate()
        if self.process.returncode:
            sys.exit(f"error: the load generator ended with {self.process.returncode}")
        started, ended, processor, n_records, _ = _HEADER.unpack_from(data)
        records = np.frombuffer(data, _RECORD, n_records, _HEADER.size)
        bodies = data[_HEADER.size + records.nbytes :]
        over = max(ended, int(records["done"].max(initial=0)))
        share = processor / max((over - started) / 1e9, 1e-9)
        return Answers(started / 1e9, ended / 1e9, share, records, bodies)


@contextmanager
def load(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    *,
    rate: float = 0,
    connections: int = 64,
    even: bool = False,
    seed: int = 0,
    timeout: float = 10,
    keep: bool = False,
) -> Generator[Load]:
    """Send the `requests` in turn for as many seconds, beside what the block does.

    With a `rate`, requests are due at so many a second, at random (a Poisson process) or at even
    distances, whatever the answers do, over as many connections as are free; with 0 each
    connection sends as fast as it is answered.  `keep` keeps the bodies of the answers.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.writelines(struct.pack("=I", len(one)) + one for one in requests)
        file.flush()
        words = (
            port, file.name, rate, connections, seconds, timeout, int(not even), seed, int(keep),
        )  # fmt: skip
        with subprocess.Popen([_program(), *map(str, words)], stdout=subprocess.PIPE) as process:
            try:
                yield Load(process)
            finally:
                if process.poll() is None and process.stdout and not process.stdout.closed:
                    process.kill()


def sent(port: int, requests: Sequence[bytes], seconds: float, **how: Any) -> Answers:
    """What `load` gives, waited for."""
    with load(port, requests, seconds, **how) as running:
        return running.answers()


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()  # until the end of this process


@cache
def _program() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        sys.exit("error: no C compiler; install one (Debian, Ubuntu: apt install gcc libc6-dev)")
    program = Path(_folder().name) / "load"
    source = Path(__file__).with_name("load.c")
    subprocess.run([compiler, "-O2", "-o", program, source, "-lm"], check=True)
    # every connection is an open file
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return str(program)


# 2. Whether it can be trusted


class _Trivial(asyncio.Protocol):
    """The same answer to whatever comes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer * data.count(b"\r\n\r\n"))


def _serve(ports: Any, stalls: tuple[float, float] | None) -> None:
    """A server of one fixed answer, which stands still once if it is told to: after, for."""
    import uvloop

    body = json.dumps({"items": [{"rank": n, "id": n, "score": 0.5} for n in range(10)]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Trivial(head % len(body) + body), HOST, 0)
        ports.send(server.sockets[0].getsockname()[1])
        if stalls:
            loop.call_later(stalls[0], time.sleep, stalls[1])
        await server.serve_forever()

    uvloop.run(main())


@contextmanager
def trivial(stalls: tuple[float, float] | None = None) -> Generator[int]:
    """The port of a server that computes nothing, in a process of its own."""
    context = get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, stalls), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def by_wrk(port: int, body: str, seconds: int, connections: int) -> dict[str, float]:
    """Requests a second and the median latency in milliseconds, as wrk finds them."""
    script = (
        f"wrk.method = 'POST'; wrk.body = '{body}'\n"
        "wrk.headers['Content-Type'] = 'application/json'\n"
        "function done(s, l) io.write('RESULT ', s.requests / s.duration * 1e6, ' ',"
        " l:percentile(50) / 1000, '\\n') end\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", file.name]
        out = subprocess.run(
            [*words, f"http://{HOST}:{port}/"], check=True, capture_output=True, text=True
        ).stdout
    rate, middle = out[out.index("RESULT") :].split()[1:3]
    return {"rate": float(rate), "p50": float(middle)}


def against_wrk(seconds: int, runs: int) -> dict[str, Any]:
    """Closed loop in turn with wrk, against a server that computes nothing."""
    found: dict[str, Any] = {}
    for connections in (1, 16):
        with trivial() as port:
            pairs: list[tuple[Answers, dict[str, float]]] = []
            for _ in range(runs):
                ours = sent(port, [post("/", {"user_id": 1})], seconds, connections=connections)
                pairs.append((ours, by_wrk(port, '{"user_id": 1}', seconds, connections)))
        rates = [ours.rate() / wrk["rate"] for ours, wrk in pairs]
        middles = [percentiles(ours.milliseconds())["p50"] for ours, _ in pairs]
        costs = [ours.processor / ours.rate() * 1e6 for ours, _ in pairs]
        found[str(connections)] = {
            "rate": round(median(ours.rate() for ours, _ in pairs)),
            "over_wrk": round(median(rates), 3),
            "p50": round(median(middles), 3), "wrk_p50": median(wrk["p50"] for _, wrk in pairs),
            "microseconds_a_request": round(median(costs), 1),
        }  # fmt: skip
        print(f"closed loop, {connections} connections: {found[str(connections)]}")
    return found


def of_a_stall(seconds: float) -> dict[str, Any]:
    """A server that stands still for half a second: who was due then waited for the rest of it.

    A share of 0.5 / seconds of all requests then took between 0 and 500 ms, evenly spread, which a
    generator that waits for answers before it sends would not show.
    """
    stall, rate = 0.5, 400
    with trivial((1.0, stall)) as port:
        answers = sent(port, [post("/", {})], seconds, rate=rate, even=True, connections=16)
    late = answers.milliseconds() > 10
    expected = {"late": (stall - 0.01) * rate, "their_median": 1000 * (stall + 0.01) / 2}
    measured = {
        "late": int(late.sum()),
        "their_median": round(float(np.median(answers.milliseconds()[late])), 1),
    }
    print(f"a stall of {stall} s at {rate} requests/s: {measured}, expected {expected}")
    return {"expected": expected, "measured": measured}


def at_rates(seconds: float) -> dict[str, Any]:
    """Open loop against a server that computes nothing: what it costs, and whether it keeps up."""
    found: dict[str, Any] = {}
    with trivial() as port:
        for rate in (300, 2000, 8000):
            answers = sent(port, [post("/", {"user_id": 1})], seconds, rate=rate)
            found[str(rate)] = {
                **answers.summary(),
                "microseconds_a_request": round(answers.processor / rate * 1e6, 1),
            }  # fmt: skip
            print(f"open loop, {rate} requests/s: {found[str(rate)]}")
    return found


def main() -> None:
    """Measure the generator itself; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each part once and briefly")
    seconds, runs = (2, 1) if parser.parse_args().quick else (5, 3)
    found: dict[str, Any] = {"name": "load", "open": at_rates(seconds), "stall": of_a_stall(4)}
    if shutil.which("wrk"):
        found["closed"] = against_wrk(seconds, runs)
    else:
        print("no wrk here (Debian, Ubuntu: apt install wrk), so no comparison with it")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
