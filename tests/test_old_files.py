"""Files of version 0.1.0: its deltas load bit for bit, its checkpoints load or say no.

See `tests/data/version_0_1/README.md` for what the files are.
"""

import re
import shutil
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from torchgeo_explora.adapt import (
    delta_state_dict,
    load_delta,
    merged,
    read_delta,
    read_delta_metadata,
)
from torchgeo_explora.adapt.delta import lineage
from torchgeo_explora.export import rebuild
from torchgeo_explora.export.rebuild import reopen
from torchgeo_explora.models import GroupChannelViT, TemporalViT, ViT
from torchgeo_explora.tasks import (
    ExploraDinoTask,
    ExploraLinearProbeTask,
    ExploraMAETask,
)

OLD = Path(__file__).parent / 'data' / 'version_0_1'
KINDS = {'vit': ViT, 'group': GroupChannelViT, 'temporal': TemporalViT}
TASKS = {
    'dino': ExploraDinoTask,
    'mae_vit': ExploraMAETask,
    'mae_group': ExploraMAETask,
    'probe': ExploraLinearProbeTask,
}
#: Arguments that differ from the defaults: if they were lost, nothing else would fail.
ARGUMENTS = {
    'dino': {'local_views': 1, 'local_size': 8, 'prototypes': 8, 'rank': 2},
    'mae_vit': {'image_size': 16, 'rank': 2},
    'mae_group': {'value_range': (0, 255), 'rank': 2},
    'probe': {'value_range': (0, 255), 'blocks': (1,)},
}


@pytest.fixture(scope='module')
def expected():
    return load_file(OLD / 'expected.safetensors')


def check_features(backbone, name, expected):
    """Compare the features of *backbone* with those that version 0.1.0 gave."""
    metadata = {
        key.partition('.')[2]: value
        for key, value in expected.items()
        if key.startswith(f'{name}.timestamps')
    }
    with torch.no_grad():
        features = backbone.eval()(expected[f'{name}.image'], **metadata)
    # Equal to the bit with one thread of the machine that wrote them. Otherwise sums
    # are taken in another order; float32 is off by 1e-6 here (largest value 3.5).
    for found, kind in zip(features, ('cls', 'patch'), strict=True):
        assert_close(found, expected[f'{name}.{kind}'], rtol=0, atol=4e-6)


def check_delta(backbone, path):
    """Compare the delta of *backbone* with that of a file, bit for bit."""
    metadata, tensors = read_delta(path)
    found = delta_state_dict(backbone)
    assert found.keys() == tensors.keys()
    for key, value in found.items():
        assert torch.equal(value, tensors[key]), key
    assert backbone.record.adapted.adaptation.to_dict() == metadata['adaptation']


@pytest.mark.parametrize('name', KINDS)
def test_old_delta_gives_the_same_backbone(name, expected):
    path = OLD / f'{name}_delta.safetensors'
    backbone = rebuild(path, OLD / f'{name}_base.safetensors')
    assert type(backbone) is KINDS[name]
    check_delta(backbone, path)
    check_features(backbone, name, expected)
    assert set(backbone.mean) == {0.0 if name == 'group' else 0.5}


@pytest.mark.parametrize('name', KINDS)
def test_old_delta_goes_on_a_base_built_by_hand(name, expected):
    path = OLD / f'{name}_delta.safetensors'
    base = load_file(OLD / f'{name}_base.safetensors')
    backbone = KINDS[name](**read_delta_metadata(path)['arguments'])
    backbone.load_state_dict(base)
    load_delta(backbone, path)
    check_delta(backbone, path)
    check_features(backbone, name, expected)


def test_old_merged_backbone_reopens(expected):
    path = OLD / 'vit_merged.safetensors'
    backbone = reopen(path)
    tensors = load_file(path)
    found = backbone.canonical_state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in found)
    # Folding rounds: the features are those of the delta up to that.
    with torch.no_grad():
        features = backbone.eval()(expected['vit.image'])
    assert_close(features.cls, expected['vit.cls'])
    # The file knows the base and the delta that it was folded from.
    delta = OLD / 'vit_delta.safetensors'
    again = merged(rebuild(delta, OLD / 'vit_base.safetensors'))
    assert lineage(backbone) == lineage(again)
    assert lineage(backbone).count('+') == 1
    assert_close(again.canonical_state_dict(), tensors)


def flat(values):
    """Return the values of nested groups of arguments by their own names."""
    found = {}
    for name, value in values.items():
        if is_dataclass(value):
            value = asdict(value)
        found[name] = tuple(value) if isinstance(value, list) else value
        if isinstance(value, dict):
            found = flat(value) | found
    return found


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', TASKS)
def test_old_checkpoint_loads_or_names_the_version_that_reads_it(
    name, expected, tmp_path, monkeypatch
):
    shutil.copytree(OLD, tmp_path / 'out')
    monkeypatch.chdir(tmp_path)  # the checkpoints name `out/vit_base.safetensors`
    try:
        task = TASKS[name].load_from_checkpoint(f'out/{name}.ckpt')
    except ValueError as error:
        assert re.search(r'\b0\.1\b', str(error))  # noqa: PT017
        return
    arguments = flat(task.hparams)
    assert {key: arguments[key] for key in ARGUMENTS[name]} == ARGUMENTS[name]
    if name == 'probe':
        check_features(task.backbone, name, expected)
        features = task.backbone.features(expected['probe.image'], [-1])
        assert_close(task.heads(features), expected['probe.logits'])
        return
    check_features(task.objective.pretrained, name, expected)
    # What trained beside the backbone, too: teacher, head or decoder.
    stored = torch.load(f'out/{name}.ckpt', weights_only=True)['state_dict']
    found = task.state_dict()
    assert stored.keys() <= found.keys()
    assert all(torch.equal(found[key], value) for key, value in stored.items())
