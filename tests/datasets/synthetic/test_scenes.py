import pickle

import pytest
import torch

from torchgeo_explora.datasets import SyntheticScenes
from torchgeo_explora.datasets.pixels import sentinel2


@pytest.fixture(scope='module')
def scenes():
    return {
        (domain, split): SyntheticScenes(domain, split, length=300)
        for domain in ('source', 'target')
        for split in ('train', 'val')
    }


def test_samples_are_sensor_values_with_balanced_labels(scenes):
    dataset = scenes['source', 'train']
    sample = dataset[13]
    assert sample['image'].dtype == torch.float32
    assert sample['image'].shape == (3, 64, 64)
    assert sample['image'].max() > 1
    assert sample['label'].dtype == torch.long
    assert dataset.classes[sample['label']] == 'highway'
    assert dataset.classes == sorted(dataset.classes)
    labels = torch.stack([sample['label'] for sample in dataset])
    assert labels.bincount().tolist() == [30] * 10
    assert dataset.bands == ('B04', 'B03', 'B02')
    assert dataset.value_range == (0.0, 255.0)
    with pytest.raises(IndexError):
        dataset[300]


def test_a_scene_depends_on_seed_domain_split_and_index_alone(scenes):
    expected = scenes['source', 'train'].images
    torch.manual_seed(1)
    torch.testing.assert_close(
        SyntheticScenes(length=107).images, expected[:107], atol=0, rtol=0
    )
    others = [
        scenes['source', 'val'].images[:100],
        scenes['target', 'train'].images[:100],
        SyntheticScenes(length=100, seed=1).images,
        expected[100:200],
    ]
    for other in others:
        different = (other != expected[:100]).flatten(1).float().mean(1)
        assert (different > 0.3).all()


def test_drawing_leaves_global_state_alone():
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    SyntheticScenes(length=10, size=16)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_all_bands_show_the_same_land_as_rgb(scenes):
    dataset = SyntheticScenes(bands='s2', length=100)
    assert dataset.bands == sentinel2.BANDS
    assert dataset[0]['image'].shape == (13, 64, 64)
    red = dataset.images[:, sentinel2.BANDS.index('B04')].float().flatten(1)
    picture = scenes['source', 'train'].images[:100, 0].float().flatten(1)
    for index in (0, 3, 4, 7, 8):
        pair = torch.stack([red[index], picture[index]])
        assert torch.corrcoef(pair)[0, 1] > 0.85


def test_spectra_are_plausible():
    dataset = SyntheticScenes(bands='s2', length=200)
    mean = dataset.images.float().mean((2, 3)).view(20, 10, 13).mean(0)
    rows = dict(zip(dataset.classes, mean, strict=True))
    bands = {name: i for i, name in enumerate(dataset.bands)}

    def index(row, first, second):
        return (row[bands[first]] - row[bands[second]]) / (
            row[bands[first]] + row[bands[second]]
        )

    vegetation = {name: index(row, 'B08', 'B04') for name, row in rows.items()}
    assert vegetation['forest'] > 0.5
    assert vegetation['pasture'] > vegetation['residential'] > 0
    assert vegetation['bare_land'] < 0.25
    assert index(rows['water'], 'B03', 'B08') > 0
    assert index(rows['bare_land'], 'B11', 'B08') > 0
    whole = mean.mean(0)
    assert whole[bands['B10']] < 40
    assert whole[bands['B09']] < whole[bands['B8A']] / 2
    # Of the size of real Level-1C data.
    for band in dataset.bands:
        assert 0.4 < whole[bands[band]] / sentinel2.MEAN[band] < 2.5


def neighbours(bank, queries):
    mean, deviation = bank.mean(0), bank.std(0)
    bank, queries = (bank - mean) / deviation, (queries - mean) / deviation
    return torch.cdist(queries, bank).topk(10, largest=False).indices


@pytest.mark.parametrize(
    # The target's exposure and white balance change from scene to scene.
    ('domain', 'least', 'most'),
    [('source', 0.3, 0.65), ('target', 0.1, 0.3)],
)
def test_mean_colour_tells_few_classes_apart(scenes, domain, least, most):
    bank, queries = (
        scenes[domain, split].images.float().mean((2, 3)) for split in ('train', 'val')
    )
    labels = torch.arange(300) % 10
    found = labels[neighbours(bank, queries)].mode(1).values
    assert least < (found == labels).float().mean() < most


def test_domains_look_different(scenes):
    source, target = (
        scenes[domain, 'train'].images.float() for domain in ('source', 'target')
    )
    warmth = [(images[:, 0] - images[:, 2]).mean() for images in (source, target)]
    assert warmth[1] - warmth[0] > 10
    steps = [
        ((x := images[1::10]) - x.roll(1, -1))[..., 1:].abs().mean() / x.std()
        for images in (source, target)
    ]
    assert steps[1] > steps[0]


@pytest.mark.parametrize('size', [8, 33, 96])
def test_any_size_is_drawn(size):
    dataset = SyntheticScenes(size=size, length=3)
    assert dataset[2]['image'].shape == (3, size, size)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'domain': 'moon'}, r"\*domain\* must be one of \('source', 'target'\)"),
        ({'bands': 'all'}, r"\*bands\* must be one of \('rgb', 's2'\), not 'all'"),
        ({'length': 0}, r'\*length\* at least 1, not 64 and 0'),
        ({'size': 4}, r'\*size\* must be at least 8'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticScenes(**arguments)


def test_dataset_survives_pickling_and_transforms(scenes):
    dataset = pickle.loads(pickle.dumps(scenes['source', 'val']))
    torch.testing.assert_close(dataset[7], scenes['source', 'val'][7])
    halved = SyntheticScenes(length=1, transforms=lambda s: s['image'] / 2)
    assert halved[0].shape == (3, 64, 64)


@pytest.mark.parametrize('bands', ['rgb', 's2'])
def test_plot_shows_the_class(bands):
    dataset = SyntheticScenes(bands=bands, length=2, size=16)
    sample = dataset[1]
    figure = dataset.plot({**sample, 'prediction': torch.tensor(9)}, suptitle='one')
    assert figure.axes[0].images[0].get_array().shape == (16, 16, 3)
    assert figure.axes[0].get_title() == 'Label: bare_land\nPrediction: water'
