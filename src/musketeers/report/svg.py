"""Pictures for the page: plain SVG in the page's own colours."""

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 310, 12, 128


def learning_curves(
    curves: Sequence[Sequence[float]], *, best: tuple[int, int], what: str, where: str
) -> str:
    """Values by epoch, from epoch 0, one line for each fit; the others are pale.

    `best` is the chosen fit and its epoch; `what` names the value and `where` the stage and
    domain, for those who cannot see it.
    """
    values = [value for curve in curves for value in curve]
    last, low, high = max(map(len, curves)) - 1, min(values), max(values)

    def place(number: int, value: float) -> tuple[float, float]:
        across = number / last if last else 0.0
        up = (value - low) / (high - low) if high > low else 1.0
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    chosen, epoch = best
    lines = [_line([place(*point) for point in enumerate(curve)]) for curve in curves]
    x, y = place(epoch, curves[chosen][epoch])
    summary = f"{where}: {what} from {curves[chosen][0]:.4f} to {curves[chosen][epoch]:.4f}"
    pale = "".join(line for n, line in enumerate(lines) if n != chosen)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{escape(summary)} at epoch {epoch}</title>"
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
        f'<g class="pale">{pale}</g>{lines[chosen]}<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f"{_labels(low, high, last)}</svg>"
    )


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
