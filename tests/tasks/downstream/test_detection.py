"""Finding objects: learning, bad boxes, and the command."""

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer

from tests.tasks.small_runs import VIT, command, write_config
from tests.tasks.squares import SquareBoxes
from torchgeo_explora.tasks import ExploraDetectionTask
from torchgeo_explora.tasks.downstream.detection import _mirrored

pytestmark = pytest.mark.filterwarnings('ignore')

TINY = {**VIT, 'num_classes': 2, 'pyramid_channels': 32}


def make(**arguments):
    torch.manual_seed(0)
    return ExploraDetectionTask(**{**TINY, **arguments})


def trainer(place, **arguments):
    defaults = {
        'accelerator': 'cpu',
        'max_epochs': 1,
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'num_sanity_val_steps': 0,
        'default_root_dir': place,
    }
    return Trainer(**{**defaults, **arguments})


@pytest.mark.cli
@pytest.mark.parametrize('detector', ['faster-rcnn', 'fcos'])
def test_tiny_set_is_learnt(detector, tmp_path):
    task = make(
        detector=detector,
        rank=0,
        modules=[''],
        drop_path=0.0,
        base_lr=0.1,
        anchors=[4, 8, 12, 16, 32] if detector == 'faster-rcnn' else None,
    )
    if detector == 'faster-rcnn':
        # 512 boxes an image would take most of the time.
        task.detector.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    run = trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    run.fit(task, SquareBoxes())
    assert run.callback_metrics['val_map_50'] > 0.9


def test_backbone_stands_once_in_the_state():
    task = make()
    assert not any(
        name.startswith('detector.backbone.vit') for name in task.state_dict()
    )
    parameters = [id(p) for p in task.parameters()]
    assert len(parameters) == len(set(parameters))
    names = [name for name, _ in task.named_parameters() if 'patch_embed' in name]
    assert names == [
        'backbone.patch_embed.proj.weight',
        'backbone.patch_embed.proj.bias',
    ]


@pytest.mark.parametrize('detector', ['faster-rcnn', 'fcos'])
def test_images_of_any_size_and_without_objects_are_taken(detector):
    task = make(detector=detector)
    image = torch.rand(2, 3, 41, 30)
    nothing = {'boxes': torch.zeros(0, 4), 'labels': torch.zeros(0, dtype=torch.long)}
    losses = task.train()(image, [nothing, nothing])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        found = task.eval()(image)
    assert {*found[0]} == {'boxes', 'labels', 'scores'}


def test_boxes_without_area_are_left_out_and_said():
    task = make()
    boxes = torch.tensor([[1.0, 1, 5, 5], [3, 3, 3, 9], [2, 2, 1, 4]])
    batch = {'bbox_xyxy': [boxes], 'label': [torch.tensor([1, 1, 1])]}
    with pytest.warns(UserWarning, match=r'without area are left out, such as \[3'):
        (target,) = task._targets(batch)
    assert target['boxes'].tolist() == [[1, 1, 5, 5]]
    assert target['labels'].tolist() == [1]


def test_labels_without_an_output_are_named():
    batch = {'bbox_xyxy': [torch.tensor([[1, 1, 5, 5]])], 'label': [torch.tensor([2])]}
    with pytest.raises(ValueError, match=r'labels hold \[2\], expected 0 to 1'):
        make()._targets(batch)


def test_boxes_of_the_background_are_refused():
    batch = {'bbox_xyxy': [torch.tensor([[1, 1, 5, 5]])], 'label': [torch.tensor([0])]}
    with pytest.raises(ValueError, match='label 0, which is the background'):
        make()._targets(batch)


def test_boxes_are_mirrored_with_their_image():
    image = torch.zeros(1, 1, 8, 10)
    image[..., 2:5, 1:4] = 1
    target = {'boxes': torch.tensor([[1.0, 2, 4, 5]])}
    for seed in range(8):
        torch.manual_seed(seed)
        mirrored, (moved,) = _mirrored(image, [target])
        left, top, right, bottom = moved['boxes'][0].long().tolist()
        assert mirrored[..., top:bottom, left:right].all()
        assert mirrored.sum() == 9


def test_unknown_detectors_and_anchors_are_named():
    with pytest.raises(ValueError, match=r"\*detector\* is 'yolo'"):
        make(detector='yolo')
    with pytest.raises(ValueError, match='give one for each of the 5 levels'):
        make(anchors=[8, 16])
    with pytest.raises(ValueError, match='must be a multiple of 32'):
        make(detector='fcos', pyramid_channels=16)


@pytest.mark.cli
def test_command(tmp_path):
    data = {
        'class_path': 'tests.tasks.squares.SquareBoxes',
        'init_args': {'mixed': True},
    }
    model = {'num_classes': 2, 'pyramid_channels': 32}
    config = write_config(tmp_path, 'ExploraDetectionTask', model, data, max_epochs=1)
    command('fit', config)
    longer = config.replace('config_in', 'longer')
    with open(config) as file, open(longer, 'w') as other:
        other.write(file.read().replace('max_epochs: 1', 'max_epochs: 2'))
    command('fit', longer, tmp_path / 'last.ckpt')
    saved = torch.load(tmp_path / 'last.ckpt', weights_only=True)
    assert saved['global_step'] == 4
    for stage in ('validate', 'test', 'predict'):
        command(stage, config, tmp_path / 'last.ckpt')
    table = pq.read_table(tmp_path / 'detections.parquet')
    assert table['index'].to_pylist() == list(range(8))
    assert all(
        len(boxes) == len(scores)
        for boxes, scores in zip(
            table['boxes'].to_pylist(), table['scores'].to_pylist(), strict=True
        )
    )
