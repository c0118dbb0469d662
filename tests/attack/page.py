"""The results of attacks, and their table in `docs/reliability.md`."""

import json
from pathlib import Path

from tests.attack.guard import ENDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / 'docs' / 'reliability.md'
RESULTS = ROOT / 'benchmarks' / 'results' / 'attack.json'
START, END = '<!-- results of make attack -->\n', '<!-- end of results -->\n'


def read():
    """Return the results by part; none before the first attack."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(part, found, made_by):
    """Put the results of one part into the file."""
    results = read()
    results[part] = {'made by': made_by, 'found': found}
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + '\n')


def malformed(results):
    """Return the results of the parts that are kinds of input."""
    other = ('kills', 'faults')
    return {part: each['found'] for part, each in results.items() if part not in other}


def table(results):
    """Return the results as Markdown."""
    made_by = (each['made by'].items() for each in results.values())
    versions = sorted({', '.join(f'{k} {v}' for k, v in each) for each in made_by})
    lines = [f'Measured with {"; ".join(versions)}.', '']
    kills = results.get('kills', {'found': {}})['found']
    lines += ['| killed and resumed | runs | ended as unbroken, with all pairs |']
    lines += ['|---|---|---|']
    for name, row in kills.items():
        lines.append(f'| {name} | {sum(row.values())} | {row.get("as unbroken", 0)} |')
    tried = sum(sum(row.values()) for row in kills.values())
    good = sum(row.get('as unbroken', 0) for row in kills.values())
    lines += [f'| all | {tried} | {good} |', '']
    lines += ['| malformed input | tried | ' + ' | '.join(ENDS) + ' |']
    lines += ['|---|---|' + '---|' * len(ENDS)]
    rows = {part: each['ends'] for part, each in malformed(results).items()}
    rows['all'] = {end: sum(row.get(end, 0) for row in rows.values()) for end in ENDS}
    for name, row in rows.items():
        cells = [str(row.get(end, 0)) for end in ENDS]
        lines.append(f'| {name} | {sum(row.values())} | ' + ' | '.join(cells) + ' |')
    lines += ['', '| fault | outcome |', '|---|---|']
    for what, outcome in results.get('faults', {'found': {}})['found'].items():
        lines.append(f'| {what.rstrip(".")} | {outcome.splitlines()[0]} |')
    return '\n'.join(lines) + '\n'


def render():
    """Write the table of the results so far into the page."""
    before, rest = PAGE.read_text().split(START)
    after = rest.split(END)[1]
    results = read()
    PAGE.write_text(before + START + table(results) + END + after)
