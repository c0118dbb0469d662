"""What the README promises."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from torchgeo.main import main

from tests.tasks.small_runs import VIT

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


def shrink(config):
    """Make a shipped configuration one of seconds: a tiny model, tiny data, a CPU."""
    config['trainer'] |= {'accelerator': 'cpu', 'logger': False, 'max_epochs': 1}
    config['trainer'] |= {'max_steps': -1, 'accumulate_grad_batches': 1}
    arguments = config['model']['init_args']
    for name in ('delta', 'image_size'):
        arguments.pop(name, None)
    arguments |= VIT
    data = config['data']
    if 'ImageFolder' in data['class_path']:
        arguments['num_classes'] = 2
        data['init_args'] |= {'batch_size': 4, 'num_workers': 0, 'size': 32}
    else:
        kind = 'SquareBoxes' if 'VHR' in data['class_path'] else 'ShiftedMasks'
        config['data'] = {'class_path': f'tests.tasks.squares.{kind}'}
    return config


@pytest.mark.cli
@pytest.mark.filterwarnings('ignore')
def test_commands_after_adapting_run_as_printed(tmp_path, monkeypatch):
    section = README.partition('## After adapting')[2].partition('## The main')[0]
    commands = re.findall(r'^    torchgeo (.*)$', section, re.MULTILINE)
    assert len(commands) == 8
    for path in set(re.findall(r'configs/[\w/.]+\w', section)):
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load((ROOT / path).read_text())
        copy.write_text(yaml.safe_dump(shrink(content)))
    random = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for name in ('field', 'water'):
            folder = tmp_path / 'data' / 'images' / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = random.integers(0, 256, (40, 40, 3)).astype('uint8')
                Image.fromarray(image).save(folder / f'{number}.png')
    scene = random.integers(0, 256, (3, 300, 250)).astype('uint8')
    with rasterio.open(
        tmp_path / 'scene_of_my_own.tif',
        'w',
        count=3,
        height=300,
        width=250,
        dtype='uint8',
        crs='EPSG:32632',
        transform=rasterio.transform.from_origin(5e5, 5e6, 10, 10),
    ) as file:
        file.write(scene)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        main(shlex.split(command))
    outputs = tmp_path / 'outputs'
    for name in ('knn_test.csv', 'probe.csv'):
        assert (outputs / 'probe_imagefolder' / name).exists()
    with rasterio.open(outputs / 'finetune_spacenet1' / 'scene.tif') as file:
        assert file.shape == (300, 250)
        assert file.crs == rasterio.crs.CRS.from_epsg(32632)
        assert set(np.unique(file.read(1))) <= {1, 2}
