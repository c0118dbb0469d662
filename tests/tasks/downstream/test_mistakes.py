"""What evaluations leave of their mistakes: confusion and worst examples."""

import csv
import math

import fsspec
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch.utils.data import Dataset
from torchgeo.datamodules import NonGeoDataModule

from tests.tasks.small_runs import VIT
from tests.tasks.squares import SquareMasks
from torchgeo_explora.datamodules import ImageFolderDataModule
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import (
    ExploraClassificationTask,
    ExploraLinearProbeTask,
    ExploraSegmentationTask,
)
from torchgeo_explora.tasks.downstream.accuracies import ConfusionOfEach
from torchgeo_explora.tasks.downstream.mistakes import (
    Example,
    Worst,
    class_names,
    draw_confusion,
    draw_masks,
    label_losses,
    place_of,
    small_mask,
    small_picture,
    with_paths,
    write_confusion,
    write_worst_labels,
    write_worst_masks,
)

pytestmark = pytest.mark.filterwarnings('ignore')


def trainer(place, **arguments):
    return Trainer(
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=place,
        **arguments,
    )


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# What is kept -------------------------------------------------------------------------


def take(worst, losses):
    """Take a batch; return the numbers of which an example was made."""
    made = []

    def example(index, loss):
        made.append(index)
        return Example(loss, *[torch.zeros(1)] * 3, f'{index}')

    worst.take(torch.tensor(losses), example)
    return made


def test_the_highest_losses_of_all_batches_are_kept_the_worst_first():
    worst = Worst(3)
    assert take(worst, [1.0, 5.0, 2.0, 3.0]) == [1, 3, 2]
    # What is not kept is not made.
    assert take(worst, [0.5, 4.0, 2.0, 1.9]) == [1]
    assert len(worst.examples) == 3
    assert [example.loss for example in worst.drain()] == [5, 4, 3]
    assert worst.drain() == []


def test_an_image_that_two_processes_have_seen_is_there_once(monkeypatch):
    """Samplers repeat images until all processes have as many."""
    one, other = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)

    def example(loss, image=one, path='', index=-1):
        return Example(loss, image, torch.tensor(0), torch.ones(2), path, index)

    shares = [
        [example(9.0, path='a', index=0), example(7.0, path='scene', index=1)],
        # A window of the same scene; and rounding differs by the batch.
        [example(9.0001, path='a', index=0), example(6.0, path='scene', index=2)],
        [example(5.0), example(4.0, other)],
        [example(5.0)],
    ]

    def gather(found, _):
        found[:] = shares

    monkeypatch.setattr(torch.distributed, 'all_gather_object', gather)
    worst = Worst(5)
    found = worst.drain(world_size=4)
    assert [round(each.loss) for each in found] == [9, 7, 6, 5, 4]


def test_images_that_do_not_count_are_left_out_and_nan_is_the_worst():
    worst = Worst(3)
    assert take(worst, [-math.inf, 1.0, math.nan]) == [2, 1]
    assert [example.loss for example in worst.drain()] == [math.inf, 1]


def test_losses_are_cross_entropies_of_each_image():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [9.0, 0.0]])
    labels = torch.tensor([1, 1, 7])
    found = label_losses(logits, labels, ignore=7)
    expected = torch.tensor([math.log(2), math.log(4), -math.inf])
    torch.testing.assert_close(found, expected)
    several = label_losses(logits[:2], torch.tensor([[1, 0], [0, 0]]))
    expected = [math.log(2), (math.log(4) + math.log(2)) / 2]
    torch.testing.assert_close(several, torch.tensor(expected))


def test_labels_that_do_not_count_are_left_out_of_the_mean_of_an_image():
    logits = torch.tensor([[0.0, math.log(3)], [9.0, 0.0], [9.0, 9.0]])
    for ignore in (-1, 255):
        labels = torch.tensor([[1, 0], [ignore, 1], [ignore, ignore]])
        found = label_losses(logits, labels, ignore)
        both = (math.log(2) + math.log(4)) / 2
        expected = torch.tensor([both, math.log(2), -math.inf])
        torch.testing.assert_close(found, expected)


def test_confusion_of_each_classifier_has_the_truth_in_rows():
    confusion = ConfusionOfEach(3)
    labels = torch.tensor([0, 0, 2])
    guesses = torch.tensor([[0, 1, 2], [1, 1, 1]])
    for _ in range(2):
        confusion.update(torch.nn.functional.one_hot(guesses, 3).float(), labels)
    first, second = (confusion.matrix(head).tolist() for head in range(2))
    assert first == [[2, 2, 0], [0, 0, 0], [0, 0, 2]]
    assert second == [[0, 4, 0], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize(('classes', 'size'), [(256, 1), (257, 4)])
def test_confusion_of_many_classes_keeps_a_small_number_for_each_image(classes, size):
    """Not a matrix for each classifier, and processes can exchange the numbers."""
    confusion = ConfusionOfEach(classes)
    last = classes - 1
    scores = torch.zeros(3, 2, classes)
    scores[:, 0, last] = scores[:, 1, 0] = 1
    confusion.update(scores, torch.tensor([last, last]))
    held = [*confusion.labels, *confusion.guesses]
    assert sum(each.numel() * each.element_size() for each in held) == 8 * size
    counts = confusion.matrix(2)
    assert (counts[last, last], counts[last, 0], counts.sum()) == (1, 1, 2)


def test_kept_pictures_are_small():
    """Memory does not depend on the size of images, nor on their number."""
    vit = ViT('vit_tiny_patch16_224', image_size=32, embed_dim=16, depth=1, num_heads=2)
    large = torch.rand(3, 1024, 512)
    assert small_picture(vit, large).shape == (3, 256, 128)
    image = torch.rand(3, 40, 32)
    torch.testing.assert_close(small_picture(vit, image), image)
    series = torch.stack([image, torch.full_like(image, torch.nan)])
    torch.testing.assert_close(small_picture(vit, series), image)
    mask = torch.randint(-1, 3, (40, 32))
    assert torch.equal(small_mask(mask).long(), mask)
    # No class between two others.
    assert small_mask(torch.tensor([[0, 9]]).repeat(600, 300)).unique().tolist() == [
        0,
        9,
    ]


def test_names_are_those_given_then_those_of_the_data_set_then_numbers():
    class Named:
        classes = ('field', 'water')

    assert class_names(Named, 2, ['a', 'b']) == ['a', 'b']
    assert class_names(Named, 2, None) == ['field', 'water']
    assert class_names(Named, 3, None) == ['0', '1', '2']
    assert class_names(None, 2, ['same', 'same']) == ['0', '1']


def test_path_is_that_of_the_batch_or_of_the_data_set():
    class Data:
        paths = ('a.png', 'b.png')

    class Folder:
        paths = 'data'

    def path(dataset, batch):
        example = Example(1.0, *[torch.zeros(1)] * 3, *place_of(batch, 0))
        return with_paths([example], dataset)[0].path

    index = {'index': torch.tensor([1, 0])}
    assert path(Data, index) == 'b.png'
    assert path(Data, {'path': ['c.png']}) == 'c.png'
    assert path(Data, {}) == path(None, index) == path(Folder, index) == ''


# What is drawn ------------------------------------------------------------------------


def test_confusion_shows_shares_of_each_true_class():
    """Rows are the truth: each adds up to 1, whatever the columns do."""
    counts = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    figure = draw_confusion(counts, ['field', 'water', 'rock'])
    axes = figure.axes[0]
    shares = torch.tensor([[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(torch.tensor(axes.get_images()[0].get_array()), shares)
    assert [text.get_text() for text in axes.texts] == [
        *('0.75', '0.25', '0.00', '0.50', '0.50', '0.00', '0.00', '0.00', '0.00'),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('predicted', 'true')
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ['field', 'water', 'rock']


@pytest.mark.parametrize(('classes', 'drawn'), [(100, True), (101, False)])
def test_confusion_of_more_than_100_classes_is_a_table_only(classes, drawn, tmp_path):
    names = [str(number) for number in range(classes)]
    write_confusion(trainer(tmp_path), torch.eye(classes), names, 'val')
    assert len(rows(tmp_path / 'confusion_val.csv')) == classes
    assert (tmp_path / 'confusion_val.png').exists() == drawn


def test_worst_examples_have_their_classes_in_words(tmp_path):
    image = torch.rand(3, 8, 8)
    one = Example(2.5, image, torch.tensor(0), torch.tensor([0.1, 0.9]), 'a.png')
    # 255 is a label that does not count.
    labels, guesses = torch.tensor([1, 255]), torch.tensor([0.1, 0.2])
    several = Example(2.0, image, labels, guesses, 'b.png')
    names = ['field', 'water']
    write_worst_labels(trainer(tmp_path / 'one'), [one], names, 'test')
    row = {'loss': '2.5', 'true': 'field', 'predicted': 'water', 'probability': '0.9'}
    assert rows(tmp_path / 'one/worst_test.csv') == [row | {'path': 'a.png'}]
    write_worst_labels(trainer(tmp_path / 'several'), [several], names, 'test')
    row = {'loss': '2.0', 'true': 'field', 'predicted': 'none', 'path': 'b.png'}
    assert rows(tmp_path / 'several/worst_test.csv') == [row]


def test_files_of_an_earlier_evaluation_do_not_stay_beside_newer_ones(tmp_path):
    """Where no image counted, or where a matrix is not drawn."""
    run, image = trainer(tmp_path), torch.rand(3, 8, 8)
    one = Example(2.5, image, torch.tensor(0), torch.tensor([0.1, 0.9]))
    mask = Example(2.5, image, *[torch.zeros(8, 8).long()] * 2)
    for write, example, classes in (
        (write_worst_labels, one, ['a', 'b']),
        (write_worst_masks, mask, 2),
    ):
        for split in ('val', 'test'):
            write(run, [example], classes, split)
        write(run, [], classes, 'val')
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {'worst_test.csv', 'worst_test.png'}
    for classes in (3, 101):
        names = [str(number) for number in range(classes)]
        write_confusion(run, torch.eye(classes), names, 'val')
    left = {path.name for path in tmp_path.glob('confusion*')}
    assert left == {'confusion_val.csv'}


def test_pixels_that_do_not_count_are_empty_in_both_maps():
    truth, guess = torch.tensor([[0, -1]]), torch.tensor([[1, 1]])
    figure = draw_masks([(torch.rand(3, 1, 2), truth, guess)], 2, ['loss 3'])
    _, of_truth, of_guess = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert of_truth.tolist() == [[0, -1]]
    assert of_guess.tolist() == [[1, -1]]
    assert figure.axes[0].get_ylabel() == 'loss 3'


# What runs leave ----------------------------------------------------------------------


def probe(folder, place, cache=None):
    """Validate a probe whose better classifier takes everything for a field."""
    torch.manual_seed(0)
    task = ExploraLinearProbeTask(
        2, grid=[0.1, 1.0], blocks=[1], averages=[False], cache=cache, **VIT
    )
    fields, water = (task.heads.heads[each.name] for each in task.heads.settings)
    for head, logits in ((fields, [2.0, 0.0]), (water, [-30.0, 30.0])):
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor(logits)
    data = ImageFolderDataModule(folder, batch_size=3)
    trainer(place).validate(task, data, verbose=False)


@pytest.mark.parametrize('cached', [False, True])
def test_probe_leaves_the_mistakes_of_the_classifier_that_counts(
    folder, tmp_path, cached
):
    """Both get half of the images right, and the first one counts."""
    probe(folder, tmp_path / 'run', str(tmp_path / 'cache') if cached else None)
    assert rows(tmp_path / 'run/confusion_val.csv') == [
        {'true': 'field', 'as field': '4', 'as water': '0'},
        {'true': 'water', 'as field': '4', 'as water': '0'},
    ]
    found = rows(tmp_path / 'run/worst_val.csv')
    # -log of 1 / (1 + e^2), and of its complement
    assert [row['loss'] for row in found] == ['2.1269'] * 4 + ['0.1269'] * 4
    assert {(row['true'], row['predicted']) for row in found[:4]} == {
        ('water', 'field')
    }
    assert {row['probability'] for row in found} == {'0.8808'}
    water = sorted(str(path) for path in (folder / 'val/water').iterdir())
    assert sorted(row['path'] for row in found[:4]) == water
    for name in ('confusion', 'worst'):
        with Image.open(tmp_path / f'run/{name}_val.png') as image:
            assert image.width > 300


class Listed(Dataset):
    """Images that are counted as they are read, and a list of paths made anew."""

    def __init__(self):
        self.read = self.asked = 0

    def __len__(self):
        return 60

    @property
    def paths(self):
        self.asked += 1
        return [f'{index}.png' for index in range(60)]

    def __getitem__(self, index):
        self.read += 1
        image = torch.full((3, 32, 32), 4.0 * index)
        return {'image': image, 'label': index % 2, 'index': index}


class ListedImages(NonGeoDataModule):
    def __init__(self):
        super().__init__(Listed, batch_size=4)
        self.val_dataset = Listed()

    def setup(self, stage):
        pass


class Forget(Callback):
    """Forget what was read before the evaluation."""

    def on_validation_epoch_start(self, trainer, pl_module):
        dataset = trainer.datamodule.val_dataset.source
        dataset.read = dataset.asked = 0


def test_cached_probe_reads_only_the_pictures_and_paths_that_are_shown(tmp_path):
    """Whatever the number of images, of classifiers and of batches."""
    torch.manual_seed(0)
    task = ExploraLinearProbeTask(
        2, grid=[0.1, 1.0], blocks=[1, 2], cache=str(tmp_path / 'cache'), **VIT
    )
    data = ListedImages()
    trainer(tmp_path, callbacks=[Forget()]).validate(task, data, verbose=False)
    found = rows(tmp_path / 'worst_val.csv')
    assert len(found) == 12
    for row in found:
        assert int(row['path'].removesuffix('.png')) % 2 == int(row['true'])
    dataset = data.val_dataset.source
    assert (dataset.read, dataset.asked) == (12, 1)


def test_files_of_the_user_and_of_the_other_split_stay(folder, tmp_path):
    """Runs write into the working directory, where people keep their own notes."""
    images, place = tmp_path / 'images', tmp_path / 'run'
    for path in (images, place):
        path.mkdir()
    for split in ('val', 'test'):
        (images / split).symlink_to(folder / 'val')
    own = [place / f'{name}.csv' for name in ('confusion', 'worst')]
    for path in own:
        path.write_text('mine')
    torch.manual_seed(0)
    task = ExploraClassificationTask(num_classes=2, **VIT)
    data = ImageFolderDataModule(images, batch_size=8)
    trainer(place).validate(task, data, verbose=False)
    kept = {path: path.read_bytes() for path in place.iterdir()}
    trainer(place).test(task, data, verbose=False)
    names = {path.name for path in place.iterdir()} - {path.name for path in kept}
    assert names == {
        *('confusion_test.csv', 'confusion_test.png'),
        *('worst_test.csv', 'worst_test.png'),
    }
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path.read_text() for path in own} == {'mine'}


def test_classification_leaves_its_mistakes(folder, tmp_path):
    task = ExploraClassificationTask(num_classes=2, labels=['dry', 'wet'], **VIT)
    with torch.no_grad():
        task.head.linear.weight.zero_()
        task.head.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    data = ImageFolderDataModule(folder, batch_size=3)
    trainer(tmp_path).validate(task, data, verbose=False)
    assert rows(tmp_path / 'confusion_val.csv') == [
        {'true': 'dry', 'as dry': '0', 'as wet': '4'},
        {'true': 'wet', 'as dry': '0', 'as wet': '4'},
    ]
    found = rows(tmp_path / 'worst_val.csv')
    assert [row['true'] for row in found] == ['dry'] * 4 + ['wet'] * 4
    assert found[0]['loss'] == f'{math.log(1 + math.e):.4f}'
    assert (tmp_path / 'worst_val.png').exists()


def test_mistakes_follow_the_run_to_another_place(tmp_path, monkeypatch):
    """And no folder here is named like its address."""
    monkeypatch.chdir(tmp_path)
    address, files = 'memory://explora/mistakes', fsspec.filesystem('memory')
    run = trainer(address)
    one = Example(2.5, torch.rand(3, 8, 8), torch.tensor(0), torch.ones(2))
    write_confusion(run, torch.eye(2), ['a', 'b'], 'val')
    write_worst_labels(run, [one], ['a', 'b'], 'val')
    place = '/explora/mistakes'
    text = files.cat(f'{place}/confusion_val.csv').decode()
    assert text.split() == ['true,as', 'a,as', 'b', 'a,1,0', 'b,0,1']
    for name in ('confusion', 'worst'):
        with files.open(f'{place}/{name}_val.png') as file, Image.open(file) as image:
            assert image.width > 100
    write_worst_labels(run, [], ['a', 'b'], 'val')
    left = {name.rpartition('/')[2] for name in files.find(place)}
    assert left == {'confusion_val.csv', 'confusion_val.png'}
    assert not [*tmp_path.iterdir()]


def test_a_trial_leaves_nothing(folder, tmp_path):
    task = ExploraClassificationTask(num_classes=2, **VIT)
    data = ImageFolderDataModule(folder, batch_size=3)
    trainer(tmp_path, fast_dev_run=True).validate(task, data, verbose=False)
    assert not [*tmp_path.glob('*.png'), *tmp_path.glob('*.csv')]


def test_segmentation_leaves_its_mistakes_without_the_padding(tmp_path):
    """All pixels are taken for the ground: the largest square is the worst."""
    task = ExploraSegmentationTask(2, decoder='linear', **VIT)
    with torch.no_grad():
        for parameter in task.head.classify.parameters():
            parameter.zero_()
        task.head.classify.bias.copy_(torch.tensor([3.0, 0.0]))
    data = SquareMasks(batch_size=3, mixed=True)
    trainer(tmp_path).validate(task, data, verbose=False)
    inside = [int(sample['mask'].sum()) for sample in data.samples]
    total = sum(sample['mask'].numel() for sample in data.samples)
    assert rows(tmp_path / 'confusion_val.csv') == [
        {'true': '0', 'as 0': str(total - sum(inside)), 'as 1': '0'},
        {'true': '1', 'as 0': str(sum(inside)), 'as 1': '0'},
    ]
    shares = [sample['mask'].float().mean() for sample in data.samples]
    right = math.log(1 + math.exp(-3))
    expected = sorted((float(right + 3 * share) for share in shares), reverse=True)
    worst = rows(tmp_path / 'worst_val.csv')
    found = [float(row['loss']) for row in worst]
    assert found == pytest.approx(expected[:6], abs=2e-4)
    ground = 1 - max(float(share) for share in shares)
    assert float(worst[0]['right']) == pytest.approx(ground, abs=1e-4)
    with Image.open(tmp_path / 'worst_val.png') as image:
        assert image.height > image.width
