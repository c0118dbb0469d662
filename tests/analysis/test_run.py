"""Files of an analysis: on images of a folder, base and delta."""

import csv

import pytest
import torch
from PIL import Image

from torchgeo_explora.adapt import Adaptation, adapt, lora
from torchgeo_explora.analysis.run import Sample, analyze
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT

TINY = {'embed_dim': 16, 'depth': 3, 'num_heads': 2}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        place = root / 'train' / ('field', 'town')[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = torch.randint(0, 255, (40, 40, 3), generator=generator)
        image = Image.fromarray(values.to(torch.uint8).numpy())
        image.save(place / f'{number}.png')
    return root


def models():
    torch.manual_seed(0)
    base = ViT('vit_tiny_patch16_224', image_size=32, **TINY)
    changed = ViT('vit_tiny_patch16_224', image_size=32, **TINY)
    changed.load_state_dict(base.state_dict())
    adapt(changed, Adaptation(unfreeze=(-1,), adapter=lora(rank=2)))
    with torch.no_grad():
        changed.blocks[-1].mlp.fc1.weight.mul_(-3)
    return base, changed


def rows(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def test_base_and_delta_give_tables_and_pictures(folder, tmp_path):
    base, changed = models()
    reports = analyze(ImageFolderDataModule(folder), tmp_path, base, changed)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        *('blocks.csv', 'changes.csv', 'curves.png', 'attention.png'),
        *('features.png', 'changes.png'),
    }
    lines = rows(tmp_path / 'blocks.csv')
    assert [line['model'] for line in lines] == ['base'] * 3 + ['adapted'] * 3
    assert float(lines[0]['class_accuracy']) == pytest.approx(
        reports['base'][0].class_accuracy, rel=1e-5
    )
    changes = rows(tmp_path / 'changes.csv')
    assert [float(line['cka']) for line in changes[:2]] == [1.0, 1.0]
    assert float(changes[2]['cka']) < 1
    assert [float(line['all']) > 0 for line in changes] == [False, False, True]
    assert float(changes[2]['mlp.fc1']) > float(changes[2]['mlp.fc2']) == 0


def test_a_base_alone_has_no_changes(folder, tmp_path):
    base, _ = models()
    analyze(ImageFolderDataModule(folder), tmp_path, base, images=4)
    assert not (tmp_path / 'changes.csv').exists()
    assert len(rows(tmp_path / 'blocks.csv')) == 3


def test_images_are_evenly_spaced(folder):
    sample = Sample(ImageFolderDataModule(folder), images=3)
    assert sorted(sample.dataset.indices) == [0, 3, 7]


def test_a_data_module_without_images_is_refused(folder):
    class Nothing:
        def prepare_data(self):
            pass

        def setup(self, stage):
            pass

    with pytest.raises(ValueError, match='no images that can be read by number'):
        Sample(Nothing())
