"""Labelling pixels: learning, what does not count, bad masks, and the command."""

from io import BytesIO

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from tests.tasks.small_runs import VIT, command, write_config
from tests.tasks.squares import ShiftedMasks, SquareMasks
from torchgeo_explora.tasks import ExploraSegmentationTask

pytestmark = pytest.mark.filterwarnings('ignore')

TINY = {**VIT, 'num_classes': 2, 'decoder_channels': 16}
WHOLE = {'rank': 0, 'modules': [''], 'drop_path': 0.0, 'base_lr': 0.3}


def make(**arguments):
    torch.manual_seed(0)
    return ExploraSegmentationTask(**{**TINY, **arguments})


def trainer(place, **arguments):
    defaults = {
        'accelerator': 'cpu',
        'max_epochs': 1,
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'num_sanity_val_steps': 0,
        'default_root_dir': place,
    }
    return Trainer(**{**defaults, **arguments})


@pytest.mark.cli
@pytest.mark.parametrize('decoder', ['upernet', 'dpt', 'linear'])
def test_tiny_set_is_learnt(decoder, tmp_path):
    # A linear decoder is as fine as the patches.
    fine = VIT['model_args'] | {'patch_size': 4}
    task = make(decoder=decoder, model_args=fine, **WHOLE)
    run = trainer(tmp_path, max_epochs=40, check_val_every_n_epoch=40)
    run.fit(task, SquareMasks())
    assert run.callback_metrics['val_mIoU'] > 0.9
    assert (tmp_path / 'segmentation.png').exists()


def test_four_blocks_evenly_spaced_are_read():
    assert make().taps == [0, 1, 2, 3]
    vit = VIT | {'model_args': VIT['model_args'] | {'depth': 12}}
    assert make(**vit).taps == [2, 5, 8, 11]
    with pytest.raises(ValueError, match='reads 4 blocks, the backbone has 2'):
        make(model_args=VIT['model_args'] | {'depth': 2})


def test_padding_class_counts_nowhere(tmp_path):
    """SpaceNet's numbering: the ignored class is never predicted."""
    task = make(num_classes=3, ignore_index=0)
    task.head.classify.bias.data[0] = 100.0
    (metrics,) = trainer(tmp_path).test(task, ShiftedMasks(), verbose=False)
    classes = torch.stack([metrics[f'test_IoU_{i}'] * torch.ones(()) for i in (1, 2)])
    assert metrics['test_mIoU'] == pytest.approx(classes.mean().item())
    probabilities = task.eval().dense(torch.rand(1, 3, 32, 32))
    assert not probabilities[:, 0].any()


def test_no_data_does_not_count():
    task = make(no_data=0.0, ignore_index=9)
    image, mask = torch.rand(1, 3, 4, 4) + 1, torch.ones(1, 1, 4, 4)
    image[..., 0, :] = 0
    image[:, 0, 1, 1] = 0
    image[:, 1, 2, 2] = torch.nan
    mask[..., 3, 3] = 9
    targets = task._targets({'image': image, 'mask': mask})
    assert (targets[0, 0] == -1).all()
    assert targets[0, 1, 1] == 1
    assert targets[0, 2, 2] == targets[0, 3, 3] == -1
    assert (targets == -1).sum() == 6


def test_unknown_values_of_masks_are_named():
    image, mask = torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4)
    mask[0, 0, :2] = torch.tensor([7.0, 255.0])
    with pytest.raises(ValueError, match=r'labels hold \[7, 255\].*\*ignore_index\*'):
        make()._targets({'image': image, 'mask': mask})


def test_masks_between_classes_are_named():
    batch = {'image': torch.rand(1, 3, 4, 4), 'mask': torch.full((1, 4, 4), 0.5)}
    with pytest.raises(ValueError, match=r'masks hold \[0.5, .*expected integers'):
        make()._targets(batch)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'labels': ['water']}, r'\*labels\* has 1 entries, expected .* the 2'),
        ({'class_weights': [1.0] * 3}, r'\*class_weights\* has 3 entries'),
        ({'overlap': 1.0}, r'\*overlap\* is 1.0'),
        ({'overlap': -0.5}, r'\*overlap\* is -0.5'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_images_of_mixed_sizes_are_padded_and_padding_does_not_count(tmp_path):
    data = ShiftedMasks(batch_size=8, mixed=True)
    task = make(num_classes=3, ignore_index=0)
    seen = []
    targets_of = task._targets
    task._targets = lambda batch: seen.append(targets_of(batch)) or seen[-1]
    trainer(tmp_path).validate(task, data, verbose=False)
    (targets,) = seen
    assert targets.shape == (8, 32, 40)
    assert (targets[::2, :, 32:] == -1).all()
    assert (targets[1::2] != -1).all()


def test_masks_of_mixed_sizes_are_written_in_their_own(tmp_path):
    data = SquareMasks(batch_size=8, mixed=True)
    for sample in data.samples:
        sample['image'] = sample['image'].to(torch.uint8)
    trainer(tmp_path).predict(make(), data)
    table = pq.read_table(tmp_path / 'masks.parquet')
    sizes = [Image.open(BytesIO(mask)).size for mask in table['mask'].to_pylist()]
    assert sizes == [(32, 32), (40, 32)] * 4


def test_large_images_are_seen_in_windows():
    task = make().eval()
    image = torch.rand(1, 3, 32, 32)
    whole = task.sliding(image)
    torch.testing.assert_close(whole, task.dense(image))
    assert task.sliding(torch.rand(2, 3, 50, 70)).shape == (2, 2, 50, 70)


def test_a_batch_without_any_pixel_that_counts_has_no_gradient(tmp_path):
    data = SquareMasks()
    for sample in data.samples:
        sample['mask'] += 9
    task = make(ignore_index=9, num_classes=2)
    for sample in data.samples:
        sample['mask'][:] = 9
    run = trainer(tmp_path)
    run.fit(task, data)
    assert run.callback_metrics['train_loss'] == 0


@pytest.mark.parametrize('channels', [1, 2, 4])
def test_images_of_any_number_of_channels_are_drawn(channels, tmp_path):
    task = make(in_channels=channels)
    task._trainer = trainer(tmp_path)
    masks = torch.zeros(1, 8, 8, dtype=torch.long)
    task._draw(torch.rand(1, channels, 8, 8), masks, masks)
    assert (tmp_path / 'segmentation.png').exists()


@pytest.mark.cli
def test_command(tmp_path):
    data = {
        'class_path': 'tests.tasks.squares.SquareMasks',
        'init_args': {'batch_size': 4},
    }
    model = {'num_classes': 2, 'decoder_channels': 16}
    config = write_config(tmp_path, 'ExploraSegmentationTask', model, data)
    command('fit', config)
    longer = config.replace('config_in', 'longer')
    with open(config) as file, open(longer, 'w') as other:
        other.write(file.read().replace('max_epochs: 2', 'max_epochs: 3'))
    command('fit', longer, tmp_path / 'last.ckpt')
    saved = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    assert saved['global_step'] == 6
    for stage in ('validate', 'test', 'predict'):
        command(stage, config, tmp_path / 'last.ckpt')
    table = pq.read_table(tmp_path / 'masks.parquet')
    masks = [Image.open(BytesIO(mask)) for mask in table['mask'].to_pylist()]
    assert {mask.size for mask in masks} == {(32, 32)}
    assert len(masks) == 8
