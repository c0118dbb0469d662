"""A backbone of a user's own, with rotary positions, through everything there is."""

import pytest
import timm
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.layers import apply_rot_embed_cat
from torch import nn
from torch.testing import assert_close

from torchgeo_explora.adapt import delta_state_dict, load_delta, merged
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.export import export_timm
from torchgeo_explora.export.rebuild import rebuild, reopen
from torchgeo_explora.functional import patchify
from torchgeo_explora.models import Backbone, Tokens
from torchgeo_explora.models.checkpoints import read_state
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask

SIZES = {'img_size': 32, 'patch_size': 8, 'embed_dim': 48, 'depth': 2, 'num_heads': 2}


class RotaryAttention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.heads, self.half = fused.num_heads, fused.rotate_half
        self.proj = fused.proj
        for name, weight in zip('qkv', fused.qkv.weight.chunk(3), strict=True):
            setattr(self, name, nn.Linear(48, 48, bias=False))
            getattr(self, name).weight.data.copy_(weight)

    def forward(self, x, rope, **unused):
        parts = self.q(x), self.k(x), self.v(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        q, k = self.rotated(q, rope), self.rotated(k, rope)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))

    def rotated(self, x, rope):
        special, patches = x.tensor_split([x.shape[2] - rope.shape[1]], dim=2)
        patches = apply_rot_embed_cat(patches, rope[:, None], half=self.half)
        return torch.cat([special, patches], dim=2)


class TinyRotaryViT(Backbone):
    def __init__(self, weights=None):
        vit = timm.create_model('vit_small_patch16_dinov3', num_classes=0, **SIZES)
        super().__init__({}, vit.embed_dim, 8, 3, (32, 32))
        for name in ('patch_embed', 'cls_token', 'reg_token', 'norm', 'rope'):
            setattr(self, name, getattr(vit, name))
        for block in vit.blocks:
            block.attn = RotaryAttention(block.attn)
        self.blocks = nn.Sequential(*vit.blocks)
        if weights:
            self.start_from(weights)

    def start_from(self, weights):
        self.load_state_dict(read_state(weights, '')[0])

    def embed(self, image, **metadata):
        content = self.patch_embed.proj(image).flatten(2).transpose(1, 2)
        grid = [image.shape[2] // 8, image.shape[3] // 8]
        return Tokens(content, self.rope.get_embed(shape=grid)[None], (1, *grid))

    def patchify(self, image):
        return patchify(image, 8)

    def prefix(self):
        return torch.cat([self.cls_token, self.reg_token], dim=1)

    def enter(self, content, position):
        prefix = self.prefix().expand(len(content), -1, -1)
        return torch.cat([prefix, content], dim=1), {'rope': position}


def test_features_are_timms_and_follow_the_order_of_tokens():
    vit = timm.create_model('vit_small_patch16_dinov3', num_classes=0, **SIZES).eval()
    own = TinyRotaryViT().eval()
    own.load_state_dict({k: v for k, v in vit.state_dict().items() if 'rope' not in k})
    image = torch.rand(2, 3, 32, 48)
    content, position, _ = own.embed(image)
    order = torch.randperm(24)
    found = own.encode(content[:, order], position[:, order])
    expected = vit.forward_features(image)
    assert_close(found.cls, expected[:, 0])
    assert_close(found.patch, expected[:, 5:][:, order])


@pytest.mark.parametrize('kind', [ExploraDinoTask, ExploraMAETask])
def test_it_trains_resumes_and_leaves_a_delta_that_loads(kind, tmp_path, tiny_images):
    torch.save(TinyRotaryViT().canonical_state_dict(), tmp_path / 'base.pth')
    small = {'prototypes': 16, 'hidden_dim': 8, 'bottleneck_dim': 4}
    if kind is ExploraMAETask:
        small = {'decoder_dim': 16, 'decoder_depth': 1, 'decoder_heads': 2}

    def run(place, ckpt_path=None):
        seed_everything(0)
        data = ImageFolderDataModule(tiny_images, batch_size=4)
        task = kind(TinyRotaryViT(tmp_path / 'base.pth'), weights=None, objective=small)
        Trainer(
            max_steps=4,
            logger=False,
            default_root_dir=place,
            callbacks=[ModelCheckpoint(place, 'two', every_n_train_steps=2)],
        ).fit(task, datamodule=data, ckpt_path=ckpt_path)
        return task

    whole = run(tmp_path / 'whole')
    found = delta_state_dict(run(tmp_path / 'resumed', tmp_path / 'whole/two.ckpt'))
    assert all(torch.equal(found[k], v) for k, v in delta_state_dict(whole).items())

    base, delta = tmp_path / 'base.pth', tmp_path / 'whole/delta.safetensors'
    adapted = rebuild(delta, base).eval()
    image = torch.rand(1, 3, 32, 32)
    assert_close(adapted(image), whole.backbone.eval()(image))
    plain = merged(load_delta(TinyRotaryViT(base), delta)).eval()
    assert_close(plain(image), adapted(image))
    export_timm(adapted, tmp_path / 'timm.safetensors')
    assert_close(reopen(tmp_path / 'timm.safetensors').eval()(image), plain(image))
