"""A self-contained page, built from its parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from torchgeo_explora.report.charts import Chart
from torchgeo_explora.report.pictures import Picture
from torchgeo_explora.terminal import printable
from torchgeo_explora.version import __version__
from torchgeo_explora.writing import replacing

Part = dict[str, Any]


@dataclass
class Section:
    """A part of a page with a heading.

    Attributes:
        id: Its name in links.
        title: Its heading.
        parts: What `text`, `code`, `table`, `charts` and `picture` return.
    """

    id: str
    title: str
    parts: list[Part]


@dataclass
class Page:
    """What a page shows. All text is escaped.

    Attributes:
        title: Its heading.
        subtitle: A line below.
        state: Whether a run has finished, in words; '' to leave it out.
        done: Whether it has finished.
        cards: Numbers to show first, by name.
        notes: What the reader needs to know, in sentences.
        sections: The rest.
    """

    title: str
    subtitle: str = ''
    state: str = ''
    done: bool = True
    cards: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    version: str = __version__

    def write(self, path: Path) -> None:
        """Write the page as HTML.

        Raises:
            OSError: If it cannot be written; an existing file is kept.
        """
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        html = environment.get_template('page.html').render(page=self)
        with replacing(path) as part:
            part.write_text(html, encoding='utf-8')


def text(words: str) -> Part:
    """Return a paragraph."""
    return {'kind': 'text', 'text': words}


def code(words: str, caption: str = '') -> Part:
    """Return lines as they are; folded under a caption if there is one."""
    kind = 'folded code' if caption else 'code'
    return {'kind': kind, 'text': words, 'caption': caption}


def table(
    caption: str,
    rows: Sequence[Sequence[Any]],
    head: Sequence[str] = (),
    fold: bool = False,
) -> Part:
    """Return a table.

    Args:
        caption: What it shows.
        rows: Each begins with its name.
        head: Names of the columns.
        fold: Whether only the caption is seen at first.
    """
    shown = [[short(value) for value in row] for row in rows]
    return {
        'kind': 'table',
        'caption': caption,
        'rows': shown,
        'head': head,
        'fold': fold,
    }


def charts(
    drawn: Sequence[Chart],
    legend: Sequence[tuple[str, str, str]] = (),
    caption: str = '',
) -> Part:
    """Return charts side by side.

    Args:
        drawn: The charts.
        legend: Name, colour and dashes of each line, if there are several.
        caption: Folds the charts under it, if there is one.
    """
    return {'kind': 'charts', 'charts': drawn, 'legend': legend, 'caption': caption}


def picture(shown: Picture) -> Part:
    """Return a picture."""
    return {'kind': 'picture', 'picture': shown}


def short(value: Any) -> str:
    """Return a value from a file in a few words; of nested ones, only the start."""
    if isinstance(value, bool) or value is None:
        return {True: 'yes', False: 'no', None: '-'}[value]
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, list | tuple):
        inner = [
            short(each) if isinstance(each, str | int | float) else '...'
            for each in value[:12]
        ]
        return f'[{", ".join(inner)}{", ..." if len(value) > 12 else ""}]'
    if isinstance(value, dict):
        pairs = [*value.items()][:12]
        return ', '.join(
            f'{printable(key, 60)}: {"..." if isinstance(each, dict) else short(each)}'
            for key, each in pairs
        )
    return printable(value, 600)
