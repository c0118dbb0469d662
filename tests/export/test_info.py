import pytest
import torch
from safetensors.torch import load_file, save_file

from torchgeo_explora.adapt import save_delta
from torchgeo_explora.export import export_timm
from torchgeo_explora.export.info import compare_files, summarize_file


@pytest.fixture
def path(trained, tmp_path):
    path = tmp_path / 'delta.safetensors'
    save_delta(trained('dinov2'), path, {'objective': 'DINOv2', 'steps': '600'})
    return path


def test_delta_is_summarized(path):
    text = summarize_file(path)
    size = sum(tensor.numel() for tensor in load_file(path).values()) / 1e6
    assert 'delta [4]-r4 of vit_small_patch14_dinov2, image size [28, 28]' in text
    assert f'size: {size:.2f} M parameters' in text
    for line in ('  objective: DINOv2', '  steps: 600', '  base: ', '  delta: '):
        assert line in text
    assert 'lineage' not in text


def test_weights_are_summarized(make, tmp_path):
    backbone = make('dinov2')
    export_timm(backbone, tmp_path / 'plain.safetensors')
    state = {**backbone.canonical_state_dict(), 'mask_token': torch.zeros(1, 24)}
    torch.save({'model': state}, tmp_path / 'published.pth')
    count = len(state) - 1
    text = summarize_file(tmp_path / 'plain.safetensors')
    assert f'weights, {count} tensors of a backbone and 0 others' in text
    assert '  arguments: {' in text
    text = summarize_file(tmp_path / 'published.pth')
    assert f'weights, {count} tensors of a backbone and 1 others' in text


def test_same_content_differs_in_nothing(path, make, tmp_path):
    assert compare_files(path, path) == []
    torch.save(make('dinov2').canonical_state_dict(), tmp_path / 'one.pth')
    torch.save({'model': make('dinov2').state_dict()}, tmp_path / 'other.pth')
    assert compare_files(tmp_path / 'one.pth', tmp_path / 'other.pth') == []


def test_deltas_are_compared_by_their_update(path, trained, tmp_path):
    other = tmp_path / 'other.safetensors'
    backbone = trained('dinov2')
    with torch.no_grad():
        layer = backbone.blocks[0].attn.q
        # Other factors of the same product.
        layer.lora_A['default'].weight.mul_(2)
        layer.lora_B['default'].weight.div_(2)
        backbone.blocks[1].attn.v.lora_B['default'].weight.mul_(1.5)
        backbone.norm.bias.mul_(3)
    save_delta(backbone, other, {'objective': 'MAE'})
    lines = compare_files(path, other)
    assert 'objective: DINOv2 | MAE' in lines
    assert 'steps: 600 | nothing' in lines
    assert 'blocks.1.attn.v (update): relative distance 0.5' in lines
    assert 'norm.bias: relative distance 2' in lines
    assert len(lines) == 5  # and the hash of the delta


def test_missing_tensors_and_other_shapes_are_told(path, trained, tmp_path):
    other = tmp_path / 'other.safetensors'
    save_delta(trained('dinov2', norms=False, unfreeze=(0,)), other)
    lines = compare_files(path, other)
    assert f'blocks.3.attn.q.weight: only in {path}' in lines
    assert f'blocks.0.attn.q.weight: only in {other}' in lines
    for name, size in (('a', 2), ('b', 3)):
        save_file({'cls_token': torch.ones(size)}, tmp_path / f'{name}.safetensors')
    assert compare_files(tmp_path / 'a.safetensors', tmp_path / 'b.safetensors') == [
        'cls_token: shape (2,) | (3,)'
    ]


def test_damaged_and_missing_files_are_named(path, tmp_path):
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r'delta.safetensors is cut short or damaged'):
        summarize_file(path)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        summarize_file(tmp_path / 'nothing.safetensors')


def test_changed_delta_is_told(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for look in (summarize_file, lambda file: compare_files(file, file)):
        with pytest.raises(ValueError, match='not those that were saved'):
            look(path)


def test_checkpoint_of_training_is_summarized(tmp_path):
    content = {
        'explora': {'base': 'abc'},
        'state_dict': {'a': torch.ones(3)},
        'global_step': 7,
        'hyper_parameters': {
            '_class_path': 'torchgeo_explora.tasks.ExploraDinoTask',
            'model': 'vit',
            'weights': 'base.safetensors',
        },
    }
    torch.save(content, tmp_path / 'last.ckpt')
    text = summarize_file(tmp_path / 'last.ckpt')
    assert 'checkpoint of ExploraDinoTask after 7 optimizer steps' in text
    assert '  weights: base.safetensors' in text
    assert 'delta' not in text


def test_delta_and_whole_weights_are_not_compared(path, make, tmp_path):
    export_timm(make('dinov2'), tmp_path / 'plain.safetensors')
    for files in (
        (path, tmp_path / 'plain.safetensors'),
        (path.parent / 'plain.safetensors', path),
    ):
        with pytest.raises(ValueError, match=r'delta.safetensors is a delta and the'):
            compare_files(*files)


def test_licence_of_weights_is_told_by_their_name(trained, make, tmp_path):
    save_delta(trained('rotary'), tmp_path / 'delta.safetensors')
    text = summarize_file(tmp_path / 'delta.safetensors')
    line = 'licence of vit_small_patch16_dinov3_qkvb: dinov3-license (Meta'
    assert line in text
    assert '/dinov3-license/)' in text
    name = 'dinov3_vits16_pretrain_lvd1689m-08c60483.pth'
    torch.save(make('rotary').canonical_state_dict(), tmp_path / name)
    assert f'licence of {name}: dinov3-license' in summarize_file(tmp_path / name)
