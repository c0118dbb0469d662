"""The mean of deltas as a file of its own."""

import copy
import json

import peft
import pytest
from torch.testing import assert_close

from torchgeo_explora.adapt import (
    Adaptation,
    Deltas,
    adapt,
    average_deltas,
    load_delta,
    lora,
    read_delta_metadata,
    save_delta,
)


@pytest.fixture
def write(tiny_backbone, disturb, tmp_path):
    """Return a function that writes a delta of the base."""

    def write(name, adaptation, scale=0.05):
        backbone = adapt(copy.deepcopy(tiny_backbone).eval(), adaptation)
        path = tmp_path / f'{name}.safetensors'
        save_delta(disturb(backbone, scale), path)
        return path

    return write


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        (lora(4), lora(2, 8)),
        (lora(4), peft.LoraConfig(r=9, use_rslora=True, target_modules=['q', 'v'])),
        (None, None),
    ],
    ids=['LoRA', 'rsLoRA', 'no adapter'],
)
def test_mean_is_that_of_whole_weights(
    write, tiny_backbone, images, tmp_path, first, second
):
    # The last block by either name.
    paths = [
        write('a', Adaptation(adapter=first), 0.1),
        write('b', Adaptation(unfreeze=(2,), adapter=second), 0.2),
    ]
    output = tmp_path / 'mean.safetensors'
    average_deltas(paths, output, [0.25, 0.75])

    held = Deltas(tiny_backbone.eval())
    for name, path in zip('ab', paths, strict=True):
        held.add(name, path)
    expected = held.average({'a': 0.25, 'b': 0.75})(images)
    found = load_delta(copy.deepcopy(tiny_backbone), output).eval()
    assert_close(found(images), expected, rtol=0, atol=1e-5)
    if first is not None:
        assert found.record.adapted.adaptation.adapter.r == first.r + second.r
    metadata = read_delta_metadata(output)
    assert json.loads(metadata['shares']) == [0.25, 0.75]
    assert json.loads(metadata['mean_of'])[1] == held.metadata['b']['delta']


def test_mean_of_one_is_that_one(write, tiny_backbone, images, tmp_path):
    path = write('a', Adaptation(adapter=lora(4)))
    average_deltas([path], tmp_path / 'mean.safetensors')
    expected = load_delta(copy.deepcopy(tiny_backbone).eval(), path)(images)
    found = load_delta(tiny_backbone.eval(), tmp_path / 'mean.safetensors')(images)
    assert_close(found, expected)


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (
            Adaptation(adapter=lora(4), unfreeze=(0,)),
            'train different tensors, first block',
        ),
        (
            Adaptation(adapter=peft.LoHaConfig(r=2, target_modules=['q', 'v'])),
            'b.safetensors is not plain LoRA',
        ),
        (
            Adaptation(
                adapter=peft.LoraConfig(use_dora=True, target_modules=['q', 'v'])
            ),
            'b.safetensors is not plain LoRA',
        ),
    ],
    ids=['blocks', 'LoHa', 'DoRA'],
)
def test_deltas_whose_mean_is_no_delta_are_refused(write, tmp_path, other, message):
    paths = [write('a', Adaptation(adapter=lora(4))), write('b', other)]
    with pytest.raises(ValueError, match=message):
        average_deltas(paths, tmp_path / 'mean.safetensors')
    assert not (tmp_path / 'mean.safetensors').exists()


def test_other_base_and_wrong_shares_are_refused(
    write, tiny_backbone, disturb, tmp_path
):
    paths = [write('a', Adaptation(adapter=lora(4)))]
    disturb(tiny_backbone)
    paths.append(write('b', Adaptation(adapter=lora(4))))
    output = tmp_path / 'mean.safetensors'
    with pytest.raises(ValueError, match='a mean needs deltas of one base'):
        average_deltas(paths, output)
    with pytest.raises(ValueError, match=r'2 deltas need 2 \*shares\*, got 1'):
        average_deltas(paths, output, [1.0])
    with pytest.raises(ValueError, match=r'\[0.5, 0.6\] sum to 1.1'):
        average_deltas(paths, output, [0.5, 0.6])


def test_damaged_file_is_refused(write, tmp_path):
    path = write('a', Adaptation(adapter=lora(4)))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='not those that were saved'):
        average_deltas([path], tmp_path / 'mean.safetensors')


def test_mean_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match='needs at least one delta'):
        average_deltas([], tmp_path / 'mean.safetensors')
