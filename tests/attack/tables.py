"""Malformed tables of images, and indices beside them."""

import os
import shutil

from tests.attack.guard import Case, cuts, flips
from tests.attack.images import NO_IMAGES, is_image
from tests.attack.weights import contents
from torchgeo_explora.datasets import CSVDataset


def tables(whole):
    """Yield malformed CSV files, and indices beside them."""
    table = (whole / 'images/metadata.csv').read_text()
    first = table.splitlines()[1]
    rows = {
        'no path': ',0,train',
        'no label': 'train/0.png,,train',
        'no split': 'train/0.png,0,',
        'a label of text': 'train/0.png,zero,train',
        'a negative label': 'train/0.png,-1,train',
        'a huge label': f'train/0.png,{10**30},train',
        'a label of a fraction': 'train/0.png,0.5,train',
        'a label NaN': 'train/0.png,nan,train',
        'a label inf': 'train/0.png,inf,train',
        'a label of 10**9': f'train/0.png,{10**9},train',
        'a path above': '../canary/canary.txt,0,train',
        'an absolute path': '/etc/passwd,0,train',
        'a path of a URL': 'http://127.0.0.1/x.png,0,train',
        'a path of VRT': '/vsicurl/http://127.0.0.1/x.tif,0,train',
        'a path of a folder': 'train,0,train',
        'a path with a null': 'train/\0.png,0,train',
        'a long path': f'{"x" * 5000}.png,0,train',
        'a missing file': 'train/no.png,0,train',
        'a row twice': f'{first}\n{first}',
        'a column more': f'{first},1',
        'a column less': 'train/0.png',
        'an open quote': '"train/0.png,0,train',
        'a control character': 'train/\x1b[2J.png,0,train',
        'an upper path': 'TRAIN/0.png,0,train',
        'a formula': '=cmd|calc,0,train',
    }
    kinds = {name: table.replace(first, row).encode() for name, row in rows.items()}
    kinds |= {
        f'{name} in all rows': '\n'.join(['path,label,split', *[row] * 16]).encode()
        for name, row in rows.items()
    }
    kinds |= {
        'no column of paths': table.replace('path', 'file', 1).encode(),
        'no column of labels': table.replace('label', 'class', 1).encode(),
        'no column of splits': table.replace('split', 'fold', 1).encode(),
        'a column twice': table.replace('label', 'path', 1).encode(),
        'no rows': b'path,label,split\n',
        'UTF-16': table.encode('utf-16'),
        'Latin-1': table.replace('0.png', '\xe9.png').encode('latin-1'),
        'semicolons': table.replace(',', ';').encode(),
        'tabs': table.replace(',', '\t').encode(),
        'carriage returns': table.replace('\n', '\r').encode(),
        'a mark first': b'\xef\xbb\xbf' + table.encode(),
        'a long line': table.encode() + b'x' * 10_000_000,
        'nulls': bytes(1000),
    }
    kinds |= {name: found for name, found in contents() if name in NO_IMAGES}
    for name, content in kinds.items():
        yield _table_case(whole, name, 'metadata.csv', content)
    index = next(p for p in (whole / 'images').iterdir() if p.suffix == '.arrow')
    found = index.read_bytes()
    for name, content in (*cuts(found, 8), *flips(found, 24)):
        yield _table_case(whole, f'index {name}', index.name, content)


def _table_case(whole, name, file, content):
    def write(folder):
        shutil.copytree(whole / 'images', folder / 'images')
        if file.endswith('.csv'):
            for old in (folder / 'images').glob('*.arrow*'):
                old.unlink()
        (folder / 'images' / file).write_bytes(content)

    def read(folder):
        dataset = CSVDataset(folder / 'images')
        samples = [(dataset.path(i), dataset[i]) for i in range(len(dataset))]
        return folder, dataset.classes, samples

    def right(result):
        folder, classes, samples = result
        with open(folder / 'images' / 'metadata.csv', 'rb') as opened:
            text = opened.read().decode('utf-8-sig')
        listed = {
            line.split(',')[0]: line.split(',')[1:]
            for line in text.replace('\r', '\n').splitlines()[1:]
        }
        return bool(samples) and all(
            is_image(sample['image'])
            and (name := os.path.relpath(path, folder / 'images')) in listed
            and ('label' not in sample or classes[sample['label']] == listed[name][0])
            for path, sample in samples
        )

    return Case(
        'CSV tables and indices',
        name,
        write,
        read,
        right,
        (file, 'metadata.csv', 'images/'),
    )
