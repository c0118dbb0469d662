"""Embeddings of scenes and of folders of images, with their place."""

import json
import warnings
from copy import deepcopy

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.shutil
import shapely
import torch
from lightning.pytorch import Trainer
from PIL import Image
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window
from torch.testing import assert_close

from tests.data.scenes import write_scene, write_scenes, write_stac
from torchgeo_explora.adapt import Adaptation, adapt, base_fingerprint, lora, save_delta
from torchgeo_explora.callbacks import EmbeddingWriter
from torchgeo_explora.callbacks.writers.parquet import model_fingerprint
from torchgeo_explora.datamodules import ScenesDataModule
from torchgeo_explora.datasets.scenes.band_stack import stack_bands
from torchgeo_explora.export import embed
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraKNNTask
from torchgeo_explora.tasks.run.backbone import fold_delta

pytestmark = pytest.mark.filterwarnings('ignore')
QUIET = {'accelerator': 'cpu', 'enable_progress_bar': False}
SIZE = 32


@pytest.fixture
def scene(tmp_path):
    """A scene whose sides are no multiples of a window, with a hole without data."""
    hole = (0, 64, 0, 40)
    return write_scene(tmp_path / 's_20200110.tif', size=(100, 140), hole=hole)


@pytest.fixture
def images(tmp_path):
    for kind in ('a', 'b'):
        folder = tmp_path / 'images' / kind
        folder.mkdir(parents=True)
        for number in range(3):
            values = np.random.default_rng(number).integers(0, 255, (40, 48, 3))
            Image.fromarray(values.astype(np.uint8)).save(folder / f'{number}.png')
    return tmp_path / 'images'


def run(source, output, backbone, **options):
    given = {'weights': None, 'batch_size': 4, **QUIET, **options}
    return embed(source, output, backbone, **given)


def test_geometry_is_that_of_the_windows_and_every_valid_pixel_counts_once(
    scene, tmp_path, backbone
):
    table = pq.read_table(run(scene, tmp_path / 'out.parquet', backbone))
    with rasterio.open(scene) as file:
        valid = file.dataset_mask() > 0
        seen = np.zeros(valid.shape, int)
        for row in table.to_pylist():
            left, top = row['column'], row['row']
            place = Window(left, top, row['width'], row['height'])
            bounds = rasterio.windows.bounds(place, file.transform)
            found = shapely.from_wkb(row['geometry'])
            assert np.abs(np.subtract(found.bounds, bounds)).max() <= 1e-9
            assert found.area == pytest.approx(row['width'] * row['height'] * 100)
            assert found.exterior.is_ccw
            assert tuple(row['bbox'].values()) == found.bounds
            part = np.s_[top : top + row['height'], left : left + row['width']]
            seen[part] += 1
            assert row['no_data'] == pytest.approx(1 - valid[part].mean(), abs=1e-6)
            assert row['time'].isoformat() == '2020-01-10T00:00:00+00:00'
            assert row['scene'] == str(scene)
    assert (seen[valid] == 1).all()
    assert seen.max() == 1
    # Two windows lie in the hole.
    assert len(table) == 4 * 5 - 2
    index = table['index'].to_pylist()
    assert index == sorted(index)


@pytest.mark.parametrize('pooling', ['cls', 'both'])
def test_values_are_those_of_the_model(pooling, scene, tmp_path, backbone):
    """Also where the last block computes the class token only."""
    table = pq.read_table(
        run(scene, tmp_path / 'out.parquet', backbone, pooling=pooling)
    )
    row = table.to_pylist()[4]
    place = Window(row['column'], row['row'], row['width'], row['height'])
    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read(window=place) / np.float32(10000))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        features = backbone(((image - mean) / std)[None])
    expected = features.pooled(pooling)[0]
    assert_close(torch.tensor(row['embedding']), expected, rtol=1e-4, atol=1e-4)


def test_metadata_is_geoparquet_and_names_the_model(scene, tmp_path, backbone):
    table = pq.read_table(run(scene, tmp_path / 'out.parquet', backbone))
    geo = json.loads(table.schema.metadata[b'geo'])
    column = geo['columns']['geometry']
    assert (geo['version'], geo['primary_column']) == ('1.1.0', 'geometry')
    assert column['encoding'] == 'WKB'
    assert column['geometry_types'] == ['Polygon']
    assert column['crs']['id'] == {'authority': 'EPSG', 'code': 32632}
    assert column['covering']['bbox']['xmin'] == ['bbox', 'xmin']
    with rasterio.open(scene) as file:
        assert column['bbox'] == pytest.approx([*file.bounds], abs=1e-9)
    ours = json.loads(table.schema.metadata[b'explora'])
    assert ours['fingerprint'] == base_fingerprint(backbone)
    assert (ours['pooling'], ours['image_size']) == ('cls', SIZE)


def test_fingerprint_with_a_delta_is_that_of_the_folded_backbone(
    scene, tmp_path, backbone
):
    """So that a search knows the model by base and delta."""
    adapted = adapt(deepcopy(backbone), Adaptation((1,), adapter=lora(2)))
    save_delta(adapted, tmp_path / 'delta.safetensors')
    folded = fold_delta(deepcopy(backbone), str(tmp_path / 'delta.safetensors'))
    path = run(
        scene, tmp_path / 'o.parquet', backbone, delta=tmp_path / 'delta.safetensors'
    )
    note = json.loads(pq.read_schema(path).metadata[b'explora'])['fingerprint']
    assert note == base_fingerprint(folded) != base_fingerprint(backbone)
    assert model_fingerprint(adapted) == note


def test_other_libraries_open_it(scene, tmp_path, backbone):
    path = run(scene, tmp_path / 'out.parquet', backbone)
    geopandas = pytest.importorskip('geopandas')
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 32632
    assert frame.geometry.is_valid.all()
    west, north = frame.total_bounds[[0, 3]]
    few = geopandas.read_parquet(path, bbox=(west, north - 10, west + 900, north))
    assert 0 < len(few) < len(frame)
    duckdb = pytest.importorskip('duckdb')
    rows = duckdb.sql(f"select len(embedding), bbox.xmin from '{path}'").fetchall()
    assert [row[0] for row in rows] == [24] * len(frame)
    assert rows[0][1] == frame.geometry.bounds.minx[0]


def test_killed_three_times_and_resumed_gives_the_same_bytes(
    scene, tmp_path, backbone, monkeypatch
):
    whole = run(scene, tmp_path / 'whole.parquet', backbone).read_bytes()
    target, seen = tmp_path / 'out.parquet', []
    predict = ExploraKNNTask.predict_batch
    for _ in range(3):
        left = [1]

        def cut(self, batch, left=left):
            if not left:
                raise RuntimeError('power cut')
            left.pop()
            seen.append(int(batch['part']))
            return predict(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(ExploraKNNTask, 'predict_batch', cut)
            with pytest.raises(RuntimeError, match='power cut'):
                run(scene, target, backbone)
        assert not target.exists()
    assert seen == [0, 1, 2]
    assert run(scene, target, backbone).read_bytes() == whole
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.out')]


def test_two_processes_give_what_one_gives(scene, tmp_path, backbone):
    whole = run(scene, tmp_path / 'whole.parquet', backbone).read_bytes()
    target = tmp_path / 'out.parquet'
    for share in ('1/2', '0/2'):
        run(scene, target, backbone, share=share)
        assert not target.exists()
    assert run(scene, target, backbone).read_bytes() == whole


def test_parts_of_another_model_are_not_used(scene, tmp_path, backbone):
    other = ViT(**backbone.arguments).eval()
    whole = run(scene, tmp_path / 'whole.parquet', other).read_bytes()
    target = tmp_path / 'out.parquet'
    run(scene, target, backbone, share='0/2')
    assert run(scene, target, other).read_bytes() == whole


def test_prediction_by_a_task_writes_the_same_rows(scene, tmp_path, backbone):
    expected = pq.read_table(run(scene, tmp_path / 'out.parquet', backbone))
    task = ExploraKNNTask(model=deepcopy(backbone), weights=None)
    writer = EmbeddingWriter(tmp_path / 'predicted.parquet')
    Trainer(callbacks=[writer], logger=False, **QUIET).predict(
        task, ScenesDataModule(scene, batch_size=4, size=SIZE)
    )
    assert pq.read_table(tmp_path / 'predicted.parquet').equals(expected)


@pytest.mark.parametrize('dtype', ['float16', 'int8'])
def test_smaller_numbers(dtype, scene, tmp_path, backbone):
    expected = pq.read_table(run(scene, tmp_path / 'whole.parquet', backbone))
    table = pq.read_table(run(scene, tmp_path / 'out.parquet', backbone, dtype=dtype))
    values = np.array(table['embedding'].to_pylist(), np.float32)
    if dtype == 'int8':
        assert (np.abs(values).max(1) == 127).all()
        values *= table['scale'].to_numpy()[:, None]
    wanted = np.array(expected['embedding'].to_pylist())
    assert np.abs(values - wanted).max() < 0.02
    duckdb = pytest.importorskip('duckdb')
    path = tmp_path / 'out.parquet'
    rows = duckdb.sql(f"select len(embedding) from '{path}'").fetchall()
    assert rows == [(24,)] * len(table)


def test_scenes_in_several_systems_get_one_that_is_stated(tmp_path, backbone, caplog):
    root = write_scenes(tmp_path / 'scenes')
    caplog.set_level('INFO')
    table = pq.read_table(run(root, tmp_path / 'out.parquet', backbone))
    assert 'EPSG:32632, EPSG:32633' in caplog.text
    assert 'OGC:CRS84' in caplog.text
    geo = json.loads(table.schema.metadata[b'geo'])['columns']['geometry']
    assert geo['crs']['id'] == {'authority': 'OGC', 'code': 'CRS84'}
    rows = [row for row in table.to_pylist() if 'zone33' in row['scene']]
    with rasterio.open(rows[0]['scene']) as file:
        corner = Transformer.from_crs(file.crs, 4326, always_xy=True).transform(
            file.transform.c, file.transform.f
        )
    found = shapely.from_wkb(rows[0]['geometry']).exterior.coords[0]
    assert found == pytest.approx(corner, abs=1e-12)
    chosen = run(root, tmp_path / 'b.parquet', backbone, crs='EPSG:3857')
    geo = json.loads(pq.read_schema(chosen).metadata[b'geo'])['columns']['geometry']
    assert geo['crs']['id']['code'] == 3857


def test_virtual_raster_is_one_scene(scene, tmp_path, backbone):
    mosaic = tmp_path / 'mosaic.vrt'
    mosaic.write_text(stack_bands({'tile': str(scene)}))
    rows = pq.read_table(run(mosaic, tmp_path / 'a.parquet', backbone)).to_pylist()
    plain = pq.read_table(run(scene, tmp_path / 'b.parquet', backbone)).to_pylist()
    assert {row['scene'] for row in rows} == {str(mosaic)}
    for name in ('index', 'geometry', 'no_data', 'embedding'):
        assert [row[name] for row in rows] == [row[name] for row in plain]


def test_stac_items(tmp_path, backbone):
    items = write_stac(tmp_path / 'stac')
    assets = ['B04', 'B03', 'B02']
    path = run(items, tmp_path / 'out.parquet', backbone, assets=assets)
    rows = pq.read_table(path).to_pylist()
    assert {row['scene'] for row in rows} == {'item0', 'item1'}
    assert rows[0]['time'].isoformat() == '2020-01-10T10:20:30+00:00'


def test_folder_of_images_has_the_same_file_without_geometry(
    images, tmp_path, backbone
):
    table = pq.read_table(run(images, tmp_path / 'out.parquet', backbone))
    assert table.column_names == ['index', 'path', 'label', 'embedding']
    assert table['label'].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert b'geo' not in table.schema.metadata
    one = run(images, tmp_path / 'b.parquet', backbone, batch_size=6)
    other = np.array(pq.read_table(one)['embedding'].to_pylist())
    assert np.allclose(other, table['embedding'].to_pylist(), atol=1e-5)


def test_small_scenes_are_seen_whole(tmp_path, backbone):
    """Chips below the size of a window are enlarged, not padded."""
    for number in range(2):
        write_scene(tmp_path / 'chips' / f'{number}.tif', size=(16, 16), scene=number)
    rows = pq.read_table(run(tmp_path / 'chips', tmp_path / 'o.parquet', backbone))
    assert [row['width'] for row in rows.to_pylist()] == [16, 16]


# Bad input --------------------------------------------------------------------------


def test_scenes_without_any_data(tmp_path, backbone):
    empty = write_scene(tmp_path / 'empty.tif', size=(64, 64), hole=(0, 64, 0, 64))
    with pytest.raises(ValueError, match=r'empty.tif has no data at all, so .* check'):
        run(empty, tmp_path / 'out.parquet', backbone)


def test_one_unreadable_scene_among_many(tmp_path, backbone):
    root = write_scenes(tmp_path / 'scenes')
    (root / 'a_20200110.tif').write_bytes(b'not a raster')
    with pytest.raises(ValueError, match=r'1 scenes cannot be used, such as .*/a_2020'):
        run(root, tmp_path / 'out.parquet', backbone)
    path = run(root, tmp_path / 'out.parquet', backbone, on_error='skip')
    assert len(set(pq.read_table(path)['scene'].to_pylist())) == 3


def test_a_scene_whose_pixels_are_damaged_is_left_out(tmp_path, backbone):
    root = write_scenes(tmp_path / 'scenes')
    damaged = root / 'a_20200110.tif'
    # A copy has its header in front of the pixels.
    rasterio.shutil.copy(damaged, tmp_path / 'copy.tif', driver='GTiff')
    content = (tmp_path / 'copy.tif').read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match='a_20200110') as caught:
        run(root, tmp_path / 'out.parquet', backbone)
    # GDAL's own words, where rasterio says that an earlier exception has them.
    assert 'previous exception' not in str(caught.value)
    assert 'IReadBlock failed' in str(caught.value)
    assert '..' not in str(caught.value)
    path = run(root, tmp_path / 'out.parquet', backbone, on_error='skip')
    scenes = pq.read_table(path)['scene'].to_pylist()
    counts = {scene: scenes.count(scene) for scene in set(scenes)}
    others = [count for scene, count in counts.items() if scene != str(damaged)]
    assert others == [25, 25, 25]
    assert 0 < counts[str(damaged)] < 25


def test_output_that_exists(scene, tmp_path, backbone):
    target = tmp_path / 'out.parquet'
    target.write_bytes(b'mine')
    with pytest.raises(FileExistsError, match='exists: choose another'):
        run(scene, target, backbone)
    run(scene, target, backbone, overwrite=True)
    assert pq.read_table(target).num_rows == 18


def test_delta_of_another_base(scene, tmp_path, backbone):
    other = ViT(**backbone.arguments)
    torch.nn.init.normal_(other.norm.weight)
    adapt(other, Adaptation((), adapter=lora(2)))
    save_delta(other, tmp_path / 'other.safetensors')
    with pytest.raises(ValueError, match='delta was trained on base'):
        run(
            scene,
            tmp_path / 'o.parquet',
            backbone,
            delta=tmp_path / 'other.safetensors',
        )


def test_full_disk(scene, tmp_path, backbone, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('torchgeo_explora.callbacks.writers.parquet.pa.OSFile', full)
    with pytest.raises(OSError, match=r'No space left.*make room'):
        run(scene, tmp_path / 'out.parquet', backbone)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'share': '2/2'}, r"\*share\* is '2/2'"),
        ({'share': 'one'}, r"\*share\* is 'one'"),
        ({'pooling': 'max'}, r"\*pooling\* is 'max'"),
        ({'dtype': 'int4'}, r"\*dtype\* is 'int4'"),
        ({'kind': 'folder'}, r"\*kind\* is 'folder'"),
        ({'crs': 'Mars'}, r"\*crs\* 'Mars' is not a coordinate system"),
    ],
)
def test_wrong_options(options, message, scene, tmp_path, backbone):
    with pytest.raises(ValueError, match=message):
        run(scene, tmp_path / 'out.parquet', backbone, **options)


@pytest.mark.parametrize('own', ['cls', 'mean'])
def test_pooling_is_that_of_the_backbone_unless_it_is_given(
    own, images, tmp_path, backbone
):
    model = deepcopy(backbone)
    model.pooling = own
    default = pq.read_table(run(images, tmp_path / 'a.parquet', model))
    given = pq.read_table(run(images, tmp_path / 'b.parquet', model, pooling=own))
    assert json.loads(default.schema.metadata[b'explora'])['pooling'] == own
    assert default['embedding'] == given['embedding']


def test_a_folder_of_plain_images_is_no_reason_to_warn(images, tmp_path, backbone):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        run(images, tmp_path / 'out.parquet', backbone)
    assert not [w for w in told if w.category is NotGeoreferencedWarning]


def test_what_fails_at_once_leaves_nothing_and_promises_nothing(
    tmp_path, backbone, caplog
):
    bands = write_scene(tmp_path / 'in' / 'a.tif', size=(64, 64))
    with caplog.at_level('INFO'), pytest.raises(ValueError, match='choose its bands'):
        run(bands, tmp_path / 'o.parquet', backbone, bands=[1, 2])
    assert 'are kept' not in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {'in'}


def test_parts_of_a_result_whose_name_begins_alike_are_kept(scene, tmp_path, backbone):
    other = tmp_path / f'.area.parquet.{"a" * 16}.parts'
    other.mkdir()
    old = tmp_path / f'.area.{"b" * 16}.parts'
    old.mkdir()
    run(scene, tmp_path / 'area', backbone)
    assert other.exists()
    assert not old.exists()
