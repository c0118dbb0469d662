"""What DINOv3 and FINO add to the objective, in runs of the command."""

import pytest
import torch
import yaml
from torchgeo.main import main

from tests.tasks.small_runs import VIT, images, stopped_at, write_config
from torchgeo_explora.adapt import read_delta
from torchgeo_explora.objectives import Guide, HeadOptions
from torchgeo_explora.tasks import ExploraDinoTask

#: On the command line, as a reader of the documentation would write it.
GUIDES = (
    '[{name: label, kind: classification, values: 2},'
    ' {name: index, adversarial: true, momentum: 0.9}]'
)
OBJECTIVE = {
    'prototypes': 32,
    'hidden_dim': 16,
    'bottleneck_dim': 8,
    'ibot_head': {'prototypes': 24, 'hidden_dim': 16, 'bottleneck_dim': 8},
    'spread': 'sigreg',
    'sigreg_directions': 16,
    'gram_weight': [0.0, 2.0],
}
VIEWS = {'local_size': 16, 'local_views': 2}


@pytest.fixture(scope='module')
def command(tmp_path_factory, folder):
    """Return what makes the arguments of a run in a folder."""
    weights = tmp_path_factory.mktemp('base') / 'base.pth'
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = {**VIT, 'rank': 4, 'objective': OBJECTIVE, 'views': VIEWS}
        task = ExploraDinoTask(**{**model, 'rank': 0})
    torch.save(task.objective.anchor.canonical_state_dict(), weights)
    model['weights'] = str(weights)

    def arguments(place):
        place.mkdir()
        path = write_config(
            *(place, 'ExploraDinoTask', model, images(folder, batch_size=4)),
            max_epochs=-1,
            max_steps=4,
            accumulate_grad_batches=2,
        )
        return ['fit', '--config', path, '--model.objective.guides', GUIDES]

    return arguments


@pytest.fixture(scope='module')
def whole(tmp_path_factory, command):
    """Return the folder of a run that was not interrupted."""
    place = tmp_path_factory.mktemp('runs') / 'whole'
    main(command(place))
    return place


def _last(place):
    return torch.load(place / 'last.ckpt', weights_only=True)


@pytest.mark.cli
def test_options_reach_the_objective_by_yaml_and_by_the_command_line(whole):
    """And a checkpoint holds them as plain values that make the task again."""
    saved = _last(whole)
    given = yaml.safe_load(GUIDES)
    options = saved['hyper_parameters']['objective']
    assert [
        {**guide, **wanted}
        for guide, wanted in zip(options['guides'], given, strict=True)
    ] == options['guides']
    objective = ExploraDinoTask.load_from_checkpoint(whole / 'last.ckpt').objective
    assert objective.options.guides == tuple(Guide(**guide) for guide in given)
    assert isinstance(objective.options.ibot_head, HeadOptions)
    assert objective.augment.anchor_size == 64


@pytest.mark.cli
def test_averages_are_in_the_checkpoint_and_the_base_and_anchor_are_not(whole):
    kept = _last(whole)['state_dict']
    steps = kept['objective.guides.heads.guide_index.steps']
    assert steps.sum() == 32  # 4 steps of 8 images, each another one
    assert not any('anchor' in name for name in kept)
    _, delta = read_delta(whole / 'last.safetensors')
    assert not any('guide' in name or 'head' in name for name in delta)


@pytest.mark.cli
def test_resumed_equals_uninterrupted(whole, command, tmp_path):
    """To the bit, with guides, SIGReg, Gram anchoring and accumulated batches."""
    arguments = command(tmp_path / 'cut')
    config = yaml.safe_load((tmp_path / 'cut' / 'config_in.yaml').read_text())
    (checkpoint,) = config['trainer']['callbacks']
    checkpoint['init_args'] |= {'every_n_train_steps': 1, 'save_top_k': -1}
    (tmp_path / 'cut' / 'config_in.yaml').write_text(yaml.safe_dump(config))
    with stopped_at(ExploraDinoTask, 2):
        main(arguments)
    stopped = tmp_path / 'cut' / 'last.ckpt'
    assert torch.load(stopped, weights_only=True)['global_step'] == 2
    main([*command(tmp_path / 'resumed'), '--ckpt_path', str(stopped)])
    first, second = (_last(place) for place in (whole, tmp_path / 'resumed'))
    assert first['global_step'] == second['global_step'] == 4
    assert first['state_dict'].keys() == second['state_dict'].keys()
    for key, value in first['state_dict'].items():
        assert torch.equal(value, second['state_dict'][key]), key


@pytest.mark.cli
def test_prototypes_of_both_heads_are_frozen_at_first(command, tmp_path):
    command(tmp_path / 'frozen')
    config = yaml.safe_load((tmp_path / 'frozen' / 'config_in.yaml').read_text())
    arguments = config['model']['init_args']
    task = ExploraDinoTask(**arguments)
    group, still = task.parameter_groups()
    found = {id(p) for p in still['params']}
    heads = (task.objective.head, task.objective.ibot_head)
    assert found == {id(p) for head in heads for p in head.prototypes.parameters()}
    assert not found & {id(p) for p in group['params']}
