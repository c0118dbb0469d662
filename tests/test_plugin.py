"""Registration when TorchGeo or timm is imported, before or after."""

import subprocess
import sys

import pytest

from torchgeo_explora import plugin

KNOWN = (
    'import timm; from torchgeo.models import get_weight;'
    ' get_weight("ExploraWeights.FMOW_RGB");'
    ' timm.create_model("explora_vit_small_patch14_224", depth=1)'
)


def run(code):
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_alone_needs_no_torch():
    run(
        'import sys, torchgeo_explora;'
        'assert not {"torch", "timm", "torchgeo", "peft"} & set(sys.modules)'
    )


@pytest.mark.cli
@pytest.mark.parametrize(
    'first',
    [
        'import torchgeo.models, timm, torchgeo_explora',
        'import torchgeo_explora.models.backbones.backbone',
        # As PEFT and transformers do, to know whether timm is installed.
        'import torchgeo_explora, importlib.util; importlib.util.find_spec("timm")',
    ],
)
def test_registration_comes_whatever_is_imported_first(first):
    run(f'{first}; {KNOWN}')


def test_action_comes_once_and_the_watch_goes(tmp_path, monkeypatch):
    (tmp_path / 'explora_host.py').write_text('value = 3\n')
    monkeypatch.syspath_prepend(tmp_path)
    watches, seen = len(sys.meta_path), []
    plugin.when_imported('explora_host', lambda: seen.append('later'))
    assert not seen
    import explora_host

    assert explora_host.value == 3
    assert seen == ['later']
    assert len(sys.meta_path) == watches
    plugin.when_imported('explora_host', lambda: seen.append('at once'))
    assert seen == ['later', 'at once']
    del sys.modules['explora_host']


def test_host_that_is_not_installed_stays_so():
    plugin.when_imported('explora_nowhere', pytest.fail)
    with pytest.raises(ModuleNotFoundError, match='explora_nowhere'):
        import explora_nowhere  # noqa: F401
    sys.meta_path[:] = [
        f for f in sys.meta_path if getattr(f, 'name', '') != 'explora_nowhere'
    ]
