"""Files of training scripts (E33): loaded, or refused with the reason."""

import hashlib
import http.server
import threading

import pytest
import timm
import torch
from torch.testing import assert_close

from torchgeo_explora.models import RotaryViT, ViT
from torchgeo_explora.models.checkpoints import from_any, read_state
from torchgeo_explora.models.formats.model_names import timm_name

MODEL = 'vit_tiny_patch16_224'
SIZES = {'image_size': 32, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}


@pytest.fixture
def state():
    torch.manual_seed(0)
    return ViT(MODEL, **SIZES).canonical_state_dict()


def under(prefix, state, shift=0.0):
    return {f'{prefix}{key}': value + shift for key, value in state.items()}


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: under('module.', state),
        lambda state: under('_orig_mod.', state),
        lambda state: under('module._orig_mod.', state),
        lambda state: {
            key.replace('attn.', 'attn._orig_mod.'): value
            for key, value in state.items()
        },
        lambda state: {'model': under('module.', state), 'n_averaged': torch.ones(1)},
        lambda state: {'model_state_dict': under('module.', state)},
        lambda state: {'module': under('_fsdp_wrapped_module.', state)},
        lambda state: under('backbone.', state),
        lambda state: under('module.backbone.', state),
        lambda state: under('teacher.', state),
        lambda state: under('student.', state),
        lambda state: under('student.', state, 1.0) | under('teacher.', state),
        lambda state: under('online.net.', state, 1.0) | under('ema.net.', state),
        lambda state: under('visual.trunk.', state),
        lambda state: {
            'student': under('module.backbone.', state, 1.0),
            'teacher': under('backbone.', state),
        },
        lambda state: {'student': under('module.backbone.', state)},
    ],
)
def test_wrappers_of_names_are_taken_off_and_a_teacher_is_preferred(
    state, wrap, tmp_path
):
    torch.save(wrap(state), tmp_path / 'weights.pth')
    found, _ = read_state(tmp_path / 'weights.pth', MODEL)
    assert_close(found, state)
    ViT(MODEL, weights=tmp_path / 'weights.pth', **SIZES)


def test_what_could_mean_two_models_is_refused(state):
    wider = ViT(MODEL, **SIZES | {'embed_dim': 48}).canonical_state_dict()
    with pytest.raises(ValueError, match=r'several ViTs \(student\., teacher\.\)'):
        from_any(under('student.', state) | under('teacher.', wider))
    with pytest.raises(ValueError, match=r'several ViTs \(left\., right\.\).*save'):
        from_any(under('left.', state) | under('right.', state))
    with pytest.raises(ValueError, match=r'hold \w+ twice.*module'):
        from_any(state | under('module.', state))


def test_weights_of_a_classifier_on_mean_tokens_are_refused(state, tmp_path):
    tuned = {
        key.replace('norm.', 'fc_norm.') if key.startswith('norm.') else key: value
        for key, value in state.items()
    }
    torch.save({'model': tuned}, tmp_path / 'tuned.pth')
    with pytest.raises(ValueError, match=r'fc_norm.*before the fine-tuning'):
        ViT(MODEL, weights=tmp_path / 'tuned.pth', **SIZES)
    # With both, the final norm is there, and fc_norm belongs to the head.
    torch.save(tuned | state, tmp_path / 'both.pth')
    assert 'fc_norm.weight' in read_state(tmp_path / 'both.pth', MODEL)[1]


def test_a_distilled_deit_is_refused(tmp_path):
    tiny = {'img_size': 32, 'embed_dim': 24, 'depth': 1, 'num_heads': 2}
    vit = timm.create_model('deit_tiny_distilled_patch16_224', **tiny)
    torch.save(vit.state_dict(), tmp_path / 'deit.pth')
    with pytest.raises(ValueError, match=r'distilled DeiT.*dist_token.*without'):
        ViT('deit_tiny_patch16_224', tmp_path / 'deit.pth', **SIZES | {'depth': 1})


@pytest.mark.parametrize(
    ('name', 'known'),
    [
        ('dinov2_vitb14', 'vit_base_patch14_dinov2.lvd142m'),
        ('dinov2_vitl14_reg', 'vit_large_patch14_reg4_dinov2.lvd142m'),
        ('facebook/dinov2-base', 'vit_base_patch14_dinov2.lvd142m'),
        ('dinov3_vitl16', 'vit_large_patch16_dinov3.lvd1689m'),
        ('dinov3_vith16plus', 'vit_huge_plus_patch16_dinov3.lvd1689m'),
        ('dinov3_vit7b16', 'vit_7b_patch16_dinov3.lvd1689m'),
        (
            'facebook/dinov3-vitl16-pretrain-sat493m',
            'vit_large_patch16_dinov3.sat493m',
        ),
        ('facebook/vit-mae-huge', 'vit_huge_patch14_224.mae'),
        ('mae_vit_large_patch16', 'vit_large_patch16_224.mae'),
        ('google/vit-base-patch16-224', 'vit_base_patch16_224'),
        ('vit_b_16', 'vit_base_patch16_224'),
        ('timm/vit_base_patch16_224.mae', 'vit_base_patch16_224.mae'),
    ],
)
def test_names_of_other_projects_get_the_one_of_timm(name, known):
    assert timm_name(name) == known
    assert timm.is_model_pretrained(known)
    with pytest.raises(ValueError, match=rf'not known to timm.*{known}'):
        ViT(name)
    with pytest.raises(ValueError, match=rf'not known to timm.*{known}'):
        RotaryViT(name)
    with pytest.raises(ValueError, match=rf'neither a file.*{known}, give that name'):
        read_state(name, MODEL)


class Server(http.server.BaseHTTPRequestHandler):
    """Gives one file to everybody, and another to nobody."""

    content = b''
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if 'gated' in self.path:
            self.send_error(403)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / 'weights.pth')
    Server.content = (tmp_path / 'weights.pth').read_bytes()
    monkeypatch.setattr(Server, 'asked', [])
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{httpd.server_port}'
        httpd.shutdown()


def test_an_address_is_fetched_once(server, state):
    with pytest.warns(UserWarning, match='checksum of http.* is not known'):
        found, _ = read_state(f'{server}/a/model.pth?Signature=x', MODEL)
    assert_close(found, state)
    again, _ = read_state(f'{server}/a/model.pth?Signature=y', MODEL)
    assert_close(again, state)
    assert Server.asked == ['/a/model.pth?Signature=x']
    # Another repository's file of the same name is another file.
    with pytest.warns(UserWarning, match='checksum'):
        read_state(f'{server}/b/model.pth', MODEL)
    assert len(Server.asked) == 2


def test_a_hash_in_the_name_of_an_address_is_compared(server, recwarn):
    right = hashlib.sha256(Server.content).hexdigest()[:8]
    read_state(f'{server}/vit-{right}.pth', MODEL)
    assert not recwarn.list
    with pytest.raises(ValueError, match='is not the published file'):
        read_state(f'{server}/vit-0123abcd.pth', MODEL)


def test_addresses_that_cannot_be_had_are_refused(server):
    with (
        pytest.warns(UserWarning, match='checksum'),
        pytest.raises(FileNotFoundError, match=r'403.*accept its licence.*put it at'),
    ):
        read_state(f'{server}/gated/model.pth', MODEL)
    for address, message in (
        ('s3://bucket/model.pth', 'expected an https:// address'),
        ('file:///etc/model.pth', 'expected an https:// address'),
        ('https://example.org/page', 'not the address of a weight file'),
        (
            'https://huggingface.co/timm/a/blob/main/model.safetensors',
            'https://huggingface.co/timm/a/resolve/main/model.safetensors',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read_state(address, MODEL)
