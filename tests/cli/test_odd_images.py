"""A folder of odd images, as people have them, through the command."""

import warnings

import pytest
import torch

from tests.data.odd_images import write_odd_images
from torchgeo_explora.adapt import read_delta
from torchgeo_explora.cli import main
from torchgeo_explora.datasets import ImageFolder


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    root = tmp_path_factory.mktemp('odd') / 'images'
    return root, write_odd_images(root)


@pytest.mark.cli
def test_folder_of_odd_images_trains(odd, tmp_path, capfd, caplog):
    """Each file is trained on, left out and counted, or passed over and counted."""
    root, written = odd
    assert written.fit + written.unfit + written.passed.total() >= 300
    caplog.set_level('INFO')
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        main(
            [
                'fit',
                '--model=ExploraDinoTask',
                '--model.model=vit_tiny_patch16_224',
                '--model.weights=null',
                '--model.image_size=32',
                '--model.rank=2',
                '--model.views.local_size=16',
                '--model.views.local_views=1',
                '--model.model_args={embed_dim: 24, depth: 2, num_heads: 2}',
                '--model.objective.prototypes=32',
                '--model.objective.hidden_dim=16',
                '--model.objective.bottleneck_dim=8',
                '--data=ImageFolderDataModule',
                f'--data.root={root}',
                '--data.size=40',
                '--data.on_error=skip',
                '--data.batch_size=32',
                '--trainer.accelerator=cpu',
                '--trainer.max_epochs=1',
                '--trainer.logger=false',
                '--trainer.enable_progress_bar=false',
                f'--trainer.default_root_dir={tmp_path}',
            ]
        )
    said = ' '.join(
        [*capfd.readouterr(), caplog.text, *(str(w.message) for w in warned)]
    )
    assert 'Traceback' not in said
    listed = written.fit + written.unfit
    assert f'{written.unfit} of the {listed} samples of split' in said
    passed = ', '.join(f'{n} {kind}' for kind, n in sorted(written.passed.items()))
    assert f'passed over images in {root}: {passed}.' in said
    (delta,) = tmp_path.rglob('delta.safetensors')
    assert all(tensor.isfinite().all() for tensor in read_delta(delta)[1].values())


@pytest.mark.filterwarnings('ignore')
def test_odd_images_are_what_they_look_like(odd):
    """Three bands of 8 bits, none of them empty; what is left out is what must be."""
    root, written = odd
    dataset = ImageFolder(root, size=40, on_error='skip')
    seen = {int(dataset[i]['index']): dataset[i]['image'] for i in range(len(dataset))}
    assert len(dataset) == written.fit + written.unfit
    left = {dataset.paths[i] for i in dataset.skipped}
    fit = {path for path in dataset.paths if path not in left}
    assert (len(left), len(fit)) == (written.unfit, written.fit), sorted(left)
    for image in seen.values():
        assert image.shape == (3, 40, 40)
        assert image.max() <= 255
        assert image.amax((1, 2)).min() > 0
        assert torch.isfinite(image).all()
