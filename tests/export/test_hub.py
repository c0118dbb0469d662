"""The Hugging Face Hub, played by a local server."""

import hashlib
import json
import re
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from safetensors.torch import load_file
from torch.testing import assert_close

from torchgeo_explora.adapt import delta_state_dict, save_delta
from torchgeo_explora.export import export_timm, from_hub, push_to_hub, rebuild
from torchgeo_explora.export.card import base_licence, model_card

COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture(scope='module')
def server():
    """Serve the files of `user/there` as the Hub does, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body):
            match = re.fullmatch(r'/(.+/.+)/resolve/([^/]+)/(.+)', self.path)
            content, code = None, 'RepoNotFound'
            if match and match[1] == 'user/there':
                content, code = files.get(match[3]), 'EntryNotFound'
                if match[2] not in ('main', COMMIT):
                    content, code = None, 'RevisionNotFound'
            self.send_response(404 if content is None else 200)
            if content is None:
                self.send_header('X-Error-Code', code)
                content = b''
            self.send_header('X-Repo-Commit', COMMIT)
            self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    files = {}
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        http.files = files
        http.url = f'http://127.0.0.1:{http.server_address[1]}'
        yield http
        http.shutdown()


@pytest.fixture
def api(server, tmp_path, monkeypatch):
    """A client of that server with a cache of its own."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    return HfApi(endpoint=server.url, token=False)


@pytest.fixture
def delta(trained, tmp_path):
    """A backbone with a delta, and its file."""
    backbone = trained('dinov2')
    path = tmp_path / 'delta.safetensors'
    metadata = {'objective': 'DINOv2', 'steps': '600', 'planned_steps': '600'}
    save_delta(backbone, path, metadata)
    return backbone, path


class Recorder(HfApi):
    """Takes uploads into a folder."""

    def __init__(self, folder, error=None):
        super().__init__(endpoint='https://hub.example')
        self.folder, self.error = folder, error

    def create_repo(self, repo_id, **options):
        if self.error:
            raise self.error
        self.made = (repo_id, options)

    def upload_folder(self, repo_id, folder_path, **_):
        shutil.copytree(folder_path, self.folder)


def test_what_is_pushed_can_be_pulled_and_rebuilt(delta, make, server, api, tmp_path):
    backbone, path = delta
    recorder = Recorder(tmp_path / 'uploaded')
    url = push_to_hub(
        path,
        'user/there',
        base='timm/vit_small_patch14_dinov2.lvd142m',
        data='EuroSAT RGB, 7,000 images',
        scores={'10-NN on test': 0.85},
        api=recorder,
    )
    assert url == 'https://hub.example/user/there'
    assert recorder.made == ('user/there', {'private': True, 'exist_ok': True})
    for file in recorder.folder.iterdir():
        server.files[file.name] = file.read_bytes()

    card = ModelCard.load(recorder.folder / 'README.md')
    assert card.data.license == 'apache-2.0'
    assert card.data.base_model == 'timm/vit_small_patch14_dinov2.lvd142m'
    for text in (
        'EuroSAT RGB, 7,000 images',
        '| adaptation | [4]-r4 |',
        '- 10-NN on test: 0.85',
        '| objective | DINOv2 |',
        '| steps | 600 |',
        f'`{backbone.record.fingerprint}`',
        '1. Base (timm/vit_small_patch14_dinov2.lvd142m): apache-2.0.',
        "rebuild(from_hub('user/there'), weights=True)",
    ):
        assert text in card.text

    file = from_hub('user/there', api=api)
    assert file.read_bytes() == path.read_bytes()
    export_timm(make('dinov2'), tmp_path / 'base.safetensors')
    again = rebuild(file, tmp_path / 'base.safetensors')
    assert_close(delta_state_dict(again), delta_state_dict(backbone), rtol=0, atol=0)
    assert from_hub('user/there', COMMIT, api=api) == file


def test_card_tells_what_the_run_has_cost(delta, tmp_path):
    """Of `cost.json` only numbers: its text may come from anybody."""
    content = {'images': 76800, 'device_hours': 1.5, 'tflop': 12, 'kg_co2e': 0.25}
    content |= {'device': '[x](http://y.z)', 'energy_kwh': '<script>'}
    (tmp_path / 'cost.json').write_text(json.dumps(content))
    card = model_card(delta[1], 'user/name', 'timm/vit', 'images', licence='mit')
    line = '1.5 device hours, 76,800 images, 12 TFLOP, 0.25 kg CO2e'
    assert f'| cost of the whole run | {line} |' in card.text
    assert '<script>' not in card.text
    assert 'y.z' not in card.text
    (tmp_path / 'cost.json').unlink()
    card = model_card(delta[1], 'user/name', 'timm/vit', 'images', licence='mit')
    assert 'cost of the whole run' not in card.text


@pytest.mark.parametrize(
    ('repo', 'options', 'message'),
    [
        ('user/nowhere', {}, 'there is no repository user/nowhere on http'),
        ('user/there', {'filename': 'other.safetensors'}, 'no file other.safetensors'),
        ('user/there', {'revision': 'v9'}, "user/there has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(api, repo, options, message):
    with pytest.raises(FileNotFoundError, match=message):
        from_hub(repo, api=api, **options)


def test_name_of_no_repository_is_refused(api):
    with pytest.raises(HFValidationError, match='a b'):
        from_hub('a b', api=api)


def test_without_a_network_the_cache_is_used(server, api, monkeypatch):
    server.files['delta.safetensors'] = b'content'
    file = from_hub('user/there', api=api)
    # Without it, the client tries for half a minute.
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert from_hub('user/there', api=api) == file
    with pytest.raises(FileNotFoundError, match=r'not in the cache, and http.*reached'):
        from_hub('user/other', api=api)


@pytest.mark.parametrize(
    'error', [OfflineModeIsEnabled('offline'), OSError('no route')]
)
def test_refused_upload_says_what_to_do(delta, tmp_path, error):
    _, path = delta
    recorder = Recorder(tmp_path / 'uploaded', error)
    with pytest.raises(ConnectionError, match=r'upload to user/x .*hf auth'):
        push_to_hub(path, 'user/x', 'mine', 'data', licence='mit', api=recorder)


@pytest.mark.parametrize('name', ['mae', 'dinov2'])
def test_non_commercial_base_makes_the_delta_so(name, trained, tmp_path):
    path = tmp_path / 'delta.safetensors'
    save_delta(trained(name), path)
    base = 'facebook/vit-mae-base' if name == 'dinov2' else 'timm/some'
    recorder = Recorder(tmp_path / 'uploaded')
    with pytest.raises(ValueError, match=r"non-commercial \(cc-by-nc-4.0\).*'mit'"):
        push_to_hub(path, 'user/x', base, 'data', licence='mit', api=recorder)
    assert not Path(recorder.folder).exists()
    push_to_hub(path, 'user/x', base, 'data', api=recorder)
    card = ModelCard.load(recorder.folder / 'README.md')
    assert card.data.license == 'cc-by-nc-4.0'
    assert 'Non-commercial, as are models' in card.text
    assert 'Not measured.' in card.text


def test_card_tells_the_terms_of_dinov3(trained, tmp_path):
    """The Hub knows such a licence by a name and a page only."""
    path = tmp_path / 'delta.safetensors'
    save_delta(trained('rotary'), path)
    recorder = Recorder(tmp_path / 'uploaded')
    base = 'timm/vit_small_patch16_dinov3_qkvb.lvd1689m'
    push_to_hub(path, 'user/x', base, 'data', api=recorder)
    card = ModelCard.load(recorder.folder / 'README.md')
    assert card.data.license == 'other'
    assert card.data.license_name == 'dinov3-license'
    assert card.data.license_link.endswith('/dinov3-license/')
    assert f'1. Base ({base}): dinov3-license (Meta' in card.text
    recorder = Recorder(tmp_path / 'other')
    base = 'timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m'
    with pytest.raises(ValueError, match=r'non-commercial \(fair-noncommercial-'):
        push_to_hub(path, 'user/x', base, 'data', licence='mit', api=recorder)
    push_to_hub(path, 'user/x', base, 'data', api=recorder)
    card = ModelCard.load(recorder.folder / 'README.md')
    assert card.data.license_name == 'fair-noncommercial-research-license'
    assert 'Non-commercial, as are models' in card.text


def test_unknown_licence_must_be_given(trained, tmp_path):
    path = tmp_path / 'delta.safetensors'
    save_delta(trained('groups'), path)
    with pytest.raises(ValueError, match='licence of the base mine is not known'):
        push_to_hub(path, 'user/x', 'mine', 'data')
    # Who published a base says what may be done with it, not its architecture.
    save_delta(trained('dinov2'), tmp_path / 'known.safetensors')
    with pytest.raises(ValueError, match='licence of the base mine is not known'):
        push_to_hub(tmp_path / 'known.safetensors', 'user/x', 'mine', 'data')
    recorder = Recorder(tmp_path / 'uploaded')
    push_to_hub(path, 'user/x', 'mine', 'data', licence='cc-by-4.0', api=recorder)
    assert load_file(recorder.folder / 'delta.safetensors')
    text = (recorder.folder / 'README.md').read_text()
    assert 'base_model' not in text
    assert "weights='path/to/base'" in text


def test_file_that_is_no_delta_is_not_pushed(make, tmp_path):
    export_timm(make('dinov2'), tmp_path / 'plain.safetensors')
    with pytest.raises(ValueError, match='is not a delta'):
        push_to_hub(tmp_path / 'plain.safetensors', 'user/x', 'base', 'data')


@pytest.mark.parametrize(
    ('base', 'licence'),
    [
        ('timm/vit_large_patch14_dinov2.lvd142m', 'apache-2.0'),
        ('facebook/dinov2-with-registers-large', 'apache-2.0'),
        ('timm/vit_large_patch16_224.mae', 'cc-by-nc-4.0'),
        ('timm/vit_large_patch16_dinov3.sat493m', 'dinov3-license'),
        ('facebook/dinov3-vitl16-pretrain-sat493m', 'dinov3-license'),
        ('facebook/dinov2-base', 'apache-2.0'),
        ('belfner/vit_base_patch16_lingbot.robbyant', 'apache-2.0'),
        ('somebody/vit_base_patch16_lingbot.robbyant', None),
        (
            'timm/vit_base_patch16_dinov3_qkvb.eupe_lvd1689m',
            'fair-noncommercial-research-license',
        ),
        ('SatMAE, fMoW', 'cc-by-nc-4.0'),
        ('ExploraWeights.FMOW_SENTINEL', 'cc-by-nc-4.0'),
        ('ExploraWeights.FMOW_RGB', None),
        ('a model of my own', None),
        ('timm/nowhere', None),
        ('data/vit_tiny_patch16_224.safetensors', None),
    ],
)
def test_licence_of_a_base_is_what_is_known(base, licence):
    assert base_licence(base) == licence


def test_changed_delta_is_not_pushed(delta):
    _, path = delta
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='not those that were saved'):
        push_to_hub(path, 'user/x', 'timm/base', 'data', licence='mit')
