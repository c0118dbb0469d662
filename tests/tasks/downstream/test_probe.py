"""Linear probing: the grid, the protocols, the cache and the command."""

import csv

import pytest
import torch
from lightning.pytorch import Trainer

from tests.tasks.small_runs import VIT, command, images, stopped_at, write_config
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import GroupChannelViT
from torchgeo_explora.tasks import ExploraLinearProbeTask

pytestmark = pytest.mark.filterwarnings('ignore')

PROBE = {'num_classes': 2, 'grid': [0.1, 1.0], 'blocks': [1, 4]}


@pytest.fixture(scope='module')
def splits(folder, tmp_path_factory):
    """Training, validation and test folders."""
    root = tmp_path_factory.mktemp('splits')
    for split, source in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        (root / split).symlink_to(folder / source)
    (root / 'predict').symlink_to(folder / 'predict')
    return root


def make(**arguments):
    torch.manual_seed(0)
    return ExploraLinearProbeTask(**{**VIT, **PROBE, **arguments})


def trainer(place, epochs=2, **arguments):
    return Trainer(
        accelerator='cpu',
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=place,
        **arguments,
    )


def module(splits):
    return ImageFolderDataModule(splits, batch_size=8)


@pytest.mark.cli
def test_probe_learns_and_the_backbone_stays(splits, tmp_path):
    task = make()
    before = {k: v.clone() for k, v in task.backbone.state_dict().items()}
    run = trainer(tmp_path, epochs=6)
    run.fit(task, module(splits))
    assert run.callback_metrics['val_paper'] > 0.9
    assert not task.backbone.training
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_both_protocols_are_reported(splits, tmp_path):
    task = make()
    run = trainer(tmp_path)
    run.fit(task, module(splits))
    # The first one was best in validation, as far as this run knows.
    task.selection.validated = [1.0] + [0.5] * 7
    task.heads.heads[task.heads.settings[0].name].bias.data = torch.tensor([99.0, 0])
    (metrics,) = run.test(task, module(splits), verbose=False)
    assert metrics['test_held_out'] == 0.5
    assert metrics['test_paper'] > 0.5
    with (tmp_path / 'probe.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[0] == {
        'blocks': '1',
        'average': 'False',
        'base_lr': '0.1',
        'val_accuracy': '1.0',
        'test_accuracy': '0.5',
    }


def test_test_without_validation_reports_no_held_out_figure(splits, tmp_path):
    with pytest.warns(UserWarning, match='no held_out figure'):
        (metrics,) = trainer(tmp_path).test(make(), module(splits), verbose=False)
    assert set(metrics) == {'test_paper'}


def test_cached_features_give_the_accuracies_of_whole_images(splits, tmp_path):
    arguments = {'augmentations': None, 'cache': str(tmp_path / 'cache')}
    cached = make(**arguments)
    (first,) = trainer(tmp_path).validate(cached, module(splits), verbose=False)
    (plain,) = trainer(tmp_path).validate(make(), module(splits), verbose=False)
    assert first == plain
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').iterdir()}
    assert len(files) == 2
    trainer(tmp_path).validate(cached, module(splits), verbose=False)
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.cli
def test_cache_trains_without_the_backbone(splits, tmp_path, monkeypatch):
    cache = str(tmp_path / 'cache')
    trainer(tmp_path).fit(make(cache=cache), module(splits))
    task = make(cache=cache)

    def fail(*arguments, **metadata):
        raise AssertionError('the backbone was used')

    monkeypatch.setattr(task.backbone, 'features', fail)
    run = trainer(tmp_path, epochs=6)
    run.fit(task, module(splits))
    assert run.callback_metrics['val_paper'] > 0.9


def test_cache_serves_every_stage_and_the_next_backbone(splits, tmp_path):
    """One data module for fit, validation and test, and then for another model."""
    data, cache = module(splits), str(tmp_path / 'cache')
    first = make(cache=cache)
    run = trainer(tmp_path)
    run.fit(first, data)
    run.validate(first, data, verbose=False)
    (metrics,) = run.test(first, data, verbose=False)
    assert set(metrics) == {'test_paper', 'test_held_out'}
    torch.manual_seed(1)
    other = ExploraLinearProbeTask(**{**VIT, **PROBE, 'cache': cache})
    run.fit(other, data)
    image = torch.stack([sample['image'] for sample in data.train_dataset.source])
    with torch.no_grad():
        expected = other._cacheable({'image': image[:4]})
    found = torch.from_numpy(data.train_dataset.features[:4])
    torch.testing.assert_close(found, expected)


def test_cache_of_another_precision_is_another_file(splits, tmp_path):
    cache, found = tmp_path / 'cache', []
    for precision in ('32-true', 'bf16-mixed'):
        data = module(splits)
        run = trainer(tmp_path, precision=precision)
        run.validate(make(cache=str(cache)), data, verbose=False)
        found.append(data.val_dataset.features)
    assert len(list(cache.glob('val-*.labels.npy'))) == 2
    assert 1e-5 < abs(found[0] - found[1]).max() < 0.1


def test_cache_of_other_weights_is_another_file(splits, tmp_path):
    cache = tmp_path / 'cache'
    for seed in (0, 1):
        torch.manual_seed(seed)
        task = ExploraLinearProbeTask(**{**VIT, **PROBE, 'cache': str(cache)})
        trainer(tmp_path).validate(task, module(splits), verbose=False)
    assert len(list(cache.glob('val-*.labels.npy'))) == 2


def test_cache_of_weights_changed_in_place_or_of_other_tokens_is_another_file(
    splits, tmp_path
):
    cache = tmp_path / 'cache'
    for change, pooling in ((0, 'cls'), (1, 'cls'), (1, 'mean'), (1, 'both')):
        torch.manual_seed(0)
        task = ExploraLinearProbeTask(
            **{**VIT, **PROBE, 'cache': str(cache), 'pooling': pooling}
        )
        task.backbone.norm.weight.data[0] += change
        trainer(tmp_path).validate(task, module(splits), verbose=False)
    assert len(list(cache.glob('val-*.labels.npy'))) == 4


def test_cache_of_other_bands_is_another_file(splits, tmp_path):
    cache, small = tmp_path / 'cache', {'embed_dim': 32, 'depth': 4, 'num_heads': 2}
    state = None
    for bands in (['R', 'G', 'B'], ['B', 'G', 'R']):
        backbone = GroupChannelViT(
            bands, [bands], image_size=32, channel_embed_dim=16, **small
        )
        state = state or backbone.state_dict()
        backbone.load_state_dict(state)
        task = ExploraLinearProbeTask(2, model=backbone, weights=None, cache=str(cache))
        data = ImageFolderDataModule(splits, batch_size=8, band_names=['R', 'G', 'B'])
        trainer(tmp_path).validate(task, data, verbose=False)
    assert len(list(cache.glob('val-*.labels.npy'))) == 2


def test_more_classes_than_outputs_are_an_error(splits, tmp_path):
    with pytest.raises(ValueError, match=r'labels hold \[1\], expected 0 to 0'):
        trainer(tmp_path).fit(make(num_classes=1), module(splits))


@pytest.mark.cli
def test_command_fits_resumes_tests_and_predicts(splits, tmp_path):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    saved = []
    for place in (whole, cut):
        place.mkdir()
        config = write_config(place, 'ExploraLinearProbeTask', PROBE, images(splits))
        if place == cut:
            with stopped_at(ExploraLinearProbeTask, step=5):
                command('fit', config)
            command('fit', config, cut / 'last.ckpt')
        else:
            command('fit', config)
        saved.append(torch.load(place / 'last.ckpt', weights_only=True))
    for name, value in saved[0]['state_dict'].items():
        assert name.startswith('heads.')
        assert torch.equal(value, saved[1]['state_dict'][name]), name
    for name in ('validate', 'test', 'predict'):
        command(name, config, cut / 'last.ckpt')
    assert (cut / 'predictions.parquet').exists()
