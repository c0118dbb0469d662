"""Arguments of data sets that data modules hand on: known to the command line."""

import inspect

import pytest
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torchgeo.datamodules import BaseDataModule
from torchgeo.main import main

from torchgeo_explora import datamodules, datasets

#: Data set of each module, and the arguments that the module itself gives.
#: What the recipes of WILDS leave to the data set they build on.
TABLE = ('index_dir', 'max_missing', 'on_error', 'transforms')
HANDED_ON = {
    'CSVDataModule': ('CSVDataset', {'split'}),
    'Camelyon17DataModule': ('Camelyon17', {'split'}),
    'FMoWRGBDataModule': ('FMoWRGB', {'split', 'csv', 'size'}),
    'FMoWSentinelDataModule': ('FMoWSentinel', {'split', 'csv'}),
    'FMoWTemporalDataModule': ('FMoWTemporal', {'split', 'csv'}),
    'GlobalWheatDataModule': ('GlobalWheat', {'split'}),
    'IWildCamDataModule': ('IWildCam', {'split'}),
    'ImageFolderDataModule': ('ImageFolder', {'split'}),
    'NAIPLandCoverDataModule': ('NAIPLandCover', {'split'}),
    'ScenesDataModule': ('SceneWindows', set()),
    'SyntheticScenesDataModule': ('SyntheticScenes', {'split', 'length'}),
}


def plain(value):
    if isinstance(value, Namespace | datasets.CSVColumns):
        return vars(value)
    return list(value) if isinstance(value, tuple) else value


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, 'data')
    return parser, parser.parse_args(list(arguments))


@pytest.mark.parametrize('name', HANDED_ON)
def test_arguments_of_the_data_set_have_its_defaults(name):
    dataset, given = HANDED_ON[name]
    parameters = dict(inspect.signature(getattr(datasets, dataset)).parameters)
    if parameters.pop('table', None):
        of_table = inspect.signature(datasets.CSVDataset).parameters
        parameters |= {name: of_table[name] for name in TABLE}
    _, config = parse(f'--data=torchgeo_explora.datamodules.{name}')
    found = vars(config.data.init_args)
    handed_on = parameters.keys() - given
    assert handed_on <= found.keys()
    for argument in handed_on:
        assert plain(found[argument]) == plain(parameters[argument].default)


def test_a_list_of_modules_is_complete():
    others = {'PreparedDataModule', 'RasterSceneDataModule'}
    assert set(datamodules.__all__) == HANDED_ON.keys() | others


def test_a_prepared_data_set_can_be_checked_byte_by_byte(tmp_path):
    parser, config = parse(
        '--data=torchgeo_explora.datamodules.PreparedDataModule',
        f'--data.root={tmp_path}',
        '--data.check=sha256',
        '--data.on_error=skip',
    )
    data = parser.instantiate_classes(config).data
    assert data.kwargs['check'] == 'sha256'
    assert data.kwargs['on_error'] == 'skip'


def test_wrong_values_and_names_are_refused_by_the_parser():
    module = '--data=torchgeo_explora.datamodules.ScenesDataModule'
    with pytest.raises(ArgumentError, match='Parser key "length"'):
        parse(module, '--data.length=many')
    with pytest.raises(ArgumentError, match='lenght'):
        parse(module, '--data.lenght=3')


@pytest.mark.filterwarnings('ignore:LightningCLI')
def test_help_lists_the_arguments_of_the_data_set(capsys):
    with pytest.raises(SystemExit):
        main(['fit', '--data.help=torchgeo_explora.datamodules.ScenesDataModule'])
    text = ' '.join(capsys.readouterr().out.split())
    assert '--data.max_invalid MAX_INVALID Largest share of a window' in text
    assert '--data.batch_size BATCH_SIZE Samples in a batch' in text
    assert '--data.bands+ BANDS Bands to return and their order' in text
