import http.server
import itertools
import json
import tarfile
import threading
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from torchgeo_explora.datasets import (
    FMoWRGB,
    NotPreparedError,
    Prepared,
    PreparedStream,
    UnreadableImageError,
    prepare,
)
from torchgeo_explora.datasets.prepared import source
from torchgeo_explora.datasets.prepared.source import ConnectionLostError


@pytest.fixture
def folder(fake, tmp_path):
    dataset = FMoWRGB(fake('fmow').write_fmow(tmp_path), size=32)
    prepare(dataset, tmp_path / 'out/train', samples_per_shard=2, progress=False)
    return str(tmp_path / 'out')


def indices(samples):
    return [int(sample['index']) for sample in samples]


def test_in_order_every_sample_comes_once(folder):
    stream = PreparedStream(folder, 'train')
    assert stream.samples == 8
    assert stream.classes[0] == 'airport'
    samples = list(stream)
    assert indices(samples) == list(range(8))
    for sample, other in zip(samples, Prepared(folder, 'train'), strict=True):
        assert sample.keys() == other.keys()
        assert torch.equal(sample['image'], other['image'])
        assert torch.equal(sample['bbox_xyxy'], other['bbox_xyxy'])


def test_mixed_it_has_no_end(folder):
    stream = iter(PreparedStream(folder, 'train', buffer=4))
    drawn = indices([next(stream) for _ in range(80)])
    assert set(drawn) == set(range(8))
    assert drawn[:8] != list(range(8))
    # Each epoch brings every sample, so counts differ by what the buffer holds.
    counts = torch.bincount(torch.tensor(drawn))
    assert counts.max() - counts.min() <= 3


def test_workers_share_the_shards(folder):
    loader = DataLoader(PreparedStream(folder, 'train'), batch_size=None, num_workers=2)
    assert sorted(indices(loader)) == list(range(8))


@pytest.mark.parametrize('buffer', [0, 4])
def test_nodes_and_workers_share_the_shards(folder, monkeypatch, buffer):
    """Two nodes with two workers each: every sample comes once, to one of them."""
    stream = PreparedStream(folder, 'train', buffer)
    for name in ('WORLD_SIZE', 'NUM_WORKERS'):
        monkeypatch.setenv(name, '2')
    drawn = []
    for rank, worker in itertools.product('01', '01'):
        monkeypatch.setenv('RANK', rank)
        monkeypatch.setenv('WORKER', worker)
        drawn.append(indices(itertools.islice(stream, 2)))
    assert sorted(map(sorted, drawn)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(ValueError, match='4 shards for 3 processes with 2 workers'):
        next(iter(stream))


def test_epochs_differ_and_come_again(folder):
    stream = PreparedStream(folder, 'train', buffer=8)
    drawn = indices(itertools.islice(stream, 40))
    epochs = [tuple(drawn[i : i + 8]) for i in range(0, 40, 8)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len(set(epochs)) > 1
    assert indices(itertools.islice(stream, 40)) == drawn
    other = PreparedStream(folder, 'train', buffer=8, seed=1)
    assert indices(itertools.islice(other, 40)) != drawn


@pytest.mark.parametrize('between', [False, True])
def test_shard_cut_short_is_found(folder, between):
    """In the middle of a file, and between two samples."""
    shard = Path(folder, 'train/shard-000001.tar')
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    end = members[2].offset if between else members[3].offset_data + 10
    shard.write_bytes(shard.read_bytes()[:end])
    text = 'has 1 samples, expected 2' if between else 'unexpected end of data'
    with pytest.raises(NotPreparedError, match=f'shard-000001.*{text}.*cut short'):
        list(PreparedStream(folder, 'train'))


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def damaged(folder):
    """The folder with a changed byte in sample 5."""
    row = Prepared(folder, 'train').table.to_pylist()[5]
    flip(Path(folder, 'train/shard-000002.tar'), row['offsets'][0] + 100)
    return folder


@pytest.mark.parametrize('buffer', [0, 4])
def test_flipped_byte_is_found(damaged, buffer):
    stream = PreparedStream(damaged, 'train', buffer)
    message = r'image\.jpg of sample 000000005 in .*shard-000002\.tar has changed'
    with pytest.raises(UnreadableImageError, match=message):
        list(itertools.islice(stream, 40))


def test_damaged_sample_is_left_out_if_asked(damaged):
    stream = PreparedStream(damaged, 'train', on_error='skip')
    with pytest.warns(UserWarning, match='skipped a sample: image.jpg of sample 0000'):
        assert indices(stream) == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.filterwarnings('ignore:skipped a sample')
def test_without_any_intact_sample_it_ends(folder):
    for number in range(8):
        row = Prepared(folder, 'train').table.to_pylist()[number]
        shard = Path(folder, f'train/shard-{number // 2:06}.tar')
        flip(shard, row['offsets'][0] + 100)
    with pytest.raises(UnreadableImageError, match=r'no sample of .* can be read'):
        next(iter(PreparedStream(folder, 'train', buffer=4, on_error='skip')))


def test_damaged_index_is_found(folder):
    flip(Path(folder, 'train/index.arrow'), 700)
    with pytest.raises(NotPreparedError, match=r'index\.arrow of .* has changed'):
        PreparedStream(folder, 'train')


def test_more_workers_than_shards_are_refused(folder, monkeypatch):
    # Torch waits five seconds for each worker that has failed: none is started.
    monkeypatch.setattr('webdataset.utils.pytorch_worker_info', lambda: (0, 1, 0, 5))
    message = r'4 shards for 1 processes with 5 workers each.*\*samples_per_shard\*'
    with pytest.raises(ValueError, match=message):
        list(PreparedStream(folder, 'train'))


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; drops or stalls the first answers for `shard-000001.tar`."""

    fault, faults, closing = '', 0, None

    def log_message(self, *_):
        """Say nothing."""

    def copyfile(self, source, output):
        kind = type(self)
        if 'shard-000001' not in self.path or kind.faults <= 0:
            super().copyfile(source, output)
            return
        kind.faults -= 1
        output.write(source.read(3000))
        output.flush()
        if kind.fault == 'stall':
            kind.closing.wait()
        self.close_connection = True


@pytest.fixture
def serve(folder, monkeypatch):
    """Return a function that starts a server with faults and gives its address."""
    monkeypatch.setattr(source, '_WAIT', 0.01)
    servers, closing = [], threading.Event()

    def start(fault='', faults=0):
        # Others may answer as slowly as they do.
        monkeypatch.setattr(source, '_TIMEOUT', 1 if fault == 'stall' else 600)
        of = {'fault': fault, 'faults': faults, 'closing': closing}
        kind = type('Handler', (Flaky,), of)
        handler = partial(kind, directory=folder)
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'

    yield start
    closing.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def test_over_the_network(serve):
    assert indices(PreparedStream(serve(), 'train')) == list(range(8))


@pytest.mark.parametrize('fault', ['drop', 'stall'])
def test_lost_connection_is_made_again(serve, fault):
    """Each sample comes once, as if nothing had happened."""
    stream = PreparedStream(serve(fault, faults=2), 'train')
    assert indices(stream) == list(range(8))


def test_what_is_not_there_is_not_waited_for(serve, monkeypatch):
    monkeypatch.setattr(source, '_WAIT', 60)
    with pytest.raises(NotPreparedError, match=r'no manifest\.json that can be read'):
        PreparedStream(serve(), 'nothing')


def test_shard_that_cannot_be_reached_is_named_or_skipped(serve):
    root = serve('drop', faults=1000)
    stream = PreparedStream(root, 'train')
    message = r'shard-000001\.tar could not be read after \d+ bytes in 5 tries'
    with pytest.raises(ConnectionLostError, match=message):
        list(stream)
    lenient = PreparedStream(root, 'train', on_error='skip')
    with pytest.warns(UserWarning, match='skipped [12] samples: .*shard-000001'):
        found = indices(lenient)
    assert set(found) >= {0, 1, 4, 5, 6, 7}


def test_object_storage_goes_through_fsspec(folder):
    store = fsspec.filesystem('memory')
    store.put(folder, '/bucket/fmow', recursive=True)
    try:
        stream = PreparedStream('memory://bucket/fmow', 'train')
        assert indices(stream) == list(range(8))
    finally:
        store.rm('/bucket', recursive=True)


def edit_manifest(folder, change):
    path = Path(folder, 'train/manifest.json')
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    'name',
    [
        '../shard-000000.tar',
        '/etc/shard-000000.tar',
        'shard-000000.tar; touch {mark}',
        '$(touch {mark})',
        'pipe:touch {mark}',
        'shard-000000.tar\n',
        'shard-\u0660\u0660\u0660\u0660\u0660\u0660.tar',
        'sub/shard-000000.tar',
        'http://host/shard-000000.tar',
        None,
    ],
)
def test_manifest_names_only_shards_of_the_writer(folder, tmp_path, name):
    """Names of a manifest from another machine become neither paths nor commands."""
    mark = tmp_path / 'mark'
    shard = name and name.format(mark=mark)
    edit_manifest(folder, lambda manifest: manifest['shards'][0].update(name=shard))
    for kind in (PreparedStream, Prepared):
        with pytest.raises(NotPreparedError, match='is not the name of a shard'):
            list(kind(folder, 'train'))
    assert not mark.exists()


@pytest.mark.parametrize('root', ['pipe:touch mark; cat ', '; touch mark #'])
def test_root_never_reaches_a_shell(monkeypatch, root):
    def refuse(*arguments, **_):
        raise OSError('no network in this test')

    def fail(*arguments, **_):
        pytest.fail(f'started {arguments}')

    monkeypatch.setattr(source, '_WAIT', 0)
    monkeypatch.setattr('fsspec.open', refuse)
    monkeypatch.setattr('subprocess.Popen', fail)
    for address in (root, 's3://bucket/' + root, 'https://host/' + root):
        with pytest.raises(NotPreparedError):
            PreparedStream(address, 'train')


@pytest.mark.parametrize(
    'change',
    [
        lambda manifest: manifest.pop('shards'),
        lambda manifest: manifest.update(shards={}),
        lambda manifest: manifest.update(classes=[1]),
        lambda manifest: manifest.update(attributes=None),
        lambda manifest: manifest['index'].update(sha256='0'),
        lambda manifest: manifest['shards'].append('shard'),
        lambda manifest: manifest['shards'].append(manifest['shards'][0]),
        lambda manifest: manifest['shards'][0].update(samples=-1),
        lambda manifest: manifest['shards'][0].pop('bytes'),
    ],
)
def test_manifest_of_another_form_is_refused(folder, change):
    edit_manifest(folder, change)
    for kind in (PreparedStream, Prepared):
        with pytest.raises(NotPreparedError, match=r'manifest\.json of .* is damaged'):
            kind(folder, 'train')


def test_links_in_a_shard_are_not_followed(folder):
    shard = Path(folder, 'train/shard-000000.tar')
    with tarfile.open(shard, 'w') as tar:
        link = tarfile.TarInfo('000000000.json')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    with pytest.raises(NotPreparedError, match='is not a plain file'):
        list(PreparedStream(folder, 'train'))


def test_wrong_arguments(folder):
    with pytest.raises(NotPreparedError, match=r'no manifest\.json that can be read'):
        PreparedStream(folder, 'nothing')
    with pytest.raises(ValueError, match=r'\*buffer\*'):
        PreparedStream(folder, 'train', buffer=-1)
    with pytest.raises(ValueError, match=r'\*on_error\*'):
        PreparedStream(folder, 'train', on_error='stop')
