"""Geometry columns of GeoParquet."""

import json

import numpy as np
import pyarrow as pa
import pytest
import shapely
from pyproj import CRS

from torchgeo_explora.callbacks.writers.geoparquet import (
    geo_metadata,
    geometry_columns,
    output_crs,
)

SQUARE = np.array([[[0, 1], [0, 0], [1, 0], [1, 1]]], float)


def test_geometries_of_one_system_are_not_touched():
    found = geometry_columns(SQUARE / 3, ['EPSG:32632'], CRS.from_epsg(32632))
    shape = shapely.from_wkb(found['geometry'][0].as_py())
    assert shape.bounds == (0, 0, 1 / 3, 1 / 3)
    assert found['bbox'].to_pylist() == [
        {'xmin': 0, 'ymin': 0, 'xmax': 1 / 3, 'ymax': 1 / 3}
    ]


def test_window_across_the_date_line_becomes_two_polygons():
    corners = np.array([[[179, 1], [179, 0], [-179, 0], [-179, 1]]], float)
    crs = CRS.from_user_input('OGC:CRS84')
    found = geometry_columns(corners, ['OGC:CRS84'], crs)
    shape = shapely.from_wkb(found['geometry'][0].as_py())
    assert shape.geom_type == 'MultiPolygon'
    assert sorted(part.bounds for part in shape.geoms) == [
        (-180, 0, -179, 1),
        (179, 0, 180, 1),
    ]


def test_without_rows_no_bounds_are_stated():
    sides = ['xmin', 'ymin', 'xmax', 'ymax']
    boxes = pa.StructArray.from_arrays([pa.array([], pa.float64())] * 4, sides)
    geo = json.loads(geo_metadata(CRS.from_epsg(4326), boxes)['geo'])
    assert 'bbox' not in geo['columns']['geometry']


def test_one_system_is_kept_and_several_become_degrees():
    assert output_crs(['EPSG:32632', 'EPSG:32632']).to_epsg() == 32632
    assert output_crs(['EPSG:32632', 'EPSG:32633']) == CRS.from_user_input('OGC:CRS84')
    with pytest.raises(ValueError, match='is not a coordinate system'):
        output_crs([], 'Mars')
