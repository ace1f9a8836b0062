"""One self-contained HTML page: no scripts, no requests, light and dark, a page wide or a phone's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from gemel_ray import report
from gemel_ray.report import tables
from gemel_ray.report.facts import Facts
from gemel_ray.report.inks import DARK, LIGHT, PIXELS_PER_INCH, Sheet, css_variables, to_svg
from gemel_ray.report.sections import Plot, Section, present
from gemel_ray.report.tables import Table
from gemel_ray.spec.units import readable_time

# Longer tables are folded away; the plot above them says what matters.
_SHORT_ROWS = 8


def page(facts: Facts) -> str:
    """The whole document."""
    template = resources.files(report).joinpath("page.html").read_text(encoding="utf-8")
    title = f"{facts.manifest.workload_name}, release {facts.manifest.release}"
    return Template(template).substitute(
        title=escape(title),
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
        subtitle=escape(_subtitle(facts)),
        headlines="".join(_headline(*found) for found in tables.headlines(facts)),
        notes=_notes(facts.notes),
        contents="".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in present(facts)),
        sections="".join(_section(section, facts) for section in present(facts)),
        facts=_for_programs(facts),
    )


def _subtitle(facts: Facts) -> str:
    made = facts.manifest.provenance
    standing = "the release to serve (HEAD)" if facts.head == facts.manifest.release else f"HEAD is {facts.head}"
    return f"{facts.store} · {standing} · made {readable_time(made.created_at)} · {made.note or 'no note'}"


def _headline(what: str, value: str, beside: str) -> str:
    return f"<div class=tile><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(beside)}</small></div>"


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes" role="note">{items}</ul>' if notes else ""


def _section(section: Section, facts: Facts) -> str:
    told = section.told(facts)
    plot = "" if section.plot is None else _figure(section.name, section.plot, facts, told)
    table = "" if section.table is None else _folded(section.table(facts), is_open=section.plot is None)
    commands = _commands(facts) if section.name == "reproduce" else ""
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2><p>{escape(told)}</p>{plot}{table}{commands}'
        "</section>\n"
    )


def _figure(name: str, plot: Plot, facts: Facts, told: str) -> str:
    """The plot twice, for a page and for a phone; the style sheet shows one of them."""
    drawn = []
    for width, sheet in (("wide", Sheet()), ("narrow", Sheet(is_narrow=True))):
        inches = plot.width(facts, sheet)
        svg = to_svg(
            lambda figure, sheet=sheet: plot.draw(figure, facts, sheet),  # type: ignore[misc]
            sheet, plot.height(facts, sheet), f"{name}-{width}", inches,
        )  # fmt: skip
        least = f' style="min-width:{inches * PIXELS_PER_INCH:.0f}px"' if inches > sheet.width else ""
        label = f'<svg role="img" aria-label="{escape(told)}"{least}'
        drawn.append(f'<div class="plot {width}" tabindex="0">{svg.replace("<svg", label, 1)}</div>')
    return f"<figure>{''.join(drawn)}</figure>"


def _folded(table: Table, *, is_open: bool = False) -> str:
    if not table.rows:
        return ""
    unfolded = " open" if is_open or len(table.rows) <= _SHORT_ROWS else ""
    return f"<details{unfolded}><summary>The numbers</summary>{_table(table)}</details>"


def _table(table: Table) -> str:
    kinds = ["" if place in table.words else " class=n" for place in range(len(table.columns))]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(kinds, table.columns, strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{kind}>{escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in table.rows
    )
    return f'<div class="table" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _commands(facts: Facts) -> str:
    return f"<pre>{escape(chr(10).join(tables.commands(facts)))}</pre>"


def _for_programs(facts: Facts) -> str:
    """JSON inside a script element, which ends at the first '</': so no '<' stands as itself."""
    return json.dumps(facts.document()).replace("<", "\\u003c")
