import pickle

import matplotlib.pyplot as plt
import pytest
import torch
from torchgeo.datasets import DatasetNotFoundError

from torchgeo_explora.datasets import Camelyon17
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError


@pytest.fixture
def root(fake, tmp_path):
    return fake('wilds').write_camelyon17(tmp_path)


@pytest.mark.parametrize(
    ('split', 'rows', 'hospitals'),
    [
        ('train', [0, 1, 6, 7], [0, 0, 4, 4]),
        ('id_val', [5], [3]),
        ('val', [2], [1]),
        ('test', [3, 4], [2, 2]),
    ],
)
def test_hospitals_that_are_held_out(fake, root, split, rows, hospitals):
    dataset = Camelyon17(root, split)
    truth = fake('wilds').CAMELYON
    assert dataset.labels.tolist() == [truth[row][4] for row in rows]
    assert dataset.domains.tolist() == hospitals
    for sample, row, hospital in zip(dataset, rows, hospitals, strict=True):
        assert (sample['image'] == 20 + 10 * row).all()
        assert sample['image'].shape == (3, 96, 96)
        assert sample['label'] == truth[row][4]
        assert sample['domain'] == hospital


@pytest.mark.parametrize(
    ('split', 'rows'),
    [
        ('train_unlabeled', [0, 1, 5, 6, 7]),
        ('val_unlabeled', [2]),
        ('test_unlabeled', [3, 4]),
    ],
)
def test_unlabelled_splits(root, split, rows):
    dataset = Camelyon17(root, split)
    assert dataset.labels is None
    assert dataset[0].keys() == {'image', 'domain', 'path', 'index'}
    levels = [int(sample['image'][0, 0, 0]) for sample in dataset]
    assert levels == [20 + 10 * row for row in rows]


def test_names_of_files_keep_their_zeros(root):
    name = 'patches/patient_004_node_4/patch_patient_004_node_4_x_3328_y_21792.png'
    assert Camelyon17(root).paths[0] == str(root / 'camelyon17_v1.0' / name)
    assert Camelyon17(root).places[0] == 'patient_004_node_4'


def test_newest_version_is_read(root):
    """Versions lie beside one another; half-unpacked folders do not count."""
    newest = root / 'camelyon17_v1.0'
    for name in ('camelyon17_v0.9', 'camelyon17_v1.1.part'):
        (root / name).mkdir()
        text = (newest / 'metadata.csv').read_text().splitlines()[:1]
        (root / name / 'metadata.csv').write_text('\n'.join(text))
    assert all(path.startswith(str(newest)) for path in Camelyon17(root).paths)


def test_root_may_be_the_folder_itself(root):
    assert len(Camelyon17(root / 'camelyon17_v1.0')) == 4


def test_size(root):
    assert Camelyon17(root, size=32)[0]['image'].shape == (3, 32, 32)


def test_missing_data_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r'metadata\.csv.*wilds\.stanford'):
        Camelyon17(tmp_path)


def test_missing_columns_are_named(root):
    path = root / 'camelyon17_v1.0/metadata.csv'
    path.write_text(path.read_text().replace('tumor', 'cancer'))
    with pytest.raises(ValueError, match=r'lacks the columns tumor: .*cancer, slide'):
        Camelyon17(root)


def test_absent_files_are_counted(root):
    folder = root / 'camelyon17_v1.0'
    next(folder.rglob('*node_4_x_3328*')).unlink()
    with pytest.raises(FileNotFoundError, match=r'8 samples, of which 1 .*absent'):
        Camelyon17(root)
    with pytest.warns(UserWarning, match='1 absent images'):
        assert len(Camelyon17(root, max_missing=0.2)) == 3
    assert (folder / '.metadata.csv.arrow.report.csv').exists()


def test_data_completed_after_an_error_are_found(root):
    patch = next((root / 'camelyon17_v1.0').rglob('*node_4_x_3328*'))
    away = patch.rename(root / 'away.png')
    with pytest.raises(FileNotFoundError, match='absent'):
        Camelyon17(root)
    away.rename(patch)
    assert len(Camelyon17(root)) == 4


def test_splits_share_a_folder_of_indices(root, tmp_path):
    labelled = Camelyon17(root, index_dir=tmp_path / 'indices')
    expected = labelled.paths
    assert len(Camelyon17(root, 'train_unlabeled', index_dir=tmp_path / 'indices')) == 5
    # A spawned worker opens the file itself.
    assert pickle.loads(pickle.dumps(labelled)).paths == expected


@pytest.mark.filterwarnings('ignore:skipped sample')
def test_unreadable_patch_is_named_or_skipped(root):
    path = next((root / 'camelyon17_v1.0').rglob('*node_4_x_3328*'))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnreadableImageError, match='x_3328'):
        Camelyon17(root)[0]
    assert Camelyon17(root, on_error='skip')[0]['index'] == 1


def test_empty_split(root):
    path = root / 'camelyon17_v1.0/metadata.csv'
    path.write_text('\n'.join(path.read_text().splitlines()[:3]))
    with pytest.raises(DatasetNotFoundError, match=r"split 'test' of .* has no sample"):
        Camelyon17(root, 'test')


def test_wrong_size(root):
    with pytest.raises(ValueError, match=r'\*size\* must be a positive'):
        Camelyon17(root, size=0)


def test_wrong_split(root):
    with pytest.raises(ValueError, match=r"\*split\* must be one of .*, not 'ood'"):
        Camelyon17(root, 'ood')


def test_plot(root):
    dataset = Camelyon17(root)
    sample = dataset[0] | {'prediction': torch.tensor(0)}
    title = dataset.plot(sample).axes[0].get_title()
    assert title == 'Label: tumor\nPrediction: normal'
    plt.close('all')
