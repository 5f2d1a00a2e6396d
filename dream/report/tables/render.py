"""One table, five faces: CSV, Markdown, LaTeX, HTML and plain text (rich on a terminal).

A :class:`Table` carries exact values for machines (``data``) and laid-out fields for people (``head``, ``rows``,
``notes``). Escaping is done here, once per format, so no builder of tables ever thinks about it: what people see is one
line of visible characters before any format begins.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dream.errors import DreamError, visible

if TYPE_CHECKING:
    import pandas as pd


KEYS = 3  # columns, at most, that name a row and stand in every block of a wide table
WRAPPED = 30  # characters; a longer text may be folded on a terminal


@dataclass(frozen=True)
class Field:
    """One laid-out field: its text, whether it is the best of its row, where the number came from, and what the page sorts
    by where the text would not do (a duration)."""

    text: str
    bold: bool = False
    source: str = ""
    sort: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", one_line(self.text))


@dataclass(frozen=True)
class Table:
    """A table: ``data`` goes to CSV and JSON, ``head``/``rows``/``notes`` are what a reader sees.

    ``varies`` marks tables whose numbers differ from run to run (wall times); all others are byte-identical. ``together`` names
    columns that a reader compares: on a narrow terminal they share a block.
    """

    name: str
    title: str
    data: pd.DataFrame
    head: list[str]
    rows: list[list[Field]]
    notes: list[str] = field(default_factory=list)
    varies: bool = False
    together: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shown = {"title": one_line(self.title), "head": [*map(one_line, self.head)], "notes": [*map(one_line, self.notes)]}
        for name, value in shown.items():
            object.__setattr__(self, name, value)


def one_line(text: str) -> str:
    r"""Text on one line, white space folded, nothing in it that acts or hides (:func:`dream.errors.visible`).

    >>> print(one_line("two\n  lines \x07"))
    two lines \x07
    """
    return visible(" ".join(text.split()))


def number(value: float | None, digits: int = 3) -> str:
    """A score as tables print it: no leading zero, a proper minus sign, a dash for nothing.

    >>> number(0.4531), number(-0.02), number(None), number(1.0)
    ('.453', '−.020', '–', '1.000')
    """
    if value is None or value != value:
        return "–"
    text = f"{abs(value):.{digits}f}"
    text = text[1:] if text.startswith("0.") else text
    return f"−{text}" if value < 0 and float(f"{abs(value):.{digits}f}") else text


def ranged(low: float | None, high: float | None, digits: int = 3) -> str:
    """A range as tables print it.

    >>> ranged(0.166, 0.1942), ranged(None, None)
    ('.166 to .194', '–')
    """
    if low is None or high is None or low != low:
        return "–"
    ends = [number(low, digits), number(high, digits)]
    return " to ".join(dict.fromkeys(ends))


def signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("−") or float(f"{value:.3f}") == 0 else f"+{text}"


def p_value(value: float | None) -> str:
    """A p-value; a dash where nothing was tested."""
    return "< .001" if value is not None and value < 0.001 else number(value)


def grouped(value: float) -> str:
    """A count with thin groups of three.

    >>> grouped(12345)
    '12,345'
    """
    return f"{int(value):,}"


def fields(*texts: Any) -> list[Field]:
    """A row of plain fields."""
    return [text if isinstance(text, Field) else Field(str(text)) for text in texts]


def csv(table: Table) -> str:
    """Exact values with six decimals: enough to recompute every printed number, short enough for a diff."""
    stream, data = io.StringIO(), table.data.copy()
    for name in data.select_dtypes(exclude=["number", "bool"]).columns:
        data[name] = data[name].map(_csv_field)
    data.to_csv(stream, index=False, float_format="%.6f", lineterminator="\n")
    return stream.getvalue()


def _csv_field(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; numbers stay numbers.

    >>> [_csv_field(v) for v in ("=1+1", " @x", "-rf", "-.5", "+2e-4", -0.5, "a=b")]
    ["'=1+1", "' @x", "'-rf", '-.5', '+2e-4', -0.5, 'a=b']
    """
    if not isinstance(value, str):
        return value
    is_formula = re.match(r"\s*[=+@\-＝＋＠－]", value) and not re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", value, re.IGNORECASE)
    return visible(f"'{value}" if is_formula else value)


def markdown(table: Table) -> str:
    """GitHub Markdown, columns padded so that the source reads as a table too."""
    rows = [[_markdown_field(one) for one in row] for row in table.rows]
    head = [_markdown_field(Field(text)) for text in table.head]
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    numeric = _numeric_columns(table)
    rule = [("-" * (w - 1) + ":") if numeric[i] else "-" * w for i, w in enumerate(widths)]
    lines = [f"# {escape_markdown(table.title)}", ""]
    for row in [head, rule, *rows]:
        padded = [text.rjust(w) if numeric[i] else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in table.notes)]).rstrip() + "\n"


def _markdown_field(one: Field) -> str:
    text = escape_markdown(one.text)
    return f"**{text}**" if one.bold else text


def escape_markdown(text: str) -> str:
    r"""Text that Markdown would take for markup, made plain.

    >>> print(escape_markdown("a|b * <b> query_focused, p < 0.05, &lt;"))
    a\|b \* \<b> query_focused, p < 0.05, \&lt;
    >>> print(escape_markdown("# no head"), escape_markdown("1. no list"))
    \# no head 1\. no list
    """
    text = re.sub(r"([\\|*`~]|(?<=\])\(|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|#$)", r"\\\1", text)
    return re.sub(r"^(\d*)([-+#.)]+(?= |$)|>)", r"\1\\\2", text)  # a list, a heading, a quotation


def latex(table: Table) -> str:
    """A booktabs table; needs ``\\usepackage{booktabs}``."""
    columns = "".join("r" if is_number else "l" for is_number in _numeric_columns(table))
    body = [_latex_row(map(_latex_field, row)) for row in table.rows]
    head = _latex_row(map(_escape_latex, table.head))
    notes = [rf"\par\footnotesize {_escape_latex(note)}" for note in table.notes]
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{_escape_latex(table.title)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _latex_row(texts: Iterable[str]) -> str:
    """A row; what begins with a bracket or a star would be an option of the command before it."""
    row = " & ".join(texts) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row


def _latex_field(one: Field) -> str:
    text = _escape_latex(one.text)
    return rf"\textbf{{{text}}}" if one.bold else text


def _escape_latex(text: str) -> str:
    pairs = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--", "†": r"$^\dagger$", "±": r"$\pm$",
        "×": r"$\times$", "≥": r"$\geq$", "<": r"$<$", ">": r"$>$", "·": r"$\cdot$", "∞": r"$\infty$", "…": r"\dots{}",
        "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    }  # fmt: skip
    return re.sub("--+|.", lambda found: pairs.get(found[0], "{}".join(found[0])), text)  # no ligature: -- is two hyphens


def html_table(table: Table) -> str:
    """An HTML table with escaped text; the page makes it sortable by its class and keeps the column that names a row."""
    numeric = _numeric_columns(table)
    key = next((i for i, is_number in enumerate(numeric) if is_number), 0) - 1
    kinds = [" class=num" if is_number else " class=key" if i == key else "" for i, is_number in enumerate(numeric)]
    head = "".join(f"<th{kind}>{html.escape(text)}</th>" for kind, text in zip(kinds, table.head, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_html_field(one, kind) for kind, one in zip(kinds, row, strict=True)) + "</tr>" for row in table.rows
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f'<table class="sortable" id="table-{html.escape(table.name)}">\n'
        f"<caption>{html.escape(table.title)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )


def _html_field(one: Field, kind: str) -> str:
    """A field; on a narrow screen a number may break before its interval and nowhere else."""
    text = html.escape(one.text)
    if "num" in kind:
        text = text.replace(" ", "\u00a0").replace("\u00a0[", " [")
    if one.source:
        text = f'<a href="#{html.escape(one.source)}">{text}</a>'
    text = f"<strong>{text}</strong>" if one.bold else text
    order = "" if one.sort is None else f' data-sort="{one.sort:g}"'
    return f"<td{kind}{order}>{text}</td>"


def plain(table: Table) -> str:
    """Aligned text for a pipe: no colours, no box drawing; ``*`` after a field marks it."""
    rows = [[one.text + ("*" if one.bold else "") for one in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [table.head, *rows]) for i in range(len(table.head))]
    numeric = _numeric_columns(table)
    lines = [table.title, ""]
    for row in [table.head, ["-" * w for w in widths], *rows]:
        padded = [text.rjust(w) if numeric[i] else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(padded).rstrip())
    if any(one.bold for row in table.rows for one in row):
        lines += ["", "* marked"]
    return "\n".join([*lines, *([""] if table.notes else []), *(f"- {note}" for note in table.notes)]) + "\n"


def rich_table(table: Table) -> Any:
    """The table as rich draws it on a terminal, with its notes below; too wide, its columns go into blocks."""
    from rich.console import Group
    from rich.text import Text

    return Group(_Blocks(table), *(Text(f"- {note}", style="dim") for note in table.notes), Text(""))


@dataclass(frozen=True)
class _Blocks:
    """A table that rich asks to draw itself once it knows how wide the terminal is."""

    table: Table

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table, numeric = self.table, _numeric_columns(self.table)
        found = blocks(table, options.max_width)
        left_out = [f"{table.head[i]} {table.rows[0][i].text}" for i in range(len(table.head)) if all(i not in b for b in found)]
        yield Text(f"{', '.join([table.title, *left_out])}\n", style="bold")
        for columns in found:
            drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
            for i in columns:
                whole = numeric[i] or _width(table, i) <= WRAPPED
                drawn.add_column(Text(table.head[i]), justify="right" if numeric[i] else "left", no_wrap=whole)
            for row in table.rows:
                drawn.add_row(*(Text(row[i].text, style="bold green" if row[i].bold else "") for i in columns))
            yield drawn
            yield Text("")


def blocks(table: Table, width: int) -> list[list[int]]:
    """The columns of a table in blocks that fit into ``width`` characters; each begins with the columns that name a row.

    Numbers are never folded, long texts may be. A table that fits is one block. In one that does not, a column before the last
    of those that name a row is left out where it says the same of all rows, and those of ``together`` share a block if they can.
    """
    numeric = _numeric_columns(table)
    first = next((i for i, is_number in enumerate(numeric) if is_number), len(numeric))
    keys = list(range(max(1, min(first, KEYS))))
    needed = [(_width(table, i) if numeric[i] else min(_width(table, i), WRAPPED)) + len("  ") for i in range(len(numeric))]
    if sum(needed) > width + len("  "):
        keys = [i for i in keys if i == keys[-1] or len({row[i].text for row in table.rows}) > 1]
    room = width + len("  ") - sum(needed[i] for i in keys)
    compared = [i for i, name in enumerate(table.head) if name in table.together]
    group = sum(needed[i] for i in compared)
    found: list[list[int]] = []
    used = room
    for i in range(keys[-1] + 1, len(numeric)):
        whole = group if i in compared[:1] and group <= room else needed[i]
        if not found or used + whole > room:
            found.append(list(keys))
            used = 0
        found[-1].append(i)
        used += needed[i]
    return found or [keys]


def _width(table: Table, column: int) -> int:
    return max(len(table.head[column]), *(len(row[column].text) for row in table.rows), 0)


Line = tuple[str, str]  # a line and its style on a terminal


def joined(lines: Iterable[Line]) -> str:
    """Lines as text for a pipe."""
    return "\n".join(visible(text) for text, _ in lines)


@dataclass(frozen=True)
class Coloured:
    """Lines on a terminal, asked for once its width is known: no text is folded that could have been cut."""

    lines: Callable[[int], Iterable[Line]]

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        yield from (Text(visible(text), style=style) for text, style in self.lines(options.max_width))


def as_json(table: Table) -> dict[str, Any]:
    """What ``--json`` prints: the exact values (missing ones as null) and the notes."""
    rows = [
        {key: None if value != value else value for key, value in row.items()}
        for row in table.data.astype(object).to_dict(orient="records")
    ]
    return {"name": table.name, "title": table.title, "rows": rows, "notes": table.notes}


def json_text(value: Any) -> str:
    r"""JSON as it is printed: what a terminal would act on or hide as JSON's own escapes, so that it reads back the same.

    >>> print(json_text(["é\x1b[31m", "\x9b\u202e"]))
    [
     "é\u001b[31m",
     "\u009b\u202e"
    ]
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _numeric_columns(table: Table) -> list[bool]:
    """A column is right-aligned when all its fields look like numbers."""
    return [bool(table.rows) and all(_looks_numeric(row[i].text) for row in table.rows) for i in range(len(table.head))]


NUMERIC = re.compile(r"([.\d+−–<\[][^A-Za-z]*((s|min|h|e\+)\b[^A-Za-z]*|e\+\d+)*)?")


def _looks_numeric(text: str) -> bool:
    """Whether a field is a number, possibly with an interval, a mark or a unit of time.

    >>> [_looks_numeric(t) for t in (".45 [.4, .5] ↑", "–", "name", "", "1.50e+13", "2 h 05 min", "16 heads")]
    [True, True, False, True, True, True, False]
    """
    return bool(NUMERIC.fullmatch(text))


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "md": ("md", markdown),
    "csv": ("csv", csv),
    "latex": ("tex", latex),
    "html": ("html", html_table),
}


def known(name: str) -> str:
    """Return the name of a format, or stop with the list of known ones."""
    if name not in FORMATS:
        raise DreamError(f"format {name!r} is unknown", f"Choose one of text, {', '.join(FORMATS)}")
    return name


def render(table: Table, name: str) -> str:
    """Render in a format of :data:`FORMATS`."""
    return FORMATS[known(name)][1](table)
