import matplotlib.pyplot as plt
import pytest
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import GlobalWheat
from torchgeo_explora.datasets.tables.csv_dataset import parse_boxes


@pytest.fixture
def root(fake, tmp_path):
    return fake('wilds').write_globalwheat(tmp_path)


@pytest.mark.parametrize(
    ('split', 'names', 'sessions'),
    [
        ('train', 'abcd', [3, 3, 4, 4]),
        ('val', 'ef', [20, 21]),
        ('test', 'gh', [30, 31]),
        ('id_val', 'i', [3]),
        ('id_test', 'j', [4]),
    ],
)
def test_splits(root, split, names, sessions):
    dataset = GlobalWheat(root, split)
    assert [path[-5] for path in dataset.paths] == list(names)
    assert dataset.domains.tolist() == sessions


def test_boxes(root):
    dataset = GlobalWheat(root)
    sample = dataset[0]
    assert sample['image'].shape == (3, 1024, 1024)
    assert sample['bbox_xyxy'].tolist() == [[0, 10, 50, 70], [512, 512, 1024, 768]]
    assert sample['label'].tolist() == [1, 1]
    assert dataset[1]['bbox_xyxy'].shape == (0, 4)
    assert dataset[1]['label'].shape == (0,)


def test_boxes_shrink_with_the_image(root):
    sample = GlobalWheat(root, size=256)[0]
    assert sample['image'].shape == (3, 256, 256)
    assert sample['bbox_xyxy'].tolist() == [[0, 2.5, 12.5, 17.5], [128, 128, 256, 192]]


@pytest.mark.parametrize('split', ['train', 'val', 'test', 'extra'])
def test_unlabelled_splits(root, split):
    dataset = GlobalWheat(root, f'{split}_unlabeled', size=32)
    assert len(dataset) == 2
    assert dataset[0].keys() == {'image', 'domain', 'path', 'index'}
    assert dataset.paths[1].endswith(f'images/{split}1.png')


def test_boxes_that_are_none_are_refused(root):
    path = root / 'globalwheat_v1.1/official_train.csv'
    path.write_text(path.read_text().replace('10 20 30 40', '10 20 30'))
    with pytest.raises(ValueError, match="boxes '10 20 30' must be four numbers"):
        GlobalWheat(root)


def test_parse_boxes():
    assert parse_boxes('no_box') == []
    assert parse_boxes('1 2 3 4;5 6 7 8') == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_missing_columns_and_data(root, tmp_path):
    path = root / 'globalwheat_v1.1/official_train.csv'
    path.write_text(path.read_text().replace('domain', 'session'))
    with pytest.raises(ValueError, match='lacks the columns domain'):
        GlobalWheat(root)
    with pytest.raises(DatasetNotFoundError, match=r'official_test\.csv'):
        GlobalWheat(tmp_path / 'nothing', 'test')
    with pytest.raises(ValueError, match=r'\*split\*'):
        GlobalWheat(root, 'ood')


def test_plot(root):
    dataset = GlobalWheat(root, size=64)
    assert len(dataset.plot(dataset[0]).axes[0].patches) == 2
    plt.close('all')
