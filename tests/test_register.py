"""Registration of models and weights with TorchGeo and timm."""

import subprocess
import sys

import pytest

MODEL = 'timm.create_model("explora_vit_small_patch14_224", depth=1)'
WEIGHTS = (
    'from torchgeo.models import get_weight; get_weight("ExploraWeights.FMOW_RGB")'
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
        'import timm, torchgeo_explora',
        'import torchgeo_explora.models, timm',
        'import timm, torchgeo_explora.models.backbones.backbone',
    ],
)
def test_timm_knows_the_models_whatever_is_imported_first(first):
    run(f'{first}; {MODEL}; import sys; assert "torchgeo.models" not in sys.modules')


@pytest.mark.cli
@pytest.mark.parametrize(
    'first',
    [
        'import torchgeo.models, torchgeo_explora',
        'import torchgeo.models, torchgeo_explora.datasets',
        'import torchgeo_explora, torchgeo.models; torchgeo_explora.register()',
        'import torchgeo_explora; torchgeo_explora.register()',
        'from torchgeo_explora import ExploraWeights',
    ],
)
def test_torchgeo_knows_the_weights(first):
    run(f'{first}; {WEIGHTS}; import timm; {MODEL}')


@pytest.mark.cli
def test_backbones_know_the_weights_by_name_unasked():
    run(
        'from torchgeo_explora.models.checkpoints import _named;'
        ' assert str(_named("ExploraWeights.FMOW_RGB")) == "ExploraWeights.FMOW_RGB"'
    )
