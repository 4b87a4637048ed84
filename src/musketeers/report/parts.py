"""What pages are made of: sections, tables that scroll, matrices, bars, pictures in a figure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from musketeers.data.overlap import DomainFacts, OverlapReport
from musketeers.evaluation.compare import Difference
from musketeers.report.style import STYLE
from musketeers.report.svg import learning_curves
from musketeers.report.words import percent


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """A page that needs no script, no font, no other file; `title` is escaped here."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - musketeers</title><style>{STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{header}</header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """Empty without content."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def row(name: str, cells: Iterable[str], *, note: str = "") -> str:
    """`name` and the `note` below it are escaped here, the cells by their maker."""
    small = f"<small>{escape(note)}</small>" if note else ""
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{escape(name)}{small}</th>{data}</tr>'


def table(caption: str, head: Sequence[str], rows: Sequence[str], *, kind: str = "") -> str:
    """In a box of its own that scrolls, also by keyboard."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def bars(caption: str, head: Sequence[str], rows: Mapping[str, tuple[float, Sequence[str]]]) -> str:
    """Name -> (length, cells before the bar); the longest bar is as wide as there is room."""
    most = max((length for length, _ in rows.values()), default=0) or 1
    body = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{c}</td>" for c in cells)}'
        f'<td class="bar"><span style="width:{100 * length / most:.1f}%"></span></td></tr>'
        for name, (length, cells) in rows.items()
    ]
    return table(caption, [*head, ""], body)


def matrix(
    caption: str,
    corner: str,
    rows: Mapping[str, str],
    columns: Sequence[str],
    cell: Callable[[str, str], str],
) -> str:
    """Row -> its name; `cell` makes the whole cell of a row and column, such as `tinted`."""
    body = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cell(key, c) for c in columns)}</tr>'
        for key, name in rows.items()
    ]
    return table(caption, [corner, *columns], body, kind="heat")


def tinted(content: str, share: float, tone: str) -> str:
    """A cell with `share` (0..1) of a colour of the page: ``heat``, ``better``, ``worse``."""
    color = f"color-mix(in srgb, var(--{tone}) {100 * share:.0f}%, var(--page))"
    return f'<td style="background:{color}">{content}</td>'


def heat(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    shown: Callable[[float], str],
) -> str:
    """A matrix whose cells are the darker the larger their value; a missing one is empty."""
    most = max(values.values(), default=0.0) or 1.0

    def cell(a: str, b: str) -> str:
        if (a, b) not in values:
            return "<td></td>"
        return tinted(shown(values[a, b]), values[a, b] / most, "heat")

    return matrix(caption, "domain", {name: name for name in rows}, columns, cell)


def differences(
    caption: str,
    corner: str,
    rows: Mapping[str, str],
    columns: Sequence[str],
    found: Mapping[tuple[str, str], Difference],
) -> str:
    """A matrix of relative differences, the stronger tinted the larger."""
    most = max((abs(_relative(one)) for one in found.values()), default=0.0) or 1.0

    def cell(name: str, column: str) -> str:
        one = found.get((name, column))
        if one is None:
            return "<td></td>"
        content = (
            f"{percent(one.relative)} {one.mark}"
            f"<small>[{100 * one.low:+z.2f}, {100 * one.high:+z.2f}]</small>"
        )
        tone = "better" if one.difference > 0 else "worse"
        return tinted(content, 0.35 * (abs(_relative(one)) / most) ** 0.5, tone)

    return matrix(caption, corner, rows, columns, cell)


def _relative(found: Difference) -> float:
    return 0.0 if math.isnan(found.relative) else found.relative


def attention(weights: Mapping[str, Mapping[str, float]]) -> str:
    """Target -> source -> mean weight; empty if there is none."""
    targets = [name for name, found in weights.items() if found]
    if not targets:
        return ""
    sources = dict.fromkeys(name for found in weights.values() for name in found)
    # as the targets stand, sources that are no target last
    columns = sorted(sources, key=[*weights, *sources].index)
    values = {(a, b): weight for a, found in weights.items() for b, weight in found.items()}
    caption = "Mean attention of each target (row) on each source (column)"
    return heat(caption, targets, columns, values, "{:.2f}".format)


def settings(summary: str, text: str) -> str:
    """`text` folded away under `summary`; both are escaped here."""
    return (
        f"<details><summary>{escape(summary)}</summary>"
        f'<pre class="scroll" tabindex="0">{escape(text)}</pre></details>'
    )


def curve(
    curves: Sequence[Sequence[tuple[int, float]]],
    *,
    name: str,
    what: str,
    stage: str,
    sign: int = 1,
    end: str = "",
) -> str:
    """Epochs and their validation values, larger is better, a curve for each training tried.

    They are shown times `sign`; `what` names the value, `name` and `stage` what learned.
    """
    tops = [max(one, key=lambda point: point[1]) for one in curves]
    chosen = max(range(len(tops)), key=lambda n: tops[n][1])
    epoch, top = tops[chosen][0], sign * tops[chosen][1]
    signed = [[(number, sign * value) for number, value in one] for one in curves]
    picture = learning_curves(
        signed, chosen=chosen, best=(epoch, top), what=f"validation {what}",
        where=f"{stage}, {name}",
    )  # fmt: skip
    tried = f", best of {len(curves)} trainings" if len(curves) > 1 else ""
    label = f"{name}: {what} {top:.4f} at epoch {epoch}{tried}{end}"
    return figure(picture, label)


def figure(picture: str, label: str) -> str:
    """`label` is escaped here."""
    return f"<figure>{picture}<figcaption>{escape(label)}</figcaption></figure>"


def overlap(report: OverlapReport) -> str:
    """Sizes, users by the number of domains, and by pairs of domains."""
    names = list(report.domains)
    head = ("domain", "users", "items", "interactions", "per user", "density", "rows read",
            "repeated", "dropped")  # fmt: skip
    sizes = [row(name, _size_cells(facts)) for name, facts in report.domains.items()]
    tables = [
        table("Domains after the k-core; dropped: distinct pairs lost to it", head, sizes),
        _known_in(report.known_in),
    ]
    if len(names) > 1:
        shared = {
            (a, b): float(report.common[i][j])
            for i, a in enumerate(names)
            for j, b in enumerate(names)
            if i != j
        }
        tables.append(heat("Users that two domains share", names, names, shared, "{:,.0f}".format))
    return "".join(tables)


def _size_cells(facts: DomainFacts) -> list[str]:
    kept = [f"{n:,}" for n in (facts.users, facts.items, facts.interactions)]
    read = [f"{n:,}" for n in (facts.rows_read, facts.repeats, facts.dropped)]
    return [*kept, f"{facts.mean_per_user:.1f}", f"{facts.density:.3%}", *read]


def _known_in(known_in: Sequence[int]) -> str:
    total = max(sum(known_in), 1)
    rows = {
        str(n): (float(users), [f"{users:,}", f"{users / total:.1%}"])
        for n, users in enumerate(known_in, 1)
    }
    caption = "Users by the number of domains that know them"
    return bars(caption, ["domains", "users", "share"], rows)
