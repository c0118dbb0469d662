"""The embeddings file: columns, order, several processes."""

import pyarrow.parquet as pq
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
