"""The commands on images and scenes."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import rasterio
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model

from tests.data.scenes import write_scene
from torchgeo_explora.cli import main
from torchgeo_explora.models import ViT

pytestmark = [pytest.mark.cli, pytest.mark.filterwarnings('ignore')]
SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}


@register_model
def explora_tiny_imagery(pretrained=False, **options):
    """What `--model` names."""
    given = {'img_size': 32, **SIZES, **options}
    return timm.create_model('vit_tiny_patch16_224', **given)


@pytest.fixture
def files(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViT('vit_tiny_patch16_224', image_size=32, **SIZES)
    state = {k: v.contiguous() for k, v in base.canonical_state_dict().items()}
    save_file(state, tmp_path / 'base.safetensors')
    write_scene(tmp_path / 'scene_20200110.tif', size=(100, 140), hole=(0, 64, 0, 40))
    return tmp_path


def run(*arguments):
    main([str(argument) for argument in arguments])


def test_embed_search_and_map(files, capsys):
    scene, target = files / 'scene_20200110.tif', files / 'out.parquet'
    model = ('--model', 'explora_tiny_imagery', '--weights', files / 'base.safetensors')
    model = (*model, '--image_size', 32)
    run('embed', scene, target, *model, '--batch_size', 4, '--pooling', 'both')
    assert f'wrote {target}' in capsys.readouterr().out
    table = pq.read_table(target)
    assert (table.num_rows, len(table['embedding'][0])) == (18, 48)
    with pytest.raises(SystemExit, match=r'explora embed: .*out\.parquet exists'):
        run('embed', scene, target, *model)

    found = files / 'found.geojson'
    longitude, latitude = _middle(scene)
    run('search', target, f'{longitude},{latitude}', '--output', found, '--k', 2)
    assert '  1 ' in capsys.readouterr().out
    assert len(json.loads(found.read_text())['features']) == 2
    assert found.with_suffix('.png').exists()

    run('map', scene, files / 'map.tif', *model, '--components', 2, '--block', 64)
    assert f'wrote {files / "map.tif"}' in capsys.readouterr().out
    with rasterio.open(files / 'map.tif') as file:
        assert (file.count, file.shape) == (2, (13, 18))


def test_two_processes_of_lightning_write_what_one_writes(files):
    model = ViT('vit_tiny_patch16_224', image_size=32)
    state = {k: v.contiguous() for k, v in model.canonical_state_dict().items()}
    save_file(state, files / 'whole.safetensors')
    command = [
        sys.executable,
        '-m',
        'torchgeo_explora.cli',
        'embed',
        *files.glob('*.tif'),
    ]
    options = [
        '--model',
        'vit_tiny_patch16_224',
        '--weights',
        files / 'whole.safetensors',
    ]
    options += ['--image_size', '32', '--batch_size', '4', '--devices']
    found = []
    for devices in ('1', '2'):
        target = files / f'{devices}.parquet'
        done = subprocess.run(
            [*command, target, *options, devices],
            env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found.append(target.read_bytes())
    assert found[0] == found[1]


def _middle(scene):
    with rasterio.open(scene) as file:
        x, y = file.transform @ (70, 50)
        (longitude,), (latitude,) = rasterio.warp.transform(file.crs, 4326, [x], [y])
    return longitude, latitude


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')
def test_processes_killed_three_times_leave_what_one_process_writes(files):
    found = []
    for times in (0, 3):
        target = files / f'{times}.parquet'
        command = [sys.executable, '-m', 'tests.export.killed_worker']
        command += map(str, (files / 'base.safetensors', *files.glob('*.tif'), target))
        done = subprocess.run(
            [*command, str(times)],
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        # Three batches were done before, and the result has all.
        assert ('3 parts are already done' in done.stderr) == (times == 3)
        found.append(target.read_bytes())
    assert found[0] == found[1]
