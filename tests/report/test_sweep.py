"""The sweep of docs/report.md runs, and goes on where it was stopped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / 'docs' / 'report.md'
#: Small runs of a few seconds, which measure before the first and after the last step.
SMALL = [
    *('--trainer.max_steps', '2', '--data.init_args.num_train', '40'),
    *('--data.init_args.num_val', '20', '--data.init_args.batch_size', '8'),
    '--trainer.logger=false',
]


def sweep(place, trials):
    """Run the page's script for a number of trials; return what it prints."""
    blocks = re.findall(
        r'^```python\n(.*?)^```$', PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (script,) = [block for block in blocks if 'import optuna' in block]
    assert 'TRIALS = 12\n' in script
    path = place / 'sweep.py'
    path.write_text(script.replace('TRIALS = 12\n', f'TRIALS = {trials}\n'))
    done = subprocess.run(
        [sys.executable, str(path), *SMALL],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.cli
def test_the_sweep_of_the_page_runs_and_goes_on_where_it_was_stopped(tmp_path):
    optuna = pytest.importorskip('optuna')
    best = sweep(tmp_path, 1)
    (first,) = (tmp_path / 'outputs/sweep').glob('rate-*')
    assert (first / 'delta.safetensors').exists()
    assert re.match(r"0\.\d+ \{'base_lr': 0\.\d+, 'rank': \d+\}", best)
    # A power cut: one trial had its settings, and no result.
    place = f'sqlite:///{tmp_path}/outputs/sweep/trials.db'
    study = optuna.load_study(study_name='sweep', storage=place)
    stopped = study.ask()
    rate = stopped.suggest_float('base_lr', 4e-3, 4e-2, log=True)
    rank = stopped.suggest_categorical('rank', [4, 8, 16])
    before = (first / 'delta.safetensors').stat().st_mtime_ns
    sweep(tmp_path, 2)
    again = tmp_path / f'outputs/sweep/rate-{rate:.4g}-rank-{rank}'
    assert (again / 'delta.safetensors').exists()
    # What was finished is known, and not done again.
    assert len([*(tmp_path / 'outputs/sweep').glob('rate-*')]) == 2
    assert (first / 'delta.safetensors').stat().st_mtime_ns == before
    sweep(tmp_path, 2)
    assert len([*(tmp_path / 'outputs/sweep').glob('rate-*')]) == 2
