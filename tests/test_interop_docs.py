"""The commands of docs/interop.md, run as they are printed."""

import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from timm.models import register_model
from torch.testing import assert_close

from torchgeo_explora.adapt import Adaptation, adapt, lora, merged, save_delta
from torchgeo_explora.cli import main, parser
from torchgeo_explora.models import ViT
from torchgeo_explora.models.zoo.architectures import default_cfgs
from torchgeo_explora.models.zoo.weights import ExploraWeights

PAGE = (Path(__file__).parent.parent / 'docs' / 'interop.md').read_text()
LINES = [
    line
    for block in re.findall(r'```sh\n(.*?)```', PAGE, re.DOTALL)
    for line in block.splitlines()
]
MODEL = 'explora_tiny_page'


@register_model
def explora_tiny_page(pretrained=False, **options):
    """What the page's base is in small."""
    sizes = {'img_size': 28, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
    return timm.create_model('vit_small_patch14_dinov2', **{**sizes, **options})


def test_every_command_parses():
    commands = {shlex.split(line)[1] for line in LINES if line.startswith('explora ')}
    assert commands == {'info', 'merge', 'export', 'diff', 'average', 'push', 'pull'}
    for line in LINES:
        program, *arguments = shlex.split(line)
        if program == 'explora':
            parser().parse_args(arguments)
        else:
            assert (program, arguments[1]) == ('torchgeo', '--config')


def test_configuration_names_what_there_is():
    (text,) = re.findall(r'```yaml\n(.*?)```', PAGE, re.DOTALL)
    arguments = yaml.safe_load(text)['model']['init_args']
    assert arguments['model'] in default_cfgs
    assert arguments['weights'] in map(str, ExploraWeights)


@pytest.mark.cli
def test_commands_and_example_run(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = ViT(MODEL).canonical_state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, 'base.safetensors')

    def backbone():
        return ViT(MODEL, 'base.safetensors')

    def write(host, path, **options):
        adapt(host, Adaptation(adapter=lora(2), **options))
        for parameter in host.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * torch.randn_like(parameter)
        save_delta(host, path)
        return host

    first = write(backbone(), 'first.safetensors')
    write(backbone(), 'second.safetensors')
    write(backbone(), 'no_token.safetensors', cls_token=False)
    write(merged(first), 'over_first.safetensors')
    for line in LINES:
        program, name, *arguments = shlex.split(line)
        # The Hub and the stages of training have tests of their own.
        here = name not in ('push', 'pull', 'diff') and 'last.ckpt' not in line
        if program == 'explora' and here:
            main([name, *arguments])
    with pytest.raises(SystemExit, match='1'):
        main(['diff', 'first.safetensors', 'second.safetensors'])
    for file in ('merged.safetensors', 'backbone.safetensors'):
        expected = merged(first).canonical_state_dict()
        assert_close(load_file(file), expected)
    assert Path('backbone.onnx').stat().st_size

    (code,) = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    code = code.replace('vit_large_patch14_dinov2.lvd142m', MODEL)
    code = code.replace('image_size=224', 'image_size=28')
    names = {'image': torch.rand(1, 3, 28, 28)}
    # The code is the page's own.
    exec(code, names)  # noqa: S102
    assert names['made_by']['backbone'].endswith('ViT')
