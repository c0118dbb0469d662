"""Search by example in a file of embeddings."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from pyproj import Transformer

from tests.data.scenes import write_scene
from torchgeo_explora.cli import main
from torchgeo_explora.datasets.pixels.image_file import UnreadableImageError
from torchgeo_explora.export import embed, search
from torchgeo_explora.export.imagery.contact_sheet import contact_sheet
from torchgeo_explora.models import ViT

pytestmark = pytest.mark.filterwarnings('ignore')
SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}


@pytest.fixture(scope='module')
def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViT('vit_tiny_patch16_224', image_size=32, **SIZES).eval()


@pytest.fixture(scope='module')
def place(tmp_path_factory, backbone):
    """A scene, a folder of its windows as pictures, and embeddings of both."""
    root = tmp_path_factory.mktemp('search')
    scene = write_scene(root / 'scene.tif', size=(64, 96), dtype='uint8', nodata=None)
    with rasterio.open(scene, 'r+') as file:
        values = np.random.default_rng(0).integers(0, 255, (3, 64, 96), np.uint8)
        file.write(values)
    (root / 'images').mkdir()
    for row in range(2):
        for column in range(3):
            part = values[:, 32 * row :, 32 * column :][:, :32, :32]
            picture = Image.fromarray(part.transpose(1, 2, 0).copy())
            picture.save(root / 'images' / f'{row}{column}.png')
    quiet = {'accelerator': 'cpu', 'enable_progress_bar': False, 'weights': None}
    embed(scene, root / 'scene.parquet', backbone, **quiet)
    embed(root / 'images', root / 'images.parquet', backbone, **quiet)
    return root


def _point(row, column):
    """Longitude and latitude of the middle of a window."""
    change = Transformer.from_crs(32632, 4326, always_xy=True)
    x, y = 500_000 + 320 * (column + 0.5), 5_000_000 - 320 * (row + 0.5)
    return change.transform(x, y)


def _cosines(path):
    vectors = np.array(pq.read_table(path)['embedding'].to_pylist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def test_point_finds_what_is_like_its_window(place, tmp_path):
    longitude, latitude = _point(1, 2)
    target = tmp_path / 'found.geojson'
    found = search(place / 'scene.parquet', f'{longitude},{latitude}', target, k=3)
    # The window itself, number 5, is not among them.
    expected = np.argsort(-_cosines(place / 'scene.parquet')[5])[1:4].tolist()
    assert [row['index'] for row in found] == expected
    content = json.loads(target.read_text())
    first = content['features'][0]
    assert first['properties']['rank'] == 1
    assert first['properties']['scene'] == str(place / 'scene.tif')
    row, column = divmod(expected[0], 3)
    ring = np.array(first['geometry']['coordinates'][0])
    assert np.allclose(ring[:4].mean(0), _point(row, column), atol=1e-5)
    with Image.open(tmp_path / 'found.png') as sheet:
        assert sheet.size[1] == 300  # a row for the example, and one for the results


def test_image_finds_itself(place, tmp_path, backbone):
    found = search(
        place / 'scene.parquet',
        place / 'images' / '11.png',
        tmp_path / 'found.geojson',
        k=2,
        model=backbone,
        weights=None,
    )
    assert found[0]['index'] == 4
    assert found[0]['similarity'] == pytest.approx(1, abs=1e-4)


@pytest.fixture
def named(tmp_path, backbone):
    """Return a function that embeds a scene, and a file of one of its windows."""

    def write(names, dtype='uint16', high=10_000, model=backbone, **options):
        values = np.random.default_rng(0).integers(0, high, (len(names), 64, 64))
        scene = tmp_path / 'named.tif'
        for path, cut in ((scene, values), (tmp_path / 'cut.tif', values[:, 32:, :32])):
            _, height, width = cut.shape
            with rasterio.open(
                path,
                'w',
                'GTiff',
                width,
                height,
                len(names),
                'EPSG:32632',
                Affine(10, 0, 5e5, 0, -10, 5e6),
                dtype,
            ) as file:
                file.write(cut.astype(dtype))
                file.descriptions = names
        quiet = {'accelerator': 'cpu', 'enable_progress_bar': False}
        options = {'weights': None, **quiet, **options}
        return embed(scene, tmp_path / 'named.parquet', model, **options)

    return write


@pytest.mark.parametrize(
    ('names', 'options'),
    [
        # The model takes them as red, green and blue.
        (('B02', 'B03', 'B04'), {}),
        (('B02', 'B03', 'B04', 'B08'), {'bands': ['B08', 'B04', 'B03']}),
        (('red', 'green', 'blue'), {'dtype': 'uint8', 'value_range': (0, 100)}),
    ],
)
def test_a_window_finds_itself(named, tmp_path, backbone, names, options):
    """An image is prepared as the windows were: the same bands and range."""
    dtype = options.pop('dtype', 'uint16')
    path = named(names, dtype, 100 if dtype == 'uint8' else 10_000, **options)
    place = tmp_path / 'found.geojson'
    found = search(path, tmp_path / 'cut.tif', place, 1, backbone, None)
    assert (found[0]['row'], found[0]['column']) == (32, 0)
    assert found[0]['similarity'] == pytest.approx(1, abs=1e-4)


def test_a_model_by_name_takes_as_many_bands_as_before(named, tmp_path):
    """`search` has no *in_channels*: the file tells."""
    names, size = ('B02', 'B03', 'B04', 'B08'), {'image_size': 32, 'in_channels': 4}
    model = 'test_vit.r160_in1k'
    base = ViT(model, image_size=32)
    torch.save(base.canonical_state_dict(), tmp_path / 'base.pth')
    path = named(names, model=model, weights=tmp_path / 'base.pth', **size)
    arguments = (path, tmp_path / 'cut.tif', tmp_path / 'found.geojson', 1, model)
    assert search(*arguments, tmp_path / 'base.pth')[0]['row'] == 32


def test_an_example_of_another_type_leaves_the_results_visible(tmp_path):
    values = np.random.default_rng(0).integers(1, 256, (3, 32, 32))
    for dtype, scale in (('uint8', 1), ('uint16', 10), ('float32', np.nan)):
        with rasterio.open(
            tmp_path / f'{dtype}.tif', 'w', 'GTiff', 32, 32, 3, dtype=dtype
        ) as file:
            file.write((values * scale).astype(dtype))
    rows = [{'path': str(path)} for path in sorted(tmp_path.iterdir())]
    results = [{**row, 'similarity': 0.5} for row in rows]
    sheet = np.asarray(contact_sheet(rows[:1], results).convert('L')).astype(float)
    # Without data, of 16 bits, of 8 bits: side by side below the example.
    pictures = [sheet[150:278, 134 * i : 134 * i + 128] for i in range(3)]
    assert np.unique(pictures[0]).tolist() == [0]
    assert pictures[1].std() > 20
    assert np.abs(pictures[1] - pictures[2]).max() < 3


def test_values_that_the_embeddings_cannot_have(named, place, tmp_path, backbone):
    named(('B04', 'B03', 'B02'))
    arguments = (place / 'scene.parquet', tmp_path / 'cut.tif', tmp_path / 'f.geojson')
    with pytest.raises(ValueError, match=r'cut.tif has .* give an image of the same'):
        search(*arguments, 2, backbone, None)


@pytest.mark.parametrize('k', [0, -1])
def test_a_number_of_results_below_one(place, tmp_path, k):
    with pytest.raises(ValueError, match=rf'\*k\* is {k}: give 1 or more'):
        search(place / 'scene.parquet', '9,45', tmp_path / 'found.geojson', k)
    assert not [*tmp_path.iterdir()]


def test_text_file_of_examples_means_their_mean_direction(place, tmp_path, backbone):
    longitude, latitude = _point(0, 0)
    examples = tmp_path / 'examples.txt'
    image = place / 'images' / '01.png'
    examples.write_text(f'# two\n\n{longitude}, {latitude}\n{image}\n')
    found = search(
        place / 'scene.parquet',
        examples,
        tmp_path / 'found.geojson',
        k=5,
        model=backbone,
        weights=None,
    )
    cosines = _cosines(place / 'scene.parquet')
    expected = np.argsort(-(cosines[0] + cosines[1])[1:]) + 1
    assert [row['index'] for row in found] == expected.tolist()


def test_paths_in_a_text_file_start_at_its_own_folder(place, tmp_path, backbone):
    """From whatever folder it is used, and with a mark of Windows at its start."""
    examples = place / 'images' / 'list.TXT'
    examples.write_text('02.png\n', encoding='utf-8-sig')
    arguments = (place / 'images.parquet', examples, tmp_path / 'f.geojson', 1)
    found = search(*arguments, backbone, None)
    assert found[0]['path'] == str(place / 'images' / '02.png')
    examples.write_text('images/02.png\n')
    with pytest.raises(
        FileNotFoundError, match=r'images.images.02\.png does not exist'
    ):
        search(*arguments, backbone, None)


def test_text_file_that_names_itself(place, tmp_path, backbone):
    examples = tmp_path / 'list.txt'
    examples.write_text('list.txt\n')
    with pytest.raises(UnreadableImageError, match=r'cannot read image .*list\.txt'):
        search(
            place / 'images.parquet',
            examples,
            tmp_path / 'f.geojson',
            1,
            backbone,
            None,
        )


def test_folder_of_images_has_results_without_geometry(place, tmp_path, backbone):
    target = tmp_path / 'found.geojson'
    image = place / 'images' / '02.png'
    found = search(
        place / 'images.parquet', image, target, k=1, model=backbone, weights=None
    )
    assert found[0]['path'] == str(image)
    assert json.loads(target.read_text())['features'][0]['geometry'] is None


def test_fewer_windows_than_k(place, tmp_path):
    longitude, latitude = _point(0, 0)
    with pytest.warns(UserWarning, match=r'only 5 embeddings .* reduced from 20'):
        found = search(
            place / 'scene.parquet', f'{longitude},{latitude}', tmp_path / 'f.geojson'
        )
    assert len(found) == 5


def test_model_must_be_that_of_the_file(place, tmp_path):
    other = ViT('vit_tiny_patch16_224', image_size=32, **SIZES)
    image = place / 'images' / '02.png'
    with pytest.raises(ValueError, match='was written with the model'):
        search(
            place / 'scene.parquet',
            image,
            tmp_path / 'f.geojson',
            model=other,
            weights=None,
        )
    with pytest.raises(ValueError, match=r'give the \*model\* and \*weights\*'):
        search(place / 'scene.parquet', image, tmp_path / 'f.geojson')


@pytest.mark.parametrize(
    ('query', 'message'),
    [
        ('200,10', 'is not on the Earth'),
        ('-70.5,10', 'no window of .* contains the point -70.5,10'),
        ('nothing.png', r'is neither a point nor a file \(nothing\.png does not exist'),
    ],
)
def test_queries_that_cannot_be_used(query, message, place, tmp_path, capsys):
    """Also by the command, where a minus is not the start of an option."""
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        search(place / 'scene.parquet', query, tmp_path / 'f.geojson')
    with pytest.raises(SystemExit, match=message):
        main(['search', str(place / 'scene.parquet'), query])


def test_point_in_a_folder_of_images(place, tmp_path):
    with pytest.raises(ValueError, match='has no geometries'):
        search(place / 'images.parquet', '9,45', tmp_path / 'f.geojson')


def test_files_that_hold_no_embeddings(place, tmp_path):
    other = tmp_path / 'other.parquet'
    pq.write_table(pa.table({'a': [1]}), other)
    for path in (other, place / 'scene.tif'):
        with pytest.raises(ValueError, match='is not a file of embeddings'):
            search(path, '9,45', tmp_path / 'f.geojson')
    with pytest.raises(FileNotFoundError, match=r'none\.parquet does not exist'):
        search(tmp_path / 'none.parquet', '9,45', tmp_path / 'f.geojson')


def test_a_named_file_that_is_no_image_is_not_opened(place, tmp_path):
    """A file of embeddings may come from anyone."""
    table = pq.read_table(place / 'scene.parquet')
    names = pa.array(['/vsicurl/http://localhost/a.tif'] * table.num_rows)
    where = table.schema.get_field_index('scene')
    pq.write_table(table.set_column(where, 'scene', names), tmp_path / 'e.parquet')
    longitude, latitude = _point(0, 0)
    found = search(
        tmp_path / 'e.parquet', f'{longitude},{latitude}', tmp_path / 'f.geojson', k=2
    )
    assert len(found) == 2


def test_an_output_in_the_place_of_the_contact_sheet(place, tmp_path):
    with pytest.raises(ValueError, match='is where the contact sheet goes'):
        search(place / 'scene.parquet', '9,45', tmp_path / 'found.png')


def test_an_image_that_cannot_be_read(place, tmp_path, backbone):
    """The advice fits `search`, which cannot leave an image out by *on_error*."""
    image = tmp_path / 'cut.png'
    image.write_bytes((place / 'images' / '00.png').read_bytes()[:60])
    arguments = (place / 'scene.parquet', image, tmp_path / 'f.geojson', 2, backbone)
    with pytest.raises(UnreadableImageError) as caught:
        search(*arguments, None)
    said = str(caught.value)
    assert said.endswith('. Replace the file, or give another *query*')
    assert 'cut.png' in said
    assert 'on_error' not in said


def test_an_image_of_a_type_without_a_usual_range(place, tmp_path, backbone):
    """It is mapped from the range of the embeddings: there is no *value_range*."""
    values = np.array(Image.open(place / 'images' / '11.png')).transpose(2, 0, 1)
    with rasterio.open(
        tmp_path / 'image.tif', 'w', 'GTiff', 32, 32, 3, dtype='int32'
    ) as file:
        file.write(values.astype('int32'))
    found = search(
        place / 'scene.parquet',
        tmp_path / 'image.tif',
        tmp_path / 'found.geojson',
        1,
        backbone,
        None,
    )
    assert found[0]['index'] == 4
    assert found[0]['similarity'] == pytest.approx(1, abs=1e-4)


def test_an_image_with_other_bands_than_the_model_takes(place, tmp_path, backbone):
    image = tmp_path / 'grey.png'
    values = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    Image.fromarray(values).save(image)
    arguments = (place / 'scene.parquet', image, tmp_path / 'f.geojson', 2, backbone)
    with pytest.raises(ValueError, match=r'grey.png has 1 bands.*\*bands'):
        search(*arguments, None)
