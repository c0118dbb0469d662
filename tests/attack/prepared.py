"""Malformed prepared data: manifests, indices and shards."""

import json
import shutil

import numpy as np
import torch

from tests.attack.guard import Case, command, cuts, flips, some
from tests.attack.images import NO_IMAGES
from tests.attack.weights import contents
from torchgeo_explora.datasets import Prepared
from torchgeo_explora.datasets.prepared.manifest import seal

#: Values that no field of a JSON file expects.
JSON_VALUES = (
    None,
    True,
    -1,
    1.5,
    10**30,
    '',
    'x' * 100_000,
    '\x1b[2J',
    [],
    {},
    [[1]],
    '../../canary/canary.txt',
    'canary/canary.txt; touch canary/ran',
)


def prepared(whole):
    """Yield malformed manifests, indices and shards."""
    manifest = json.loads((whole / 'prepared/manifest.json').read_text())
    files = {
        p.name: p.read_bytes() for p in (whole / 'prepared').iterdir() if p.is_file()
    }
    for name, content in contents():
        if name in NO_IMAGES or 'list' in name:
            for file in files:
                yield _prepared_case(whole, f'{file}: {name}', file, content)
    for file, content in files.items():
        for name, bad in (*cuts(content, 5), *flips(content, 12)):
            yield _prepared_case(whole, f'{file} {name}', file, bad)
    places = [(manifest, key) for key in manifest]
    places += [(manifest['index'], key) for key in manifest['index']]
    places += [(manifest['shards'][0], key) for key in manifest['shards'][0]]
    places += [(manifest['attributes'], key) for key in manifest['attributes']]
    for number, (place, key) in enumerate(places):
        old = place[key]
        for value in some(JSON_VALUES, number, 5):
            place[key] = value
            # With a seal that fits, as an attacker can do.
            text = json.dumps({**manifest, 'sha256': seal(manifest)}).encode()
            yield _prepared_case(
                whole, f'{key} is {str(value)[:20]!r}', 'manifest.json', text
            )
        del place[key]
        text = json.dumps(manifest).encode()
        yield _prepared_case(whole, f'no {key}', 'manifest.json', text)
        place[key] = old


def _prepared_case(whole, name, file, content):
    def write(folder):
        shutil.copytree(whole / 'prepared', folder / 'prepared')
        (folder / 'prepared' / file).write_bytes(content)

    def read(folder):
        dataset = Prepared(folder / 'prepared')
        samples = [dataset[i] for i in range(len(dataset))]
        command('verify', folder / 'prepared')
        return samples, dataset

    def right(result):
        # Notes may be changed; samples may not.
        samples, dataset = result
        expected = Prepared(whole / 'prepared')
        equal = len(samples) == len(expected) and all(
            torch.equal(found['image'], expected[i]['image'])
            for i, found in enumerate(samples)
        )
        return equal and _plain_attributes(dataset)

    return Case('prepared data', name, write, read, right, ('prepared', file))


def _plain_attributes(dataset):
    low, high = getattr(dataset, 'value_range', (0.0, 255.0))
    bands = getattr(dataset, 'bands', None) or ()
    return np.all(np.less(low, high)) and all(isinstance(band, str) for band in bands)
