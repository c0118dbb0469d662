"""Write small WILDS data sets in their layouts: `python tests/data/wilds.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, level: int, size: tuple[int, int] = (96, 96)) -> None:
    """Write a picture of one colour, (W, H)."""
    pixels = np.full((size[1], size[0], 3), level, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_text(path: Path, *lines: str) -> None:
    """Write the lines of a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


#: Patches of Camelyon17: (patient, node, x, y, tumor, slide, hospital, split in file).
#: Hospital 1 validates and hospital 2 tests, whatever the file says.
CAMELYON = [
    ('004', 4, 3328, 21792, 1, 0, 0, 0),
    ('004', 4, 3200, 22272, 0, 0, 0, 0),
    ('017', 1, 100, 200, 1, 10, 1, 0),
    ('020', 2, 300, 400, 0, 20, 2, 1),
    ('020', 2, 332, 400, 1, 20, 2, 0),
    ('060', 3, 500, 600, 0, 30, 3, 1),
    ('080', 0, 700, 800, 1, 40, 4, 0),
    ('080', 0, 732, 800, 0, 40, 4, 0),
]


def write_camelyon17(root: Path) -> Path:
    """Write labelled and unlabelled patches; patch i has the colour 20 + 10 i."""
    header = 'patient,node,x_coord,y_coord,tumor,slide,center'
    for name in ('camelyon17_v1.0', 'camelyon17_unlabeled_v1.0'):
        lines = [f',{header},split' if 'unlabeled' not in name else f',{header}']
        for number, row in enumerate(CAMELYON):
            patient, node, x, y, *_ = row
            fields = row if 'unlabeled' not in name else row[:-1]
            lines.append(','.join(map(str, (number, *fields))))
            place = f'patient_{patient}_node_{node}'
            file = f'patches/{place}/patch_{place}_x_{x}_y_{y}.png'
            write_image(root / name / file, 20 + 10 * number)
        write_text(root / name / 'metadata.csv', *lines)
    return root


#: Photographs of iWildCam: (split, camera trap, label, file name).
IWILDCAM = [
    ('train', 7, 0, 'a.jpg'),
    ('train', 7, 36, 'b.jpg'),
    ('train', 9, 181, 'c.jpg'),
    ('train', 9, 0, 'd.jpg'),
    ('id_val', 7, 36, 'e.jpg'),
    ('id_test', 9, 0, 'f.jpg'),
    ('val', 100, 0, 'g.jpg'),
    ('val', 101, 36, 'h.jpg'),
    ('test', 200, 181, 'i.jpg'),
    ('test', 201, 0, 'j.jpg'),
]


def write_iwildcam(root: Path) -> Path:
    """Write photographs of 64 x 48 pixels; number i has the colour 20 + 10 i."""
    folder = root / 'iwildcam_v2.0'
    lines = ['split,location_remapped,sequence_remapped,datetime,y,filename']
    for number, (split, trap, label, name) in enumerate(IWILDCAM):
        lines.append(f'{split},{trap},{number},2013-01-01 10:00:00.000,{label},{name}')
        write_image(folder / 'train' / name, 20 + 10 * number, (64, 48))
    write_text(folder / 'metadata.csv', *lines)
    write_text(
        folder / 'categories.csv',
        'y,category_id,name,number',
        '0,0,empty,4',
        '36,2,aepyceros melampus,3',
        '99999,3,none of the data set,1',
        '181,500,zebra,2',
    )
    folder = root / 'iwildcam_unlabeled_v1.0'
    lines = ['location_remapped,uid,y,datetime']
    for number in range(4):
        lines.append(f'{300 + number},photo{number},-1,')
        write_image(folder / 'images' / f'photo{number}.jpg', 50 + number, (64, 48))
    write_text(folder / 'metadata.csv', *lines)
    return root


#: Photographs of GlobalWheat by split: (name, boxes, session).
GLOBALWHEAT = {
    'official_train': [
        ('a.png', '0 10 50 70;512 512 1024 768', 3),
        ('b.png', 'no_box', 3),
        ('c.png', '10 20 30 40', 4),
        ('d.png', '1 2 3 4', 4),
    ],
    'official_val': [('e.png', '5 6 7 8', 20), ('f.png', '5 6 7 8;9 9 99 99', 21)],
    'official_test': [('g.png', '5 6 7 8', 30), ('h.png', 'no_box', 31)],
    'fixed_train_val': [('i.png', '5 6 7 8', 3)],
    'fixed_train_test': [('j.png', '5 6 7 8', 4)],
}


def write_globalwheat(root: Path) -> Path:
    """Write photographs with boxes, and four splits without."""
    folder = root / 'globalwheat_v1.1'
    for split, rows in GLOBALWHEAT.items():
        lines = ['image_name,BoxesString,domain']
        for name, boxes, session in rows:
            lines.append(f'{name},{boxes},{session}')
            write_image(folder / 'images' / name, 90, (1024, 1024))
        write_text(folder / f'{split}.csv', *lines)
    folder = root / 'globalwheat_unlabeled_v1.0'
    for number, split in enumerate(('train', 'val', 'test', 'extra')):
        lines = ['image_name,domain']
        for photo in range(2):
            lines.append(f'{split}{photo}.png,{50 + number}')
            write_image(folder / 'images' / f'{split}{photo}.png', 90, (1024, 1024))
        write_text(folder / f'official_{split}_unlabeled.csv', *lines)
    return root


if __name__ == '__main__':
    for write in (write_camelyon17, write_iwildcam, write_globalwheat):
        write(Path(sys.argv[1]))
