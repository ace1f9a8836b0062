"""Results as tables: HTML in a notebook, Arrow and pandas for whatever comes next."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from gemel_ray.spec.errors import GemelError
from gemel_ray.spec.units import format_bytes

if TYPE_CHECKING:
    import pandas
    import pyarrow

Row = Mapping[str, Any]
# A notebook shows so many rows; conversions give them all.
_SHOWN_ROWS = 20


class Tabular:
    """Something that is a table. Sizes are bytes, shares are fractions; only the HTML rounds them."""

    @abstractmethod
    def table_title(self) -> str:
        """One line above the table."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """The table, one mapping a row."""

    def to_arrow(self) -> pyarrow.Table:
        """All rows as an Arrow table; a column that some rows lack is null there."""
        import pyarrow as pa

        rows = self.rows()
        columns = _columns(rows)
        return pa.table({column: [row.get(column) for row in rows] for column in columns})

    def to_pandas(self) -> pandas.DataFrame:
        """All rows as a data frame. GemelError where pandas is missing."""
        if importlib.util.find_spec("pandas") is None:
            raise GemelError("a data frame needs pandas, which is not installed; pip install 'gemel-ray[notebook]'")
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        return html_table(self.table_title(), self.rows())


def html_table(title: str, rows: Sequence[Row]) -> str:
    """A table as a notebook shows it, everything escaped. Columns of mappings are left to the conversions."""
    columns = [column for column in _columns(rows) if not any(isinstance(row.get(column), Mapping) for row in rows)]
    styles = {column: _style(row.get(column) for row in rows) for column in columns}
    head = "".join(f"<th{styles[column]}>{escape(_heading(column))}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td{styles[column]}>{escape(told(column, row.get(column)))}</td>' for column in columns)}</tr>"
        for row in rows[:_SHOWN_ROWS]
    )
    more = f"<p>and {len(rows) - _SHOWN_ROWS} more rows</p>" if len(rows) > _SHOWN_ROWS else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if rows else ""
    return f"<div><p><b>{escape(title)}</b></p>{table}{more}</div>"


def _style(values: Iterable[object]) -> str:
    """Notebooks put all text to the right; words read better from the left, and numbers unbroken."""
    are_numbers = all(isinstance(value, int | float | None) for value in values)
    return f' style="text-align: {"right; white-space: nowrap" if are_numbers else "left"}; padding: 2px 8px"'


def told(column: str, value: object) -> str:
    """One cell in words: sizes with units, fractions in per cent, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if column.endswith("_bytes"):
            return format_bytes(value)
        return f"{100 * value:.1f} %" if column.endswith("_fraction") else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _heading(column: str) -> str:
    return column.removesuffix("_bytes").removesuffix("_fraction").replace("_", " ")


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))
