import pytest
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import IWildCam


@pytest.fixture
def root(fake, tmp_path):
    return fake('wilds').write_iwildcam(tmp_path)


@pytest.mark.parametrize(
    ('split', 'labels', 'traps'),
    [
        ('train', [0, 36, 181, 0], [7, 7, 9, 9]),
        ('id_val', [36], [7]),
        ('id_test', [0], [9]),
        ('val', [0, 36], [100, 101]),
        ('test', [181, 0], [200, 201]),
    ],
)
def test_splits(root, split, labels, traps):
    dataset = IWildCam(root, split)
    assert dataset.labels.tolist() == labels
    assert dataset.domains.tolist() == traps
    assert [int(sample['label']) for sample in dataset] == labels
    assert dataset.places == [f'camera trap {trap}' for trap in traps]


def test_photographs_are_stretched(root):
    sample = IWildCam(root, size=32)[1]
    assert sample['image'].shape == (3, 32, 32)
    assert abs(sample['image'] - 30).max() <= 1
    assert sample['path'] == str(root / 'iwildcam_v2.0/train/b.jpg')
    assert IWildCam(root, size=None)[1]['image'].shape == (3, 48, 64)


def test_unlabelled_split(root):
    dataset = IWildCam(root, 'extra_unlabeled')
    assert dataset.labels is None
    assert 'label' not in dataset[0]
    assert dataset.domains.tolist() == [300, 301, 302, 303]
    assert dataset.paths[3].endswith('iwildcam_unlabeled_v1.0/images/photo3.jpg')


def test_names_of_the_species(root):
    classes = IWildCam(root).classes
    assert len(classes) == 182
    assert (classes[0], classes[36], classes[181]) == (
        'empty',
        'aepyceros melampus',
        'zebra',
    )
    (root / 'iwildcam_v2.0/categories.csv').unlink()
    assert IWildCam(root).classes[36] == '36'


def test_missing_columns_are_named(root):
    path = root / 'iwildcam_v2.0/metadata.csv'
    path.write_text(path.read_text().replace('location_remapped', 'location'))
    with pytest.raises(ValueError, match='lacks the columns location_remapped'):
        IWildCam(root)


def test_missing_data(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'metadata\.csv'):
        IWildCam(tmp_path)


def test_wrong_split(root):
    with pytest.raises(ValueError, match=r'\*split\*'):
        IWildCam(root, 'ood')
