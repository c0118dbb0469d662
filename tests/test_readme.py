"""What the README promises."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()


def test_python_example_runs(tmp_path, monkeypatch):
    """The plain PyTorch way, as printed, on a small model and three batches."""
    (code,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    model = (
        "'vit_tiny_patch16_224', image_size=32, patch_size=8, embed_dim=24, depth=2,"
        " num_heads=2, weights='base.safetensors'"
    )
    code, count = re.subn(
        r"'vit_base_patch14_dinov2.lvd142m', weights=True, image_size=224", model, code
    )
    assert count == 2
    code = code.replace('MultiCrop(', 'MultiCrop(32, 16, 2, ')
    code = code.replace('steps=1000', 'steps=3, prototypes=16, hidden_dim=8')
    monkeypatch.chdir(tmp_path)
    from safetensors.torch import save_file

    from torchgeo_explora.models import ViT

    arguments = model.replace(", weights='base.safetensors'", '')
    base = eval(f'ViT({arguments})', {'ViT': ViT})
    save_file(base.canonical_state_dict(), 'base.safetensors')
    # The code is the README's own.
    exec(code, {'images': [torch.rand(2, 3, 32, 32) for _ in range(3)]})  # noqa: S102
    assert Path('delta.safetensors').exists()
    plain = torch.load('backbone.pth', weights_only=True)
    assert plain.keys() == base.canonical_state_dict().keys()


def test_commands_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for target in re.findall(r'make ([a-z-]+)', README):
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target
    for path in re.findall(r'(?:configs|docs)/[\w/.]+\w', README):
        assert (ROOT / path).exists(), path
