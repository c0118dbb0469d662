"""What stands for an image: the class token, the mean patch token, or both."""

import json
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.testing import assert_close

from tests.tasks.small_runs import VIT
from torchgeo_explora.adapt import Adaptation, adapt, save_delta
from torchgeo_explora.callbacks import OnlineKNN
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.models.backbones.tokens import Features
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraDinoTask,
    ExploraKNNTask,
    ExploraLinearProbeTask,
    ExploraMAETask,
)
from torchgeo_explora.tasks.downstream.recorded import recorded, warn_of_differences
from torchgeo_explora.tasks.run.raw_images import RawImages

SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
BATCH = {'image': 255 * torch.rand(3, 3, 32, 32)}


def test_both_is_one_after_the_other():
    features = Features(torch.ones(2, 3), torch.arange(24.0).view(2, 4, 3))
    mean = torch.tensor([[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]])
    assert_close(features.pooled('cls'), torch.ones(2, 3))
    assert_close(features.pooled('mean'), mean)
    assert_close(features.pooled('both'), torch.cat([torch.ones(2, 3), mean], 1))
    with pytest.raises(ValueError, match=r"\*pooling\* is 'max': choose from"):
        features.pooled('max')


def test_a_backbone_hands_out_its_default():
    """The mean where the base was trained by masked autoencoding."""
    small = {'image_size': 32, **SMALL}
    assert ViT('vit_base_patch16_224.mae', **small).pooling == 'mean'
    assert ViT('vit_base_patch14_dinov2', patch_size=8, **small).pooling == 'cls'
    groups = GroupChannelViT(['a'], [['a']], channel_embed_dim=8, **small)
    assert groups.pooling == 'mean'
    assert TemporalViT(time_embed_dim=12, **small).pooling == 'mean'


@pytest.mark.parametrize(
    ('kind', 'expected'), [(ExploraMAETask, 'mean'), (ExploraDinoTask, 'cls')]
)
def test_a_method_embeds_by_what_it_trains(kind, expected):
    objective = {'objective': {'prototypes': 8, 'hidden_dim': 8, 'bottleneck_dim': 8}}
    task = kind(**VIT, rank=2, **(objective if kind is ExploraDinoTask else {}))
    assert task.pooling == expected
    task.raw_images = RawImages(task.backbone, None, (0, 255))
    task.view = task.preprocess()
    features = task.backbone.eval()(task.view(BATCH['image'] / 255))
    assert_close(task.embed(BATCH), features.pooled(expected))
    assert_close(task.embed(BATCH, 'both'), features.pooled('both'))


def test_online_knn_hands_its_choice_to_the_task(monkeypatch):
    seen = []

    class Task:
        device = torch.device('cpu')

        def embed(self, batch, **chosen):
            seen.append(chosen)
            return torch.ones(len(batch['image']), 2)

    class Run:
        received_sigterm = False
        datamodule = LightningDataModule()

    sample = {'image': torch.zeros(3, 2, 2), 'label': torch.tensor(0)}
    Run.datamodule.train_dataset = [sample] * 3
    for pooling in (None, 'mean'):
        OnlineKNN(pooling=pooling)._embed(Run, 'train', 10, Task())
    assert seen == [{}, {'pooling': 'mean'}]


def write_delta(path, **metadata):
    """Write a delta on the weights that `on_delta` starts from."""
    torch.manual_seed(0)
    args = {'image_size': 32, **VIT['model_args']}
    backbone = adapt(ViT(VIT['model'], **args), Adaptation((-1,)))
    save_delta(backbone, path, metadata)
    return str(path)


def on_delta(kind, delta, **arguments):
    """Return a task on a delta, as it is after `setup` on 8-bit images."""
    torch.manual_seed(0)
    task = kind(**VIT, delta=delta, **arguments)
    task.raw_images = RawImages(task.backbone, None, (0, 255))
    return task


@pytest.fixture
def any_base(monkeypatch):
    """Deltas of random bases: every start of a task draws another one."""
    place = 'torchgeo_explora.adapt.delta_file.base_fingerprint'
    monkeypatch.setattr(place, lambda backbone: 'base')


@pytest.mark.usefixtures('any_base')
def test_knn_and_probe_follow_the_delta(tmp_path):
    delta = write_delta(tmp_path / 'delta.safetensors', pooling='mean')
    for task in (
        on_delta(ExploraKNNTask, delta),
        on_delta(ExploraLinearProbeTask, delta, num_classes=2),
    ):
        assert task.pooling == 'mean'
    task = on_delta(ExploraKNNTask, delta)
    features = task.eval().features(task.view(task.unit_image(BATCH)), BATCH)
    assert_close(task.predict_batch(BATCH), features.pooled('mean'))
    task = on_delta(ExploraKNNTask, delta, pooling='both')
    assert task.predict_batch(BATCH).shape == (3, 48)


@pytest.mark.usefixtures('any_base')
def test_what_the_delta_records_is_compared_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        'torchgeo_explora.tasks.run.resumable.ResumableTask.setup',
        lambda self, stage: None,
    )
    delta = write_delta(
        tmp_path / 'delta.safetensors',
        pooling='mean',
        crop_fraction='1.0',
        value_range='[[0.0], [10000.0]]',
        quantize='true',
    )
    given = {'num_classes': 2, 'pooling': 'cls', 'crop_fraction': 0.875}
    task = on_delta(ExploraLinearProbeTask, delta, **given)
    task._trainer = object()
    with pytest.warns(UserWarning, match='evaluated images differently') as found:
        task.setup('test')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        task.setup('validate')
    text = str(found[0].message)
    assert '*pooling* was mean there and is cls here' in text
    assert '*crop_fraction* was 1.0 there and is 0.875 here' in text
    assert '*value_range* was [[0.0], [10000.0]] there and is [[0.0], [255.0]]' in text
    assert '*quantize* was True there and is False here' in text
    # How features are judged is no matter of a task that trains a head of its own.
    task = on_delta(ExploraClassificationTask, delta, num_classes=2, crop_fraction=0.5)
    task._trainer = object()
    with pytest.warns(UserWarning, match='value_range') as found:
        task.setup('test')
    assert 'pooling' not in str(found[0].message)
    assert 'crop_fraction' not in str(found[0].message)


def test_what_means_the_same_is_no_difference():
    known = recorded(
        {
            'value_range': json.dumps([[0.0], [255.0]]),
            'bands': json.dumps(['B2', 'B03']),
            'pooling': 'max',
            'quantize': 'no JSON',
            'crop_fraction': 'null',
        }
    )
    assert known.keys() == {'value_range', 'bands'}
    own = {'value_range': [[0.0] * 2, [255.0] * 2], 'bands': ['B02', 'B3']}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warn_of_differences(known, own, 'delta')
        warn_of_differences(known, {'bands': None}, 'delta')
    with pytest.warns(UserWarning, match=r"\*bands\* was \['B2', 'B03'\] there"):
        warn_of_differences(known, own | {'bands': ['B03', 'B02']}, 'delta')


def probe(**arguments):
    torch.manual_seed(0)
    task = ExploraLinearProbeTask(2, grid=[0.1], **VIT, **arguments)
    task.raw_images = RawImages(task.backbone, None, (0, 255))
    return task.eval()


@pytest.mark.parametrize('pooling', ['cls', 'mean', 'both'])
def test_probe_reads_it_in_each_block_and_from_the_cache(pooling):
    task = probe(blocks=[1, 2], pooling=pooling)
    view = task.view(task.unit_image(BATCH))
    with torch.no_grad():
        features = task.backbone.features(view, [-2, -1])
        read = torch.cat([each.pooled(pooling) for each in features], -1)
        last = task.heads.settings[-1]
        if last.average:
            read = torch.cat([read, features[-1].patch.mean(1)], -1)
        assert_close(task(BATCH)[-1], task.heads.heads[last.name](read))
        kept = torch.stack([each.pooled(pooling) for each in features], 1)
        assert last.average == (pooling == 'cls')
        if last.average:
            kept = torch.cat([kept, features[-1].patch.mean(1)[:, None]], 1)
        assert_close(task({'features': kept}), task(BATCH))


def test_probe_reads_no_mean_twice_and_no_other_than_it_was_trained_on():
    with pytest.raises(ValueError, match=r"\*pooling\* 'mean' reads the mean patch"):
        probe(pooling='mean', averages=[True])
    checkpoint = {}
    task = probe(pooling='mean', averages=[False])
    task.on_save_checkpoint(checkpoint)
    other = probe(pooling='cls', averages=[False])
    with pytest.raises(ValueError, match=r"\*pooling\* 'mean', but the task has 'cls'"):
        other.on_load_checkpoint(checkpoint)
    # Those of earlier versions read class tokens.
    del checkpoint['explora']['pooling']
    other.on_load_checkpoint(checkpoint)
