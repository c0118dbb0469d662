"""What a file says of a backbone is checked before anything is built (A1, A3)."""

import pytest
import torch

from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.models.backbones.from_file import (
    argument_names,
    backbone_from_file,
    outline_from_file,
    statistics_from_file,
)
from torchgeo_explora.tasks.run.backbone import build_backbone

VIT = 'torchgeo_explora.models.ViT'
GROUPS = 'torchgeo_explora.models.GroupChannelViT'
SMALL = {
    'model': 'vit_tiny_patch16_224',
    'in_channels': 3,
    'image_size': [16, 16],
    'patch_size': 8,
    'embed_dim': 24,
    'depth': 2,
    'num_heads': 2,
}


def test_file_gives_the_backbone_with_its_arguments():
    for name, arguments in ((VIT, SMALL), (GROUPS, {'depth': 1, 'embed_dim': 288})):
        backbone = backbone_from_file(name, arguments)
        again = type(backbone)(**backbone.arguments)
        assert again.arguments == backbone.arguments
        assert outline_from_file(name, arguments).pos_embed.is_meta


@pytest.mark.parametrize('kind', [ViT, GroupChannelViT, TemporalViT])
def test_no_file_may_give_weights(kind):
    assert not {'weights', 'pretrained', 'checkpoint_path', 'self'} & argument_names(
        kind
    )


@pytest.mark.parametrize(
    'name',
    ['os.system', 'subprocess.Popen', 'builtins.eval', '', None, ['os'], VIT + 'x'],
)
def test_other_classes_are_not_imported(name, monkeypatch):
    monkeypatch.setattr('os.system', None)
    for build in (backbone_from_file, outline_from_file):
        with pytest.raises(ValueError, match='no backbone of this name is defined'):
            build(name, {'command': 'echo'}, source='file')


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'weights': True}, r'a file may not set \*weights\*'),
        ({'weights': '/etc/passwd'}, r'a file may not set \*weights\*'),
        ({'checkpoint_path': '/etc/passwd'}, r'may not set \*checkpoint_path\*'),
        ({'pretrained': True}, r'may not set \*pretrained\*'),
        ({'pretrained_cfg': {'file': '/etc/passwd'}}, r'may not set \*pretrained_cfg'),
        ({'cache_dir': '/tmp'}, r'may not set \*cache_dir\*'),
        ({'block_fn': 'os.system'}, r'\*block_fn\* is not an argument that describes'),
        ({'attn_layer': 'x'}, r'\*attn_layer\* is not an argument'),
        ({'device': 'cuda'}, r'\*device\* is not an argument'),
        ({'\x1b[2J': 1}, r'\*\\x1b\[2J\* is not an argument'),
        (
            {'depth': 20000},
            r'\*depth\* is 20000, expected a whole number from 1 to 128',
        ),
        ({'depth': 0}, r'\*depth\* is 0'),
        ({'depth': True}, r'\*depth\* is True'),
        ({'depth': '2'}, r'\*depth\* is 2, expected a whole'),
        ({'depth': 2.0}, r'\*depth\* is 2\.0'),
        ({'embed_dim': 10**9}, r'\*embed_dim\*'),
        ({'num_heads': -1}, r'\*num_heads\*'),
        ({'num_heads': 7}, 'cannot be built'),
        ({'patch_size': 0}, r'\*patch_size\*'),
        ({'patch_size': 7}, 'cannot be built'),
        ({'image_size': [10**6, 10**6]}, r'\*image_size\* .*sides of 1 to 16384'),
        ({'image_size': [16, 16, 16]}, r'\*image_size\*'),
        ({'image_size': {}}, r'\*image_size\*'),
        ({'image_size': 16000, 'patch_size': 1}, '256,000,000 patches|parameters'),
        ({'in_channels': 10**9}, r'\*in_channels\*'),
        ({'in_channels': None}, r'\*in_channels\* is None'),
        ({'mlp_ratio': float('inf')}, r'\*mlp_ratio\* is inf'),
        ({'mlp_ratio': float('nan')}, r'\*mlp_ratio\* is nan'),
        ({'init_values': 'x'}, r'\*init_values\*'),
        ({'qkv_bias': 'yes'}, r'\*qkv_bias\* is yes, expected true or false'),
        ({'reg_tokens': 10**6}, r'\*reg_tokens\*'),
        ({'norm_layer': 'os.system("x")'}, r'\*norm_layer\* .*expected a name'),
        ({'model': 'hf-hub:attacker/model'}, r'\*model\* .*expected a name'),
        ({'model': 'local-dir:/etc'}, r'\*model\* .*expected a name'),
        ({'model': 'no_such_model'}, 'not known to timm'),
        ({'model': 'resnet18'}, 'cannot be built'),
        ({'model': 3}, r'\*model\*'),
        ({'embed_dim': 8192, 'depth': 128, 'num_heads': 2}, r'parameters, expected at'),
    ],
)
def test_hostile_arguments_are_refused_before_anything_is_built(
    changes, match, monkeypatch
):
    """Nothing has memory by then, and only a few thousand outlines were drawn."""
    drawn, draw = [], torch.nn.Module.register_parameter

    def note(self, name, parameter):
        drawn.append(parameter is None or parameter.is_meta)
        draw(self, name, parameter)

    monkeypatch.setattr(torch.nn.Module, 'register_parameter', note)
    with pytest.raises(ValueError, match=match) as error:
        backbone_from_file(VIT, {**SMALL, **changes}, source='delta.safetensors')
    assert 'delta.safetensors' in str(error.value)
    assert str(error.value).isprintable()
    assert all(drawn)
    assert len(drawn) < 10_000


@pytest.mark.parametrize(
    ('arguments', 'match'),
    [
        (None, 'its arguments are a NoneType'),
        ([1], 'its arguments are a list'),
        ({'bands': 'B02'}, r'\*bands\* .*a list of names'),
        ({'bands': [1]}, r'\*bands\*'),
        ({'bands': ['B'] * 5000}, r'\*bands\*'),
        ({'groups': ['B02']}, r'\*groups\* .*lists of names'),
        ({'groups': [['B99']]}, 'cannot be built'),
        ({'model': 'vit_tiny_patch16_224'}, r'\*model\* is not an argument'),
    ],
)
def test_hostile_groups_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        backbone_from_file(GROUPS, arguments)


def test_missing_arguments_are_named():
    with pytest.raises(ValueError, match="missing a required argument: 'model'"):
        backbone_from_file(VIT, {'depth': 2})


@pytest.mark.parametrize(
    'values', ['[NaN, 1, 1]', '"x"', '[1]', '[' * 100_000, '{}', '[true, 1, 1]', 'x']
)
@pytest.mark.parametrize('name', ['mean', 'std'])
def test_hostile_statistics_are_refused(name, values):
    backbone = backbone_from_file(VIT, SMALL)
    with pytest.raises(
        ValueError, match=f'has {name} .*expected 3 or 3 finite numbers'
    ):
        statistics_from_file(backbone, {name: values})
    with pytest.raises(ValueError, match='above 0'):
        statistics_from_file(backbone, {'std': '[0, 1, 1]'})


@pytest.mark.parametrize(
    'ends', ['x', 'null', '[[0], [NaN]]', '[[0, 0], [1, 1]]', '[0, 1]', '[[0]]']
)
def test_hostile_ranges_are_refused(ends):
    ranges = {'value_range': [[0] * 3, [255] * 3]}
    backbone = backbone_from_file(VIT, SMALL | ranges)
    with pytest.raises(
        ValueError, match=r'has value_range .* low and high with 1 or 3'
    ):
        statistics_from_file(backbone, {'value_range': ends})
    with pytest.raises(ValueError, match=r'\*value_range\* .*two lists of finite'):
        backbone_from_file(VIT, SMALL | {'value_range': [['a'], [1]]})


def test_bands_and_range_of_training_go_before_that_of_the_weights():
    ranges = {'value_range': [[0] * 3, [255] * 3]}
    backbone = backbone_from_file(VIT, SMALL | ranges)
    statistics_from_file(backbone, {'value_range': '[[0], [3000]]'})
    assert backbone.value_range == ((0, 0, 0), (3000, 3000, 3000))
    statistics_from_file(backbone, {'bands': '["red", "green", "blue"]'})
    assert backbone.bands == ('red', 'green', 'blue')
    statistics_from_file(backbone, {'bands': 'null'})
    assert backbone.arguments['bands'] == ['red', 'green', 'blue']
    for names in ('["red"]', '[1, 2, 3]', '{}'):
        with pytest.raises(ValueError, match=r'has bands .*expected 3 names'):
            statistics_from_file(backbone, {'bands': names})
    other = backbone_from_file(VIT, SMALL)
    given = {'value_range': '[[0], [3000]]', 'bands': '["a", "b", "c"]'}
    statistics_from_file(other, given)
    assert (other.value_range, other.bands) == (None, None)


@pytest.mark.parametrize(
    'model',
    [
        {'class_path': 'os.system', 'init_args': {'command': 'touch hacked'}},
        {'class_path': VIT, 'init_args': {**SMALL, 'checkpoint_path': 'evil.pth'}},
        {'class_path': VIT, 'init_args': {**SMALL, 'weights': 'evil.pth'}},
        {'init_args': {}},
        {'class_path': VIT, 'init_args': 3},
    ],
)
def test_model_of_a_checkpoint_is_checked_too(model, tmp_path, monkeypatch):
    """A checkpoint's hyper-parameters name what its task builds (A1)."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'\*model\*'):
        build_backbone(model)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    'name',
    ['checkpoint_path', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay'],
)
def test_timm_is_never_told_where_weights_are(name):
    options = {k: v for k, v in SMALL.items() if k not in ('model', 'in_channels')}
    size = options.pop('image_size')[0]
    with pytest.raises(ValueError, match=rf'\*{name}\* cannot be chosen: give \*weig'):
        build_backbone(
            SMALL['model'], image_size=size, model_args={**options, name: 'evil'}
        )


def test_class_of_a_user_gets_the_arguments_that_it_names():
    class Named(ViT):
        def __init__(self, model, weights=None, mine=1, **options):
            super().__init__(model, weights, **options)

    name = Named.public_name()
    assert 'mine' in argument_names(Named)
    assert 'embed_dim' in argument_names(Named)
    backbone = backbone_from_file(name, {**SMALL, 'mine': [1, 'two', {'a': None}]})
    assert type(backbone) is Named
    for wrong in (
        {'mine': torch.ones(1)},
        {'checkpoint_path': 'x'},
        {'mine': 'x' * 10**6},
    ):
        with pytest.raises(ValueError, match='Named'):
            backbone_from_file(name, {**SMALL, **wrong})
