"""MAE on two processes: the gradient of one, and the files of one."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.testing import assert_close

from torchgeo_explora.functional import random_mask

pytestmark = pytest.mark.cli
WORKER = Path(__file__).with_name('mae_worker.py')


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """Jobs of four images: (kind, results of one process, of the ranks)."""
    folder = tmp_path_factory.mktemp('ranks')
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 32, 32, generator=generator)
    # The second process sees nothing at all: it must still join.
    half = image.clone()
    half[2:] = torch.nan
    plain, groups = (
        random_mask(torch.rand(4, tokens, generator=generator), 0.75)
        for tokens in (16, 32)
    )
    jobs = [
        *(('plain', image, plain), ('groups', image, groups), ('plain', half, plain)),
        ('rotary', image, plain),
    ]
    torch.save(jobs, folder / 'jobs.pt')
    ranks = [
        subprocess.Popen([sys.executable, WORKER, folder, str(rank)]) for rank in (0, 1)
    ]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    parts = [torch.load(folder / f'{rank}.pt') for rank in (0, 1)]
    worker = runpy.run_path(str(WORKER))
    whole = []
    for kind, image, mask in jobs:
        objective = worker['build'](kind)
        loss = worker['Loss'](objective)
        whole.append(worker['train'](objective, loss, image, mask))
    return list(zip(whole, *parts, strict=True))


@pytest.mark.parametrize('job', [0, 1, 3], ids=['plain', 'groups', 'rotary'])
def test_two_processes_have_the_gradient_of_one(shared, job):
    whole, *ranks = shared[job]
    for step, (loss, gradients) in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        mean = (parts[0][0] + parts[1][0]) / 2
        assert_close(mean, loss, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            assert torch.equal(parts[0][1][name], parts[1][1][name]), name
            assert_close(parts[0][1][name], gradient, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in whole[0][1].values())


def test_a_process_without_data_joins_with_zeros(shared):
    whole, *ranks = shared[2]
    assert ranks[1][0][0] == 0
    for name, gradient in whole[0][1].items():
        assert_close(ranks[0][0][1][name], gradient / 2, rtol=1e-4, atol=1e-6)


CONFIG = """
trainer:
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 2
  logger: false
  enable_progress_bar: false
  default_root_dir: {place}/out
  callbacks:
    - class_path: torchgeo_explora.callbacks.Reconstructions
      init_args: {{images: 2}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {place}/out, save_last: true}}
model:
  class_path: torchgeo_explora.tasks.ExploraMAETask
  init_args:
    model: vit_tiny_patch16_224
    model_args: {{patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}}
    weights: null
    image_size: 32
    rank: 4
    objective:
      decoder_dim: 16
      decoder_depth: 1
      decoder_heads: 2
data:
  class_path: torchgeo_explora.datamodules.ImageFolderDataModule
  init_args: {{root: {folder}, batch_size: 2}}
"""


def test_command_on_two_processes_writes_its_files_once(tmp_path, folder):
    config = tmp_path / 'config.yaml'
    text = CONFIG.format(place=tmp_path, folder=folder)
    config.write_text(yaml.safe_dump(yaml.safe_load(text)))
    process = subprocess.Popen(
        [sys.executable, '-m', 'torchgeo', 'fit', '--config', config],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-4000:]
    assert output.count('M-[3]-r4: ') == 1
    assert 'effective batch 4' in output
    assert 'unused' not in output
    names = {path.name for path in (tmp_path / 'out').iterdir()}
    assert names >= {'delta.safetensors', 'last.ckpt', 'reconstructions.png'}
    checkpoint = torch.load(tmp_path / 'out' / 'last.ckpt', weights_only=True)
    assert checkpoint['global_step'] == 2
