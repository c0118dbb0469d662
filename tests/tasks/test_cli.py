"""TorchGeo's own command: fit, interrupt, resume, predict, all from YAML."""

import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close
from torchgeo.main import main

from torchgeo_explora.adapt import delta_state_dict, load_delta
from torchgeo_explora.augment import Preprocess, UnitRange
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraDinoTask

pytestmark = [
    pytest.mark.cli,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.filterwarnings('ignore:Checkpoint directory'),
    pytest.mark.filterwarnings('ignore:Failed to load the CUDA extension'),
    pytest.mark.filterwarnings('ignore:Setting boft_n_butterfly_factor'),
]

CONFIG = """
trainer:
  accelerator: cpu
  max_steps: 6
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: step, every_n_train_steps: 3, save_last: true}
model:
  class_path: torchgeo_explora.tasks.ExploraDinoTask
  init_args:
    model: vit_tiny_patch16_224
    model_args: {patch_size: 8, embed_dim: 24, depth: 3, num_heads: 2}
    image_size: 32
    views:
      local_size: 16
      local_views: 2
    rank: 4
    objective:
      prototypes: 32
      hidden_dim: 16
      bottleneck_dim: 8
    base_lr: 0.05
data:
  class_path: torchgeo_explora.datamodules.ImageFolderDataModule
  init_args: {batch_size: 8}
"""

WATCHED = """
- class_path: torchgeo_explora.callbacks.OnlineKNN
  init_args: {every_n_steps: 3}
- class_path: torchgeo_explora.callbacks.Pictures
- class_path: torchgeo_explora.callbacks.Curves
- class_path: lightning.pytorch.callbacks.ModelCheckpoint
  init_args:
    filename: best
    monitor: knn
    mode: max
    every_n_train_steps: 3
    save_last: true
"""

ADAPTERS = {
    'LoRA': ('LoraConfig', {'r': 4, 'lora_alpha': 1}),
    'DoRA': ('LoraConfig', {'r': 4, 'lora_alpha': 1, 'use_dora': True}),
    'rsLoRA': ('LoraConfig', {'r': 4, 'lora_alpha': 1, 'use_rslora': True}),
    'LoHa': ('LoHaConfig', {'r': 4}),
    'LoKr': ('LoKrConfig', {'r': 4}),
    'BOFT': ('BOFTConfig', {'boft_block_size': 4}),
    'OFT': ('OFTConfig', {'oft_block_size': 8}),
    'IA3': (
        'IA3Config',
        {'target_modules': ['k', 'v', 'fc2'], 'feedforward_modules': ['fc2']},
    ),
    'HRA': ('HRAConfig', {'r': 4}),
}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """Weights of a small ViT, as a file."""
    arguments = yaml.safe_load(CONFIG)['model']['init_args']
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViT(arguments['model'], image_size=32, **arguments['model_args'])
    path = tmp_path_factory.mktemp('base') / 'base.safetensors'
    state = {k: v.contiguous() for k, v in vit.canonical_state_dict().items()}
    save_file(state, path)
    return path


@pytest.fixture(scope='module')
def write_config(base, folder):
    """Write a configuration with changes into a folder, which takes all output."""

    def write(place, model=None, data=None, callbacks=None, **trainer):
        config = yaml.safe_load(CONFIG)
        config['trainer'] |= {'default_root_dir': str(place), **trainer}
        if callbacks is not None:
            config['trainer']['callbacks'] = callbacks
        for callback in config['trainer']['callbacks']:
            if callback['class_path'].endswith('.ModelCheckpoint'):
                callback['init_args']['dirpath'] = str(place)
        config['model']['init_args'] |= {'weights': str(base), **(model or {})}
        for name in [k for k, v in (model or {}).items() if v == 'default']:
            del config['model']['init_args'][name]
        config['data']['init_args'] |= {'root': str(folder)}
        config['data'] |= data or {}
        path = place / 'config_in.yaml'
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write


@pytest.fixture(scope='module')
def run(tmp_path_factory, write_config):
    """Return the folder of a finished run with every callback on."""
    place = tmp_path_factory.mktemp('run')
    main(['fit', '--config', write_config(place, callbacks=yaml.safe_load(WATCHED))])
    return place


@pytest.fixture
def plain(base):
    """The base alone, as an ordinary backbone."""
    arguments = yaml.safe_load(CONFIG)['model']['init_args']
    return ViT(
        arguments['model'], str(base), image_size=32, **arguments['model_args']
    ).eval()


@torch.no_grad()
def features(backbone, images):
    """Embed the images of a data set without any of the machinery."""
    raw = torch.stack([sample['image'] for sample in images])
    view = Preprocess(32, backbone.mean, backbone.std)
    return backbone(view(UnitRange(0, 255)(raw))).cls


def embeddings(place):
    """Read what a prediction wrote: (table, embeddings)."""
    table = pq.read_table(place / 'embeddings.parquet')
    return table, torch.tensor(table['embedding'].to_pylist())


def test_fit_writes_checkpoints_deltas_and_pictures(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *('best.ckpt', 'best.safetensors', 'last.ckpt', 'last.safetensors'),
        *('delta.safetensors', 'config.yaml'),
        *('crops.png', 'pca.png', 'curves.png'),
    }
    assert not [name for name in names if name.endswith('.part')]
    for name in ('crops', 'pca', 'curves'):
        Image.open(run / f'{name}.png').verify()


def test_checkpoint_holds_plain_hyperparameters(run):
    checkpoint = torch.load(run / 'best.ckpt', weights_only=True)
    hyper = checkpoint['hyper_parameters']
    assert json.loads(json.dumps(hyper)) == hyper
    assert hyper['model'] == 'vit_tiny_patch16_224'


def test_delta_at_the_end_is_that_of_the_last_checkpoint(run, plain):
    load_delta(plain, run / 'delta.safetensors')
    saved = torch.load(run / 'last.ckpt', weights_only=True)['state_dict']
    for name, value in delta_state_dict(plain).items():
        assert torch.equal(value, saved[f'objective.teacher.{name}'])


def test_prediction_is_in_input_order(run, write_config, folder, plain, tmp_path):
    config = write_config(tmp_path)
    main(['predict', '--config', config, '--ckpt_path', str(run / 'best.ckpt')])
    table, found = embeddings(tmp_path)
    images = ImageFolder(folder, split='predict')
    assert table['index'].to_pylist() == list(range(len(images)))
    assert table['path'].to_pylist() == images.paths
    assert table['label'].to_pylist() == images.labels
    before = features(plain, images)
    after = features(load_delta(plain, run / 'best.safetensors').eval(), images)
    assert_close(found, after)
    assert (found - before).abs().max() > 1e-4


def test_prediction_without_a_checkpoint_is_the_bases(
    write_config, folder, plain, tmp_path
):
    config = write_config(tmp_path)
    main(['predict', '--config', config, '--data.init_args.predict_split', 'val'])
    _, found = embeddings(tmp_path)
    assert_close(found, features(plain, ImageFolder(folder, split='val')))


def test_flat_folder_has_paths_but_no_labels(write_config, folder, plain, tmp_path):
    flat = folder / 'predict' / 'field'
    config = write_config(tmp_path)
    main(['predict', '--config', config, '--data.init_args.root', str(flat)])
    table, found = embeddings(tmp_path)
    assert table.column_names == ['index', 'path', 'embedding']
    images = ImageFolder(flat, split='predict')
    assert table['path'].to_pylist() == images.paths
    assert_close(found, features(plain, images))


def test_command_resumes_where_it_was_interrupted(
    run, write_config, tmp_path, monkeypatch
):
    """4 batches an epoch: the checkpoint of step 3 lies inside the first one."""
    command = ['fit', '--config', write_config(tmp_path)]

    def cut(task, outputs, batch, batch_idx):
        if task.trainer.global_step == 5:
            raise RuntimeError('power cut')

    with monkeypatch.context() as patch:
        patch.setattr(ExploraDinoTask, 'on_train_batch_end', cut)
        with pytest.raises(RuntimeError, match='power cut'):
            main(command)
    last = tmp_path / 'last.ckpt'
    assert torch.load(last, weights_only=True)['global_step'] == 3
    main([*command, '--ckpt_path', str(last)])
    whole, resumed = (
        torch.load(place / 'last.ckpt', weights_only=True) for place in (run, tmp_path)
    )
    assert resumed['global_step'] == whole['global_step'] == 6
    assert resumed['state_dict'].keys() == whole['state_dict'].keys()
    for key, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][key]), key


def test_checkpoint_of_the_command_makes_the_task_again(run):
    checkpoint = torch.load(run / 'last.ckpt', weights_only=True)
    task = ExploraDinoTask.load_from_checkpoint(run / 'last.ckpt')
    assert task.hparams['rank'] == 4
    state = task.state_dict()
    for key, value in checkpoint['state_dict'].items():
        assert torch.equal(state[key], value)


@pytest.mark.parametrize('name', ADAPTERS)
def test_any_peft_method_by_configuration(name, write_config, folder, plain, tmp_path):
    kind, arguments = ADAPTERS[name]
    arguments = {'target_modules': ['q', 'v']} | arguments
    adapter = {'class_path': f'peft.{kind}', 'init_args': arguments}
    model = {'adapter': adapter, 'rank': 'default'}
    config = write_config(tmp_path, model, max_steps=3)
    main(['fit', '--config', config])
    last = tmp_path / 'last.ckpt'
    hyper = torch.load(last, weights_only=True)['hyper_parameters']
    assert json.loads(json.dumps(hyper)) == hyper
    # The command builds the task from the checkpoint's plain values again.
    main(['predict', '--config', config, '--ckpt_path', str(last)])
    _, found = embeddings(tmp_path)
    images = ImageFolder(folder, split='predict')
    before = features(plain, images)
    load_delta(plain, tmp_path / 'delta.safetensors').eval()
    assert (
        f'peft.{type(plain.record.adapted.adaptation.adapter).__name__}'
        == adapter['class_path']
    )
    after = features(plain, images)
    assert_close(found, after)
    assert not torch.equal(after, before)


def test_fast_dev_run_makes_one_step(write_config, plain, tmp_path, caplog):
    caplog.set_level('INFO')
    config = write_config(tmp_path)
    main(['fit', '--config', config, '--trainer.fast_dev_run', 'true'])
    assert '1 optimizer steps' in caplog.text
    load_delta(plain, tmp_path / 'delta.safetensors')


def test_published_weights_without_a_network_say_what_to_fetch(
    write_config, tmp_path, monkeypatch
):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    # The variable is read at import.
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    config = write_config(tmp_path, {'weights': True})
    # F37: one sentence, without the types that the parser tried.
    with pytest.raises(
        SystemExit, match=r'^could not get .*download model\.safetensors from https'
    ) as error:
        main(['fit', '--config', config])
    assert '\n' not in str(error.value)
    assert 'Subtypes' not in str(error.value)


def test_what_does_not_fit_is_told_by_the_command(write_config, tmp_path):
    """F37: a task refuses weights, names and deltas in one sentence."""
    torch.save({'cls_token': torch.ones(1, 1, 3)}, tmp_path / 'other.pth')
    for model, message in (
        ({'weights': str(tmp_path / 'other.pth')}, r'^the weights do not fit.*Missing'),
        ({'weights': str(tmp_path / 'no.pth')}, r'^weights file .*no\.pth does not'),
        ({'model': 'dinov2_vitb14'}, r'its name there is vit_base_patch14_dinov2'),
        ({'model_args': {'emb_dim': 24}}, r'^timm cannot build .*emb_dim'),
        ({'base_lr': -1}, r'^\*base_lr\* must be positive'),
        (
            {'rank': 4, 'adapter': {'class_path': 'peft.LoraConfig'}},
            r'^\*rank\* and \*alpha\* describe',
        ),
    ):
        with pytest.raises(SystemExit, match=rf'(?s){message}'):
            main(['fit', '--config', write_config(tmp_path, model)])


def test_data_without_a_predict_set_names_the_module_to_use(write_config, tmp_path):
    data = {'class_path': 'torchgeo.datamodules.EuroSATDataModule'}
    config = write_config(tmp_path, data=data | {'init_args': {'batch_size': 4}})
    with pytest.raises(ValueError, match='EuroSATDataModule has no predict set'):
        main(['predict', '--config', config])


def test_unreadable_image_is_reported_and_skipped(
    write_config, folder, tmp_path, recwarn
):
    root = tmp_path / 'images'
    root.mkdir()
    for path in (folder / 'train' / 'field').glob('*.png'):
        (root / path.name).write_bytes(path.read_bytes())
    (root / '3.png').write_bytes(b'no image')
    config = write_config(tmp_path)
    command = ['fit', '--config', config, '--data.init_args.root', str(root)]
    main([*command, '--data.init_args.on_error', 'skip'])
    messages = [str(item.message) for item in recwarn]
    (told,) = [text for text in messages if 'skipped sample' in text]
    assert str(root / '3.png') in told
    assert (tmp_path / 'delta.safetensors').exists()


def test_unreadable_image_stops_a_run_by_its_name(write_config, folder, tmp_path):
    root = tmp_path / 'images'
    root.mkdir()
    for path in (folder / 'train' / 'field').glob('*.png'):
        whole = path.read_bytes()
        (root / path.name).write_bytes(whole[:100] if path.stem == '3' else whole)
    config = write_config(tmp_path)
    with pytest.raises(RuntimeError, match=r"3\.png.*on_error='skip'"):
        main(['fit', '--config', config, '--data.init_args.root', str(root)])
