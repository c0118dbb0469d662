"""Every shipped configuration parses with TorchGeo's own command."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from torchgeo.datamodules import BaseDataModule
from torchgeo.tasks import BaseTask

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / 'configs').rglob('*.yaml'))


class Parser(LightningCLI):
    """Parse, and build nothing."""

    def instantiate_classes(self):
        """Stop before a model is made."""

    def _run_subcommand(self, subcommand):
        """Stop before anything runs."""


def test_there_are_configs():
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli = Parser(
        model_class=BaseTask,
        datamodule_class=BaseDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=['fit', '--config', str(path)],
    )
    assert cli.config.fit.model.class_path.startswith('torchgeo_explora.')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_header_tells_what_command_hardware_and_result(path):
    lines = path.read_text().splitlines()
    header = ' '.join(line for line in lines if line.startswith('#'))
    for word in ('torchgeo fit --config', 'Data:', 'Hardware:', 'Result:'):
        assert word in header, f'{path.name} has no {word!r}'
    assert str(path.relative_to(ROOT)) in header


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_class_paths_are_full(path):
    def paths(value):
        if isinstance(value, dict):
            if 'class_path' in value:
                yield value['class_path']
            for item in value.values():
                yield from paths(item)
        elif isinstance(value, list):
            for item in value:
                yield from paths(item)

    assert all('.' in name for name in paths(yaml.safe_load(path.read_text())))
