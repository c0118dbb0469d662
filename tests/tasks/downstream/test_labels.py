"""Images with several labels, and images without any."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close
from torchgeo.datamodules import NonGeoDataModule

from tests.tasks.small_runs import VIT
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.datasets import ImageFolder
from torchgeo_explora.functional import knn_vote
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraKNNTask,
    ExploraLinearProbeTask,
)
from torchgeo_explora.tasks.downstream.accuracies import MultilabelScoresOfEach
from torchgeo_explora.tasks.downstream.batches import check_labels

pytestmark = pytest.mark.filterwarnings('ignore')

SENTENCE = r'no labels \(a batch holds .*image.*\), but the task needs one for each'


class Several(NonGeoDataModule):
    """Images whose channels tell which of three labels they have."""

    def __init__(self, labels=None):
        super().__init__(object, batch_size=4)
        if labels is None:
            labels = [[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)] * 2
        self.labels = torch.tensor(labels)
        self.mean, self.std = torch.tensor(0.0), torch.tensor(255.0)

    def setup(self, stage):
        data = [
            {
                'image': torch.ones(3, 32, 32) * 200 * label.view(-1, 1, 1)[:3]
                + torch.randn(3, 32, 32),
                'label': label,
            }
            for label in self.labels
        ]
        self.train_dataset = self.val_dataset = self.test_dataset = data


def run(place, **arguments):
    return Trainer(
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=place,
        **arguments,
    )


@pytest.fixture(scope='module')
def flat(tmp_path_factory):
    """Images in no class folder."""
    root = tmp_path_factory.mktemp('flat')
    for split in ('train', 'val'):
        (root / split).mkdir()
        for number in range(4):
            image = np.zeros((32, 32, 3), np.uint8)
            Image.fromarray(image).save(root / split / f'{number}.png')
    return root


@pytest.mark.parametrize(
    ('kind', 'stage', 'cached'),
    [
        (ExploraKNNTask, 'validate', False),
        (ExploraLinearProbeTask, 'fit', False),
        (ExploraLinearProbeTask, 'validate', False),
        (ExploraLinearProbeTask, 'fit', True),
        (ExploraClassificationTask, 'fit', False),
    ],
)
def test_images_without_labels_are_said_in_a_sentence(
    kind, stage, cached, flat, tmp_path
):
    given = {} if kind is ExploraKNNTask else {'num_classes': 2}
    if cached:
        given['cache'] = str(tmp_path / 'cache')
    trainer = run(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=SENTENCE):
        getattr(trainer, stage)(
            kind(**VIT, **given), ImageFolderDataModule(flat, batch_size=2)
        )


def test_a_stray_image_among_class_folders_is_named(tmp_path):
    for name in ('field/0.png', 'water/1.png', 'stray.png'):
        (tmp_path / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'train' / name)
    with pytest.warns(UserWarning, match=r'1 of the 3 images .*such as train/stray'):
        assert ImageFolder(tmp_path).labels is None


@pytest.mark.parametrize('cache', [None, 'cache'])
def test_probe_learns_several_labels(cache, tmp_path):
    torch.manual_seed(0)
    task = ExploraLinearProbeTask(
        3,
        task='multilabel',
        grid=[0.1, 10.0],
        blocks=[1],
        cache=cache and str(tmp_path / cache),
        **VIT,
    )
    assert task.monitor == 'val_mAP'
    trainer = run(tmp_path, max_epochs=30)
    trainer.fit(task, Several())
    assert trainer.callback_metrics['val_mAP'] > 0.95
    (metrics,) = trainer.test(task, Several(), verbose=False)
    assert metrics.keys() == {'test_paper', 'test_held_out'}
    with (tmp_path / 'probe.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {'val_mAP', 'test_mAP', 'test_F1'} < rows[0].keys()
    assert metrics['test_paper'] == max(float(row['test_mAP']) for row in rows)
    shares = task.predict_batch({'image': 255 * torch.rand(2, 3, 32, 32)})
    assert shares.shape == (2, 3)
    assert (shares.sum(-1) - 1).abs().max() > 1e-4


def test_loss_of_several_labels_is_binary_cross_entropy(tmp_path):
    task = ExploraLinearProbeTask(3, task='multilabel', grid=[0.1], **VIT)
    logits = torch.randn(4, 2, 3)
    task.forward = lambda batch: logits
    task.log = lambda *values, **options: None
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]])
    loss = task.training_step({'image': None, 'label': labels}, 0)
    each = [binary_cross_entropy_with_logits(x, labels.float()) for x in logits]
    assert_close(loss, sum(each))


def test_scores_are_those_of_scikit_learn():
    torch.manual_seed(0)
    scores, labels = torch.rand(2, 30, 4), torch.randint(2, (30, 4))
    metric = MultilabelScoresOfEach()
    for part in (slice(0, 12), slice(12, 30)):
        metric.update(scores[:, part] * (1 + 1e-7), labels[part])
    found = metric.compute()
    for head in range(2):
        mean = average_precision_score(labels, scores[head], average='macro')
        assert found[0, head].item() == pytest.approx(mean)
        overall = f1_score(labels, scores[head] > 0.5, average='micro')
        assert found[1, head].item() == pytest.approx(overall)


def test_neighbours_vote_on_every_label():
    bank, queries = torch.eye(3), torch.eye(3)[:1]
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]])
    votes = knn_vote(bank, labels, queries, 3, 2, temperature=1.0)
    near, far = np.e / (np.e + 2), 1 / (np.e + 2)
    assert_close(votes, torch.tensor([[near + far, 2 * far]]).float())
    # One label each is a class, in other words.
    one = torch.tensor([1, 0, 1])
    expected = knn_vote(bank, one, queries, 2, 2)
    hot = torch.nn.functional.one_hot(one)
    assert_close(knn_vote(bank, hot, queries, 2, 2), expected)
    with pytest.raises(ValueError, match='expected 0 or 1 for each of them'):
        knn_vote(bank, 2 * labels, queries, 3, 2)


def test_knn_task_takes_several_labels(tmp_path):
    torch.manual_seed(0)
    task = ExploraKNNTask(k=(1, 4), **VIT)
    (metrics,) = run(tmp_path).test(task, Several(), verbose=False)
    names = {'test_knn_1_mAP', 'test_knn_1_F1', 'test_knn_4_mAP', 'test_knn_4_F1'}
    assert metrics.keys() == names
    # Every image is its own neighbour.
    assert metrics['test_knn_1_mAP'] == metrics['test_knn_1_F1'] == 1.0
    with (tmp_path / 'knn_test.csv').open() as file:
        assert file.readline().strip() == 'k,test_mAP,test_F1'


@pytest.mark.parametrize('wrong', [[[0, 1]] * 4, [[0, 1, 2]] * 4, [1] * 4])
def test_labels_that_are_not_one_of_each_are_named(wrong, tmp_path):
    task = ExploraLinearProbeTask(3, task='multilabel', grid=[0.1], **VIT)
    with pytest.raises(ValueError, match=r'expected \(B, 3\) of 0 and 1'):
        task._labels({'label': torch.tensor(wrong)})


def test_several_labels_in_a_task_of_one_class_are_named():
    with pytest.raises(ValueError, match=r"set \*task\* to 'multilabel'"):
        check_labels(torch.tensor([[0, 1, 1]]), 3)
