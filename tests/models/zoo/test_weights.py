"""The authors' weights, served by a local server in the authors' format."""

import argparse
import hashlib
import io
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import timm
import torch
from timm.models import register_model
from torch.testing import assert_close
from torchgeo.models import get_model, get_model_weights, get_weight, list_models
from torchgeo.tasks import Classification

from torchgeo_explora import ExploraWeights
from torchgeo_explora.models import GroupChannelViT, ViT

SIZES = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
CODED = {**SIZES, 'image_size': 16, 'channel_embed_dim': 8}


@register_model
def explora_tiny_vit(pretrained=False, **options):
    """The architecture of the release in small."""
    return timm.create_model(
        'vit_small_patch14_dinov2', **{'img_size': 28, **SIZES, **options}
    )


@pytest.fixture(scope='module')
def server():
    """Serve what a test puts into `files`, by name, and count the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition('/')[2]
            asked.append(name)
            if name not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header('Content-Length', str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, *_):
            pass

    files, asked = {}, []
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        http.files, http.asked = files, asked
        http.url = f'http://127.0.0.1:{http.server_address[1]}'
        yield http
        http.shutdown()


def dumped(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def state():
    """The tensors of a small released encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = explora_tiny_vit()
    return dict(vit.state_dict())


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    """Publish content as the file of a member of the enum."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    server.files.clear()
    server.asked.clear()

    def publish(weights, content, model='explora_tiny_vit', sha256=None):
        name = weights.url.rpartition('/')[2]
        url = f'{server.url}/samarkhanna/{name}'
        monkeypatch.setattr(weights.value, 'url', url)
        monkeypatch.setitem(weights.meta, 'model', model)
        monkeypatch.setitem(weights.meta, 'sha256', sha256)
        if content is not None:
            server.files[name] = content
        return tmp_path / 'hub' / 'checkpoints' / name

    return publish


@pytest.fixture
def rgb(publish, state):
    """`FMOW_RGB` in small, with the mask token that the release keeps."""
    content = {'model': {**state, 'mask_token': torch.zeros(1, 24)}}
    publish(ExploraWeights.FMOW_RGB, dumped(content))
    return ExploraWeights.FMOW_RGB


@pytest.mark.parametrize('weights', list(ExploraWeights), ids=str)
def test_metadata_are_what_torchgeo_expects(weights):
    keys = {'dataset', 'in_chans', 'model', 'publication', 'repo', 'ssl_method'}
    assert keys | {'bands', 'img_size', 'license', 'scores'} <= weights.meta.keys()
    assert len(weights.meta['bands']) == weights.meta['in_chans']
    assert weights.url.startswith('https://huggingface.co/samarkhanna/ExPLoRA/resolve/')
    assert weights.url.endswith('_encoder_only.pth')
    assert weights.meta['model'] in list_models()


@pytest.mark.parametrize('weights', list(ExploraWeights), ids=str)
def test_transforms_make_a_raw_image_fit(weights):
    channels, size = weights.meta['in_chans'], weights.meta['img_size']
    image = torch.randint(0, 256, (2, channels, 300, 280)).float()
    sample = weights.transforms({'image': image})
    assert sample['image'].shape == (2, channels, size, size)
    single = weights.transforms({'image': image[0]})['image']
    assert_close(single, sample['image'][0])


def test_transforms_of_sentinel_give_unit_values():
    image = torch.tensor([-1e4, 1500.0, 1e5]).repeat_interleave(10 * 109 * 109)
    view = ExploraWeights.FMOW_SENTINEL.transforms
    image = view({'image': image.view(3, 10, 109, 109)})['image']
    assert (image[0] == 0).all()
    assert ((image[1] > 0.2) & (image[1] < 0.8)).all()
    assert (image[2] == 1).all()


def test_weights_are_found_by_name():
    assert get_weight('ExploraWeights.FMOW_RGB') is ExploraWeights.FMOW_RGB
    assert get_model_weights('explora_vit_base_patch14_224') is ExploraWeights
    assert ExploraWeights.verify('FMOW_RGB') is ExploraWeights.FMOW_RGB


def test_state_is_unwrapped_converted_and_cached(rgb, state, server):
    assert_close(rgb.get_state_dict(progress=False), state, rtol=0, atol=0)
    again = rgb.get_state_dict(progress=True, check_hash=True, weights_only=True)
    assert_close(again, state, rtol=0, atol=0)
    assert len(server.asked) == 1


@pytest.mark.parametrize('name', [False, True])
def test_stock_classification_takes_the_weights(rgb, state, name):
    weights = str(rgb) if name else rgb
    task = Classification('explora_tiny_vit', weights, num_classes=4)
    found = task.model.state_dict()
    assert_close({key: found[key] for key in state}, state, rtol=0, atol=0)
    assert task(torch.randn(2, 3, 28, 28)).shape == (2, 4)


def test_our_backbone_takes_the_weights(rgb, state):
    vit = ViT('vit_small_patch14_dinov2', rgb, image_size=28, **SIZES)
    assert_close(vit.canonical_state_dict(), state, rtol=0, atol=0)
    assert 'mask_token' not in vit.record.extras


def test_group_channel_weights_reach_stock_classification(publish):
    backbone = GroupChannelViT(**CODED)
    published = dict(backbone.canonical_state_dict())

    @register_model
    def explora_tiny_group(pretrained=False, **options):
        return timm.create_model(
            'explora_vit_base_group_patch8_96', **{**CODED, **options}
        )

    content = {'model': published, 'args': argparse.Namespace(model='mae'), 'epoch': 3}
    weights = ExploraWeights.FMOW_SENTINEL
    publish(weights, dumped(content), 'explora_tiny_group')
    model = 'explora_tiny_group'
    task = Classification(model, weights, in_channels=10, num_classes=3)
    image = torch.rand(2, 10, 16, 16)
    tokens = task.model.forward_features(image)
    cls, patch = backbone(image)
    assert_close(tokens, torch.cat([cls[:, None], patch], dim=1))
    assert_close(task(image), task.model.head(patch.mean(1)))


def test_torchgeos_builder_takes_the_weights(rgb, state):
    model = get_model('explora_vit_small_patch14_224', rgb, img_size=28, **SIZES)
    assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match=r"missing \['blocks.2.norm1.weight'"):
        get_model(
            'explora_vit_small_patch14_224', rgb, img_size=28, **{**SIZES, 'depth': 3}
        )


def test_missing_file_without_a_network_says_where_to_put_it(publish):
    path = publish(ExploraWeights.FMOW_RGB, None)
    with pytest.raises(FileNotFoundError, match=f'404.*put it at {path}'):
        ExploraWeights.FMOW_RGB.get_state_dict(progress=False)
    # The backbone's own message would only repeat it.
    with pytest.raises(FileNotFoundError, match=f'put it at {path}'):
        ViT('vit_small_patch14_dinov2', ExploraWeights.FMOW_RGB, **SIZES)
    assert not [*path.parent.iterdir()]


def test_file_put_into_the_cache_needs_no_network(publish, state, server):
    path = publish(ExploraWeights.FMOW_RGB, None)
    path.parent.mkdir(parents=True)
    path.write_bytes(dumped({'model': state}))
    assert_close(ExploraWeights.FMOW_RGB.get_state_dict(), state, rtol=0, atol=0)
    assert not server.asked


def test_hash_is_compared_where_it_is_known(publish, state):
    content, weights = dumped({'model': state}), ExploraWeights.FMOW_RGB
    right = hashlib.sha256(content).hexdigest()
    path = publish(weights, content, sha256='0' * 64)
    with pytest.raises(ValueError, match='not the published file'):
        weights.get_state_dict(progress=False)
    assert not path.exists()
    publish(weights, content, sha256=right)
    weights.get_state_dict(progress=False)
    weights.get_state_dict(progress=False)
    path.write_bytes(dumped({'model': {**state, 'cls_token': torch.ones(1, 1, 24)}}))
    with pytest.raises(ValueError, match=r'has SHA-256 .*: remove it'):
        weights.get_state_dict(progress=False)
    weights.get_state_dict(progress=False, check_hash=False)


def test_name_with_digits_is_not_taken_for_a_hash(publish, state):
    """torch.hub's rule finds a hash where a name ends in `-` and hexadecimals."""
    weights = ExploraWeights.FMOW_RGB
    publish(weights, None)
    weights.value.url += '/pretrain-vit-base-e1995555.pth'
    path = publish(weights, dumped({'model': state}))
    assert path.name == 'pretrain-vit-base-e1995555.pth'
    assert_close(weights.get_state_dict(progress=False), state, rtol=0, atol=0)


def test_file_with_objects_is_refused_by_name(publish):
    publish(ExploraWeights.FMOW_RGB, dumped({'model': torch.nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match=r'objects \(torch.nn.modules.linear.Linear'):
        ExploraWeights.FMOW_RGB.get_state_dict(progress=False)


@pytest.mark.parametrize('share', [0.0, 0.5, 0.99])
def test_truncated_file_is_refused(publish, state, share):
    content = dumped({'model': state})
    publish(ExploraWeights.FMOW_RGB, content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'cut short or damaged .*: remove it'):
        ExploraWeights.FMOW_RGB.get_state_dict(progress=False)


def test_other_model_is_refused_with_all_misfits(publish, state):
    other = {**state, 'extra': torch.ones(1), 'cls_token': torch.ones(1, 1, 8)}
    del other['norm.bias'], other['blocks.1.norm1.bias']
    publish(ExploraWeights.FMOW_RGB, dumped({'model': other}))
    expected = (
        r'cls_token is \(1, 1, 8\), expected \(1, 1, 24\); missing'
        r' blocks.1.norm1.bias, norm.bias; not expected extra'
    )
    with pytest.raises(ValueError, match=expected):
        ExploraWeights.FMOW_RGB.get_state_dict(progress=False)
