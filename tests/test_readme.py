"""What the README promises. Its commands are held with the pages', in test_docs.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_commands_exist():
    makefile = (ROOT / 'Makefile').read_text()
    targets = re.findall(r'make ([a-z-]+)', README)
    assert {'install', 'quickstart', 'docs'} <= {*targets}
    for target in targets:
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
    for path in re.findall(r'(?:configs|docs)/[\w/.-]+\w', README):
        assert (ROOT / path).exists(), path


def test_links_lead_to_files():
    links = re.findall(r'\]\(([^)#]+)', README)
    assert len(links) > 20
    for link in links:
        assert link.startswith('https://') or (ROOT / link).exists(), link


def test_notation_is_explained_where_it_first_appears():
    first = README.index('D-[24]-r64')
    assert '**[24]**' in README[first : first + 600]
