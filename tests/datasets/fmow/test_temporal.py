import json

import matplotlib.pyplot as plt
import pytest
import torch
from torch.testing import assert_close
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import FMoWRGB, FMoWTemporal
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError


@pytest.fixture
def root(fake, tmp_path):
    return fake('fmow').write_fmow(tmp_path)


def code(text):
    """Year - 2002, month - 1 and hour by hand."""
    return [int(text[:4]) - 2002, int(text[5:7]) - 1, int(text[11:13])]


def test_one_series_an_image(fake, root):
    dataset = FMoWTemporal(root, size=32)
    assert dataset.labels.tolist() == [0, 0, 0, 6, 6, 6, 6, 61]
    sample = dataset[0]
    assert sample.keys() > {'image', 'timestamps', 'label', 'path', 'index'}
    assert sample['image'].shape == (3, 3, 32, 32)
    assert sample['timestamps'].dtype == torch.float32
    assert [int(s['label']) for s in dataset] == dataset.labels.tolist()


def test_series_are_sorted_by_time_and_keep_their_pixels(fake, root):
    """Place barn_0 has images of 2009, 2011, 2010 and 2012, each of its own colour."""
    times = fake('fmow').PLACES['train']['barn', 0]
    dataset = FMoWTemporal(root, size=32)
    single = FMoWRGB(root, size=32)
    for index in range(3, 7):
        members = dataset.series(index)
        sample = dataset[index]
        assert len(set(members)) == 3
        assert index in members
        assert sample['path'] == single.paths[index]
        texts = [times[i - 3] for i in members]
        assert texts == sorted(texts)
        assert sample['timestamps'].tolist() == [code(text) for text in texts]
        for image, member in zip(sample['image'], members, strict=True):
            assert torch.equal(image, single[member]['image'])


def test_images_of_other_places_and_splits_stay_out(root):
    """Two airports in train; barn_0 and zoo_0 have the same numbers in val."""
    train, val = FMoWTemporal(root, size=32), FMoWTemporal(root, 'val', size=32)
    assert {frozenset(train.series(i)) for i in range(8)} > {
        frozenset({0, 1}),
        frozenset({2}),
        frozenset({7}),
    }
    assert [set(val.series(i)) for i in range(4)] == [{0, 1}, {0, 1}, {2, 3}, {2, 3}]


def test_places_with_few_images_repeat_theirs(fake, root):
    dataset = FMoWTemporal(root, size=32)
    # The images of airport_0 are of 2015 and 2002: sorted, the last drawn repeats.
    assert dataset.series(0) == [1, 1, 0]
    assert dataset.series(1) == [1, 0, 0]
    assert dataset[0]['timestamps'].tolist() == [[0, 0, 0], [0, 0, 0], [13, 6, 7]]
    assert dataset.series(2) == [2, 2, 2]
    assert FMoWTemporal(root, times=1, size=32).series(3) == [3]
    assert FMoWTemporal(root, times=5, size=32)[3]['image'].shape[0] == 5


def test_drawn_order_starts_with_the_sample(root):
    dataset = FMoWTemporal(root, size=32, order='drawn')
    for index in range(8):
        assert dataset.series(index)[0] == index
    assert dataset.series(0) == [0, 1, 1]


def test_others_depend_on_seed_and_index_alone(root):
    def draw(seed):
        dataset = FMoWTemporal(root, size=32, seed=seed)
        return [dataset.series(i) for i in range(3, 7)]

    torch.manual_seed(0)
    first = draw(0)
    torch.manual_seed(1)
    assert draw(0) == first
    assert len({str(draw(seed)) for seed in range(20)}) > 3


def test_without_a_seed_every_visit_draws_anew(root):
    dataset = FMoWTemporal(root, size=32, seed=None)
    torch.manual_seed(0)
    draws = {str(dataset.series(3)) for _ in range(100)}
    # Two of three others.
    assert len(draws) == 3


def test_csv_file_gives_the_same_series(fake, root):
    csv = fake('fmow').write_csv(root)
    lines = csv.read_text().splitlines()
    # Places are found whatever the order of the rows.
    csv.write_text('\n'.join([lines[0], *lines[:0:-1]]) + '\n')
    dataset = FMoWTemporal(root, size=32, csv=csv)
    assert dataset.labels.tolist() == [61, 6, 6, 6, 6, 0, 0, 0]
    assert set(dataset.series(6)) == {6, 7}
    assert dataset[6]['timestamps'].tolist()[0] == [0, 0, 0]


def test_times_come_from_the_metadata(fake, root):
    """And from the CSV file where there is no metadata."""
    csv = fake('fmow').write_csv(root)
    csv.write_text(csv.read_text().replace('2015-07-25T07', '2014-07-25T07'))
    with pytest.warns(UserWarning, match='1 times that disagree'):
        dataset = FMoWTemporal(root, size=32, csv=csv)
    assert dataset[0]['timestamps'].tolist()[-1] == [13, 6, 7]
    for path in root.rglob('*.json'):
        path.unlink()
    (root / '.train_62classes.csv.arrow').unlink()
    dataset = FMoWTemporal(root, size=32, crop='image', csv=csv)
    assert dataset[0]['timestamps'].tolist()[-1] == [12, 6, 7]


def test_images_without_a_time_are_counted(root):
    path = root / 'train/barn/barn_0/barn_0_1_rgb.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {'timestamp': 'unknown'}))
    with pytest.raises(FileNotFoundError, match='1 images without a time'):
        FMoWTemporal(root, size=32)
    with pytest.warns(UserWarning, match='1 images without a time'):
        dataset = FMoWTemporal(root, size=32, max_missing=0.2)
    assert len(dataset) == 7
    assert all(4 not in dataset.series(i) for i in range(7))


@pytest.mark.filterwarnings('ignore:the series')
def test_no_times_at_all(root):
    for path in root.rglob('*.json'):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {'timestamp': None}))
    with pytest.raises(DatasetNotFoundError, match='no image with a time'):
        FMoWTemporal(root, size=32, max_missing=1)


def test_legacy_sampling_is_satmaes(fake, root):
    """The fake images are 60 x 40: all are wider than high, so none is repeated."""
    dataset = FMoWTemporal(root, size=32, crop='image', legacy_sampling=True)
    torch.manual_seed(0)
    assert dataset.series(0) == [0, 1, 1]
    assert dataset.series(2) == [2, 2, 2]
    seen = {str(dataset.series(3)) for _ in range(100)}
    assert len(seen) == 6
    sample = dataset[0]
    assert sample['image'].shape == (3, 3, 32, 32)
    assert sample['timestamps'].tolist() == [[13, 6, 7], [0, 0, 0], [0, 0, 0]]
    assert not torch.equal(sample['image'][0], sample['image'][1])
    # Squares trigger SatMAE's fallback: one image three times, under three times.
    for path in root.rglob('airport_0_*.json'):
        content = json.loads(path.read_text())
        # Padded by int(38 * 0.15 / 2) = 2 to the right: 40 x 40.
        box = {'category': 'airport', 'box': [0, 0, 38, 40]}
        path.write_text(json.dumps(content | {'bounding_boxes': box}))
    (root / '.fmow_train_rgb.arrow').unlink()
    sample = FMoWTemporal(root, size=32, crop='box', legacy_sampling=True)[0]
    assert torch.equal(sample['image'][0], sample['image'][1])
    assert sample['timestamps'].tolist()[1] == [0, 0, 0]


def test_boxes_of_a_place_show_the_same_ground(fake, root):
    """Images of one place at two scales: the crops agree."""
    place = root / 'train/zoo/zoo_5'
    outline = fake('fmow').polygon('train', 'zoo', 5)
    for image, factor in enumerate((1, 2)):
        path = place / f'zoo_5_{image}_rgb.jpg'
        fake('fmow').write_image(
            path,
            'zoo',
            0,
            f'201{image}-01-01T00:00:00Z',
            outline,
            size=(60 * factor, 40 * factor),
        )
    content = json.loads((place / 'zoo_5_1_rgb.json').read_text())
    box = {'category': 'zoo', 'box': [40, 20, 32, 24]}
    path = place / 'zoo_5_1_rgb.json'
    path.write_text(json.dumps(content | {'bounding_boxes': box}))
    dataset = FMoWTemporal(root, size=28)
    boxes = [FMoWRGB(root, size=28)[i]['bbox_xyxy'] for i in (8, 9)]
    assert dataset.series(8) == [8, 9, 9]
    # To the rounding of the padding.
    assert_close(boxes[0], boxes[1], atol=1, rtol=0)


def test_unreadable_image_skips_its_series(root):
    dataset = FMoWTemporal(root, size=32, on_error='skip')
    path = root / 'train/airport/airport_1/airport_1_0_rgb.jpg'
    path.write_bytes(b'')
    with pytest.warns(UserWarning, match=r'skipped sample 2: .*airport_1_0_rgb'):
        assert dataset[2]['index'] == 3
    with pytest.raises(UnreadableImageError, match='airport_1_0_rgb'):
        FMoWTemporal(root, size=32)[2]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'order': 'none'}, r'\*order\*'),
        ({'times': 0}, r'\*times\* must be 1 or more'),
        ({'times': 2, 'legacy_sampling': True}, r'takes 3 \*times\*, not 2'),
        ({'on_error': 'no'}, r'\*on_error\*'),
    ],
)
def test_wrong_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        FMoWTemporal(root, **arguments)


def test_plot(root):
    dataset = FMoWTemporal(root, size=32)
    figure = dataset.plot(dataset[0])
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == 'Label: airport'
    plt.close('all')
