"""The comparison as the paper's tables show it, in Markdown and LaTeX.

A row is a model in a domain, a column a metric, in %.  Best of a domain bold, second underlined; an
arrow down marks negative transfer: significantly worse than the domain alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from musketeers.comparison.results import REFERENCE, Results, Summary
from musketeers.evaluation.compare import Cell
from musketeers.report.words import metric_name, model_name, warning

Place = Literal["first", "second", ""]
Styled = Callable[[Summary, Place, bool], str]
"""(the cell, its place in the domain, whether it is negative transfer) -> its text."""


def markdown(results: Results) -> str:
    """`table.md`: a table for all domains, and what its marks mean."""
    head = ["Model", "Domain", *map(metric_name, results.metrics)]
    lines = [_md_row(head), _md_row(["---", "---", *["--:"] * len(results.metrics)])]
    lines += [_md_row(row) for row in _rows(results, _md_cell, lambda name: name)]
    return "\n".join(lines) + f"\n\n{_note(results)}\n"


def latex(results: Results) -> str:
    """`table.tex`: a `tabular` for booktabs, to be put into a `table`."""
    columns = "ll" + "r" * len(results.metrics)
    head = " & ".join(["Model", "Domain", *map(metric_name, results.metrics)])
    body: list[str] = []
    for row in _rows(results, _tex_cell, _tex_text):
        if row[0] and body:
            body.append(r"\midrule")
        body.append(" & ".join(row) + r" \\")
    return "\n".join(
        [f"% {_note(results)}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{head} \\",
         r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )  # fmt: skip


def _rows(results: Results, styled: Styled, text: Callable[[str], str]) -> list[list[str]]:
    rows: list[list[str]] = []
    for name in results.models:
        domains = [d for d in results.domains if (d, results.metrics[0]) in results.cells[name]]
        for n, domain in enumerate(domains):
            cells = [_cell(results, name, (domain, metric), styled) for metric in results.metrics]
            rows.append([text(model_name(name)) if n == 0 else "", text(domain), *cells])
    return rows


def _cell(results: Results, name: str, cell: Cell, styled: Styled) -> str:
    against = results.against[REFERENCE][name].get(cell)
    harmed = against is not None and against.mark == "▼"
    return styled(results.cells[name][cell], place_of(results, name, cell), harmed)


def place_of(results: Results, name: str, cell: Cell) -> Place:
    """Whether the model's mean is the cell's largest or second largest."""
    means = sorted({found[cell].mean for found in results.cells.values() if cell in found})
    mean = results.cells[name][cell].mean
    if mean == means[-1]:
        return "first"
    return "second" if len(means) > 1 and mean == means[-2] else ""


def _numbers(found: Summary) -> tuple[str, str]:
    deviation = "" if math.isnan(found.deviation) else f"{100 * found.deviation:.2f}"
    return f"{100 * found.mean:.2f}", deviation


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _md_cell(found: Summary, place: Place, harmed: bool) -> str:
    mean, deviation = _numbers(found)
    mean = {"first": f"**{mean}**", "second": f"<u>{mean}</u>", "": mean}[place]
    return mean + (f"±{deviation}" if deviation else "") + ("↓" if harmed else "")


def _tex_cell(found: Summary, place: Place, harmed: bool) -> str:
    mean, deviation = _numbers(found)
    mean = {"first": rf"\textbf{{{mean}}}", "second": rf"\underline{{{mean}}}", "": mean}[place]
    spread = rf"$\pm${deviation}" if deviation else ""
    return mean + spread + (r"$\downarrow$" if harmed else "")


def _tex_text(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def _note(results: Results) -> str:
    n_seeds = max(len(found.by_seed) for of in results.cells.values() for found in of.values())
    return (
        f"In %, mean{' and standard deviation' if n_seeds > 1 else ''} over {n_seeds} seed"
        f"{'s' if n_seeds > 1 else ''}; best of a domain in bold, second underlined; an arrow down "
        "marks a model significantly worse than SMF, the domain alone (paired t-test over users, "
        f"corrected by Holm for the whole table, p < .05). {warning(results.metrics)}"
    ).rstrip()
