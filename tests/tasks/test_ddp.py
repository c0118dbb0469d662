"""Two and four processes: the loss curve of one, the same files, nothing waits."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

from torchgeo_explora.adapt import load_delta, read_delta_metadata
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask
from torchgeo_explora.tasks.run.raw_images import RawImages

WORKER = Path(__file__).with_name('ddp_worker.py')


def run(*command, timeout=300):
    """Run a command; end it with all its children if it waits for ever."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f'{command} does not end:\n{output[-4000:]}')
    assert process.returncode == 0, output[-4000:]
    return output


#: All that is off by default. SIGReg's directions are those of the first process.
OPTIONS = {
    'ibot_head': {'prototypes': 24, 'hidden_dim': 16, 'bottleneck_dim': 8},
    'spread': 'sigreg',
    'sigreg_directions': 16,
    'gram_weight': (0.0, 2.0),
    'guides': [
        {'name': 'region', 'values': 4, 'weight': 0.5},
        {'name': 'year', 'kind': 'regression', 'adversarial': True},
        {'name': 'place', 'kind': 'classification', 'values': 4, 'hidden_dim': 16},
    ],
}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Jobs of four images: results of one process, and of the ranks of 2 and of 4."""
    folder = tmp_path_factory.mktemp('ranks')
    generator = torch.Generator().manual_seed(0)
    global_ = torch.randn(2, 4, 3, 32, 32, generator=generator)
    local = torch.randn(2, 4, 3, 16, 16, generator=generator)
    mask = torch.rand(8, 16, generator=generator) < 0.3
    # Nothing is masked in the images of the second process: it must still join.
    half = mask.unflatten(0, (2, 4)).clone()
    half[:, 2:] = False
    # Of the images of the second process, no value is known.
    region, year = torch.tensor([0, 1, -1, -1]), torch.tensor([3.0, 1.0, 2.0, 3.0])
    jobs = [
        ({}, global_, local, mask),
        ({}, global_, local, half.flatten(0, 1)),
        (OPTIONS, global_, local, mask, region, year, region),
        ({'rotary': True, 'gram_weight': (0.0, 2.0)}, global_, local, mask),
    ]
    torch.save(jobs, folder / 'jobs.pt')
    parts = {}
    for world in (2, 4):
        ranks = [
            subprocess.Popen(
                [sys.executable, WORKER, folder, str(rank), str(world)],
                env=os.environ | {'OMP_NUM_THREADS': '1'},
            )
            for rank in range(world)
        ]
        try:
            assert [rank.wait(timeout=600) for rank in ranks] == [0] * world
        finally:
            for rank in ranks:
                rank.kill()
        parts[world] = [
            torch.load(folder / f'{rank}of{world}.pt') for rank in range(world)
        ]
    worker = runpy.run_path(str(WORKER))
    whole = []
    for options, *views in jobs:
        objective = worker['build'](options)
        whole.append(worker['train'](objective, worker['Terms'](objective), views))
    return whole, parts


both = pytest.mark.parametrize(
    'job',
    [0, 1, 2, 3],
    ids=['masked', 'one rank unmasked', 'guides, sigreg, gram', 'rotary'],
)
worlds = pytest.mark.parametrize('world', [2, 4])


@pytest.mark.cli
@both
@worlds
def test_processes_have_the_loss_curve_of_one(shared, job, world):
    whole, parts = shared
    steps = whole[job]['steps']
    for step, (terms, _) in enumerate(steps):
        for name, value in terms.items():
            values = [part[job]['steps'][step][0][name] for part in parts[world]]
            assert_close(torch.stack(values).mean(), value, rtol=1e-5, atol=1e-5)
    first, last = (sum(terms.values()) for terms, _ in (steps[0], steps[-1]))
    assert last < 0.99 * first


@pytest.mark.cli
@both
@worlds
def test_processes_have_the_gradient_of_one(shared, job, world):
    whole, parts = shared
    for step, (_, gradients) in enumerate(whole[job]['steps']):
        ranks = [part[job]['steps'][step][1] for part in parts[world]]
        for name, gradient in gradients.items():
            assert all(torch.equal(ranks[0][name], rank[name]) for rank in ranks), name
            # Sums of large numbers that nearly cancel are as exact as their largest.
            scale = max(1.0, gradient.abs().max().item())
            assert_close(ranks[0][name], gradient, rtol=1e-5, atol=1e-5 * scale)
    first = whole[job]['steps'][0][1]
    assert any(g.abs().max() > 1e-3 for g in first.values())


@pytest.mark.cli
@both
@worlds
def test_processes_have_one_teacher(shared, job, world):
    whole, parts = shared
    ranks = [part[job]['teacher'] for part in parts[world]]
    for name, value in whole[job]['teacher'].items():
        assert all(torch.equal(ranks[0][name], rank[name]) for rank in ranks), name
        assert_close(ranks[0][name], value, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def command(tmp_path_factory):
    """Run TorchGeo's command on two processes: (folder, images, arguments)."""
    place = tmp_path_factory.mktemp('ddp')
    random = np.random.default_rng(0)
    # Odd numbers: the last image has no partner on the other process.
    for split, count in (('train', 9), ('val', 3), ('predict', 5)):
        folder = place / 'images' / split / 'field'
        folder.mkdir(parents=True)
        for number in range(count):
            image = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(image).save(folder / f'{number}.png')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViT('vit_tiny_patch16_224', image_size=32, **ARCHITECTURE)
    torch.save(vit.canonical_state_dict(), place / 'base.pth')
    config = yaml.safe_load(CONFIG.format(place=place))
    (place / 'config.yaml').write_text(yaml.safe_dump(config))
    outputs = [
        run('-m', 'torchgeo', 'fit', '--config', place / 'config.yaml'),
        run(
            *('-m', 'torchgeo', 'predict', '--config', place / 'config.yaml'),
            *('--ckpt_path', place / 'out' / 'last.ckpt'),
        ),
    ]
    return place, outputs


ARCHITECTURE = {'patch_size': 8, 'embed_dim': 24, 'depth': 3, 'num_heads': 2}
CONFIG = """
trainer:
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 3
  logger: false
  enable_progress_bar: false
  default_root_dir: {place}/out
  callbacks:
    - class_path: torchgeo_explora.callbacks.OnlineKNN
      init_args: {{every_n_steps: 3}}
    - class_path: torchgeo_explora.callbacks.Pictures
      init_args: {{images: 2}}
    - class_path: torchgeo_explora.callbacks.Curves
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args:
        dirpath: {place}/out
        filename: best
        monitor: knn
        mode: max
        every_n_train_steps: 3
        save_last: true
model:
  class_path: torchgeo_explora.tasks.ExploraDinoTask
  init_args:
    model: vit_tiny_patch16_224
    model_args: {{patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}}
    weights: {place}/base.pth
    image_size: 32
    views:
      local_size: 16
      local_views: 2
    objective:
      prototypes: 32
      hidden_dim: 16
data:
  class_path: torchgeo_explora.datamodules.ImageFolderDataModule
  init_args:
    root: {place}/images
    batch_size: 2
"""


@pytest.mark.cli
def test_command_on_two_processes_writes_its_files_once(command):
    place, (output, _) = command
    names = sorted(path.name for path in (place / 'out').iterdir())
    assert names == [
        *('best.ckpt', 'best.safetensors', 'config.yaml', 'cost.json', 'crops.png'),
        *('curves.png', 'delta.safetensors', 'embeddings.parquet', 'last.ckpt'),
        *('last.safetensors', 'map.png', 'neighbours.png', 'pca.png'),
    ]
    assert 'effective batch 4' in output
    # Without a recipe and an adapter, a short run has those of `recipe: short`.
    assert output.count('D-[3]-r64: ') == 1
    assert 'recipe short (3 optimizer steps planned' in output
    assert 'unused' not in output
    metadata = read_delta_metadata(place / 'out' / 'delta.safetensors')
    assert metadata['effective_batch'] == '4'
    checkpoint = torch.load(place / 'out' / 'last.ckpt', weights_only=True)
    assert checkpoint['global_step'] == 3
    assert checkpoint['explora']['micro_steps'] == 3


@pytest.mark.cli
def test_embeddings_of_two_processes_are_complete_and_in_order(command):
    place, _ = command
    table = pq.read_table(place / 'out' / 'embeddings.parquet')
    data = ImageFolderDataModule(place / 'images', batch_size=5)
    data.setup('predict')
    images = data.predict_dataset
    assert table['index'].to_pylist() == list(range(5))
    assert table['path'].to_pylist() == images.paths
    assert table['label'].to_pylist() == images.labels
    arguments = yaml.safe_load(CONFIG.format(place=place))['model']['init_args']
    task = ExploraDinoTask(**arguments, recipe='short')
    load_delta(task.objective.teacher, place / 'out' / 'delta.safetensors')
    task.view = task.preprocess()
    task.raw_images = RawImages(task.backbone, None, (0, 255))
    batch = torch.stack([sample['image'] for sample in images])
    expected = task.embed({'image': batch})
    assert_close(torch.tensor(table['embedding'].to_pylist()), expected)
