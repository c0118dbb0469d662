"""What the pages of the documentation promise."""

import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torchgeo.datamodules import BaseDataModule
from torchgeo.main import main
from torchgeo.tasks import BaseTask

from tests.tasks.small_runs import VIT
from tests.test_configs import Parser
from torchgeo_explora.cli import parser
from torchgeo_explora.models import ViT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
TORCHGEO = ('fit', 'validate', 'test', 'predict')


def commands(page):
    """Return the commands of a page's `sh` blocks, each as a list of words."""
    text = page.read_text()
    blocks = re.findall(r'^```sh\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
    lines = '\n'.join(blocks).replace('\\\n', ' ')
    found = re.findall(r'^(?:torchgeo|explora) .*', lines, re.MULTILINE)
    return [shlex.split(line.partition(' > ')[0]) for line in found]


def load(name):
    """Return a module of the folder of pages, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.cli
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(ROOT)).replace('/', '-')
)
def test_every_command_of_a_page_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for program, *arguments in commands(page):
        line = ' '.join((program, *arguments))
        if {'--help', '--print_config', '--print_completion'} & {*arguments}:
            continue
        if arguments[0] not in TORCHGEO:
            assert program == 'explora', line
            parser().parse_args(arguments)
        elif '--config' in arguments:
            config = arguments[arguments.index('--config') + 1]
            # A page may say `--config pretrain.yaml` for one of the reader's own.
            assert config.startswith('configs/') or '/' not in config, line
            if config.startswith('configs/'):
                Parser(
                    model_class=BaseTask,
                    datamodule_class=BaseDataModule,
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    args=arguments,
                )
        else:
            assert re.fullmatch(r'explora fit --(model|data)\.help \w+', line), line


def test_python_example_runs(tmp_path, monkeypatch):
    """The plain PyTorch way, as printed, on a small model and three batches."""
    page = (DOCS / 'howto' / 'python.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
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
    arguments = model.replace(", weights='base.safetensors'", '')
    base = eval(f'ViT({arguments})', {'ViT': ViT})
    save_file(base.canonical_state_dict(), 'base.safetensors')
    # The code is the page's own.
    exec(code, {'images': [torch.rand(2, 3, 32, 32) for _ in range(3)]})  # noqa: S102
    assert Path('delta.safetensors').exists()
    plain = torch.load('backbone.pth', weights_only=True)
    assert plain.keys() == base.canonical_state_dict().keys()


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
def test_downstream_commands_run_as_printed(tmp_path, monkeypatch):
    lines = commands(DOCS / 'downstream.md')
    assert len(lines) == 7
    lines += [line for line in commands(DOCS / 'howto/scenes.md') if 'predict' in line]
    assert len(lines) == 8
    for path in {line[line.index('--config') + 1] for line in lines}:
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
    for program, *arguments in lines:
        assert program == 'torchgeo'
        main(arguments)
    outputs = tmp_path / 'outputs'
    for name in ('knn_test.csv', 'probe.csv'):
        assert (outputs / 'probe_imagefolder' / name).exists()
    with rasterio.open(outputs / 'finetune_spacenet1' / 'scene.tif') as file:
        assert file.shape == (300, 250)
        assert file.crs == rasterio.crs.CRS.from_epsg(32632)
        assert set(np.unique(file.read(1))) <= {1, 2}


def test_headers_of_configurations_are_read():
    read = load('configurations')
    header = read.read_header(ROOT / 'configs' / 'quickstart.yaml')
    assert header.path == 'configs/quickstart.yaml'
    assert header.purpose.startswith('ExPLoRA in minutes: a tiny ViT')
    assert header.purpose.endswith('without labels')
    assert header.result.startswith('kNN 0.412 before')
    assert read.was_run(header)
    paper = read.read_header(ROOT / 'configs' / 'probe' / 'fmow_rgb_vit_large.yaml')
    assert not read.was_run(paper)
    assert not read.was_run(paper._replace(result='Not run'))
    assert read.not_run_row(paper).endswith(
        '| the paper reports 77.48 % top-1, the best classifier on the reported split |'
    )


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'a.html').write_text(
        '<h1 id="here">A</h1><a href="b.html#there">b</a><a href="#here">a</a>'
        '<a href="https://example.org/none">outside</a>'
    )
    (tmp_path / 'b.html').write_text('<h1 id="there">B</h1><a href="a.html">a</a>')
    broken_links = load('check_links').broken_links
    assert broken_links(tmp_path) == []
    (tmp_path / 'b.html').write_text('<h1>B</h1><img src="c.png">')
    first, second = broken_links(tmp_path)
    assert 'b.html#there leads to no element' in first
    assert 'c.png leads to no file' in second
