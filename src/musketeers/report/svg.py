"""Pictures for the page: plain SVG in the page's own colours."""

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 22


def learning_curve(values: Sequence[float], *, best: int, what: str, where: str) -> str:
    """One or more values by epoch, from epoch 0, with the `best` epoch marked.

    `what` names the value and `where` the stage and domain, for those who cannot see it.
    """
    low, high = min(values), max(values)
    points = [_place(n, value, last=len(values) - 1, low=low, high=high)
              for n, value in enumerate(values)]  # fmt: skip
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    summary = f"{where}: {what} from {values[0]:.4f} to {values[best]:.4f} at epoch {best}"
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    marks = [] if low == high else [_text(_LEFT - 6, bottom, f"{low:.4f}", anchor="end")]
    marks += [
        _text(_LEFT - 6, _TOP + 4, f"{high:.4f}", anchor="end"),
        _text(_LEFT, _HEIGHT - 5, "0", anchor="middle"),
        _text(right, _HEIGHT - 5, f"epoch {len(values) - 1}", anchor="end"),
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escape(summary)}</title>'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
        f'<polyline points="{path}"/>'
        f'<circle cx="{points[best][0]:.1f}" cy="{points[best][1]:.1f}" r="4"/>'
        f"{''.join(marks)}</svg>"
    )


def _place(number: int, value: float, *, last: int, low: float, high: float) -> tuple[float, float]:
    across = number / last if last else 0.0
    up = (value - low) / (high - low) if high > low else 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _LEFT + across * width, _TOP + (1 - up) * height


def _text(x: float, y: float, text: str, *, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
