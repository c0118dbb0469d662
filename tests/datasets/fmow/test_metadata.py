import json
import math

import pytest

from torchgeo_explora.datasets.fmow.metadata import read_sidecar
from torchgeo_explora.datasets.tables.index_file import parse_time

OUTLINE = 'POLYGON ((10.0 50.0, 10.002 50.0, 10.002 50.004, 10.0 50.004, 10.0 50.0))'


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def box(*xywh, **more):
    return {'box': list(xywh), 'category': 'zoo', 'raw_location': OUTLINE, **more}


@pytest.mark.parametrize('as_list', [True, False])
def test_boxes_come_as_a_list_or_alone(tmp_path, as_list):
    boxes = [box(1, 2, 30, 40)] if as_list else box(1, 2, 30, 40)
    content = {'bounding_boxes': boxes, 'timestamp': '2015-07-25T07:23:14Z'}
    found = read_sidecar(write(tmp_path / 'a.json', content))
    assert found.boxes == (('zoo', (1, 2, 30, 40)),)
    assert found.timestamp == '2015-07-25T07:23:14Z'
    assert found.place == '10.001 50.002'


def test_boxes_of_two_pixels_or_less_are_skipped(tmp_path):
    boxes = [box(0, 0, 2, 9), box(0, 0, 9, 2), box(0, 0, 3, 3), box(0, 0, -5, 9)]
    found = read_sidecar(write(tmp_path / 'a.json', {'bounding_boxes': boxes}))
    assert [item.xywh for item in found.boxes] == [(0, 0, 3, 3)]


@pytest.mark.parametrize(
    'content',
    [
        {},
        {'bounding_boxes': []},
        {'bounding_boxes': None},
        {'bounding_boxes': ['x', {'box': None}, {'box': [1, 2, 3]}, {}]},
        {'bounding_boxes': 5},
        {'bounding_boxes': {'box': [0, 0, 9, 1e12]}},
        {'bounding_boxes': {'box': [0, 0, 9, float('inf')]}},
    ],
)
def test_no_boxes(tmp_path, content):
    found = read_sidecar(write(tmp_path / 'a.json', content))
    assert found[:4] == ((), '', '', '')
    assert all(map(math.isnan, found.view))


def test_box_without_a_class_or_place(tmp_path):
    content = {'bounding_boxes': {'box': [1, 2, 30, 40], 'raw_location': 'POLYGON'}}
    found = read_sidecar(write(tmp_path / 'a.json', content))
    assert found.boxes == ((None, (1, 2, 30, 40)),)
    assert found.place == ''
    content['bounding_boxes']['category'] = ['zoo']
    found = read_sidecar(write(tmp_path / 'a.json', content))
    assert found.boxes[0].category == "['zoo']"


@pytest.mark.parametrize('content', ['', '{"bounding', '[1]'])
def test_damaged_file_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r'Expecting|Unterminated|not an object'):
        read_sidecar(write(tmp_path / 'a.json', content))


def test_times_are_those_of_satmae(golden):
    arrays, config = golden('fmow_data')
    codes = [parse_time(text) for text in config['timestamps']]
    assert codes == [tuple(row) for row in arrays['out.timestamps'].tolist()]
    assert codes[0] == (13, 6, 7)


@pytest.mark.parametrize(
    ('text', 'code'),
    [
        ('2016-02-29T00:59:59.123Z', (14, 1, 0)),
        ('2016-02-29 23:00:00', (14, 1, 23)),
        ('2016-02-29', (14, 1, 0)),
        ('2015-02-29T00:00:00Z', None),
        ('', None),
        ('yesterday', None),
    ],
)
def test_times(text, code):
    assert parse_time(text) == code
