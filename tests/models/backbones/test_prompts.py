"""Visual prompts beside the tokens of an image."""

import pytest
import torch
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, delta_state_dict
from torchgeo_explora.models.backbones.prompts import Prompts


def by_hand(backbone, tokens, image, deep):
    """Concatenate and replace, block by block."""
    content, position, _ = backbone.embed(image)
    x = torch.cat([backbone.prefix().expand(len(image), -1, -1), content + position], 1)
    for index, block in enumerate(backbone.blocks):
        if index == 0:
            x = torch.cat([x[:, :1], tokens[0].expand(len(x), -1, -1), x[:, 1:]], 1)
        elif deep:
            rest = x[:, 1 + tokens.shape[1] :]
            x = torch.cat([x[:, :1], tokens[index].expand(len(x), -1, -1), rest], 1)
        x = block(x)
    x = backbone.norm(x)
    return x[:, 0], x[:, 1 + tokens.shape[1] :]


@pytest.mark.parametrize('deep', [False, True])
def test_prompts_are_those_of_the_paper(tiny_backbone, deep):
    image = torch.randn(2, 3, 32, 32)
    plain = tiny_backbone(image)
    expected_names = [*tiny_backbone.state_dict()]
    tokens = torch.randn(3 if deep else 1, 5, 24)
    expected = by_hand(tiny_backbone, tokens, image, deep)
    prompts = Prompts(tiny_backbone, 5, deep)
    prompts.tokens.data = tokens
    found = tiny_backbone(image)
    assert found.patch.shape == plain.patch.shape
    assert_close((found.cls, found.patch), expected)
    assert [*tiny_backbone.state_dict()] == expected_names


@pytest.mark.parametrize('deep', [False, True])
def test_gradient_reaches_every_prompt_and_nothing_else(tiny_backbone, deep):
    adapt(tiny_backbone, Adaptation((), False, False, None))
    prompts = Prompts(tiny_backbone, 4, deep)
    # The plain sum after a norm is a constant: its gradient is rounding noise.
    tiny_backbone(torch.randn(2, 3, 32, 32)).cls.square()[:, ::2].sum().backward()
    assert (prompts.tokens.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None for p in tiny_backbone.parameters())
    assert not delta_state_dict(tiny_backbone)


def test_values_start_within_the_papers_bound(tiny_backbone):
    tokens = Prompts(tiny_backbone, 100).tokens
    bound = (6 / (3 * 8**2 + 24)) ** 0.5
    assert bound * 0.9 < tokens.abs().max() <= bound


def test_no_prompt_is_an_error(tiny_backbone):
    with pytest.raises(ValueError, match=r'\*count\* is 0'):
        Prompts(tiny_backbone, 0)
