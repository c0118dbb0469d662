"""The paper's configurations run on fake data with TorchGeo's own command.

Each keeps all that it says, but for a tiny backbone without weights, the folder of its
data, and a batch and a trainer of the size of the test. Those for ViT-B and ViT-g are
the same as those for ViT-L, which are run here, in all but width, depth and block.
"""

import re
from pathlib import Path

import pytest
import yaml
from torchgeo.main import main

from tests.tasks.test_datamodules import eurosat, resisc45, spacenet

# Fake data of TorchGeo's own data sets.
__all__ = ['eurosat', 'resisc45', 'spacenet']

ROOT = Path(__file__).parent.parent
TRAINER = {
    'accelerator': 'cpu',
    'precision': '32-true',
    'fast_dev_run': True,
    'logger': False,
    'enable_progress_bar': False,
    'enable_model_summary': False,
    # Accumulating needs more batches than are run.
    'accumulate_grad_batches': 1,
}
SIZES = {'embed_dim': 48, 'depth': 4, 'num_heads': 2}
HEAD = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
DECODER = {
    'decoder_dim': 48,
    'decoder_depth': 1,
    'decoder_heads': 2,
    'decoder_rank': 2,
    'decoder_channel_dim': 8,
    'decoder_time_dim': 12,
}
CODES = {
    'GroupChannelViT': {'channel_embed_dim': 16},
    'TemporalViT': {'time_embed_dim': 12},
    'DOFAViT': {'image_size': 64},
}
#: Configurations by the fake data that they run on.
DATA = {
    'fmow': (
        'explora_fmow',
        'pretrain/fmow_rgb_dinov3_vit_large',
        'pretrain/fmow_rgb_dinov3_sat_vit_large',
        'pretrain/fmow_rgb_mae_vit_large',
        'pretrain/fmow_temporal_mae_vit_large',
        'finetune/fmow_rgb_vit_large_lora',
        'finetune/fmow_rgb_mae_vit_large_lora',
        'finetune/fmow_temporal_vit_large_lora',
        'probe/fmow_rgb_vit_large',
        'probe/fmow_rgb_release_vit_large',
    ),
    'fmow_sentinel': (
        'pretrain/fmow_sentinel_mae_vit_large',
        'finetune/fmow_sentinel_vit_large_lora',
    ),
    'camelyon17': (
        'pretrain/camelyon17_vit_large',
        'finetune/camelyon17_vit_large_lora',
        'probe/camelyon17_vit_large',
    ),
    'iwildcam': (
        'pretrain/iwildcam_vit_large',
        'finetune/iwildcam_vit_large_lora',
        'probe/iwildcam_vit_large',
    ),
    'globalwheat': (
        'pretrain/globalwheat_vit_large',
        'finetune/globalwheat_vit_large_lora',
    ),
    'naip': ('pretrain/naip_vit_large', 'finetune/naip_vit_large_lora'),
    'scenes': ('pretrain/scenes_vit_large',),
    'sentinel2_scenes': ('pretrain/scenes_dofa_vit_large',),
    'eurosat': ('finetune/eurosat_vit_large_lora',),
    'resisc45': ('probe/resisc45_vit_large', 'pretrain/resisc45_vit_large'),
    'spacenet': ('pretrain/spacenet1_vit_large', 'finetune/spacenet1_vit_large_lora'),
}
#: Files of fake data that do not have its name.
FILES = dict.fromkeys(('camelyon17', 'iwildcam', 'globalwheat'), 'wilds')
FILES['sentinel2_scenes'] = 'scenes'
#: The fake scenes have 160 pixels a side, and SpaceNet eight images; large
#: photographs take their time.
SMALL = {
    'scenes': {'size': 64},
    'sentinel2_scenes': {'size': 64},
    'spacenet': {'val_split_pct': 0.25},
    'globalwheat': {'size': 112},
    'iwildcam': {'size': 64},
}


def shrink(model):
    """Make a tiny model of a configuration's own kind, in place."""
    arguments = model['init_args']
    backbone = arguments.get('model')
    if isinstance(backbone, dict):
        kind = backbone['class_path'].rpartition('.')[2]
        backbone.setdefault('init_args', {}).update(SIZES | CODES[kind])
    else:
        arguments['model_args'] = dict(SIZES)
    arguments['weights'] = None
    if 'delta' in arguments:
        arguments['delta'] = None
    task = model['class_path'].rpartition('.')[2]
    sizes = {'ExploraDinoTask': HEAD, 'ExploraMAETask': DECODER}.get(task)
    if sizes:
        arguments.setdefault('objective', {}).update(sizes)


@pytest.mark.cli
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('data', 'name'),
    [(data, name) for data, names in DATA.items() for name in names],
    ids=lambda value: value.rpartition('/')[2],
)
def test_configuration_runs(fake, request, tmp_path, monkeypatch, data, name):
    config = yaml.safe_load((ROOT / f'configs/{name}.yaml').read_text())
    if 'dict_kwargs' in config['data']:
        config['data']['dict_kwargs']['root'] = str(request.getfixturevalue(data))
    else:
        write = getattr(fake(FILES.get(data, data)), f'write_{data}')
        root = str(write(tmp_path / 'data'))
        config['data']['init_args']['paths' if data.endswith('scenes') else 'root'] = (
            root
        )
    config['data']['init_args'] |= {'batch_size': 4, 'num_workers': 0}
    config['data']['init_args'] |= SMALL.get(data, {})
    shrink(config['model'])
    config['trainer'] |= TRAINER
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    main(['fit', '--config', 'config.yaml'])
    if name[:8] in ('explora_', 'pretrain'):
        assert list(tmp_path.rglob('delta.safetensors'))


#: Data modules of no published data set.
OTHERS = ('.ImageFolderDataModule', '.SyntheticScenesDataModule')


def test_no_configuration_of_our_own_data_is_left_out():
    given = {name for names in DATA.values() for name in names}
    for path in (ROOT / 'configs').rglob('*.yaml'):
        kind = yaml.safe_load(path.read_text())['data']['class_path']
        name = path.relative_to(ROOT / 'configs').with_suffix('').as_posix()
        if kind.startswith('torchgeo_explora.') and not kind.endswith(OTHERS):
            large = re.sub('_(base|giant|7b)$', '_large', name)
            large = large.replace('pretrain/fmow_rgb_vit_large', 'explora_fmow')
            assert large in given
