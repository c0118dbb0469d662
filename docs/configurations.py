"""Tables of the configurations, made from the comments at their tops."""

import re
from pathlib import Path
from typing import NamedTuple

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
# A page asks for rows of its table by one of these lines.
EVERY = '<!-- every configuration -->'
NOT_RUN = '<!-- configurations that were not run -->'


# Alone, or after what somebody else reports.
_NOT_RUN = r'(?i)(here: )?\bnot run\b'


class Header(NamedTuple):
    """What the comment at the top of a configuration says."""

    path: str
    purpose: str
    result: str


def read_header(path: Path) -> Header:
    """Return the first sentence and the result of a configuration's comment."""
    lines = path.read_text().splitlines()
    comment = [line[1:] for line in lines if line.startswith('#')]
    first = ' '.join(' '.join(comment).split('   ')[0].split())
    (result,) = re.findall(
        r'^ Result: (.*(?:\n   .*)*)', '\n'.join(comment), re.MULTILINE
    )
    return Header(
        str(path.relative_to(ROOT)),
        re.split(r'(?<=[a-z0-9)])\. ', first)[0].rstrip('.'),
        ' '.join(result.split()).rstrip('.'),
    )


def was_run(header: Header) -> bool:
    """Whether there is a result of our own."""
    return not re.search(_NOT_RUN, header.result)


def every_row(header: Header) -> str:
    """Return a row of the table of all configurations."""
    page = re.fullmatch(r'docs/(results/\w+\.md)', header.result)
    result = f'[measured]({page[1]})' if page else header.result
    if not was_run(header):
        result = '[not run](not-run.md)'
    return f'| `{header.path}` | {header.purpose} | {result} |'


def not_run_row(header: Header) -> str:
    """Return a row of the table of what was not run."""
    known = re.sub(_NOT_RUN, '', header.result).strip(' .')
    return f'| {header.purpose} | `{header.path}` | {known} |'


def fill_tables(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the lines that ask for rows."""
    if EVERY not in source[0] and NOT_RUN not in source[0]:
        return
    paths = sorted((ROOT / 'configs').rglob('*.yaml'), key=lambda p: (p.parent, p.name))
    headers = [read_header(path) for path in paths]
    every = '\n'.join(map(every_row, headers))
    not_run = '\n'.join(not_run_row(each) for each in headers if not was_run(each))
    source[0] = source[0].replace(EVERY, every).replace(NOT_RUN, not_run)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect('source-read', fill_tables)
    return {'parallel_read_safe': True}
