"""Pictures for the page: plain SVG in the page's own colours."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isnan

_WIDTH, _HEIGHT = 320, 150
Point = tuple[float, float, float]
"""A value, and the ends of its interval."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 310, 12, 128


def learning_curves(
    curves: Sequence[Sequence[tuple[int, float]]],
    *,
    chosen: int,
    best: tuple[int, float],
    what: str,
    where: str,
) -> str:
    """Epochs and their values, one line for each fit; all but the chosen one are pale.

    `best` is the chosen fit's best point; `what` names the value and `where` the stage and
    domain, for those who cannot see it.
    """
    values = [value for curve in curves for _, value in curve]
    last, low, high = max(curve[-1][0] for curve in curves), min(values), max(values)

    def place(number: int, value: float) -> tuple[float, float]:
        across = number / last if last else 0.0
        up = (value - low) / (high - low) if high > low else 1.0
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    lines = [_line([place(*point) for point in curve]) for curve in curves]
    (x, y), (epoch, value) = place(*best), best
    summary = f"{where}: {what} from {curves[chosen][0][1]:.4f} to {value:.4f}"
    pale = "".join(line for n, line in enumerate(lines) if n != chosen)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{escape(summary)} at epoch {epoch}</title>"
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
        f'<g class="pale">{pale}</g>{lines[chosen]}<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f"{_labels(low, high, last)}</svg>"
    )


def intervals(
    groups: Sequence[tuple[str, str]],
    series: Mapping[str, Sequence[Point]],
    *,
    what: str,
) -> str:
    """For each group a mark and its interval for every series, around a line at 0.

    A group is named by two lines of text; a series' points are in the order of the groups.  An
    interval that is not defined is left out.  `what` names the values, and stands in no picture.
    """
    every = [0.0, *(v for points in series.values() for p in points for v in p if not isnan(v))]
    low, high = min(every), max(every)
    width = (_RIGHT - _LEFT) / max(len(groups), 1)

    def up(value: float) -> float:
        return _BOTTOM - (value - low) / ((high - low) or 1.0) * (_BOTTOM - _TOP)

    marks: list[str] = []
    for number, (name, points) in enumerate(series.items()):
        for place, (group, (value, least, most)) in enumerate(zip(groups, points, strict=True)):
            x = _LEFT + (place + (number + 1) / (len(series) + 1)) * width
            told = f"{name}, {', '.join(group)}: {value:+.2f} [{least:+.2f}, {most:+.2f}]"
            reach = f"M{x:.1f} {up(least):.1f}V{up(most):.1f}" if not isnan(least) else ""
            marks.append(
                f'<g class="s{number + 1}"><title>{escape(told)}</title><path d="{reach}"/>'
                f"{_mark(number, x, up(value))}</g>"
            )
    labels = [
        _text(_LEFT + (place + 0.5) * width, _HEIGHT - 6 + 13 * line, text, anchor="middle")
        for place, group in enumerate(groups)
        for line, text in enumerate(group)
    ]
    scale = [
        _text(_LEFT - 6, up(value) + 4, f"{value:+.2f}" if value else "0", anchor="end")
        for value in {low, 0.0, high}
        # no number over another
        if value == 0 or abs(up(value) - up(0.0)) > 12
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 14}" role="img"><title>{escape(what)}</title>'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}M{_LEFT} {up(0.0):.1f}H{_RIGHT}"/>'
        f"{''.join(marks + labels + sorted(scale))}</svg>"
    )


def key(names: Iterable[str]) -> str:
    """Which mark is whose, in the order of the series of `intervals`."""
    parts = [
        f'<span class="s{n + 1}"><svg viewBox="-6 -6 12 12" aria-hidden="true"><g>'
        f"{_mark(n, 0, 0)}</g></svg>{escape(name)}</span>"
        for n, name in enumerate(names)
    ]
    return f'<p class="key">{"".join(parts)}</p>'


def _mark(number: int, x: float, y: float) -> str:
    """A shape of its own for each series, for those who cannot tell colours."""
    shape = ("m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", "m-4 -4h8v8h-8z", "m0 -5l5 5l-5 5l-5 -5z",
             "m0 -5l5 9h-10z")[number % 4]  # fmt: skip
    return f'<path class="mark" d="M{x:.1f} {y:.1f}{shape}"/>'


def _line(points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}"/>'


def _labels(low: float, high: float, last: int) -> str:
    lowest = "" if low == high else _text(_LEFT - 6, _BOTTOM, f"{low:.4f}", anchor="end")
    return (
        lowest
        + _text(_LEFT - 6, _TOP + 4, f"{high:.4f}", anchor="end")
        + _text(_LEFT, _HEIGHT - 5, "0", anchor="middle")
        + _text(_RIGHT, _HEIGHT - 5, f"epoch {last}", anchor="end")
    )


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
