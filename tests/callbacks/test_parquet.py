"""The embeddings file: columns, order, several processes."""

import pyarrow.parquet as pq
import pytest
import torch

from torchgeo_explora.callbacks import EmbeddingWriter


class Ranked:
    """What the writer asks of a trainer, for one process of several."""

    def __init__(self, folder, rank, world):
        self.default_root_dir = folder
        self.global_rank, self.world_size = rank, world
        self.is_global_zero = rank == 0
        self.strategy = self

    def barrier(self, name):
        """Wait for nobody: the test runs rank 0 last."""


def _write(folder, rank, world, batches):
    writer = EmbeddingWriter()
    trainer = Ranked(folder, rank, world)
    writer.on_predict_start(trainer, None)
    for number, (index, batch) in enumerate(batches):
        embedding = torch.tensor(index, dtype=torch.float32)[:, None].repeat(1, 3)
        writer.write_on_batch_end(trainer, None, embedding, index, batch, number, 0)
    writer.on_predict_end(trainer, None)
    return folder / 'embeddings.parquet'


def test_columns_follow_the_batch(tmp_path):
    batch = {'path': ['a.png', 'b.png'], 'label': torch.tensor([1, 0])}
    table = pq.read_table(_write(tmp_path, 0, 1, [([0, 1], batch)]))
    assert table.column_names == ['index', 'path', 'label', 'embedding']
    assert table['path'].to_pylist() == ['a.png', 'b.png']
    assert table['label'].to_pylist() == [1, 0]
    assert table['embedding'].to_pylist() == [[0.0] * 3, [1.0] * 3]


def test_unlabelled_batches_have_no_label_column(tmp_path):
    table = pq.read_table(_write(tmp_path, 0, 1, [([0], {}), ([1], {})]))
    assert table.column_names == ['index', 'embedding']


def test_parts_are_joined_in_input_order_without_repeats(tmp_path):
    # A distributed sampler gave sample 0 twice to fill the second rank.
    _write(tmp_path, 1, 2, [([1, 3], {}), ([0], {})])
    path = _write(tmp_path, 0, 2, [([0, 2], {}), ([4], {})])
    table = pq.read_table(path)
    assert table['index'].to_pylist() == [0, 1, 2, 3, 4]
    assert [row[0] for row in table['embedding'].to_pylist()] == [0, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ['embeddings.parquet']


def test_scenes_are_numbered_and_keep_their_bounds(tmp_path):
    """A sampler over scenes gives places, not numbers; two processes take turns."""
    bounds = torch.arange(18, dtype=torch.float64).view(2, 9)
    places = [(slice(0, 1), slice(0, 1), slice(0, 1))] * 2
    for rank in (1, 0):
        writer = EmbeddingWriter()
        trainer = Ranked(tmp_path, rank, 2)
        writer.on_predict_start(trainer, None)
        embedding = torch.full((2, 3), float(rank))
        writer.write_on_batch_end(
            trainer, None, embedding, places, {'bounds': bounds}, 0, 0
        )
        writer.on_predict_end(trainer, None)
    table = pq.read_table(tmp_path / 'embeddings.parquet')
    assert table['index'].to_pylist() == [0, 1, 2, 3]
    assert [row[0] for row in table['embedding'].to_pylist()] == [0, 1, 0, 1]
    assert table['bounds'].to_pylist()[2] == [9, 10, 12, 13]


def test_an_image_that_stood_in_for_a_broken_one_is_written_once(tmp_path):
    """`on_error: skip` gives the next image again, with its own index."""
    batch = {'index': torch.tensor([0, 2, 2]), 'path': ['a', 'c', 'c']}
    table = pq.read_table(_write(tmp_path, 0, 1, [([0, 1, 2], batch)]))
    assert table['index'].to_pylist() == [0, 2]
    assert table['path'].to_pylist() == ['a', 'c']


def test_a_process_without_images_has_no_part(tmp_path):
    stale = tmp_path / '.embeddings.parquet.1.part'
    stale.write_bytes(b'left by an interrupted run')
    _write(tmp_path, 1, 2, [])
    table = pq.read_table(_write(tmp_path, 0, 2, [([0], {})]))
    assert table['index'].to_pylist() == [0]


def test_images_of_several_loaders_are_not_mixed_up(tmp_path):
    writer, trainer = EmbeddingWriter(), Ranked(tmp_path, 0, 1)
    writer.on_predict_start(trainer, None)
    with pytest.raises(ValueError, match='one data set at a time'):
        writer.write_on_batch_end(trainer, None, torch.ones(1, 3), [0], {}, 0, 1)


def test_nothing_to_predict_is_said(tmp_path):
    with pytest.warns(UserWarning, match='no image'):
        assert not _write(tmp_path, 0, 1, []).exists()
