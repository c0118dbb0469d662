"""Maps and neighbours of a run."""

import pytest
import torch

from tests.callbacks.test_quality import Model, fit
from torchgeo_explora.callbacks import EmbeddingPictures
from torchgeo_explora.callbacks.embedding_pictures import neighbour_sheet

pytestmark = pytest.mark.filterwarnings('ignore')


class Colours(Model):
    """A task as the callback needs it."""

    class backbone:
        in_channels = 3

    def unit_image(self, batch):
        return batch['image']


def test_a_run_leaves_a_map_and_neighbours(tmp_path):
    pictures = EmbeddingPictures(images=24)
    fit(tmp_path, pictures, model=Colours())
    assert {path.name for path in tmp_path.iterdir()} == {'map.png', 'neighbours.png'}
    other = EmbeddingPictures()
    other.load_state_dict(pictures.state_dict())
    assert torch.equal(other._before, pictures._before)


def test_neighbours_are_the_nearest_and_not_the_image_itself():
    features = torch.tensor([[1, 0.0], [1, 0.1], [0, 1.0], [0.1, 1]])
    small = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2) / 4
    figure = neighbour_sheet({'after': features}, small, queries=4, neighbours=1)
    shown = [axes.images[0].get_array()[0, 0, 0] * 4 for axes in figure.axes]
    assert [int(value) for value in shown] == [0, 1, 1, 0, 2, 3, 3, 2]
