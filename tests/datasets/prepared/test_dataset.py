import errno
import json
import os
import pickle
import signal
import socket
import tarfile
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader

from torchgeo_explora.datasets import (
    FMoWRGB,
    FMoWSentinel,
    FMoWTemporal,
    GlobalWheat,
    ImageFolder,
    NotPreparedError,
    Prepared,
    SceneWindows,
    prepare,
    verify,
)
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError

#: Files of a sample of true colour.
KINDS = ('image.jpg', 'json')


@pytest.fixture
def fmow(fake, tmp_path):
    return FMoWRGB(fake('fmow').write_fmow(tmp_path), size=32)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def same(sample, other, atol=0.0):
    """Keys, types and values agree; pixels to a tolerance."""
    assert sample.keys() == other.keys()
    for key, value in other.items():
        if key == 'image':
            assert_close(sample[key], value, atol=atol, rtol=0)
        elif isinstance(value, torch.Tensor):
            assert sample[key].dtype == value.dtype
            # Missing metadata are NaN.
            assert torch.equal(sample[key].nan_to_num(-1), value.nan_to_num(-1))
        else:
            assert sample[key] == value


def test_samples_and_keys_are_those_of_the_raw_form(fmow, tmp_path):
    folder = prepare(fmow, tmp_path / 'out', samples_per_shard=3, progress=False)
    prepared = Prepared(folder)
    assert len(prepared) == len(fmow) == 8
    assert prepared.classes == list(fmow.classes)
    assert prepared.split == 'train'
    assert prepared.places == fmow.places
    for index in range(8):
        # The fake boxes have hard edges, whose colours JPEG blurs over two pixels.
        same(prepared[index], fmow[index], atol=40)
        off = prepared[index]['image'] - fmow[index]['image']
        assert off.mean(0).abs().max() < 25  # brightness
        assert off.abs().mean() < 6
    assert len(os.listdir(folder)) == 5  # three shards, index, manifest
    assert not verify(folder)


@pytest.mark.parametrize('kind', ['temporal', 'sentinel', 'wheat', 'scenes', 'folder'])
def test_every_kind_of_data_set(fake, tmp_path, kind):
    place = tmp_path / 'raw'
    if kind == 'temporal':
        raw = FMoWTemporal(fake('fmow').write_fmow(place), size=16)
    elif kind == 'sentinel':
        root = fake('fmow_sentinel').write_fmow_sentinel(place)
        raw = FMoWSentinel(root, bands=('B04', 'B8A'), size=None)
    elif kind == 'wheat':
        raw = GlobalWheat(fake('wilds').write_globalwheat(place), size=32)
    elif kind == 'scenes':
        root = fake('scenes').write_scenes(place)
        raw = SceneWindows(root, size=16, length=6, times=2)
    else:
        for number in range(3):
            path = place / f'{"ab"[number % 2]}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3))
            Image.fromarray(pixels.astype('uint8')).save(path)
        raw = ImageFolder(place)
    prepare(raw, tmp_path / 'out', encoding='integer', progress=False)
    prepared = Prepared(tmp_path / 'out')
    assert len(prepared) == len(raw)
    for index in range(len(raw)):
        same(prepared[index], raw[index], atol=0.5 if kind == 'scenes' else 0)
    for name in ('bands', 'value_range', 'range_known'):
        if hasattr(raw, name):
            value = json.loads(json.dumps(getattr(raw, name)))
            assert getattr(prepared, name) == value


def test_bytes_do_not_depend_on_workers_or_time(fmow, tmp_path):
    folders = [tmp_path / name for name in 'abc']
    for folder, workers in zip(folders, (0, 1, 2), strict=True):
        prepare(fmow, folder, samples_per_shard=2, workers=workers, progress=False)
    first, second, third = map(contents, folders)
    assert first == second == third


class Cut(FMoWRGB):
    """Stops after some samples, as a power cut does."""

    left = 10**9

    def read(self, index):
        type(self).left -= 1
        if type(self).left < 0:
            raise KeyboardInterrupt
        return super().read(index)


#: Before anything is written, the first sample is looked at, then five of them twice.
LOOKS = 11


@pytest.mark.parametrize('stop', [11, 12, 14, 16, 18])
def test_stopped_half_way_it_goes_on_with_the_same_bytes(fmow, tmp_path, stop):
    prepare(fmow, tmp_path / 'whole', samples_per_shard=2, progress=False)
    cut = Cut(fmow.root, size=32)
    cut.__class__.__qualname__, cut.__class__.__module__ = 'FMoWRGB', FMoWRGB.__module__
    Cut.left = stop
    with pytest.raises(KeyboardInterrupt):
        prepare(cut, tmp_path / 'cut', samples_per_shard=2, progress=False)
    with pytest.raises(NotPreparedError, match='not finished: run the same command'):
        Prepared(tmp_path / 'cut')
    done = len(list((tmp_path / 'cut').glob('*.tar')))
    assert done == (stop - LOOKS) // 2
    Cut.left = LOOKS + 8 - 2 * done
    prepare(cut, tmp_path / 'cut', samples_per_shard=2, progress=False)
    assert Cut.left == 0
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


class Stuck(FMoWRGB):
    """Stays in the middle of a shard once another one is finished."""

    folder: Path
    parent: socket.socket

    def read(self, index):
        if index % 2 and list(self.folder.glob('*.tar')):
            self.parent.send(b'.')
            # Until the parent kills this process, or ends itself.
            self.parent.recv(1)
        return super().read(index)


def prepare_and_stick(root, folder, workers, ours, parent):
    ours.close()
    os.setsid()
    Stuck.folder, Stuck.parent = folder, parent
    Stuck.__qualname__, Stuck.__module__ = 'FMoWRGB', FMoWRGB.__module__
    dataset = Stuck(root, size=32)
    prepare(dataset, folder, samples_per_shard=2, workers=workers, progress=False)


@pytest.mark.parametrize('workers', [1, 3])
def test_killed_process_leaves_nothing_in_the_way(fmow, tmp_path, workers):
    """Killed with its workers after the first shard, it goes on with some as well."""
    prepare(fmow, tmp_path / 'whole', samples_per_shard=2, progress=False)
    cut = tmp_path / 'cut'
    ours, theirs = socket.socketpair()
    arguments = (fmow.root, cut, workers, ours, theirs)
    child = get_context('fork').Process(target=prepare_and_stick, args=arguments)
    child.start()
    theirs.close()
    with ours:
        # Nothing comes if all of them ended.
        assert ours.recv(1) == b'.'
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    assert not (cut / 'manifest.json').exists()
    (cut / '.shard-000003.tar.1.part').write_bytes(b'half a shard')
    prepare(fmow, cut, samples_per_shard=2, workers=workers, progress=False)
    assert contents(cut) == contents(tmp_path / 'whole')


def test_two_at_once_do_not_meet(fmow, tmp_path, monkeypatch):
    """The second one stops, and the first one ends as if it had been alone."""
    prepare(fmow, tmp_path / 'alone', samples_per_shard=2, progress=False)
    monkeypatch.setattr('torchgeo_explora.datasets.prepared.manifest._PATIENCE', 0.0)
    folder = tmp_path / 'out'
    refused = []

    class Meeting(FMoWRGB):
        def read(self, index):
            if (folder / 'shard-000001.tar').exists() and not refused:
                with pytest.raises(RuntimeError, match=r'another process .*\*output\*'):
                    prepare(fmow, folder, samples_per_shard=2, progress=False)
                refused.append(index)
            return super().read(index)

    Meeting.__qualname__, Meeting.__module__ = 'FMoWRGB', FMoWRGB.__module__
    first = Meeting(fmow.root, size=32)
    prepare(first, folder, samples_per_shard=2, progress=False)
    assert refused == [4]
    assert contents(folder) == contents(tmp_path / 'alone')


@pytest.mark.parametrize('workers', [0, 1])
def test_full_disk_is_said_in_a_sentence(fmow, tmp_path, monkeypatch, workers):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr('torchgeo_explora.datasets.prepared.writer._tar_writer', full)
        with pytest.raises(OSError, match='no room to write') as caught:
            prepare(fmow, tmp_path / 'out', workers=workers, progress=False)
    text = str(caught.value)
    assert 'shard-000000.tar' in text
    assert 'make room and run the same command again' in text
    assert 'Traceback' not in text
    assert not list((tmp_path / 'out').glob('.*.part'))
    assert not verify(prepare(fmow, tmp_path / 'out', progress=False))


@pytest.mark.parametrize('gone', [True, False])
def test_shard_lost_before_the_end_is_written_again(fmow, tmp_path, gone):
    prepare(fmow, tmp_path / 'whole', samples_per_shard=2, progress=False)
    cut = Cut(fmow.root, size=32)
    cut.__class__.__qualname__, cut.__class__.__module__ = 'FMoWRGB', FMoWRGB.__module__
    Cut.left = LOOKS + 4
    with pytest.raises(KeyboardInterrupt):
        prepare(cut, tmp_path / 'cut', samples_per_shard=2, progress=False)
    shard = tmp_path / 'cut/shard-000000.tar'
    if gone:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:2000])
    prepare(fmow, tmp_path / 'cut', samples_per_shard=2, progress=False)
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


def test_shards_are_plain_webdataset_tars(fmow, tmp_path):
    """Other programs read them: tar and the webdataset library alone."""
    folder = Path(prepare(fmow, tmp_path / 'out', samples_per_shard=4, progress=False))
    with tarfile.open(folder / 'shard-000001.tar') as tar:
        names = [f'{number:09}.{end}' for number in range(4, 8) for end in KINDS]
        assert tar.getnames() == names
    stream = webdataset.WebDataset(
        [str(path) for path in sorted(folder.glob('*.tar'))], shardshuffle=False
    )
    samples = list(stream.decode('pil').to_tuple('image.jpg', 'json'))
    assert [image.size for image, _ in samples] == [(32, 32)] * 8
    assert [text['label']['values'] for _, text in samples] == [
        [int(fmow[number]['label'])] for number in range(8)
    ]


def test_finished_folder_is_left_alone(fmow, tmp_path):
    prepare(fmow, tmp_path / 'out', progress=False)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
    prepare(fmow, tmp_path / 'out', progress=False)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
    assert before == after


@pytest.mark.parametrize('change', ['quality', 'size', 'length', 'shards', 'encoding'])
@pytest.mark.parametrize('finished', [True, False])
def test_other_arguments_are_not_mixed(fmow, tmp_path, change, finished):
    prepare(fmow, tmp_path / 'out', progress=False)
    if not finished:
        manifest = tmp_path / 'out/manifest.json'
        settings = json.loads(manifest.read_text())['settings']
        manifest.unlink()
        (tmp_path / 'out/.parts').mkdir()
        (tmp_path / 'out/.parts/settings.json').write_text(json.dumps(settings))
    arguments = {
        'quality': {'quality': 50},
        'shards': {'samples_per_shard': 7},
        'encoding': {'encoding': 'integer'},
    }.get(change, {})
    dataset = fmow
    if change == 'size':
        dataset = FMoWRGB(fmow.root, size=24)
    elif change == 'length':
        dataset = FMoWRGB(fmow.root, 'val', size=32)
    with pytest.raises(ValueError, match=r'with other arguments .*differ.*\*output\*'):
        prepare(dataset, tmp_path / 'out', progress=False, **arguments)


def old_name(folder, name):
    """Let a manifest be that of a version which wrote where a class was defined."""
    manifest = folder / 'manifest.json'
    content = json.loads(manifest.read_text())
    assert content['settings']['dataset'] == 'torchgeo_explora.datasets.FMoWRGB'
    content['settings']['dataset'] = name
    del content['sha256']
    manifest.write_text(json.dumps(content, indent=1))
    return content['settings']


@pytest.mark.parametrize('module', ['fmow_rgb', 'fmow.rgb'])
def test_folders_of_earlier_versions_are_continued(fmow, tmp_path, module):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    for folder in (whole, cut):
        prepare(fmow, folder, samples_per_shard=2, progress=False)
    settings = old_name(cut, f'torchgeo_explora.datasets.{module}.FMoWRGB')
    before = contents(cut)
    prepare(fmow, cut, samples_per_shard=2, progress=False)
    assert contents(cut) == before
    assert len(Prepared(cut)) == 8
    # Unfinished, it ends as a folder of today.
    (cut / 'manifest.json').unlink()
    (cut / '.parts').mkdir()
    (cut / '.parts/settings.json').write_text(json.dumps(settings))
    prepare(fmow, cut, samples_per_shard=2, progress=False)
    assert contents(cut) == contents(whole)


@pytest.mark.parametrize(
    'name', ['torchgeo_explora.datasets.FMoWSentinel', 'other.datasets.FMoWRGB']
)
def test_folders_of_another_class_are_refused(fmow, tmp_path, name):
    prepare(fmow, tmp_path, progress=False)
    old_name(tmp_path, name)
    with pytest.raises(ValueError, match=r'another data set .*\(dataset differ\)'):
        prepare(fmow, tmp_path, progress=False)


def test_what_is_drawn_at_random_is_refused(fmow, tmp_path):
    fmow.transforms = lambda sample: sample | {'draw': torch.rand(1)}
    with pytest.raises(ValueError, match=r'differs from one visit .*\*seed\*'):
        prepare(fmow, tmp_path / 'out', progress=False)
    assert not (tmp_path / 'out').exists()


def test_what_is_drawn_at_random_later_is_refused_too(fmow, tmp_path):
    def sometimes(sample):
        return sample | ({'draw': torch.rand(1)} if int(sample['index']) > 3 else {})

    fmow.transforms = sometimes
    with pytest.raises(ValueError, match=r'sample 5 of .* differs from one visit'):
        prepare(fmow, tmp_path / 'out', progress=False)


def test_what_cannot_be_kept_is_left_out(fmow, tmp_path):
    fmow.transforms = lambda sample: sample | {'x': np.zeros(3), 'y': np.zeros(3)}
    with pytest.raises(ValueError, match=r"'x' .* is a ndarray.*drop=\['x'\]"):
        prepare(fmow, tmp_path / 'out', progress=False)
    with pytest.raises(ValueError, match=r'\*drop\* names image, z: .* is bbox_xyxy,'):
        prepare(fmow, tmp_path / 'out', progress=False, drop=['image', 'x', 'z'])
    prepare(fmow, tmp_path / 'out', progress=False, drop=['x', 'y'])
    assert Prepared(tmp_path / 'out')[0].keys() == fmow[0].keys() - {'x', 'y'}


def test_damaged_notes(fmow, tmp_path):
    """Those of a shard are made again; a manifest that is no JSON is named."""
    folder = tmp_path / 'out'
    (folder / '.parts').mkdir(parents=True)
    (folder / '.parts/shard-000001.tar.json').write_bytes(b'{"by')
    prepare(fmow, folder, samples_per_shard=4, progress=False)
    assert not verify(folder)
    (folder / 'manifest.json').write_bytes(b'')
    calls = (verify, Prepared, lambda folder: prepare(fmow, folder, progress=False))
    for call in calls:
        with pytest.raises(
            NotPreparedError, match=r'manifest\.json is damaged .*again'
        ):
            call(folder)


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))


def test_flipped_byte_is_found(fmow, tmp_path):
    """By a look at all bytes, and by the sample that has it."""
    folder = Path(prepare(fmow, tmp_path / 'out', samples_per_shard=4, progress=False))
    row = Prepared(folder).table.to_pylist()[5]
    shard = folder / 'shard-000001.tar'
    flip(shard, row['offsets'][0] + 100)
    (sentence,) = verify(folder)
    assert 'shard-000001.tar has changed: its SHA-256 is not' in sentence
    with pytest.raises(NotPreparedError, match=r'shard-000001\.tar has changed'):
        Prepared(folder, check='sha256')
    prepared = Prepared(folder)
    assert prepared[4]['index'] == 4
    message = r'image\.jpg of sample 000000005 in .*shard-000001\.tar has changed'
    with pytest.raises(UnreadableImageError, match=message):
        prepared[5]
    lenient = Prepared(folder, on_error='skip')
    with pytest.warns(UserWarning, match='skipped sample 5'):
        assert lenient[5]['index'] == 6


@pytest.mark.parametrize('place', [9, 700, -200])
def test_damaged_index_is_found_before_it_is_used(fmow, tmp_path, place):
    folder = Path(prepare(fmow, tmp_path / 'out', progress=False))
    index = folder / 'index.arrow'
    flip(index, place % index.stat().st_size)
    assert 'index.arrow has changed' in verify(folder)[0]
    with pytest.raises(
        NotPreparedError, match=r'index\.arrow has changed: its SHA-256'
    ):
        Prepared(folder)
    index.write_bytes(index.read_bytes()[:-100])
    with pytest.raises(NotPreparedError, match=r'index\.arrow has .* cut short'):
        Prepared(folder)
    index.unlink()
    with pytest.raises(NotPreparedError, match=r'index\.arrow is missing'):
        Prepared(folder)


def test_damaged_manifest_is_found(fmow, tmp_path):
    folder = Path(prepare(fmow, tmp_path / 'out', progress=False))
    path = folder / 'manifest.json'
    text = path.read_text()
    path.write_text(text.replace('"train"', '"trein"'))
    with pytest.raises(NotPreparedError, match='its SHA-256 differs'):
        Prepared(folder)
    content = json.loads(text)
    del content['sha256']  # one of version 0.1
    path.write_text(json.dumps(content))
    assert len(Prepared(folder)) == len(fmow)
    content['attributes']['value_range'] = [255, 'x']
    path.write_text(json.dumps(content))
    with pytest.raises(NotPreparedError, match='its value_range is'):
        Prepared(folder)


@pytest.mark.parametrize('gone', [True, False])
def test_shard_cut_short_is_found_at_once(fmow, tmp_path, gone):
    folder = Path(prepare(fmow, tmp_path / 'out', progress=False))
    shard = folder / 'shard-000000.tar'
    if gone:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-5000])
    with pytest.raises(NotPreparedError, match=r'shard-000000\.tar has .*cut short'):
        Prepared(folder)
    assert ('is missing' if gone else 'cut short') in verify(folder)[0]


@pytest.mark.filterwarnings('ignore:skipped sample')
def test_unreadable_samples_are_left_out_and_counted(fmow, tmp_path):
    path = fmow.paths[2]
    Path(path).write_bytes(b'')
    lenient = FMoWRGB(fmow.root, size=32, on_error='skip')
    with pytest.warns(UserWarning, match='1 of 8 samples could not be read'):
        prepare(lenient, tmp_path / 'out', samples_per_shard=3, progress=False)
    prepared = Prepared(tmp_path / 'out')
    assert len(prepared) == 7
    assert prepared.manifest['skipped'] == [2]
    assert [int(sample['label']) for sample in prepared] == [0, 0, 6, 6, 6, 6, 61]
    assert int(prepared[2]['index']) == 2
    assert path not in [sample['path'] for sample in prepared]
    with pytest.raises(UnreadableImageError):
        prepare(fmow, tmp_path / 'strict', progress=False)


def test_nothing_prepared(tmp_path):
    with pytest.raises(NotPreparedError, match='prepare a data set into it first'):
        Prepared(tmp_path, 'train')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'quality': 0}, r'\*quality\* must be 1 to 100'),
        ({'samples_per_shard': 0}, r'\*samples_per_shard\* must be 1 or more'),
    ],
)
def test_wrong_arguments(fmow, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare(fmow, tmp_path / 'out', **arguments)
    with pytest.raises(ValueError, match=r'\*check\*'):
        Prepared(tmp_path, check='md5')


def test_workers_and_copies_read_the_same(fmow, tmp_path):
    prepare(fmow, tmp_path / 'out', samples_per_shard=2, progress=False)
    prepared = Prepared(tmp_path / 'out')
    images = torch.stack([sample['image'] for sample in prepared])
    copy = pickle.loads(pickle.dumps(prepared))
    assert torch.equal(torch.stack([sample['image'] for sample in copy]), images)
    loader = DataLoader(prepared, batch_size=None, num_workers=2)
    assert torch.equal(torch.stack([sample['image'] for sample in loader]), images)


def test_plot(fmow, tmp_path):
    prepare(fmow, tmp_path / 'out', progress=False)
    prepared = Prepared(tmp_path / 'out')
    axes = prepared.plot(prepared[0]).axes[0]
    assert axes.get_title() == 'Label: airport'
    assert len(axes.patches) == 1
    plt.close('all')


def test_bar_counts_samples(fmow, tmp_path, capsys):
    prepare(fmow, tmp_path / 'out', samples_per_shard=3)
    # Hidden where the output is no terminal.
    assert capsys.readouterr().err == ''
