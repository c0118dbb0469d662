"""Tests of the delta as a file."""

import copy
import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchgeo_explora import __version__
from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    base_fingerprint,
    delta_state_dict,
    load_delta,
    lora,
    merged,
    read_delta_metadata,
    save_delta,
    twin,
)
from torchgeo_explora.models import ViT

SMALL = Adaptation(adapter=lora(4))


@pytest.fixture
def trained(tiny_backbone, disturb):
    return disturb(adapt(copy.deepcopy(tiny_backbone).eval(), SMALL))


@pytest.fixture
def path(trained, tmp_path):
    path = tmp_path / 'runs' / 'delta.safetensors'
    save_delta(trained, path, {'note': 'first run'})
    return path


def rewrite(path, tensors=None, sealed=True, **metadata):
    """Write the file again with other tensors or metadata, and a seal that fits."""
    with safe_open(path, 'pt') as file:
        header = {**file.metadata(), **metadata}
    if sealed:
        del header['metadata_sha256']
        text = json.dumps(header, sort_keys=True)
        header['metadata_sha256'] = hashlib.sha256(text.encode()).hexdigest()
    save_file(load_file(path) if tensors is None else tensors, path, header)


def test_file_holds_the_delta_and_its_origin(trained, path):
    torch.testing.assert_close(load_file(path), delta_state_dict(trained))
    metadata = read_delta_metadata(path)
    assert metadata['backbone'] == 'torchgeo_explora.models.ViT'
    assert metadata['base'] == trained.record.fingerprint
    assert metadata['version'] == __version__
    assert metadata['note'] == 'first run'
    assert Adaptation.from_dict(metadata['adaptation']) == SMALL
    with torch.device('meta'):
        assert ViT(**metadata['arguments']).embed_dim == trained.embed_dim


@pytest.mark.parametrize('kind', [torch.float64, torch.bfloat16])
def test_file_is_float32_whatever_the_backbone_is(trained, path, kind):
    save_delta(trained.to(kind), path)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


def test_plain_backbone_is_adapted_and_loaded(tiny_backbone, trained, path, images):
    base = tiny_backbone.eval()
    assert load_delta(base, path) is base
    assert base.record.adapted.adaptation == SMALL
    torch.testing.assert_close(base(images), trained(images), rtol=0, atol=0)


def test_delta_of_a_teacher_loads_too(tiny_backbone, trained, images, tmp_path):
    teacher = twin(trained)
    save_delta(teacher, tmp_path / 'delta.safetensors')
    base = load_delta(tiny_backbone.eval(), tmp_path / 'delta.safetensors')
    torch.testing.assert_close(base(images), teacher(images), rtol=0, atol=0)


@pytest.mark.parametrize('unfreeze', [(-1,), (2,)])
def test_backbone_adapted_alike_is_loaded(tiny_backbone, trained, path, unfreeze):
    adapt(tiny_backbone, Adaptation(unfreeze, adapter=lora(4)))
    load_delta(tiny_backbone, path)
    torch.testing.assert_close(
        tiny_backbone.state_dict(), trained.state_dict(), rtol=0, atol=0
    )


def test_backbone_adapted_otherwise_is_refused(tiny_backbone, path):
    adapt(tiny_backbone, Adaptation((0,), adapter=lora(8)))
    with pytest.raises(ValueError, match=r'\[1\]-r8.*\[3\]-r4.*unfreeze, adapter'):
        load_delta(tiny_backbone, path)


def test_delta_serves_another_image_size(tiny_backbone, disturb, tmp_path, images):
    published = tiny_backbone.canonical_state_dict()
    arguments = {**tiny_backbone.arguments, 'image_size': 64}
    large = ViT(**arguments).eval()
    large.load_state_dict(published)
    tiny_backbone.load_state_dict(published)
    disturb(adapt(tiny_backbone.eval(), SMALL))
    save_delta(tiny_backbone, tmp_path / 'delta.safetensors')
    load_delta(large, tmp_path / 'delta.safetensors')
    assert large.pos_embed.shape[1] == 65
    torch.testing.assert_close(delta_state_dict(large), delta_state_dict(tiny_backbone))


def test_other_base_is_refused_before_a_weight_is_touched(tiny_backbone, path):
    with torch.no_grad():
        tiny_backbone.norm.weight[0] += 1e-6
    before = copy.deepcopy(tiny_backbone.state_dict())
    ours = base_fingerprint(tiny_backbone)[:12]
    with pytest.raises(ValueError, match=f'this backbone is {ours}: load the same'):
        load_delta(tiny_backbone, path)
    torch.testing.assert_close(tiny_backbone.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in tiny_backbone.parameters())


@pytest.mark.parametrize('change', ['missing', 'unexpected', 'shape'])
def test_tensors_that_do_not_fit_are_refused_before_anything_changes(
    tiny_backbone, path, change
):
    tensors = load_file(path)
    if change == 'missing':
        del tensors['norm.weight']
    elif change == 'unexpected':
        tensors['norm.gain'] = torch.ones(2)
    else:
        tensors['norm.weight'] = torch.ones(2)
    rewrite(path, tensors)
    before = copy.deepcopy(tiny_backbone.state_dict())
    with pytest.raises(ValueError, match=r'1 tensors of .*norm\.'):
        load_delta(tiny_backbone, path)
    torch.testing.assert_close(tiny_backbone.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in tiny_backbone.parameters())


@pytest.mark.parametrize('size', [0, 4, 300, -1])
def test_truncated_file_is_named(tiny_backbone, path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r'delta\.safetensors is cut short'):
        load_delta(tiny_backbone, path)


def test_damaged_tensors_are_refused(tiny_backbone, path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'not those that were saved'):
        load_delta(tiny_backbone, path)
    assert all(p.requires_grad for p in tiny_backbone.parameters())


def test_changed_metadata_are_refused(tiny_backbone, path):
    """A LoRA of another scale would load, and give other features."""
    adaptation = read_delta_metadata(path)['adaptation']
    adaptation['adapter']['lora_alpha'] = 100
    rewrite(path, sealed=False, adaptation=json.dumps(adaptation))
    with pytest.raises(ValueError, match=r'metadata of .* \(their SHA-256 differs\)'):
        load_delta(tiny_backbone, path)
    assert all(p.requires_grad for p in tiny_backbone.parameters())


def test_other_safetensors_file_is_refused(tiny_backbone, tmp_path):
    save_file({'a': torch.ones(1)}, tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match='is not a delta'):
        load_delta(tiny_backbone, tmp_path / 'weights.safetensors')


def test_missing_file_is_named(tiny_backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no delta at .*nowhere'):
        load_delta(tiny_backbone, tmp_path / 'nowhere.safetensors')


@pytest.mark.parametrize(
    ('metadata', 'match'),
    [
        ({'format_version': '2'}, 'delta format 2.*upgrade'),
        ({'adaptation': '{"unfreeze"'}, r'not those that were saved \(wrong adapt'),
        ({'arguments': '[]'}, r'not those that were saved \(wrong arguments'),
    ],
)
def test_metadata_of_another_kind_are_refused(path, metadata, match):
    rewrite(path, **metadata)
    with pytest.raises(ValueError, match=match):
        read_delta_metadata(path)


def test_failed_save_leaves_the_last_file(trained, path):
    before = path.read_bytes()
    with torch.no_grad():
        trained.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r'norm\.weight is not finite'):
        save_delta(trained, path)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_interrupted_save_leaves_the_last_file(trained, path, monkeypatch):
    def cut(tensors, filename, metadata):
        filename.write_bytes(b'half')
        raise OSError('disk full')

    before = path.read_bytes()
    monkeypatch.setattr('torchgeo_explora.adapt.delta_file.save_file', cut)
    with pytest.raises(OSError, match='disk full'):
        save_delta(trained, path)
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


def test_plain_backbone_has_no_delta_to_save(tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match='call `adapt` on it first'):
        save_delta(tiny_backbone, tmp_path / 'delta.safetensors')


def test_reserved_metadata_are_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"rename \['base'\]"):
        save_delta(trained, tmp_path / 'delta.safetensors', {'base': 'mine'})


def test_file_may_be_read_by_whom_the_umask_allows(trained, path):
    before = os.umask(0o022)
    try:
        save_delta(trained, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.fixture
def second(trained, disturb, tmp_path):
    """A delta over the base that has the first folded in."""
    fine = disturb(adapt(merged(trained), Adaptation((), adapter=lora(2))))
    save_delta(fine, tmp_path / 'second.safetensors')
    return fine, tmp_path / 'second.safetensors'


def test_second_delta_is_stored_alone(tiny_backbone, trained, path, second, images):
    fine, file = second
    assert file.stat().st_size < path.stat().st_size
    first = load_delta(tiny_backbone.eval(), path)
    found = load_delta(merged(first), file).eval()
    torch.testing.assert_close(found(images), fine.eval()(images), rtol=0, atol=0)
    metadata = read_delta_metadata(file)
    parts = [trained.record.fingerprint, read_delta_metadata(path)['delta']]
    assert metadata['lineage'] == '+'.join(parts)


def test_base_that_was_folded_together_elsewhere_is_the_same(
    tiny_backbone, path, second
):
    _, file = second
    base = merged(load_delta(tiny_backbone, path))
    with torch.no_grad():  # as another machine rounds
        base.blocks[0].attn.q.weight[0, 0] *= 1 + 1e-6
    load_delta(base, file)
    again = merged(load_delta(merged(load_delta(tiny_backbone, path)), file))
    assert again.record.lineage.count('+') == 2


def test_second_delta_knows_its_base_from_others(tiny_backbone, path, second):
    _, file = second
    with pytest.raises(ValueError, match='load the same weights'):
        load_delta(copy.deepcopy(tiny_backbone), file)
    base = merged(load_delta(tiny_backbone, path))
    # Weights that are loaded since are another base.
    other = {key: value + 1 for key, value in base.canonical_state_dict().items()}
    base.load_state_dict(other)
    with pytest.raises(ValueError, match='load the same weights'):
        load_delta(base, file)
