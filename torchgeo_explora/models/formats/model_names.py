"""Names that other projects give to timm's models."""

import difflib
import re

import timm

_SIZES = {
    't': 'tiny',
    's': 'small',
    'b': 'base',
    'l': 'large',
    'h': 'huge',
    'g': 'giant',
    '7b': '7b',
}
# A pattern of a name, and timm's name of the same weights: {size} stands for the words
# of `_SIZES`.
_RULES = (
    (r'dinov2_vit(?P<size>[sblg])14(?:_lc)?', 'vit_{size}_patch14_dinov2.lvd142m'),
    (
        r'dinov2_vit(?P<size>[sblg])14_reg\d?(?:_lc)?',
        'vit_{size}_patch14_reg4_dinov2.lvd142m',
    ),
    (
        r'facebook/dinov2-(?P<size>small|base|large|giant)',
        'vit_{size}_patch14_dinov2.lvd142m',
    ),
    (
        r'facebook/dinov2-with-registers-(?P<size>small|base|large|giant)',
        'vit_{size}_patch14_reg4_dinov2.lvd142m',
    ),
    (
        (
            r'(?:facebook/)?dinov3[_-]vit(?P<size>[sblh]|7b)16(?P<plus>plus)?'
            r'(?:[_-]pretrain)?(?:[_-](?P<tag>lvd1689m|sat493m))?'
        ),
        'vit_{size}{plus}_patch16_dinov3.{tag}',
    ),
    (r'(?:facebook/)?dino[_-]vit(?P<size>[sb])16', 'vit_{size}_patch16_224.dino'),
    (r'(?:facebook/)?dino[_-]vit(?P<size>[sb])8', 'vit_{size}_patch8_224.dino'),
    (r'facebook/vit-mae-(?P<size>base|large)', 'vit_{size}_patch16_224.mae'),
    (r'facebook/vit-mae-(?P<size>huge)', 'vit_{size}_patch14_224.mae'),
    (r'mae_vit_(?P<size>base|large)_patch16', 'vit_{size}_patch16_224.mae'),
    (r'mae_vit_(?P<size>huge)_patch14', 'vit_{size}_patch14_224.mae'),
    (
        (
            r'google/vit-(?P<size>base|large)-patch(?P<patch>16|32)-(?P<side>224|384)'
            r'(?:-in21k)?'
        ),
        'vit_{size}_patch{patch}_{side}',
    ),
    (r'vit_(?P<size>[bl])_(?P<patch>16|32)', 'vit_{size}_patch{patch}_224'),
    (
        r'facebook/deit-(?P<size>tiny|small|base)-patch16-224',
        'deit_{size}_patch16_224.fb_in1k',
    ),
    (r'(?:hf[-_]hub:)?timm/(?P<name>[\w.]+)', '{name}'),
)


def timm_name(name: str) -> str | None:
    """Return timm's name for weights that another project names; None if unknown.

    Args:
        name: Such as 'dinov2_vitb14' (torch.hub), 'facebook/dinov2-base'
            (transformers), 'dinov3_vitl16', 'vit_b_16' (torchvision) or
            'timm/vit_base_patch16_224.mae'.
    """
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, name, re.IGNORECASE)
        if not match:
            continue
        found = {key: (value or '').lower() for key, value in match.groupdict().items()}
        size = found.get('size', '')
        found['size'] = _SIZES.get(size, size)
        found['plus'] = '_plus' if found.get('plus') else ''
        found['tag'] = found.get('tag') or 'lvd1689m'
        known = template.format(**found)
        return known if timm.is_model(known) else None
    return None


def suggestion(name: str) -> str:
    """Return a hint for a name that timm does not know: what may have been meant."""
    if known := timm_name(name):
        return f'its name there is {known}'
    near = difflib.get_close_matches(name, timm.list_models(), n=5)
    return f'did you mean {", ".join(near)}?' if near else 'see timm.list_models()'
