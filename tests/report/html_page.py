"""What a page says, by the parser of the standard library."""

from html.parser import HTMLParser
from itertools import pairwise


class Parsed(HTMLParser):
    """Tags with their attributes, and all text outside of styles."""

    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.words = []
        self._open = []
        self.content = path.read_text(encoding='utf-8')
        self.feed(self.content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if 'style' not in self._open:
            self.words.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check(page):
    """Assert what holds for every page: it is whole, safe, and can be used by all."""
    assert len(page.content.encode()) < 5_000_000
    ids = [a['id'] for _, a in page.tags if 'id' in a]
    assert len(ids) == len(set(ids))
    known = {f'#{each}' for each in ids}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            value = value or ''
            if name in ('src', 'href', 'xlink:href', 'data', 'action', 'poster'):
                local = value in known or value.startswith('data:image/')
                assert local, f'{tag} {name}={value[:80]}'
            assert not name.startswith('on'), f'{tag} {name}'
            if 'url(' in value:
                inside = value.split('url(')[1].split(')')[0]
                assert inside in known, value
            if name in ('aria-labelledby', 'aria-describedby'):
                assert f'#{value}' in known
    assert {'script', 'iframe', 'object', 'embed', 'link'}.isdisjoint(
        tag for tag, _ in page.tags
    )
    assert '@import' not in page.content
    assert all(attributes.get('alt') for attributes in page.all('img'))
    drawings = [a for a in page.all('svg') if a.get('aria-hidden') != 'true']
    assert all(a.get('role') == 'img' and a.get('aria-label') for a in drawings)
    assert page.all('html')[0]['lang'] == 'en'
    assert len(page.all('h1')) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ('h1', 'h2', 'h3', 'h4')]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    names = {a.get('name') for a in page.all('meta')}
    assert {'viewport', 'color-scheme'} <= names
