"""Data sets come whole from a server, or not at all."""

import os
import stat
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torchgeo.datasets import DatasetNotFoundError
from torchgeo.datasets.errors import DependencyNotFoundError

from torchgeo_explora.datamodules import Camelyon17DataModule, FMoWRGBDataModule
from torchgeo_explora.datasets import Camelyon17, FMoWRGB, FMoWSentinel
from torchgeo_explora.datasets.tables.fetch import Archive

LABELLED, UNLABELLED = 'camelyon17_v1.0', 'camelyon17_unlabeled_v1.0'


class Handler(SimpleHTTPRequestHandler):
    """Serve a folder, and keep what was asked for."""

    def do_GET(self):
        """Send a file; half of it if its name says so, as a broken line does."""
        self.server.asked.append(self.path)
        if 'broken' not in self.path:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header('Content-Length', '2000')
        self.end_headers()
        self.wfile.write(bytes(1000))

    def log_message(self, *args):
        """Be silent."""


@pytest.fixture
def server(tmp_path):
    """Serve the folder `served`; knows its address and what was asked for."""
    folder = tmp_path / 'served'
    folder.mkdir()
    with ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=folder)
    ) as http:
        http.asked, http.folder = [], folder
        http.url = f'http://127.0.0.1:{http.server_port}/'
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield http
        http.shutdown()


def pack(source, target, inside='.'):
    with tarfile.open(target, 'w:gz') as tar:
        tar.add(source, inside)
    return target.stat().st_size


@pytest.fixture
def camelyon17(fake, server, tmp_path, monkeypatch):
    """Publish both archives on the server, and return an empty root."""
    raw = fake('wilds').write_camelyon17(tmp_path / 'raw')
    for attribute, name in (('archive', LABELLED), ('unlabeled_archive', UNLABELLED)):
        size = pack(raw / name, server.folder / name)
        archive = Archive(name, server.url + name, size)
        monkeypatch.setattr(Camelyon17, attribute, archive)
    return tmp_path / 'data'


def test_archive_is_fetched_once(camelyon17, server):
    with pytest.raises(DatasetNotFoundError, match='download=True'):
        Camelyon17(camelyon17)
    for _ in range(2):
        assert Camelyon17(camelyon17, download=True)[0]['label'] == 1
    assert server.asked == [f'/{LABELLED}']
    assert os.listdir(camelyon17) == [LABELLED]
    assert len(Camelyon17(camelyon17, 'test_unlabeled', download=True)) == 2
    assert server.asked == [f'/{LABELLED}', f'/{UNLABELLED}']


def test_archive_got_by_other_means_is_unpacked(camelyon17, server):
    camelyon17.mkdir()
    (server.folder / LABELLED).rename(camelyon17 / f'{LABELLED}.tar.gz')
    assert len(Camelyon17(camelyon17, download=True)) == 4
    assert not server.asked


def broken_line(root, archive, folder):
    return archive._replace(url=archive.url.replace(LABELLED, 'broken')), 'incomplete'


def no_such_file(root, archive, folder):
    return archive._replace(url=f'{archive.url}s'), 'does not answer .*404.* put the'


def no_server(root, archive, folder):
    return archive._replace(url='http://127.0.0.1:1/'), 'does not answer .*refused'


def another_size(root, archive, folder):
    return archive._replace(size=2 * archive.size), 'bytes, expected about .* cut short'


def cut_short(root, archive, folder):
    path = folder / LABELLED
    path.write_bytes(path.read_bytes()[:-300])
    return archive._replace(size=path.stat().st_size), 'is damaged'


def no_archive(root, archive, folder):
    (folder / LABELLED).write_text('<html>')
    return archive._replace(size=6), 'is damaged'


def half_a_folder(root, archive, folder):
    (root / LABELLED / 'patches').mkdir(parents=True)
    return archive, 'is incomplete: move it away'


@pytest.mark.parametrize(
    'harm',
    [
        broken_line,
        no_such_file,
        no_server,
        another_size,
        cut_short,
        no_archive,
        half_a_folder,
    ],
)
def test_part_of_an_archive_is_not_taken_for_all(camelyon17, server, monkeypatch, harm):
    archive, message = harm(camelyon17, Camelyon17.archive, server.folder)
    monkeypatch.setattr(Camelyon17, 'archive', archive)
    with pytest.raises(RuntimeError, match=message):
        Camelyon17(camelyon17, download=True)
    assert not list(camelyon17.rglob('*.part'))
    assert not list(camelyon17.rglob('*.tmp'))
    with pytest.raises(DatasetNotFoundError):
        Camelyon17(camelyon17)


def test_data_module_fetches_what_its_splits_need(camelyon17, server):
    data = Camelyon17DataModule(
        camelyon17, train_split='train_unlabeled', val_split='val', download=True
    )
    # Tests need no training data: their places are compared where they are at hand.
    data.setup('test')
    assert server.asked == [f'/{LABELLED}']
    for stage, archives in (('test', 1), ('fit', 2)):
        data.trainer = Trainer(logger=False, accelerator='cpu')
        data.trainer.state.fn = TrainerFn(stage)
        data.prepare_data()
        assert len(server.asked) == archives
    assert sorted(os.listdir(camelyon17)) == [UNLABELLED, LABELLED]


def test_fmow_sentinel(fake, server, tmp_path, monkeypatch):
    raw = fake('fmow_sentinel').write_fmow_sentinel(tmp_path / 'raw')
    for path in raw.glob('*.csv'):
        path.rename(server.folder / path.name)
    name = 'fmow-sentinel'
    size = pack(raw / name, server.folder / f'{name}.tar.gz', name)
    archive = Archive(name, f'{server.url}{name}.tar.gz', size)
    monkeypatch.setattr(FMoWSentinel, 'url', server.url)
    monkeypatch.setattr(FMoWSentinel, 'archive', archive)
    root = tmp_path / 'data'
    with pytest.raises(DatasetNotFoundError, match='download=True'):
        FMoWSentinel(root)
    for split in ('train', 'val', 'train'):
        assert FMoWSentinel(root, split, download=True)[0]['image'].shape[0] == 13
    assert server.asked == ['/train.csv', f'/{name}.tar.gz', '/val.csv']


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Put a command `aws` on the path that copies folders, and fails if told so."""
    path = tmp_path / 'bin/aws'
    path.parent.mkdir()
    path.write_text(
        f'#!{sys.executable}\n'
        'import os, shutil, sys\n'
        '*options, source, target = sys.argv[1:]\n'
        'assert options[:3] == ["s3", "sync", "--no-sign-request"]\n'
        'assert options[-4:] == ["--include", "*_rgb.jpg", "--include", "*_rgb.json"]\n'
        'shutil.copytree(source, target, dirs_exist_ok=True)\n'
        'sys.exit(os.path.exists(source + "/../fail"))\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', str(path.parent))


def test_fmow_comes_by_a_command(fake, aws, tmp_path, monkeypatch):
    raw = fake('fmow').write_fmow(tmp_path / 'raw')
    monkeypatch.setattr(FMoWRGB, 'url', str(raw))
    root = tmp_path / 'data'
    root.mkdir()
    (raw / 'fail').touch()
    with pytest.raises(subprocess.CalledProcessError):
        FMoWRGB(root, download=True)
    with pytest.raises(DatasetNotFoundError, match='download=True'):
        FMoWRGB(root)
    (raw / 'fail').unlink()
    data = FMoWRGBDataModule(root, 4, size=32, download=True)
    data.setup('fit')
    assert len(data.train_dataset) == len(FMoWRGB(raw))
    monkeypatch.setenv('PATH', '')
    assert len(FMoWRGB(root, 'val', download=True)) == len(FMoWRGB(raw, 'val'))
    with pytest.raises(DependencyNotFoundError, match='aws is not installed'):
        FMoWRGB(tmp_path / 'other', download=True)
    with pytest.raises(ValueError, match=r"'train' and 'val'.* mapping file"):
        FMoWRGB(root, 'test', download=True)
