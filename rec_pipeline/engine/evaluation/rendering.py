"""A document of sections, rendered as Markdown or as one self-contained HTML page."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

import pandas as pd


@dataclass(frozen=True)
class Plot:
    """A PNG image with the sentence that stands below it, also read aloud in its place."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """
    A heading with paragraphs, bullet points, one table and plots, any of which may be missing.

    The table's cells are printed as they are; its first column names the rows. In HTML what stands in square brackets
    at the end of a cell is set smaller.
    """

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    table: pd.DataFrame | None = None
    plots: Sequence[Plot] = field(default=(), repr=False)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Render as GitHub-flavoured Markdown, without the plots."""
    blocks = [f"# {title}"]
    for section in sections:
        blocks += [f"## {section.title}", *section.paragraphs]
        if section.points:
            blocks.append("\n".join(f"- {point}" for point in section.points))
        if section.table is not None:
            header, *rows = [[str(cell).replace("|", "\\|") for cell in row] for row in _rows(section.table)]
            lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(blocks) + "\n"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Render as one HTML page that loads nothing: styles inside, plots as data."""
    body = [f"<h1>{_inline(title)}</h1>"]
    for section in sections:
        body.append(f"<section><h2>{_inline(section.title)}</h2>")
        body += [f"<p>{_inline(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.points:
            body.append("<ul>" + "".join(f"<li>{_inline(point)}</li>" for point in section.points) + "</ul>")
        body += [
            f'<figure><img alt="{escape(plot.caption)}" src="data:image/png;base64,'
            f'{base64.b64encode(plot.png).decode()}"><figcaption>{_inline(plot.caption)}</figcaption></figure>'
            for plot in section.plots
        ]
        if section.table is not None:
            header, *rows = _rows(section.table)
            cells = ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in rows]
            body.append(
                f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{_inline(name)}</th>" for name in header)}</tr>'
                f"</thead><tbody>{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table></div>"
            )
        body.append("</section>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [[str(column) for column in table.columns], *table.astype(str).to_numpy().tolist()]


def _inline(text: str) -> str:
    code = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", code)


def _cell(text: str) -> str:
    return re.sub(r" (\[[^\]]*\])$", r"<small>\1</small>", _inline(text))


STYLE: Final = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #e3e7ec; --ground: #f5f7f9; --accent: #0072b2; color-scheme: light }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100% }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem clamp(.75rem, 3vw, 2rem) 4rem }
h1 { font-size: 1.75rem; letter-spacing: -.01em; margin: .5rem 0 1.25rem }
h2 { font-size: 1.15rem; margin: 0 0 .75rem }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; margin: 0 0 1.25rem;
  padding: 1.25rem clamp(1rem, 3vw, 1.75rem) }
section:first-of-type { border-left: 4px solid var(--accent) }
p { margin: 0 0 .75rem; max-width: 46rem }
ul { margin: 0 0 .75rem; padding-left: 1.2rem; max-width: 46rem }
li { margin: .3rem 0 }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; background: var(--ground); padding: .1em .3em;
  border-radius: 4px }
figure { margin: .5rem 0 1.25rem }
img { display: block; max-width: 100%; height: auto; margin: 0 auto }
figcaption { color: var(--soft); font-size: .875rem; text-align: center; margin-top: .35rem }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch }
table { border-collapse: collapse; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { color: var(--soft); font-weight: 600 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; font-weight: 600 }
tbody tr:last-child td { border-bottom: 0 }
td small { display: block; color: var(--soft); font-size: .75rem }
"""
