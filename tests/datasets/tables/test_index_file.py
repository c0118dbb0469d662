import os
import pickle
import warnings

import pyarrow as pa
import pytest

from torchgeo_explora.datasets.tables.index_file import TableFile, index_path, read_csv


class Source:
    """Builds a table and counts how often."""

    def __init__(self, rows=3):
        self.rows, self.built = rows, 0

    def __call__(self):
        self.built += 1
        table = pa.table({'number': list(range(self.rows))})
        return table.replace_schema_metadata({'rows': str(self.rows)})


def test_table_is_built_once(tmp_path):
    path, source = str(tmp_path / 'deep' / 'index.arrow'), Source()
    first = TableFile(path, {'date': 1}, source)
    second = TableFile(path, {'date': 1}, source)
    assert source.built == 1
    assert second.table['number'].to_pylist() == [0, 1, 2]
    assert first.note('rows') == second.note('rows') == 3
    assert second.note('other') is None
    assert os.listdir(tmp_path / 'deep') == ['index.arrow']


def test_other_sources_build_again(tmp_path):
    path, source = str(tmp_path / 'index.arrow'), Source()
    TableFile(path, {'date': 1}, source)
    source.rows = 5
    assert TableFile(path, {'date': 2}, source).table.num_rows == 5


@pytest.mark.parametrize('keep', [0, 10, 200])
def test_damaged_file_is_built_again(tmp_path, keep):
    path, source = tmp_path / 'index.arrow', Source()
    TableFile(str(path), {}, source)
    path.write_bytes(path.read_bytes()[:keep])
    assert TableFile(str(path), {}, source).table.num_rows == 3
    assert source.built == 2


def test_a_flipped_bit_anywhere_is_found_before_a_row_is_read(tmp_path):
    """Arrow would give other rows, or end the process with a segmentation fault."""
    path, source = tmp_path / 'index.arrow', Source(50)
    TableFile(str(path), {}, source)
    whole = path.read_bytes()
    places = range(0, len(whole), 23)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        table = TableFile(str(path), {}, source).table
        assert table['number'].to_pylist() == list(range(50))
    assert source.built == 1 + len(places)
    assert path.read_bytes() == whole


def test_a_file_of_an_earlier_version_is_built_again(tmp_path):
    path, source = tmp_path / 'index.arrow', Source()
    table = TableFile(str(path), {}, source).table
    with pa.OSFile(str(path), 'wb') as sink, pa.ipc.new_file(sink, table.schema) as old:
        old.write_table(table)
    assert TableFile(str(path), {}, source).table.num_rows == 3
    assert source.built == 2


def test_workers_get_the_name_of_the_file_alone(tmp_path):
    table = TableFile(str(tmp_path / 'index.arrow'), {}, Source(100_000))
    pickled = pickle.dumps(table)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).table.num_rows == 100_000


def test_folder_that_cannot_be_written_keeps_the_table_in_memory(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.warns(UserWarning, match=r'cannot keep the index in .*\*index_dir\*'):
        table = TableFile(str(tmp_path / 'file' / 'index.arrow'), {}, Source())
    assert table.path is None
    assert pickle.loads(pickle.dumps(table)).table.num_rows == 3


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'Empty CSV'),
        ('a,b\n1,2,3\n', 'Expected 2 columns, got 3'),
        ('b,c\n1,2\n', 'lacks the columns a: it has b, c'),
        ('b,\x1b[2J\n1,2\n', r'it has b, \\x1b\[2J'),
        ('a,b\n\x1b[2J\n', r'got 1: \\x1b\[2J'),
    ],
)
def test_file_that_is_no_csv_is_named(tmp_path, text, message):
    (tmp_path / 'x.csv').write_text(text)
    with pytest.raises(ValueError, match=rf'x\.csv .*{message}') as error:
        read_csv(str(tmp_path / 'x.csv'), ['a'])
    assert str(error.value).isprintable()


def test_refused_index_is_made_again(tmp_path):
    path, source = str(tmp_path / 'index.arrow'), Source()
    table = TableFile(path, {}, source)
    with table.kept_if_accepted():
        pass
    assert os.path.exists(path)
    with pytest.raises(FileNotFoundError), table.kept_if_accepted():
        raise FileNotFoundError('too many are missing')
    assert not os.path.exists(path)


def test_indices_of_several_folders_share_one(tmp_path):
    first, second = (index_path(name, 'train', str(tmp_path)) for name in 'ab')
    assert os.path.dirname(first) == os.path.dirname(second) == str(tmp_path)
    assert first != second
    assert index_path('a', 'train', None) == os.path.join('a', '.train.arrow')


def test_build_that_fails_leaves_no_file(tmp_path):
    def build():
        raise RuntimeError('power cut')

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(RuntimeError, match='power cut'):
            TableFile(str(tmp_path / 'index.arrow'), {}, build)
    assert not os.listdir(tmp_path)
