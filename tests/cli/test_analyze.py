"""`explora analyze` and `explora suggest` on a folder of images."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import register_model

from tests.data.scenes import write_scene, write_stac
from torchgeo_explora.adapt import Adaptation, adapt, lora, save_delta
from torchgeo_explora.cli import main
from torchgeo_explora.models import ViT

SIZES = {'embed_dim': 16, 'depth': 4, 'num_heads': 2}
MODEL = 'vit_tiny_patch16_224'


@register_model
def explora_tiny_analysis(pretrained=False, **options):
    """What `--model` names."""
    return timm.create_model(MODEL, **{'img_size': 32, **SIZES, **options})


@pytest.fixture
def place(tmp_path):
    """Images of two classes, a base, a delta of it and a delta of another base."""
    random = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / 'images' / ('field', 'water')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 255, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / f'{number}.png')
    for name, seed in (('', 0), ('other-', 1)):
        torch.manual_seed(seed)
        base = ViT(MODEL, image_size=32, **SIZES)
        state = {k: v.contiguous() for k, v in base.canonical_state_dict().items()}
        save_file(state, tmp_path / f'{name}base.safetensors')
        backbone = ViT(
            MODEL, tmp_path / f'{name}base.safetensors', image_size=32, **SIZES
        )
        adapt(backbone, Adaptation(adapter=lora(2)))
        with torch.no_grad():
            backbone.blocks[-1].mlp.fc1.weight.mul_(-1)
        save_delta(backbone, tmp_path / f'{name}delta.safetensors')
    return tmp_path


def command(place, name, *more):
    return [
        *(name, str(place / 'images'), *more),
        *('--model', 'explora_tiny_analysis', '--image_size', '32'),
        *('--weights', str(place / 'base.safetensors')),
    ]


def test_analyze_compares_a_base_with_its_delta(place, capsys):
    delta = str(place / 'delta.safetensors')
    arguments = command(place, 'analyze', str(place / 'out'), '--delta', delta)
    size = arguments.index('--image_size')
    del arguments[size : size + 2]
    assert not main(arguments)
    printed = capsys.readouterr().out
    assert 'adapted' in printed
    with open(place / 'out' / 'blocks.csv', newline='') as file:
        lines = list(csv.DictReader(file))
    assert [line['model'] for line in lines] == ['base'] * 4 + ['adapted'] * 4
    assert all(0 <= float(line['class_accuracy']) <= 1 for line in lines)
    # In the delta's 32 pixels there are two patches along each side.
    assert all(float(line['attention_distance']) <= 2**0.5 for line in lines)
    assert (place / 'out' / 'changes.png').stat().st_size > 0


def test_analyze_refuses_a_delta_of_another_base(place, capsys):
    delta = str(place / 'other-delta.safetensors')
    with pytest.raises(SystemExit) as stop:
        main(command(place, 'analyze', str(place / 'out'), '--delta', delta))
    message = str(stop.value.code) + capsys.readouterr().err
    assert 'other-delta.safetensors' in message
    assert 'Traceback' not in message


@pytest.mark.parametrize('name', ['analyze', 'suggest'])
def test_a_backbone_without_a_class_token_is_refused(place, capsys, name):
    folder = [str(place / 'out')] if name == 'analyze' else []
    arguments = command(place, name, *folder)
    arguments[arguments.index('--model') + 1] = 'vit_base_patch16_siglip_224'
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = str(stop.value.code) + capsys.readouterr().err
    assert 'has no class token' in message
    assert 'the nearest supported model is' in message


def test_suggest_writes_its_evidence(place, capsys):
    picture = str(place / 'evidence.png')
    assert not main(command(place, 'suggest', '--output', picture, '--budget', '0.6'))
    printed = capsys.readouterr().out
    assert 'unfreeze: [' in printed
    assert (place / 'evidence.png').stat().st_size > 0


def test_suggest_takes_the_assets_that_stac_items_ask_for(place, capsys):
    """The error about missing *assets* names an option that the command has."""
    items = str(write_stac(place / 'stac'))
    arguments = command(place, 'suggest', '--budget', '0.6')
    arguments[1] = items
    with pytest.raises(SystemExit, match=r'\*assets\* must name the assets'):
        main(arguments)
    picture = str(place / 'evidence.png')
    chosen = ('--assets', '[B04, B03, B02]', '--output', picture, '--images', '4')
    assert not main([*arguments, *chosen])
    assert 'unfreeze: [' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('name', 'start'),
    [('a.jpg', b'\xff\xd8\xff'), ('a.PDF', b'%PDF'), ('a.svg', b'<?xml')],
)
def test_the_suffix_of_the_picture_of_suggest_is_its_format(name, start, place):
    picture = place / name
    arguments = ('--output', str(picture), '--budget', '0.6')
    assert not main(command(place, 'suggest', *arguments))
    assert picture.read_bytes().startswith(start)


def test_a_picture_of_suggest_without_a_known_suffix_is_refused(place):
    with pytest.raises(
        SystemExit, match=r'\*output\* .*evidence is not .*\.png, \.jpg'
    ):
        main(command(place, 'suggest', '--output', str(place / 'evidence')))


def test_suggest_says_when_a_budget_is_too_small(place, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command(place, 'suggest', '--budget', '0.01'))
    message = str(stop.value.code) + capsys.readouterr().err
    assert 'above *budget* 1.0%' in message


def test_an_image_that_cannot_be_read_is_left_out_if_wanted(place, capsys):
    (place / 'images' / 'field' / '00.png').write_bytes(b'not an image')
    arguments = command(place, 'analyze', str(place / 'out'))
    with pytest.raises(SystemExit, match=r"00\.png.*on_error='skip'"):
        main(arguments)
    with pytest.warns(UserWarning, match='skipped sample'):
        assert not main([*arguments, '--on_error', 'skip'])
    assert (place / 'out' / 'blocks.csv').exists()


def test_scenes_of_a_type_without_a_usual_range(place, tmp_path):
    """They need *value_range*, and are read with it."""
    write_scene(tmp_path / 'scenes' / 'a.tif', size=(64, 64), dtype='int32')
    arguments = command(place, 'suggest', '--output', str(place / 'evidence.png'))
    arguments[1] = str(tmp_path / 'scenes')
    arguments += ['--budget', '0.6']
    with pytest.raises(SystemExit, match='value_range'):
        main(arguments)
    assert not main([*arguments, '--value_range', '[0, 10000]'])
