"""The quickstart, cut down to seconds, with the real command."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.mark.cli
def test_quickstart_leaves_a_delta_and_pictures(tmp_path):
    config = yaml.safe_load((ROOT / 'configs' / 'quickstart.yaml').read_text())
    trainer, data = config['trainer'], config['data']['init_args']
    folder = Path(trainer['default_root_dir'])
    trainer |= {'max_steps': 4, 'default_root_dir': str(tmp_path / folder)}
    for callback in trainer['callbacks']:
        callback['init_args']['every_n_steps'] = 2
    data |= {'num_train': 60, 'num_val': 40, 'batch_size': 8}
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, '-m', 'torchgeo', 'fit', '--config', str(path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said[-2000:]
    assert 'kNN before 0.' in said
    assert 'D-[6]-r64: 0.70 M parameters' in said
    assert 'MiB)' in said
    written = {path.name for path in (tmp_path / folder).iterdir()}
    assert written >= {'best.safetensors', 'last.ckpt', 'curves.png', 'pca.png'}
