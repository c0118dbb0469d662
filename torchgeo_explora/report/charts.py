"""Charts as SVG for a page, which take on the colour of its text."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: Colours that are visible on white and on black, and dashes that tell lines apart.
COLOURS = ('#2f7fc1', '#c8641b', '#2b9467', '#a9579e', '#8a7a1f', '#6b74d6')
DASHES = ('', '6 3', '2 2', '8 2 2 2')
#: Stands for the colour of the text until the SVG is written.
_INK = '#010203'
_MOST_POINTS = 400


class Chart(NamedTuple):
    """A chart as part of a page."""

    svg: str
    """The drawing, an element of HTML, with all text escaped."""
    caption: str
    """What it shows."""


def line_style(index: int) -> tuple[str, str]:
    """Return the colour and the dashes of a line, by its number."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def line_chart(name: str, curves: Sequence[Mapping[int, float]], prefix: str) -> Chart:
    """Return a chart of curves over optimizer steps.

    Args:
        name: What is drawn.
        curves: Value by step, one for each line, in the order of `line_style`.
        prefix: Start of the drawing's ids, unique on the page.
    """
    figure, axes = _empty()
    said = []
    for index, curve in enumerate(curves):
        colour, dashes = line_style(index)
        stride = len(curve) // _MOST_POINTS + 1
        # The last point is always drawn.
        points = sorted(curve.items())
        points = points[:-1:stride] + points[-1:]
        style = (0, tuple(map(float, dashes.split()))) if dashes else 'solid'
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=style,
            marker='o' if len(points) < 30 else '',
            markersize=3,
        )
        if points:
            (first, start), (last, end) = points[0], points[-1]
            said.append(f'{start:.4g} at step {first}, {end:.4g} at step {last}')
    axes.set_xlabel('optimizer step')
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    caption = f'{name}: {said[0]}' if len(said) == 1 else name
    return Chart(_svg(figure, prefix, caption), caption)


def bar_chart(name: str, values: Sequence[float], axis: str, prefix: str) -> Chart:
    """Return a chart with a bar for each block.

    Args:
        name: What is drawn.
        values: One for each block, from the first.
        axis: What the height of a bar shows.
        prefix: As for `line_chart`.
    """
    figure, axes = _empty()
    axes.bar(range(1, len(values) + 1), values, color=COLOURS[0])
    axes.set_xlabel('block')
    axes.set_ylabel(axis, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    most = max(range(len(values)), key=lambda index: values[index])
    caption = f'{name}; largest in block {most + 1}, {values[most]:.3g}.'
    return Chart(_svg(figure, prefix, caption), caption)


def _empty() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 2.7), layout='constrained')
    axes = figure.subplots()
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.grid(alpha=0.2, color=_INK)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, prefix: str, caption: str) -> str:
    """Return a figure as an element of a page, with ids of its own."""
    buffer = io.StringIO()
    with mpl.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'explora'}):
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index('<svg') :]
    drawing = re.sub(r'<metadata>.*?</metadata>', '', drawing, flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)
    drawing = re.sub(r'href="#', f'href="#{prefix}-', drawing)
    drawing = re.sub(r'url\(#', f'url(#{prefix}-', drawing)
    drawing = drawing.replace(_INK, 'currentColor')
    # Its size in points would not fit a phone.
    head, _, rest = drawing.partition('>')
    head = re.sub(r' (?:width|height)="[^"]*"', '', head)
    label = f'<svg role="img" aria-label="{html.escape(caption)}"'
    return f'{label}{head.removeprefix("<svg")}>{rest}'
