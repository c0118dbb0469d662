"""Check the links of the built site within itself: `python docs/check_links.py FOLDER`.

Every `href` and `src` that is not an address must lead to a file of the site, and every
fragment to an element of that page.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the names that links can lead to."""

    def __init__(self, path: Path) -> None:
        """Read a page."""
        super().__init__()
        self.links: set[str] = set()
        self.names: set[str] = {'', 'top'}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect links and names."""
        found = {name: value for name, value in attrs if value}
        self.links |= {found[name] for name in ('href', 'src') if name in found}
        self.names |= {found[name] for name in ('id', 'name') if name in found}


def broken_links(folder: Path) -> list[str]:
    """Return what is wrong, one line for each link that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob('*.html'))}
    problems = []
    for path, page in pages.items():
        for link in sorted(page.links):
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = path
            if address.path:
                target = (path.parent / unquote(address.path)).resolve()
            if target.is_dir():
                target /= 'index.html'
            name = unquote(address.fragment)
            if not target.exists():
                problems.append(f'{path}: {link} leads to no file')
            elif target in pages and name not in pages[target].names:
                problems.append(f'{path}: {link} leads to no element of that page')
    return problems


if __name__ == '__main__':
    problems = broken_links(Path(sys.argv[1]))
    sys.exit('\n'.join(problems) or 0)
