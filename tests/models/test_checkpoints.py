import argparse

import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file
from torch.testing import assert_close
from torchvision.models._api import Weights, WeightsEnum

from torchgeo_explora.models import ViT, checkpoints
from torchgeo_explora.models.checkpoints import (
    from_dinov2,
    from_explora,
    from_mae,
    fuse_qkv,
    read_state,
    split_qkv,
)

MODEL = 'vit_small_patch14_dinov2'
TINY = {'image_size': 28, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}


@pytest.fixture
def state():
    """Weights of a tiny DINOv2 as published: flat, with a mask token."""
    torch.manual_seed(0)
    backbone = ViT(MODEL, **TINY).canonical_state_dict()
    return backbone | {'mask_token': torch.ones(1, 24)}


def without_mask(state):
    return {key: value for key, value in state.items() if key != 'mask_token'}


def chunked(state):
    return {key.replace('blocks.', 'blocks.0.'): v for key, v in state.items()}


def test_fusing_undoes_splitting(state):
    split = split_qkv(state)
    assert split['blocks.0.attn.k.weight'].shape == (24, 24)
    assert not any('qkv' in key for key in split)
    assert_close(fuse_qkv(split), state)


def test_fusing_leaves_a_layer_whose_parts_are_not_all_there(state):
    split = split_qkv(state)
    adapter = split.pop('blocks.0.attn.q.weight')
    split['blocks.0.attn.q.base_layer.weight'] = adapter
    fused = fuse_qkv(split)
    assert 'blocks.0.attn.v.weight' in fused
    assert 'blocks.1.attn.qkv.weight' in fused
    assert sum(v.numel() for v in fused.values()) == sum(
        v.numel() for v in state.values()
    )


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: state,
        chunked,
        lambda state: {'model': state, 'epoch': 3},
        lambda state: {'teacher': {f'backbone.{k}': v for k, v in state.items()}},
        lambda state: {f'student.backbone.{k}': v for k, v in chunked(state).items()},
        lambda state: {f'backbone.{k}': v for k, v in state.items()},
    ],
    ids=['flat', 'chunked', 'model', 'teacher', 'student', 'backbone'],
)
def test_every_form_of_dinov2_is_read(state, wrap):
    backbone, rest = from_dinov2(wrap(state))
    assert_close(backbone, without_mask(state))
    assert_close(rest, {'mask_token': state['mask_token']})
    ViT(MODEL, **TINY).load_state_dict(backbone)


def test_teacher_is_preferred_and_the_student_and_heads_are_kept(state):
    student = {f'student.backbone.{k}': v + 1 for k, v in state.items()}
    teacher = {f'teacher.backbone.{k}': v for k, v in state.items()}
    head = {'teacher.dino_head.mlp.0.bias': torch.ones(3)}

    backbone, rest = from_dinov2({'model': student | teacher | head})

    assert_close(backbone, without_mask(state))
    assert rest.keys() == student.keys() | {'dino_head.mlp.0.bias', 'mask_token'}


def test_swiglu_of_dinov2_becomes_that_of_timm():
    vit = ViT('vit_giant_patch14_dinov2', **TINY)
    timm_names = vit.canonical_state_dict()
    published = {
        key.replace('fc1', 'w12').replace('fc2', 'w3'): value
        for key, value in timm_names.items()
    }
    assert 'blocks.0.mlp.w12.weight' in published
    assert_close(from_dinov2(published)[0], timm_names)


def test_registers_take_the_class_position_into_the_class_token(state):
    registers = torch.ones(1, 4, 24)
    backbone, _ = from_dinov2(state | {'register_tokens': registers})
    assert_close(backbone['reg_token'], registers)
    assert_close(backbone['cls_token'], state['cls_token'] + state['pos_embed'][:, :1])
    assert_close(backbone['pos_embed'], state['pos_embed'][:, 1:])
    ViT('vit_small_patch14_reg4_dinov2', **TINY).load_state_dict(backbone)


def test_decoder_and_head_of_mae_are_the_rest(state):
    decoder = {
        name: torch.ones(2)
        for name in (
            'decoder_pos_embed',
            'decoder_embed.weight',
            'decoder_blocks.0.attn.qkv.weight',
            'decoder_pred.bias',
            'head.weight',
            'fc_norm.bias',
        )
    }
    backbone, rest = from_mae({'model': state | decoder, 'args': None})
    assert_close(backbone, without_mask(state))
    assert rest.keys() == decoder.keys() | {'mask_token'}


def test_duplicates_of_explora_are_the_rest_and_the_fused_one_is_used(state):
    duplicates = {
        key.replace('.q.', '.q_proj.')
        .replace('.k.', '.k_proj.')
        .replace('.v.', '.v_proj.'): value
        for key, value in split_qkv(state).items()
        if '.attn.proj' not in key and '.attn.' in key
    }
    teacher = {f'backbone.{k}': v for k, v in (state | duplicates).items()}

    backbone, rest = from_explora({'teacher': teacher})

    assert_close(backbone, without_mask(state))
    assert len(rest) == len(duplicates) + 1
    only_split = {k: v for k, v in (state | duplicates).items() if 'qkv' not in k}
    assert_close(from_explora({'model': only_split})[0], without_mask(state))


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.pt'])
@pytest.mark.parametrize('kind', [str, lambda path: path])
def test_a_file_is_read(state, tmp_path, suffix, kind):
    path = tmp_path / f'weights{suffix}'
    if suffix == '.safetensors':
        save_file(state, path)
    else:
        torch.save({'model': state, 'args': argparse.Namespace(lr=0.1)}, path)
    backbone, rest = read_state(kind(path), MODEL)
    assert_close(backbone, without_mask(state))
    assert_close(rest, {'mask_token': state['mask_token']})


def test_a_file_with_code_is_refused(state, tmp_path):
    torch.save({'model': state, 'make': torch.nn.Linear(2, 2)}, tmp_path / 'code.pth')
    with pytest.raises(ValueError, match='they can run code'):
        read_state(tmp_path / 'code.pth', MODEL)


def test_the_home_folder_is_known(state, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_file(state, tmp_path / 'weights.safetensors')
    assert_close(read_state('~/weights.safetensors', MODEL)[0], without_mask(state))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        read_state(tmp_path / 'none.pth', MODEL)


@pytest.mark.parametrize(('channels', 'scale'), [(3, 1.0), (6, 0.5), (1, None)])
def test_channels_are_repeated_or_summed_by_the_rule_of_timm(
    state, tmp_path, channels, scale
):
    save_file(state, tmp_path / 'weights.safetensors')
    backbone, _ = read_state(tmp_path / 'weights.safetensors', MODEL, channels)
    kernel = state['patch_embed.proj.weight']
    expected = kernel.sum(1, keepdim=True)
    if scale is not None:
        expected = kernel.repeat(1, channels // 3, 1, 1) * scale
    assert_close(backbone['patch_embed.proj.weight'], expected)


def test_keys_that_no_rule_knows_are_an_error(state, tmp_path):
    save_file(state | {'channel_embed': torch.ones(1)}, tmp_path / 'w.safetensors')
    with pytest.raises(RuntimeError, match='channel_embed'):
        ViT(MODEL, weights=tmp_path / 'w.safetensors', **TINY)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (lambda tensor: tensor.long(), 'norm.bias as torch.int64, .*: expected'),
        (
            lambda tensor: tensor.to(torch.complex64),
            'norm.bias as torch.complex64, .*: expected',
        ),
        (
            lambda tensor: tensor.to_sparse(),
            'norm.bias as .*torch.sparse_coo: expected',
        ),
        (
            lambda tensor: tensor * float('nan'),
            'values in norm.bias that are not finite',
        ),
    ],
    ids=['integers', 'complex', 'sparse', 'nan'],
)
def test_values_that_are_no_weights_are_refused(state, tmp_path, wrong, message):
    """F33: they would be cast in silence, or spoil every feature."""
    path = tmp_path / 'weights.pth'
    torch.save({**state, 'norm.bias': wrong(state['norm.bias'])}, path)
    with pytest.raises(ValueError, match=rf'weights\.pth hold {message}'):
        read_state(path, MODEL)


def test_weights_of_timm_are_read_at_their_native_size(state, monkeypatch):
    published = timm.create_model(
        MODEL, num_classes=0, img_size=56, embed_dim=24, depth=2, num_heads=2
    )
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        'create_model',
        lambda name, pretrained=False, **options: (
            published if pretrained else create(name, **options)
        ),
    )
    backbone, rest = read_state(True, MODEL)
    assert_close(backbone, dict(published.state_dict()))
    assert rest == {}
    assert ViT(MODEL, weights=True, **TINY).pos_embed.shape == (1, 5, 24)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (MODEL, r'https://huggingface\.co/timm/vit_small_patch14_dinov2\.lvd142m'),
        ('vit_small_patch16_36x1_224', 'timm has no weights'),
    ],
)
def test_weights_of_timm_that_cannot_be_had_say_where_to_get_them(
    monkeypatch, model, message
):
    def offline(name, **options):
        raise FileNotFoundError('no connection')

    monkeypatch.setattr(checkpoints.timm, 'create_model', offline)
    with pytest.raises(FileNotFoundError, match=message):
        read_state(True, model)


def test_a_gated_file_says_where_its_licence_is_accepted(monkeypatch, tmp_path):
    def gated(name, **options):
        # Its constructor wants an answer of a server.
        raise GatedRepoError.__new__(GatedRepoError, 'gated')

    monkeypatch.setattr(checkpoints.timm, 'create_model', gated)
    name = 'vit_large_patch16_dinov3.sat493m'
    page = rf'https://huggingface\.co/timm/{name}'
    with pytest.raises(
        FileNotFoundError,
        match=rf'gated: accept their licence at {page}, and log in with `hf auth'
        r'.*dinov3-license.*accept it.*dinov3-downloads',
    ):
        read_state(name, name)
    path = tmp_path / 'dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth'
    with pytest.raises(
        FileNotFoundError, match=r'does not exist: .*dinov3-downloads/; put the file'
    ):
        read_state(path, name)


def test_weights_of_an_enum_are_fetched_and_their_absence_is_explained(
    state, tmp_path, monkeypatch
):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(state, tmp_path / 'there.pth')

    class Published(WeightsEnum):
        HERE = Weights((tmp_path / 'there.pth').as_uri(), None, {})
        LOST = Weights((tmp_path / 'lost.pth').as_uri(), None, {})

    backbone, _ = read_state(Published.HERE, MODEL)
    assert_close(backbone, without_mask(state))
    with pytest.raises(FileNotFoundError, match=r'lost\.pth into .*checkpoints'):
        read_state(Published.LOST, MODEL)


def test_weights_are_found_by_the_name_of_torchgeo(state, monkeypatch):
    asked = []

    def get_state_dict(self, **options):
        asked.append((str(self), options))
        return state

    monkeypatch.setattr(WeightsEnum, 'get_state_dict', get_state_dict)
    backbone, _ = read_state('ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON', MODEL)
    assert_close(backbone, without_mask(state))
    ((name, options),) = asked
    assert name == 'ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON'
    assert options == {'progress': True, 'check_hash': True, 'weights_only': True}
    with pytest.raises(ValueError, match='neither a file'):
        read_state('NoSuch_Weights.HERE', MODEL)
