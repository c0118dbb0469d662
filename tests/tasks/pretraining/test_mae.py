"""ExploraMAETask with a real trainer: base, decoder, checkpoint, resume."""

import copy
import json

import numpy as np
import pytest
import rasterio
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torchgeo.main import main

from torchgeo_explora.adapt import delta_state_dict, load_delta
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.models.checkpoints import fuse_qkv
from torchgeo_explora.models.heads.mae_decoder import MAEDecoder
from torchgeo_explora.objectives import MAE
from torchgeo_explora.tasks import ExploraMAETask
from torchgeo_explora.tasks.run.raw_images import RawImages

ARCHITECTURE = {'patch_size': 8, 'embed_dim': 24, 'depth': 3, 'num_heads': 2}
DECODER = {
    'decoder_dim': 16,
    'decoder_depth': 2,
    'decoder_heads': 2,
    'decoder_rank': 2,
}
TINY = {
    'model': 'vit_tiny_patch16_224',
    'weights': None,
    'image_size': 32,
    'model_args': ARCHITECTURE,
    'rank': 4,
    'objective': DECODER,
    # Large: a short run must move the weights.
    'base_lr': 0.5,
}
GROUPS = {
    'bands': ['blue', 'green', 'red'],
    'groups': [['blue', 'red'], ['green']],
    'image_size': 32,
    'channel_embed_dim': 8,
    **ARCHITECTURE,
}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Weights of a small MAE, with its decoder, as MAE's file has them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vit = ViT('vit_tiny_patch16_224', image_size=32, **ARCHITECTURE)
        decoder = MAEDecoder(24, 3, 8, (4, 4), 16, 2, 2)
    state = vit.canonical_state_dict()
    for name, value in fuse_qkv(decoder.state_dict()).items():
        state[name if name == 'mask_token' else f'decoder_{name}'] = value
    path = tmp_path_factory.mktemp('published') / 'mae_full.pth'
    torch.save({'model': state}, path)
    return str(path)


def _trainer(tmp_path, **kwargs):
    return Trainer(
        **{
            'accelerator': 'cpu',
            'max_steps': 3,
            'logger': False,
            'enable_progress_bar': False,
            'enable_model_summary': False,
            'default_root_dir': tmp_path,
            'callbacks': [ModelCheckpoint(tmp_path, save_last=True)],
        }
        | kwargs
    )


def _task(**kwargs):
    seed_everything(0)
    return ExploraMAETask(**(TINY | kwargs))


def _data(folder, batch_size=4, **kwargs):
    return ImageFolderDataModule(folder, batch_size=batch_size, **kwargs)


def _moved(before, after):
    return {name for name, value in after.items() if (value != before[name]).any()}


def test_run_trains_delta_and_decoder_and_leaves_the_base(tmp_path, folder, published):
    task = _task(weights=published)
    before = copy.deepcopy(task.objective.state_dict())
    _trainer(tmp_path).fit(task, _data(folder))
    moved = _moved(before, task.objective.state_dict())
    decoder = {name for name in moved if name.startswith('decoder.')}
    # Norms and LoRA on queries and values, nothing else.
    assert all('norm' in name or 'lora' in name for name in decoder)
    parts = {name.split('.')[-3] for name in decoder if 'lora_B' in name}
    assert parts <= {'lora_B', 'q', 'v'}
    delta = {f'student.{k}' for k in delta_state_dict(task.objective.student)}
    assert moved - decoder <= delta
    assert len(decoder) > 10


def test_a_new_decoder_trains_whole_and_the_start_says_so(tmp_path, folder, caplog):
    caplog.set_level('INFO')
    task = _task()
    before = copy.deepcopy(task.objective.decoder.state_dict())
    _trainer(tmp_path).fit(task, _data(folder))
    after = task.objective.decoder.state_dict()
    assert before.keys() - _moved(before, after) == {'pos_embed'}
    assert 'decoder: not in the weights, new and trained in full' in caplog.text


def test_start_speaks_the_papers_language(tmp_path, folder, published, caplog):
    caplog.set_level('INFO')
    task = _task(weights=published)
    _trainer(tmp_path, accumulate_grad_batches=2).fit(task, _data(folder))
    assert 'M-[3]-r4: ' in caplog.text
    assert 'effective batch 8, learning rate 0.0156 (base 0.5)' in caplog.text
    assert 'norms and LoRA of rank 2' in caplog.text


def test_checkpoint_and_delta_hold_neither_base_nor_decoder(
    tmp_path, folder, published
):
    task = _task(weights=published)
    _trainer(tmp_path).fit(task, _data(folder))
    checkpoint = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    saved = checkpoint['state_dict']
    assert 'objective.student.blocks.0.mlp.fc1.weight' not in saved
    assert 'objective.decoder.blocks.0.mlp.fc1.weight' not in saved
    assert 'objective.decoder.blocks.0.norm1.weight' in saved
    plain = ViT('vit_tiny_patch16_224', published, image_size=32, **ARCHITECTURE)
    load_delta(plain, tmp_path / 'delta.safetensors')
    image = torch.randn(2, 3, 32, 32)
    assert_close(plain.eval()(image), task.backbone.eval()(image))


class Stop(Callback):
    """Interrupt a run after an optimizer step, without its end."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError('power cut')


@pytest.mark.parametrize('new_decoder', [True, False])
def test_resumed_equals_uninterrupted(tmp_path, folder, published, new_decoder):
    """8 batches an epoch: step 3 of 2 batches lies in its middle."""
    options = {'max_steps': 5, 'accumulate_grad_batches': 2}
    weights = None if new_decoder else published

    def run(place, *callbacks, **kwargs):
        keep = ModelCheckpoint(place, every_n_train_steps=1, save_last=True)
        trainer = _trainer(place, callbacks=[keep, *callbacks], **options)
        trainer.fit(_task(weights=weights), _data(folder), **kwargs)
        return torch.load(place / 'last.ckpt', weights_only=True)

    whole = run(tmp_path / 'whole')
    with pytest.raises(RuntimeError, match='power cut'):
        run(tmp_path / 'cut', Stop(4))
    torch.manual_seed(123)  # the state of a new process
    last = max((tmp_path / 'cut').glob('epoch*.ckpt'))
    resumed = run(tmp_path / 'resumed', ckpt_path=last)
    assert whole['state_dict'].keys() == resumed['state_dict'].keys()
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key


class Given(Callback):
    """Give every image its own mask and no crop; record an optimizer step's gradient.

    Crops and masks are drawn per micro-batch, so that their size changes them: what
    accumulation must not change is the gradient for given views and masks.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        objective = pl_module.objective
        objective.augment = None
        generator = torch.Generator().manual_seed(0)
        # More to hide in some images would weigh them differently: the same share.
        masks = torch.rand(32, 16, generator=generator).argsort(1) < 12
        own = masks[batch['index'].cpu()]
        # Fewer images are drawn at the end of the run.
        objective.draw_mask = lambda images, grid: own[:images]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradient = {
            name: parameter.grad.clone()
            for name, parameter in pl_module.named_parameters()
            if parameter.grad is not None
        }


def test_accumulated_gradient_is_that_of_one_large_batch(tmp_path, published):
    random = np.random.default_rng(0)
    images = tmp_path / 'images'
    (images / 'train').mkdir(parents=True)
    for index in range(16):
        image = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(image).save(images / 'train' / f'{index:02}.png')
    found = []
    for batch_size, accumulated in ((8, 1), (4, 2), (2, 4)):
        given = Given()
        _trainer(
            tmp_path / 'out',
            max_steps=1,
            callbacks=[given],
            accumulate_grad_batches=accumulated,
        ).fit(_task(weights=published), _data(images, batch_size))
        found.append(given.gradient)
    assert found[0]['objective.student.cls_token'].abs().max() > 1e-4
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_weight_decay_spares_vectors(tmp_path, folder):
    task = _task(schedule={'weight_decay': 0.05})
    trainer = _trainer(tmp_path)
    trainer.fit(task, _data(folder))
    matrices, vectors = trainer.optimizers[0].param_groups
    assert matrices['weight_decay'] == 0.05
    assert vectors['weight_decay'] == 0
    assert {p.ndim for p in vectors['params']} == {1}
    assert 1 not in {p.ndim for p in matrices['params']}
    assert matrices['betas'] == (0.9, 0.95)


def test_a_new_decoder_sees_tokens_of_any_base_in_one_scale(tmp_path):
    seed_everything(0)
    base = ViT('vit_tiny_patch16_224', image_size=32, **ARCHITECTURE)
    stds = []
    for scale in (1, 4):
        base.norm.weight.data.fill_(scale)
        torch.save({'model': base.canonical_state_dict()}, tmp_path / 'base.pth')
        objective = _task(weights=str(tmp_path / 'base.pth')).objective
        with torch.no_grad():
            tokens = objective.student(torch.randn(2, 3, 32, 32)).patch
            stds.append(objective.decoder.embed(tokens).std())
    assert_close(stds[1], stds[0], rtol=0.05, atol=0)


def test_a_decoder_of_the_weights_stays_as_it_is_whatever_the_base(tmp_path, published):
    """It was trained on that norm's tokens, however large they are."""
    state = torch.load(published, weights_only=True)['model']
    state['norm.weight'] = torch.full_like(state['norm.weight'], 4)
    torch.save({'model': state}, tmp_path / 'mae.pth')
    embed = _task(weights=str(tmp_path / 'mae.pth')).objective.decoder.embed
    assert torch.equal(embed.weight, state['decoder_embed.weight'])


@pytest.mark.parametrize(
    ('norm', 'scale'),
    [
        (nn.LayerNorm(24, elementwise_affine=False), 1),
        (nn.Identity(), 1),
        (nn.RMSNorm(24), 4),
    ],
)
def test_a_new_decoder_takes_norms_of_any_kind(norm, scale):
    decoder = MAEDecoder(24, 3, 8, (4, 4), 16, 2, 2)
    before = decoder.embed.weight.clone()
    for weight in norm.parameters():
        weight.data.fill_(scale)
    decoder.read_from(norm)
    assert torch.equal(decoder.embed.weight * scale, before)


def test_missing_values_do_not_count_and_may_be_named():
    task = _task(no_data=0)
    task.raw_images = RawImages(task.backbone, None, (0, 2))
    image = torch.rand(2, 3, 32, 32) + 0.1
    image[0, :, :4] = 0  # in all bands
    image[1, 0, :4] = 0  # in one: a value like any other
    image[1, 1, 8:10] = torch.nan
    missing = task.known_image({'image': image}).isnan()
    assert missing[0, :, :4].all()
    assert missing[0].sum() == 3 * 4 * 32
    assert missing[1, 1, 8:10].all()
    assert missing[1].sum() == 2 * 32


def test_declared_no_data_is_no_reason_to_doubt_the_range():
    task = _task(no_data=-9999)
    task.raw_images = RawImages(task.backbone, None, (0, 2))
    image = torch.full((1, 3, 32, 32), -9999.0)
    image[..., :8] = torch.rand(1, 3, 32, 8)
    assert task.unit_image({'image': image}).isfinite().all()


def test_what_files_declare_as_no_data_is_not_in_the_loss(tmp_path, folder, caplog):
    caplog.set_level('INFO')
    for number in range(4):
        image = np.full((3, 32, 32), 100, np.int16)
        image[:, :8] = -9999
        profile = {'count': 3, 'height': 32, 'width': 32, 'dtype': 'int16'}
        with rasterio.open(
            tmp_path / f'{number}.tif', 'w', driver='GTiff', nodata=-9999, **profile
        ) as file:
            file.write(image)
    task = _task()
    data = ImageFolderDataModule(tmp_path, batch_size=2, value_range=(0, 200))
    _trainer(tmp_path / 'out', max_steps=1).fit(task, data)
    assert 'no data: 0 in all bands' in caplog.text
    batch = {'image': torch.stack([data.train_dataset[i]['image'] for i in range(2)])}
    missing = task.known_image(batch).isnan()
    assert missing[..., :8, :].all()
    assert not missing[..., 8:, :].any()
    # Other images next: what the first ones declared is not said of them.
    _trainer(tmp_path / 'next', max_steps=1).fit(task, _data(folder))
    assert task.no_data is None


def test_embeddings_see_no_data_as_training_does():
    task = _task(no_data=0)
    task.raw_images = RawImages(task.backbone, None, (0, 2))
    task.view = task.preprocess()
    image = torch.rand(1, 3, 32, 32) + 0.1
    image[..., :8] = 0
    view = (image / 2 - torch.tensor(task.mean).view(3, 1, 1)) / torch.tensor(
        task.std
    ).view(3, 1, 1)
    view[..., :8] = 0
    patch = task.backbone.eval()(view).patch
    assert_close(task.embed({'image': image}), patch.mean(1))


def test_views_are_square_and_whole_patches():
    backbone = GroupChannelViT(**GROUPS | {'image_size': (32, 16)})
    with pytest.raises(ValueError, match='made for 32 x 16 pixels'):
        _task(
            model=backbone,
            model_args=None,
            image_size=None,
            objective=DECODER | {'decoder_channel_dim': 8},
        )
    with pytest.raises(ValueError, match='not a multiple of patch_size 8'):
        _task(image_size=30)


def test_a_published_decoder_of_groups_asks_for_its_order(tmp_path):
    seed_everything(0)
    backbone = GroupChannelViT(**GROUPS)
    objective = MAE(backbone, 16, 2, 2, decoder_channel_dim=8)
    decoder = fuse_qkv(objective.decoder.state_dict())
    state = fuse_qkv(backbone.state_dict())
    for name, value in decoder.items():
        state[name if name == 'mask_token' else f'decoder_{name}'] = value
    torch.save({'model': state}, tmp_path / 'satmae.pth')
    given = {k: v for k, v in TINY.items() if k not in ('model_args', 'image_size')}
    given |= {
        'weights': str(tmp_path / 'satmae.pth'),
        'objective': DECODER | {'decoder_channel_dim': 8},
    }
    with pytest.warns(UserWarning, match='legacy_channel_order'):
        ExploraMAETask(**given | {'model': GroupChannelViT(**GROUPS)})


def test_a_checkpoint_of_other_groups_is_refused(tmp_path, folder, published):
    task = _group_task(published)
    _trainer(tmp_path).fit(task, _data(folder))
    other = {**GROUPS, 'groups': [['green', 'red'], ['blue']]}
    task = _group_task(published, model=GroupChannelViT(**other))
    with pytest.raises(ValueError, match='trained on the spectral groups'):
        _trainer(tmp_path).fit(task, _data(folder), ckpt_path=tmp_path / 'last.ckpt')


def test_eight_bits_are_an_option():
    task = _task(quantize=True)
    task.raw_images = RawImages(task.backbone, None, (0, 2))
    image = task.unit_image({'image': torch.rand(2, 3, 32, 32)})
    assert_close(image * 255, (image * 255).round())


def test_a_given_backbone_starts_from_an_rgb_mae(tmp_path, folder, published, caplog):
    caplog.set_level('INFO')
    task = _group_task(published)
    student = task.objective.student
    whole = {'patch_embed', 'pos_embed', 'channel_embed'}
    assert set(student.record.adapted.adaptation.modules) == whole
    assert task.objective.decoder.record.adapted.adaptation.modules == ('pred',)
    before = copy.deepcopy(student.state_dict())
    data = _data(folder)
    _trainer(tmp_path).fit(task, data)
    moved = {name.partition('.')[0] for name in _moved(before, student.state_dict())}
    assert moved == whole | {'blocks', 'norm', 'cls_token'}
    # Bands by name: the image has them in another order.
    batch = {'image': torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 32, 32)}
    order = task.raw_images.select(batch['image'])[0, :, 0, 0]
    assert order.tolist() == [2, 1, 0]
    again = ExploraMAETask.load_from_checkpoint(tmp_path / 'last.ckpt')
    assert isinstance(again.objective.student, GroupChannelViT)
    for key, value in delta_state_dict(task).items():
        assert torch.equal(again.state_dict()[key], value)


def _group_task(weights, **kwargs):
    seed_everything(0)
    given = {
        k: v for k, v in TINY.items() if k not in ('model', 'model_args', 'image_size')
    }
    objective = {**DECODER, 'decoder_channel_dim': 8, **kwargs.pop('objective', {})}
    settings = given | {'objective': objective, 'weights': weights} | kwargs
    return ExploraMAETask(**{'model': GroupChannelViT(**GROUPS)} | settings)


def test_a_series_takes_its_dates_from_the_batch():
    seed_everything(0)
    model = TemporalViT(32, time_embed_dim=12, **ARCHITECTURE)
    task = ExploraMAETask(
        model,
        weights=None,
        rank=4,
        objective=DECODER | {'decoder_dim': 14, 'decoder_time_dim': 6},
    )
    task.raw_images = RawImages(task.backbone, None, (0, 2))
    batch = {
        'image': torch.rand(2, 2, 3, 40, 40),
        'timestamps': torch.tensor([[[13, 6, 7], [14, 0, 0]]] * 2),
    }
    image = task.known_image(batch)
    loss = task.objective({**batch, 'image': image}, 0.0)['mae']
    assert loss.isfinite()
    task.view = task.preprocess()
    assert task.embed(batch).shape == (2, 24)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'objective': {'mask_ratio': 1.0}}, r'\*mask_ratio\* is 1.0: choose above 0'),
        ({'std': [0.1, 0.0, 0.1]}, r'\*std\* is .*above 0'),
        ({'mean': [float('nan')]}, r'\*mean\* is .*finite'),
        ({'image_size': 33}, 'not a multiple of patch_size'),
        ({'base_lr': 0.0}, 'must be positive'),
        ({'unfreeze': [7]}, 'names block 7'),
        ({'objective': DECODER | {'decoder_heads': 3}}, 'multiple of 3 heads'),
        ({'weights': 'no/such/file.pth'}, 'no/such/file'),
    ],
)
def test_bad_arguments_say_what_to_do(change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _task(**change)


def test_decoder_weights_of_another_width_are_refused(published):
    with pytest.raises(ValueError, match=r'weights are 16 wide.*set \*decoder_dim'):
        _task(weights=published, objective=DECODER | {'decoder_dim': 32})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'in_channels': 3}, r'\*in_channels\* describes a timm model'),
        ({'weights': True}, r'\*weights\* True means the weights of a timm'),
    ],
)
def test_arguments_of_a_named_model_do_not_go_with_a_backbone(change, message):
    with pytest.raises(ValueError, match=message):
        _group_task(**{'weights': None} | change)


CONFIG = """
trainer:
  accelerator: cpu
  max_steps: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {place}
  callbacks:
    - class_path: torchgeo_explora.callbacks.Reconstructions
      init_args: {{images: 2, bands: [red, 1, blue]}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {place}, save_last: true}}
model:
  class_path: torchgeo_explora.tasks.ExploraMAETask
  init_args:
    model:
      class_path: torchgeo_explora.models.GroupChannelViT
      init_args:
        bands: [blue, green, red]
        groups: [[blue, red], [green]]
        image_size: 32
        channel_embed_dim: 8
        patch_size: 8
        embed_dim: 24
        depth: 3
        num_heads: 2
    weights: {weights}
    rank: 4
    objective:
      decoder_dim: 16
      decoder_depth: 2
      decoder_heads: 2
      decoder_channel_dim: 8
data:
  class_path: torchgeo_explora.datamodules.ImageFolderDataModule
  init_args: {{root: {folder}, batch_size: 4}}
"""


@pytest.mark.cli
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_command_takes_a_backbone_by_its_class_path(tmp_path, folder, published):
    text = CONFIG.format(place=tmp_path, weights=published, folder=folder)
    path = tmp_path / 'in.yaml'
    path.write_text(yaml.safe_dump(yaml.safe_load(text)))
    main(['fit', '--config', str(path)])
    Image.open(tmp_path / 'reconstructions.png').verify()
    last = tmp_path / 'last.ckpt'
    hyper = torch.load(last, weights_only=True)['hyper_parameters']
    assert json.loads(json.dumps(hyper)) == hyper
    main(['predict', '--config', str(path), '--ckpt_path', str(last)])
    assert (tmp_path / 'embeddings.parquet').exists()
