"""Every shipped configuration parses with TorchGeo's own command."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torchgeo.datamodules import BaseDataModule
from torchgeo.models import DOFALarge16_Weights, dofa_large_patch16_224
from torchgeo.tasks import BaseTask

from torchgeo_explora import models, tasks
from torchgeo_explora.adapt import count
from torchgeo_explora.tasks import ExploraDinoTask, ExploraMAETask
from torchgeo_explora.tasks.pretraining.mae import SCHEDULE
from torchgeo_explora.tasks.run.adaptation import as_options

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / 'configs').rglob('*.yaml'))
DOWNSTREAM = [p for p in CONFIGS if p.parent.name in ('finetune', 'probe')]
PRETRAINING = [p for p in CONFIGS if p not in DOWNSTREAM]


class Parser(LightningCLI):
    """Parse, and build nothing."""

    def instantiate_classes(self):
        """Stop before a model is made."""

    def _run_subcommand(self, subcommand):
        """Stop before anything runs."""


def test_there_are_configs():
    assert len(CONFIGS) >= 11


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
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


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_output_goes_to_a_folder_of_the_configurations_own(path):
    trainer = yaml.safe_load(path.read_text())['trainer']
    folder = trainer['default_root_dir']
    assert folder.startswith('outputs/')
    others = [yaml.safe_load(p.read_text())['trainer'] for p in CONFIGS if p != path]
    assert folder not in [other['default_root_dir'] for other in others]
    for callback in trainer.get('callbacks', []):
        if callback['class_path'].endswith('.ModelCheckpoint'):
            assert callback['init_args'].get('dirpath', folder) == folder


#: Images of the runs whose length the paper states in epochs, and the batch.
EPOCH = {'fmow_rgb': 363_571, 'fmow_temporal': 363_571, 'fmow_sentinel': 712_874}
BATCH = 1024


@pytest.mark.parametrize('size', ['base', 'large'])
@pytest.mark.parametrize(
    ('data', 'epochs'),
    [('fmow_rgb', 200), ('fmow_temporal', 50), ('fmow_sentinel', 50)],
)
def test_masked_autoencoder_warms_up_for_one_epoch(data, epochs, size):
    """The paper's one epoch is 0.005 of 200 epochs, and 0.02 of 50."""
    path = ROOT / f'configs/pretrain/{data}_mae_vit_{size}.yaml'
    config = yaml.safe_load(path.read_text())
    steps = EPOCH[data] / BATCH
    assert config['trainer']['max_steps'] == pytest.approx(epochs * steps, rel=2e-3)
    schedule = config['model']['init_args'].get('schedule', {})
    given = as_options(SCHEDULE, schedule)
    assert given.warmup * config['trainer']['max_steps'] == pytest.approx(
        steps, rel=2e-3
    )
    batch = config['data']['init_args']['batch_size']
    assert batch * config['trainer']['accumulate_grad_batches'] == BATCH


def _fmow_rgb(path):
    kind = yaml.safe_load(path.read_text())['data']['class_path']
    return kind.endswith(('.FMoWRGBDataModule', '.FMoWTemporalDataModule'))


@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if _fmow_rgb(path)], ids=lambda p: p.stem
)
def test_all_of_fmow_rgb_see_the_same_pixels(path):
    """Shorter side 224, then the centre: D and M, pre-training and judging."""
    data = yaml.safe_load(path.read_text())['data']['init_args']
    assert data['crop'] == 'image'
    assert data.get('size', 224) == 224
    assert '# Pixels: `crop: image`' in path.read_text()


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda p: p.stem)
def test_delta_is_what_a_shipped_run_ends_with(path):
    arguments = yaml.safe_load(path.read_text())['model']['init_args']
    if 'delta' not in arguments:
        assert arguments['weights'].startswith('ExploraWeights.')
        return
    folder, _, name = arguments['delta'].rpartition('/')
    assert name == 'delta.safetensors'
    runs = {
        yaml.safe_load(p.read_text())['trainer']['default_root_dir']: p
        for p in PRETRAINING
    }
    run = yaml.safe_load(runs[folder].read_text())['model']['init_args']
    assert run.get('weights', True) == arguments.get('weights', True)


def _dino(path):
    arguments = yaml.safe_load(path.read_text())['model']['init_args']
    names = ('_dinov2.', '_dinov3.', '_lingbot.')
    return any(name in str(arguments.get('model')) for name in names)


@pytest.mark.cli
@pytest.mark.parametrize(
    'path', [path for path in PRETRAINING if _dino(path)], ids=lambda p: p.stem
)
def test_task_of_a_configuration_can_be_built(path):
    """On the meta device: shapes alone, neither weights nor memory."""
    arguments = yaml.safe_load(path.read_text())['model']['init_args']
    config = timm.get_pretrained_cfg(arguments['model'])
    assert config.hf_hub_id
    with torch.device('meta'):
        task = ExploraDinoTask(**(arguments | {'weights': None}))
    student = task.objective.student
    assert student.image_size == (224, 224)
    name = student.record.adapted.adaptation.name(len(student.blocks))
    assert f'# D-{name} ' in path.read_text() or f'D-{name}:' in path.read_text()
    trained, base = count(student)
    assert 0.02 < trained / base < 0.2


@pytest.mark.cli
def test_dofa_of_a_configuration_is_the_one_of_its_weights():
    path = ROOT / 'configs/pretrain/scenes_dofa_vit_large.yaml'
    config = yaml.safe_load(path.read_text())
    arguments = config['model']['init_args']
    assert arguments['weights'] == f'{DOFALarge16_Weights.DOFA_MAE}'
    with torch.device('meta'):
        backbone = models.DOFAViT(**arguments['model']['init_args'])
        theirs = dofa_large_patch16_224(num_classes=0, global_pool=False)
        task = ExploraDinoTask(backbone, weights=None)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    canonical = models.DOFAViT.canonical_state_dict
    with torch.device('meta'):
        plain = models.DOFAViT(**arguments['model']['init_args'])
    assert {n: v.shape for n, v in canonical(plain).items()} == shapes
    assert list(backbone.bands) == config['data']['init_args']['bands']
    trained, base = count(task.objective.student)
    assert 0.02 < trained / base < 0.2


@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda p: p.stem)
def test_arguments_say_more_than_the_defaults(path):
    model = yaml.safe_load(path.read_text())['model']
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(tasks, model['class_path'].split('.')[-1]))
    defaults = parser.get_defaults()
    repeated = {
        name: value
        for name, value in model['init_args'].items()
        if value == defaults[name]
    }
    assert not repeated


@pytest.mark.cli
@pytest.mark.parametrize('path', DOWNSTREAM, ids=lambda p: p.stem)
def test_downstream_task_of_a_configuration_can_be_built(path, monkeypatch):
    """On the meta device, without the weights and the delta that it starts from."""
    # These metrics read values when they are made.
    monkeypatch.setattr(
        tasks.ExploraDetectionTask, 'configure_metrics', lambda self: None
    )
    model = yaml.safe_load(path.read_text())['model']
    arguments = model['init_args'] | {'weights': None, 'delta': None}
    backbone = arguments.get('model')
    with torch.device('meta'):
        if isinstance(backbone, dict):
            kind = getattr(models, backbone['class_path'].rpartition('.')[2])
            arguments['model'] = kind(**backbone.get('init_args', {}))
        task = getattr(tasks, model['class_path'].rpartition('.')[2])(**arguments)
    assert task.image_size % task.backbone.patch_size == 0
    trained, _ = count(task.backbone)
    assert trained == (786_432 if path.parent.name == 'finetune' else 0)


def _mae(path):
    model = yaml.safe_load(path.read_text())['model']
    return model['class_path'].endswith('.ExploraMAETask')


@pytest.mark.cli
@pytest.mark.parametrize(
    'path', [path for path in CONFIGS if _mae(path)], ids=lambda p: p.stem
)
def test_masked_autoencoder_of_a_configuration_can_be_built(path):
    arguments = yaml.safe_load(path.read_text())['model']['init_args']
    model = arguments.get('model')
    with torch.device('meta'):
        if isinstance(model, dict):
            module, _, kind = model['class_path'].rpartition('.')
            backbone = getattr(import_module(module), kind)
            arguments['model'] = backbone(**model['init_args'])
        task = ExploraMAETask(**(arguments | {'weights': None}))
    student = task.objective.student
    name = student.record.adapted.adaptation.name(len(student.blocks))
    assert path.read_text().startswith(f'# M-{name} of ')
    trained, base = count(student)
    assert 0.02 < trained / base < 0.25


@pytest.mark.parametrize('page', ['performance.md', 'howto/devices.md'])
def test_commands_for_several_devices_keep_the_papers_batch(page):
    """Images of a step: batch, times accumulated batches, times all devices."""
    text = (ROOT / 'docs' / page).read_text().replace('\\\n', ' ')
    lines = re.findall(r'fit --config configs/.*(?:\n {9}--.*)?', text)
    assert len(lines) == 3
    for line in lines:

        def given(name, line=line):
            return int((re.search(rf'--trainer\.{name} (\d+)', line) or '01')[1])

        (name,) = re.findall(r'configs/[\w/]+\.yaml', line)
        data = yaml.safe_load((ROOT / name).read_text())['data']['init_args']
        devices = given('devices') * given('num_nodes')
        assert devices > 1
        images = data['batch_size'] * given('accumulate_grad_batches') * devices
        assert images == BATCH, line
