"""RotaryViT against timm's Eva, and through everything that a backbone goes through."""

import pytest
import timm
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.testing import assert_close

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    delta_state_dict,
    load_delta,
    lora,
    merged,
    save_delta,
    twin,
)
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.export import export_timm, rebuild
from torchgeo_explora.functional import random_mask
from torchgeo_explora.models import RotaryViT
from torchgeo_explora.objectives import MAE, DINOv2
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask
from torchgeo_explora.tasks.run.backbone import build_backbone

SIZES = {'patch_size': 8, 'embed_dim': 48, 'depth': 3, 'num_heads': 2}
#: Without biases of q, k and v; with those of q and v; with SwiGLU.
MODELS = (
    'vit_small_patch16_dinov3',
    'vit_small_patch16_dinov3_qkvb',
    'vit_small_plus_patch16_dinov3',
)


@pytest.fixture(params=MODELS)
def pair(request):
    """timm's model with random values, and ours with the same."""
    torch.manual_seed(0)
    vit = timm.create_model(request.param, num_classes=0, img_size=32, **SIZES).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    own = RotaryViT(request.param, image_size=32, **SIZES).eval()
    own.load_state_dict(vit.state_dict())
    return vit, own


@pytest.mark.parametrize('size', [(32, 32), (48, 80)])
def test_features_are_those_of_timm_to_the_bit(pair, size):
    vit, own = pair
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected, found = vit.forward_features(image), own(image)
    assert torch.equal(found.cls, expected[:, 0])
    assert torch.equal(found.patch, expected[:, vit.num_prefix_tokens :])


def test_names_are_those_of_timm(pair):
    vit, own = pair
    state = own.canonical_state_dict()
    assert state.keys() == vit.state_dict().keys()
    assert all(
        torch.equal(value, state[name]) for name, value in vit.state_dict().items()
    )


def test_order_and_choice_of_tokens_do_not_matter(pair):
    own = pair[1]
    content, position, _ = own.embed(torch.rand(2, 3, 32, 48))
    order = torch.randperm(24)
    whole = own.encode(content, position)
    shuffled = own.encode(content[:, order], position[:, order])
    assert_close(shuffled.cls, whole.cls)
    assert_close(shuffled.patch, whole.patch[:, order])


def test_the_last_block_works_only_on_wanted_rows(pair):
    own = pair[1]
    content, position, _ = own.embed(torch.rand(3, 3, 32, 32))
    wanted = torch.rand(3, 16) < 0.4
    wanted[1] = False
    whole = own.encode(content, position)
    found = own.encode(content, position, wanted)
    assert_close(found.cls, whole.cls)
    assert_close(found.patch, whole.patch[wanted])
    # Positions of one image each, as MAE gives them.
    some = own.encode(content, position.expand(3, -1, -1), wanted)
    assert_close(some.patch, found.patch)


def test_coordinates_are_augmented_in_training_only():
    own = RotaryViT(MODELS[0], image_size=32, rope_rescale_coords=2.0, **SIZES)
    image = torch.rand(1, 3, 32, 32)
    first, second = (own.embed(image).position for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, twin(own).embed(image).position)
    plain = RotaryViT(MODELS[0], image_size=32, **SIZES)
    assert torch.equal(plain.embed(image).position, own.eval().embed(image).position)


def test_adapted_merged_and_saved(pair, tmp_path):
    vit, own = pair
    torch.save(vit.state_dict(), tmp_path / 'base.pth')
    adapt(own, Adaptation((-1,), adapter=lora(2)))
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    names = delta_state_dict(own)
    assert any('attn.q.lora_A' in name for name in names)
    image = torch.rand(1, 3, 32, 32)
    found = own(image)
    assert_close(merged(own)(image), found, rtol=1e-4, atol=1e-5)
    save_delta(own, tmp_path / 'delta.safetensors')
    again = rebuild(tmp_path / 'delta.safetensors', tmp_path / 'base.pth').eval()
    assert torch.equal(again(image).cls, found.cls)
    export_timm(own, tmp_path / 'timm.safetensors')
    plain = timm.create_model(
        vit.pretrained_cfg['architecture'],
        num_classes=0,
        img_size=32,
        checkpoint_path=str(tmp_path / 'timm.safetensors'),
        **SIZES,
    ).eval()
    assert_close(plain.forward_features(image)[:, 0], found.cls, rtol=1e-4, atol=1e-5)
    # Another base is known by its weights.
    with pytest.raises(ValueError, match='was trained on base'):
        load_delta(
            RotaryViT(MODELS[0], image_size=32, **SIZES), tmp_path / 'delta.safetensors'
        )


@pytest.mark.parametrize('kind', [DINOv2, MAE])
def test_both_objectives_learn(kind):
    torch.manual_seed(0)
    own = RotaryViT(MODELS[0], image_size=32, **SIZES)
    adapt(own, Adaptation((-1,), adapter=lora(4)))
    image = torch.rand(8, 3, 32, 32)
    if kind is MAE:
        objective = MAE(own, 16, 1, 2)
        mask = random_mask(torch.rand(8, 16), 0.5)

        def step():
            return objective.loss(image, mask)
    else:
        objective = DINOv2(own, prototypes=16, hidden_dim=16, bottleneck_dim=8)
        mask = torch.rand(16, 16) < 0.3
        views = torch.stack([image, image.flip(-1)])

        def step():
            return sum(
                objective.terms(views, views[..., :16, :16], mask, 0.07).values()
            )

    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = step()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize('kind', [ExploraDinoTask, ExploraMAETask])
def test_a_task_takes_it_by_name_and_resumes_to_the_bit(kind, tmp_path, tiny_images):
    small = {'prototypes': 16, 'hidden_dim': 8, 'bottleneck_dim': 4}
    if kind is ExploraMAETask:
        small = {'decoder_dim': 16, 'decoder_depth': 1, 'decoder_heads': 2}
    torch.save(
        RotaryViT(MODELS[0], image_size=32, **SIZES).canonical_state_dict(),
        tmp_path / 'base.pth',
    )

    def run(place, ckpt_path=None):
        seed_everything(0)
        task = kind(
            MODELS[0],
            weights=str(tmp_path / 'base.pth'),
            image_size=32,
            model_args=SIZES | {'rope_rescale_coords': 2.0},
            checkpointing=True,
            objective=small,
        )
        Trainer(
            accelerator='cpu',
            max_steps=4,
            logger=False,
            default_root_dir=place,
            callbacks=[ModelCheckpoint(place, 'two', every_n_train_steps=2)],
        ).fit(
            task,
            datamodule=ImageFolderDataModule(tiny_images, batch_size=4),
            ckpt_path=ckpt_path,
        )
        return delta_state_dict(task)

    whole = run(tmp_path / 'whole')
    again = run(tmp_path / 'again', tmp_path / 'whole/two.ckpt')
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ('vit_tiny_patch16_224', 'is of class VisionTransformer'),
        ('eva02_tiny_patch14_224', 'has a position table'),
        ('vit_small_patch16_dinov9', 'not known to timm'),
    ],
)
def test_models_of_another_kind_are_refused_with_the_reason(model, message):
    with pytest.raises(ValueError, match=rf'{message}.*RotaryViT takes'):
        RotaryViT(model)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'in_chans': 4}, r'\*in_chans\* is set by \*in_channels\*'),
        ({'img_size': 64}, r'\*img_size\* is set by \*image_size\*'),
        ({'pretrained': True}, r'\*pretrained\* cannot .* give \*weights\*'),
        ({'checkpoint_path': 'a.pth'}, r'\*checkpoint_path\* cannot .* \*weights\*'),
        ({'global_pool': 'avg'}, r'\*global_pool\* cannot be chosen: RotaryViT takes'),
        ({'patch_drop_rate': 0.5}, 'drops tokens or positions by itself'),
        ({'pos_drop_rate': 0.5}, 'drops tokens or positions by itself'),
    ],
)
def test_arguments_of_timm_that_would_not_be_followed_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RotaryViT(MODELS[0], image_size=32, **SIZES, **given)


def test_a_name_decides_which_backbone_is_built():
    backbone = build_backbone(MODELS[0], image_size=32, model_args=SIZES)
    assert isinstance(backbone, RotaryViT)
    config = timm.get_pretrained_cfg(MODELS[0] + '.lvd1689m')
    assert (
        RotaryViT(f'{MODELS[0]}.lvd1689m', image_size=32, **SIZES).mean == config.mean
    )
    with pytest.raises(ValueError, match='in_channels = 3'):
        backbone.embed(torch.rand(1, 4, 32, 32))
    with pytest.raises(ValueError, match='not a multiple of patch_size 8'):
        backbone.embed(torch.rand(1, 3, 36, 32))
