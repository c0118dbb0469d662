import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.models import DINOHead


def head_of(config, name):
    options = dict(config['heads'][name])
    return DINOHead(layers=options.pop('nlayers'), **options)


def part(tensors, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


@pytest.mark.parametrize('name', ['a', 'b'])
def test_logits_and_gradients_equal_those_of_dinov2(golden, name):
    tensors, config = golden('dino_head')
    head = head_of(config, name)
    head.load_state_dict(part(tensors, f'sd.{name}.'))
    x = tensors[f'in.{name}.x'].requires_grad_()

    logits = head(x)
    (logits * tensors[f'in.{name}.cotangent']).sum().backward()

    assert_close(logits, tensors[f'out.{name}.y'], atol=1e-5, rtol=1e-4)
    bottleneck = tensors[f'out.{name}.bottleneck']
    assert_close(head.mlp(x), bottleneck, atol=1e-5, rtol=1e-4)
    assert_close(x.grad, tensors[f'grad.{name}.x'], atol=1e-5, rtol=1e-4)
    # The order is DINOv2's: linear layers from the input on, then g and v.
    expected = part(tensors, f'grad.{name}.')
    del expected['x']
    order = (
        ('mlp.weight', 'mlp.bias')
        if name == 'b'
        else tuple(
            f'mlp.{index}.{kind}' for index in (0, 2, 4) for kind in ('weight', 'bias')
        )
    )
    order += ('last_layer.weight_g', 'last_layer.weight_v')
    for key, parameter in zip(order, head.parameters(), strict=True):
        assert_close(parameter.grad, expected[key], atol=1e-5, rtol=1e-4)


def test_names_of_both_weight_normalisations_load_inside_another_module(golden):
    tensors, config = golden('dino_head')
    old = part(tensors, 'sd.a.')
    state = {
        'dino_head.'
        + key.replace('weight_g', 'parametrizations.weight.original0').replace(
            'weight_v', 'parametrizations.weight.original1'
        ): value
        for key, value in old.items()
    }
    module = torch.nn.ModuleDict({'dino_head': head_of(config, 'a')})
    module.load_state_dict(state)
    assert_close(
        module['dino_head'].prototypes.direction.data, old['last_layer.weight_v']
    )


def test_state_dict_lists_layers_from_input_to_prototypes():
    state = DINOHead(8, 16, hidden_dim=6, bottleneck_dim=4).state_dict()
    assert list(state) == [
        'mlp.0.weight',
        'mlp.0.bias',
        'mlp.2.weight',
        'mlp.2.bias',
        'mlp.4.weight',
        'mlp.4.bias',
        'prototypes.magnitude',
        'prototypes.direction',
    ]


def test_logits_start_within_one_and_magnitudes_train():
    torch.manual_seed(0)
    head = DINOHead(8, 32, hidden_dim=16, bottleneck_dim=6)
    x = 100 * torch.randn(5, 3, 8)
    logits = head(x)
    assert logits.shape == (5, 3, 32)
    assert logits.abs().max() <= 1 + 1e-6
    assert_close(head.bottleneck(x).norm(dim=-1), torch.ones(5, 3))
    assert_close(head.prototypes(head.bottleneck(x)), logits)
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.prototypes.parameters())


def test_initial_values_are_those_of_dinov2():
    torch.manual_seed(0)
    head = DINOHead(64, 512, hidden_dim=256, bottleneck_dim=64)
    for layer in head.mlp[::2]:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    assert torch.equal(head.prototypes.magnitude, torch.ones(512, 1))
    # Kaiming-uniform with a = sqrt(5): uniform within 1 / sqrt(in_dim).
    direction = head.prototypes.direction
    assert direction.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert direction.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


def test_half_precision_keeps_unit_vectors_in_float32():
    head = DINOHead(8, 32, hidden_dim=16, bottleneck_dim=6)
    with torch.autocast('cpu', torch.bfloat16):
        z = head.bottleneck(torch.randn(4, 8))
        logits = head(torch.zeros(4, 8))
    assert z.dtype == torch.float32
    assert_close(z.norm(dim=-1), torch.ones(4))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_after_a_step_is_independent_and_loads(copied):
    head = DINOHead(8, 16, hidden_dim=6, bottleneck_dim=4)
    x = torch.ones(2, 8)
    head(x).sum().backward()
    other = copied(head)
    assert_close(other(x), head(x))
    other.load_state_dict(head.state_dict())
    assert not {id(p) for p in head.parameters()} & {id(p) for p in other.parameters()}


def test_size_is_as_counted():
    with torch.device('meta'):
        head = DINOHead(1024)
    assert sum(p.numel() for p in head.parameters()) == 23_662_848


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match=r'\*layers\* is 0'):
        DINOHead(8, layers=0)
