import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, merged, save_delta
from torchgeo_explora.export import export_timm, rebuild
from torchgeo_explora.export.rebuild import outline, reopen


@pytest.mark.parametrize('name', ['dinov2', 'registers', 'groups'])
@torch.no_grad()
def test_delta_and_base_give_the_backbone(name, make, trained, picture, tmp_path):
    backbone = trained(name)
    save_delta(backbone, tmp_path / 'delta.safetensors')
    export_timm(make(name), tmp_path / 'base.safetensors')
    path = tmp_path / 'delta.safetensors'
    again = rebuild(path, tmp_path / 'base.safetensors').eval()
    image = picture(backbone)
    assert_close(again(image), backbone(image), rtol=0, atol=0)
    assert {p.device.type for p in outline(path).parameters()} == {'meta'}


def test_other_base_is_refused_by_both_fingerprints(make, trained, tmp_path):
    backbone, other = trained('dinov2'), make('dinov2')
    save_delta(backbone, tmp_path / 'delta.safetensors')
    torch.nn.init.ones_(other.norm.weight)
    other.record.fingerprint = None
    export_timm(other, tmp_path / 'other.safetensors')
    message = (
        f'base {backbone.record.fingerprint[:12]}, this backbone is (?!{"0" * 12})'
    )
    with pytest.raises(ValueError, match=message):
        rebuild(tmp_path / 'delta.safetensors', tmp_path / 'other.safetensors')


class Own(nn.Module):
    """A transformer that this package does not know."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))


def test_backbone_of_another_package_is_not_built_by_name(tmp_path):
    path = tmp_path / 'delta.safetensors'
    save_delta(adapt(Own(), Adaptation(adapter=None)), path)
    with pytest.raises(
        ValueError, match=r'Own, and no backbone of this name is defined.* load_delta'
    ):
        rebuild(path)


@torch.no_grad()
def test_second_delta_goes_on_the_file_of_the_first(make, trained, picture, tmp_path):
    backbone = trained('dinov2')
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    export_timm(backbone, tmp_path / 'first.safetensors')
    base = merged(backbone)
    # As another machine rounds: known by base and delta, not by its values.
    base.blocks[0].attn.q.weight[0, 0] *= 1 + 1e-6
    second = adapt(base, Adaptation((0,), adapter=None))
    torch.nn.init.normal_(second.blocks[0].mlp.fc1.bias)
    metadata = {'mean': '[0.5, 0.5, 0.5]', 'std': '[0.25, 0.25, 0.25]'}
    save_delta(second, tmp_path / 'second.safetensors', metadata)
    again = rebuild(tmp_path / 'second.safetensors', tmp_path / 'first.safetensors')
    image = picture(backbone)
    assert_close(again.eval()(image), second(image))
    assert (again.mean, again.std) == ((0.5,) * 3, (0.25,) * 3)
    assert reopen(tmp_path / 'first.safetensors').mean == backbone.mean

    # The word of a file with other tensors does not count.
    with safe_open(tmp_path / 'first.safetensors', 'pt') as file:
        header = file.metadata()
    other = load_file(tmp_path / 'first.safetensors')
    other['norm.bias'] += 1
    save_file(other, tmp_path / 'other.safetensors', header)
    with pytest.raises(
        ValueError, match=r'delta was trained on base .*: load the same'
    ):
        rebuild(tmp_path / 'second.safetensors', tmp_path / 'other.safetensors')
