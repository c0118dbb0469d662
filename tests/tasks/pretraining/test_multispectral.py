"""Both objectives on backbones of many bands: groups, wavelengths, 13 channels."""

import pytest
import timm
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close
from torchvision.models._api import WeightsEnum

from tests.tasks.test_bands import eurosat, mark
from torchgeo_explora.adapt import delta_state_dict, read_delta_metadata
from torchgeo_explora.datamodules import SyntheticScenesDataModule
from torchgeo_explora.datasets.pixels.sentinel2 import BANDS
from torchgeo_explora.export.rebuild import rebuild
from torchgeo_explora.models import DOFAViT, GroupChannelViT, ViT
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask

SIZES = {'image_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 2, 'num_heads': 2}
HEAD = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
DECODER = {'decoder_dim': 32, 'decoder_depth': 1, 'decoder_heads': 2}
DECODER |= {'decoder_channel_dim': 8}


def group(**options):
    return GroupChannelViT(channel_embed_dim=16, **SIZES, **options)


def dofa(**options):
    return DOFAViT(bands=BANDS, **SIZES, **options)


def plain(**options):
    # Names in another order than the data's, as the weights may have them.
    bands = [*BANDS[:8], *BANDS[9:], 'B8A']
    return ViT('vit_tiny_patch16_224', bands=bands, **SIZES, **options)


def task(kind, backbone, **options):
    views = {'local_views': 2, 'overhead': True}
    special = {ExploraDinoTask: {'objective': HEAD, 'views': views}}
    return kind(
        backbone,
        weights=None,
        rank=4,
        **special.get(kind, {'objective': DECODER}),
        **options,
    )


@pytest.mark.parametrize('build', [group, dofa, plain])
def test_dinov2_learns_on_many_bands(build):
    """Twelve steps on the same views: the loss falls; every group is masked alike."""
    seed_everything(0)
    run = task(ExploraDinoTask, build(), modules=('patch_embed',))
    objective = run.objective
    channels = objective.student.in_channels
    image = torch.rand(8, channels, 4, 4)
    image = torch.nn.functional.interpolate(image, size=32, mode='bilinear')
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(0)
        terms = objective({'image': image}, step / 12)
        assert terms.keys() == {'dino_global', 'dino_local', 'ibot', 'koleo'}
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        objective.before_step(step / 12)
        optimizer.step()
        objective.after_step(step / 12)
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])


def test_all_groups_of_a_place_are_hidden_together(monkeypatch):
    objective = task(ExploraDinoTask, group()).objective
    seen = []
    terms = objective.terms
    monkeypatch.setattr(
        objective, 'terms', lambda *x, **y: seen.append(x[2]) or terms(*x, **y)
    )
    objective({'image': torch.rand(4, 10, 32, 32)}, 0.5)
    (mask,) = seen
    assert mask.shape == (8, 3 * 16)
    first, *others = mask.chunk(3, dim=1)
    assert first.any()
    assert all(torch.equal(first, other) for other in others)


def test_mask_token_of_a_masked_autoencoder_is_not_dinov2s(tmp_path):
    """It has the width of the decoder."""
    state = plain().canonical_state_dict()
    rest = {'mask_token': torch.ones(1, 1, 48), 'decoder_norm.weight': torch.ones(48)}
    torch.save({'model': state | rest}, tmp_path / 'mae.pth')
    run = ExploraDinoTask(
        plain(weights=tmp_path / 'mae.pth'), objective=HEAD, weights=None
    )
    assert not run.objective.mask_token.any()


@pytest.mark.parametrize(
    ('kind', 'build'),
    [
        (ExploraDinoTask, group),
        (ExploraDinoTask, dofa),
        (ExploraDinoTask, plain),
        (ExploraMAETask, dofa),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_it_trains_resumes_and_leaves_a_delta_that_loads(kind, build, tmp_path):
    """Bit for bit, on bands that are picked by name."""
    torch.manual_seed(0)
    torch.save(build().canonical_state_dict(), tmp_path / 'base.pth')

    def run(place, ckpt_path=None):
        seed_everything(0)
        data = SyntheticScenesDataModule(
            's2', num_train=16, num_val=7, batch_size=4, size=32
        )
        module = task(kind, build(weights=tmp_path / 'base.pth'))
        Trainer(
            accelerator='cpu',
            max_steps=4,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=place,
            callbacks=[ModelCheckpoint(place, 'two', every_n_train_steps=2)],
        ).fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    whole = run(tmp_path / 'whole')
    found = delta_state_dict(run(tmp_path / 'resumed', tmp_path / 'whole/two.ckpt'))
    assert all(torch.equal(found[k], v) for k, v in delta_state_dict(whole).items())

    delta = tmp_path / 'whole/delta.safetensors'
    again = rebuild(delta, tmp_path / 'base.pth').eval()
    image = torch.rand(1, again.in_channels, 32, 32)
    assert_close(again(image), whole.backbone.eval()(image))
    assert again.bands == whole.backbone.bands
    names = read_delta_metadata(delta)['bands']
    assert names == str(list(again.bands)).replace("'", '"')


@pytest.mark.filterwarnings('ignore')
def test_moco_start_on_eurosat_reads_bands_in_the_order_of_the_weights(
    tmp_path, monkeypatch
):
    """EuroSAT has B8A last, the weights have it ninth; 10,000 becomes 1."""
    name = 'ViTSmall16_Weights.SENTINEL2_ALL_MOCO'
    sizes = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}

    def state_dict(self, *args, **kwargs):
        torch.manual_seed(0)
        vit = timm.create_model(self.meta['model'], in_chans=13, num_classes=0, **sizes)
        return vit.state_dict()

    monkeypatch.setattr(WeightsEnum, 'get_state_dict', state_dict)
    run = ExploraDinoTask(
        'vit_small_patch16_224',
        weights=name,
        model_args=sizes,
        image_size=32,
        objective=HEAD,
        views={'local_views': 0, 'strength': 0},
        rank=2,
    )
    seen = []
    run.objective.student.patch_embed.proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach())
    )
    trainer = Trainer(
        accelerator='cpu', max_steps=1, logger=False, default_root_dir=tmp_path
    )
    trainer.fit(run, datamodule=eurosat(tmp_path))
    bands = [*BANDS]
    expected = torch.tensor([mark(band) for band in bands]) / 10_000
    assert len(bands) == 13
    assert bands[8] == 'B8A'
    found = seen[0].amax((0, 2, 3))
    assert_close(found, expected, atol=1e-6, rtol=0)
    again = rebuild(tmp_path / 'delta.safetensors', name)
    assert again.bands == run.backbone.bands
    assert again.value_range == run.backbone.value_range
    assert again.mean == (0,) * 13
