"""docs/scale.md from what scale.py measured: its tables and its picture.

``python benchmarks/scale_page.py`` makes them anew of what docs/performance/scale.json keeps.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_model import (
    Cost,
    Domain,
    Machine,
    Rates,
    Workload,
    best,
    careful,
    costs,
    dollars,
    members_needed,
    memory,
    total,
)

from musketeers.data.workload import workload

ROOT = Path(__file__).parents[1]
PAGE, KEPT = ROOT / "docs" / "scale.md", ROOT / "docs" / "performance" / "scale.json"
PICTURE = ROOT / "docs" / "performance" / "scale.svg"
PLANS = {"10 million": 10_000_000, "100 million": 100_000_000, "1 billion": 1_000_000_000}
"""Users."""
MEMBERS = (8, 16, 32, 64, 128, 256, 512, 1024)
STEPS = ("read", "stage 1", "stage 2", "stage 3", "evaluate", "save")
_GIB, _GBIT, _HOP = 2**30, 1e9 / 8, 50e-6
MACHINES = (
    Machine("general", 16, 64 * _GIB, 6.25 * _GBIT, _HOP, 250e6, 0.93),
    Machine("memory", 32, 256 * _GIB, 12.5 * _GBIT, _HOP, 500e6, 2.43),
    Machine("large", 96, 384 * _GIB, 37.5 * _GBIT, _HOP, 1e9, 5.56),
    Machine("general, 1 Gbit/s", 16, 64 * _GIB, 1 * _GBIT, _HOP, 100e6, 0.93),
)
"""Assumed, none of them measured; prices are list prices as remembered, to be filled in anew."""
GENERAL = MACHINES[0]
_UNITS = {
    "start": ("s", 1.0), "read_row": ("ns", 1e9), "pair": ("ns", 1e9), "pair_growth": ("ns", 1e9),
    "user": ("ns", 1e9), "merge_byte": ("ns", 1e9), "merge_lane_byte": ("ns", 1e9),
    "cat_step": ("ms", 1e3), "cat_step_thread": ("ms", 1e3), "cat_flop": ("ps", 1e12),
    "cat_other": ("ns", 1e9), "art_step": ("ms", 1e3), "art_step_thread": ("ms", 1e3),
    "art_flop": ("ps", 1e12), "art_pair": ("ns", 1e9), "list_user": ("µs", 1e6),
    "list_item": ("ps", 1e12), "save_user": ("µs", 1e6), "hop": ("µs", 1e6),
    "sent_byte": ("ns", 1e9), "base": ("GB", 1e-9), "user_tables": ("", 1.0),
    "item_tables": ("", 1.0), "pair_bytes": ("bytes", 1.0),
}  # fmt: skip


def planned(users: int) -> Workload:
    """The paper's data with so many users: as many pairs each, items by the root of the ratio.

    As `musketeers synth --scale` has it, which ends at the paper's size.
    """
    paper = workload("paper", 1.0)
    ratio = users / paper.users
    return Workload(
        users,
        tuple(
            Domain(users, round(size.items * math.sqrt(ratio)), round(size.pairs * ratio))
            for size in paper.domains.values()
        ),
    )


def keep(content: Mapping[str, Any]) -> None:
    """Write what was measured, the picture, and the page's tables."""
    KEPT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    made_anew()


def made_anew() -> None:
    """The picture and the page's tables, of what is kept."""
    content = kept()
    PICTURE.write_text(picture(Rates.of(content["rates"])), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")


def kept() -> dict[str, Any]:
    """What scale.py measured last."""
    return json.loads(KEPT.read_text(encoding="utf-8"))


def filled(page: str, content: Mapping[str, Any]) -> str:
    """The page with each table between ``<!-- NAME -->`` and ``<!-- end -->`` made of `content`."""
    made = tables(content)
    for name, lines in made.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = "\n".join(["", *lines, "", ""])
        page, n = block.subn(lambda found, text=text: found[1] + text + found[2], page)
        if n != 1:
            raise ValueError(f"{PAGE.name} has {n} places for the table {name}")
    return page


def tables(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name -> the lines of a table."""
    rates = Rates.of(content["rates"])
    made = {
        "rates": _rates(content["rates"]),
        "laws": _laws(content["off"]),
        "checks": _checks(content["checks"], single=False),
        "single": _checks(content["checks"], single=True),
        "lanes": _lanes(content["lanes"]),
        "machines": _machines(),
        "workloads": _workloads(),
        "sent": _sent(rates),
        "limits": _limits(rates),
    }
    for n, name in enumerate(PLANS, 1):
        made[f"hours {n}"] = _hours(planned(PLANS[name]), rates, carefully=False)
        made[f"careful {n}"] = _hours(planned(PLANS[name]), rates, carefully=True)
    return made


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    lines = [head, ["---"] * left + ["--:"] * (len(head) - left), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _digits(value: float) -> str:
    """Two digits of it, or all before the point."""
    if value >= 99.5 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _rates(found: Mapping[str, float]) -> list[str]:
    rows = [
        [f"`{name}`", f"{_digits(found[name] * scale)} {unit}".strip()]
        for name, (unit, scale) in _UNITS.items()
    ]
    half = -(-len(rows) // 2)
    return _table(
        ["rate", "", "rate", ""], [a + b for a, b in zip(rows, rows[half:], strict=False)]
    )


def _laws(off: Mapping[str, float]) -> list[str]:
    return _table(
        ["law", "largest error on what it was fitted on"],
        [[name, f"{100 * error:.0f} %"] for name, error in off.items()],
    )


def _checks(checks: Sequence[Mapping[str, Any]], *, single: bool) -> list[str]:
    """Those of single sums and gatherings, or of runs."""
    return _table(
        ["where", "members", "what", "predicted", "measured", "predicted / measured"],
        [
            [one["network"], str(one["members"]), one["step"], _digits(one["predicted"]),
             _digits(one["measured"]), f"{one['predicted'] / one['measured']:.2f}"]
            for one in checks if one["step"].endswith(" ms") == single
        ],
    )  # fmt: skip


def _lanes(found: Sequence[Mapping[str, float]]) -> list[str]:
    """A row for each number of lanes, a column for each rhythm of merges."""
    rhythms = list(dict.fromkeys((one["first"], one["later"]) for one in found))
    alone = found[0]["ndcg@10"]
    by = {(one["lanes"], one["first"], one["later"]): one["ndcg@10"] for one in found}
    head = [
        f"{first:.0f} merges, then {later:.0f}" if first else "as the program is"
        for first, later in rhythms
    ]
    lanes = dict.fromkeys(one["lanes"] for one in found)
    rows = [
        [f"{n:.0f}", *(f"{value:.4f} ({100 * (value / alone - 1):+.0f} %)" for value in values)]
        for n in lanes
        for values in [[by[n, *rhythm] for rhythm in rhythms]]
    ]
    return _table(["lanes", *head], rows)


def _machines() -> list[str]:
    return _table(
        ["machine", "vCPU = threads", "memory, GiB", "network, Gbit/s", "latency, µs",
         "to shared storage, MB/s", "$ an hour"],
        [
            [one.name, str(one.threads), f"{one.memory / _GIB:.0f}", f"{one.link / _GBIT:g}",
             f"{one.latency * 1e6:.0f}", f"{one.storage / 1e6:,.0f}", f"{one.dollars:.2f}"]
            for one in MACHINES
        ],
    )  # fmt: skip


def _workloads() -> list[str]:
    rows: list[list[str]] = []
    for name, users in PLANS.items():
        load = planned(users)
        largest = max(domain.items for domain in load.domains)
        pairs = sum(domain.pairs for domain in load.domains)
        rows.append(
            [name, f"{pairs / 1e9:,.1f} billion", ", ".join(f"{d.items:,}" for d in load.domains),
             f"{users * load.dim * 4 * len(load.domains) / 1e9:,.0f} GB",
             f"{largest * load.dim * 4 / 1e6:,.0f} MB"]
        )  # fmt: skip
    head = ["users", "pairs", "items of the five domains", "all users' vectors once",
            "the largest table of items"]  # fmt: skip
    return _table(head, rows)


def _hours(load: Workload, rates: Rates, *, carefully: bool) -> list[str]:
    rows: list[list[str]] = []
    for n in MEMBERS:
        held = memory(load, GENERAL.threads, n, rates)
        if held > 0.9 * GENERAL.memory:
            rows.append([str(n), f"{held / 1e9:.0f}", *["too little memory"], *[""] * 8])
            continue
        parts = costs(careful(load) if carefully else load, GENERAL, n, rates)
        whole = total(parts)
        slowest = max(STEPS, key=lambda step: parts[step].seconds)
        rows.append(
            [str(n), f"{held / 1e9:.0f}",
             *(_digits(parts[step].seconds / 3600) for step in STEPS[:4]),
             _digits((parts["evaluate"] + parts["save"]).seconds / 3600),
             _digits(whole.seconds / 3600), f"{100 * whole.network / whole.seconds:.0f} %",
             f"{dollars(parts, GENERAL, n):,.0f}", f"{slowest}, {_what(parts[slowest])}"]
        )  # fmt: skip
    head = ["members", "GB each", "read", "stage 1", "stage 2", "stage 3", "evaluate, save",
            "all, hours", "of it network", "$", "most time"]  # fmt: skip
    return _table(head, rows)


def _what(cost: Cost) -> str:
    kinds = {"work": cost.work, "network": cost.network, "storage": cost.storage}
    return max(kinds, key=lambda kind: kinds[kind])


def _sent(rates: Rates, n: int = 64) -> list[str]:
    rows: list[list[str]] = []
    for name, users in PLANS.items():
        load = planned(users)
        for kind, one in (("", load), (", with care", careful(load))):
            parts = costs(one, GENERAL, n, rates)
            sent = [f"{parts[step].sent * n / 1e12:,.2f}" for step in STEPS[:4]]
            rows.append([name + kind, *sent, f"{total(parts).flops / 1e15:,.0f}"])
    head = ["users", "read, TB", "stage 1, TB", "stage 2, TB", "stage 3, TB",
            "operations, 10^15"]  # fmt: skip
    return _table(head, rows)


def _limits(rates: Rates) -> list[str]:
    rows = [
        [name, machine.name, *_limit(careful(planned(users)), machine, rates)]
        for name, users in PLANS.items()
        for machine in MACHINES
    ]
    head = ["users", "machine", "members for the memory", "the fastest at", "hours", "$",
            "stage 1 at", "stage 2 at", "stage 3 at"]  # fmt: skip
    return _table(head, rows, 2)


def _limit(load: Workload, machine: Machine, rates: Rates) -> list[str]:
    """What is needed, and where more members stop helping."""
    least = members_needed(load, machine, rates)
    if least is None:
        return ["the items do not fit", *[""] * 6]
    n, steps = best(load, machine, rates, least=least)
    parts = costs(load, machine, n, rates)
    return [
        f"{least:,}", f"{n:,}", _digits(total(parts).seconds / 3600),
        f"{dollars(parts, machine, n):,.0f}",
        *(f"{steps[step]:,}" for step in ("stage 1", "stage 2", "stage 3")),
    ]  # fmt: skip


# --- the picture

_COLOURS = {
    "read": "#7f7f7f", "stage 1": "#1f77b4", "stage 2": "#d62728", "stage 3": "#2ca02c",
    "evaluate": "#9467bd", "save": "#8c564b",
}  # fmt: skip
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 270, 240, 56, 28, 62


@dataclass(frozen=True, slots=True)
class _Panel:
    """Where one plot lies, with logarithmic axes."""

    left: float
    members: tuple[int, int]
    seconds: tuple[float, float]

    def place(self, n: float, seconds: float) -> tuple[float, float]:
        """On the picture."""
        across = math.log(n / self.members[0]) / math.log(self.members[1] / self.members[0])
        low, high = self.seconds
        up = math.log(min(max(seconds, low), high) / low) / math.log(high / low)
        return self.left + across * _WIDE, _TOP + (1 - up) * _HIGH


def picture(rates: Rates) -> str:
    """Seconds by step over members, a panel for each plan; dashed with care."""
    sizes = [2**power for power in range(3, 13)]
    parts: list[str] = []
    for number, (name, users) in enumerate(PLANS.items()):
        panel = _Panel(_LEFT + number * (_WIDE + _GAP), (sizes[0], sizes[-1]), (10.0, 1e8))
        parts += _axes(panel, f"{name} users", sizes)
        load = planned(users)
        for carefully in (False, True):
            found = [costs(careful(load) if carefully else load, GENERAL, n, rates) for n in sizes]
            for step in ("stage 2", "stage 3") if carefully else STEPS:
                points = [
                    panel.place(n, max(one[step].seconds, 1e-9))
                    for n, one in zip(sizes, found, strict=True)
                ]
                parts.append(_line(points, _COLOURS[step], dashed=carefully))
    width, height = _LEFT + 3 * _WIDE + 2 * _GAP + 20, _TOP + _HIGH + 78
    for place, (step, colour) in enumerate(_COLOURS.items()):
        x, y = _LEFT + place * 120, height - 16
        parts.append(_line([(x, y - 4), (x + 22, y - 4)], colour))
        parts.append(f'<text x="{x + 28}" y="{y}">{step}</text>')
    parts.append(f'<text x="{_LEFT + 720}" y="{height - 16}">dashed: with care</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="sans-serif" font-size="12"><title>Seconds of each step over the number of '
        f'members</title><rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _axes(panel: _Panel, title: str, sizes: Sequence[int]) -> list[str]:
    found = [f'<text x="{panel.left}" y="{_TOP - 10}" font-weight="bold">{title}</text>']
    for n in sizes[::2]:
        x, y = panel.place(n, panel.seconds[0])
        found.append(f'<path d="M{x:.1f} {y:.1f}V{_TOP}" stroke="#ddd"/>')
        found.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{n}</text>')
    for power in range(1, 9):
        x, y = panel.place(sizes[0], 10.0**power)
        found.append(f'<path d="M{x:.1f} {y:.1f}h{_WIDE}" stroke="#ddd"/>')
        label = f"10<tspan dy='-4' font-size='9'>{power}</tspan>"
        found.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    middle = panel.left + _WIDE / 2
    found.append(f'<text x="{middle}" y="{_TOP + _HIGH + 34}" text-anchor="middle">members</text>')
    found.append(f'<text x="{panel.left - 40}" y="{_TOP + _HIGH + 34}">seconds</text>')
    return found


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


if __name__ == "__main__":
    made_anew()
