"""The GPU benchmark at toy size on a CPU, and what its numbers rest on."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_explora.adapt import Adaptation, adapt, load_delta, save_delta
from torchgeo_explora.functional import dino_loss
from torchgeo_explora.models import ViT

ROOT = Path(__file__).parent.parent
PARTS = (*('parity', 'step', 'plain_port', 'masked', 'views', 'adaptation', 'ratios'),)
SMALL = {'embed_dim': 24, 'depth': 2, 'num_heads': 2}
CPU = torch.device('cpu')


@pytest.fixture
def bench(monkeypatch):
    """Import a script of the folder as it sees its siblings."""
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    return importlib.import_module


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Three classes of noise that differ in colour, and weights of a tiny ViT."""
    folder = tmp_path_factory.mktemp('inputs')
    generator = np.random.default_rng(0)
    for split, images in (('train', 8), ('val', 3), ('test', 3)):
        for channel in range(3):
            place = folder / 'data' / split / f'class_{channel}'
            place.mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 160, (32, 32, 3))
                pixels[..., channel] += 60
                Image.fromarray(pixels.astype('uint8')).save(place / f'{number}.png')
    vit = timm.create_model('vit_tiny_patch16_224', num_classes=0, **SMALL)
    save_file(vit.state_dict(), folder / 'weights.safetensors')
    return ['--data', folder / 'data', '--weights', folder / 'weights.safetensors']


@pytest.mark.cli
def test_toy_run_measures_every_part(inputs, tmp_path):
    output = tmp_path / 'results' / 'toy.json'
    command = [sys.executable, ROOT / 'benchmarks' / 'gpu.py', '--output', output]
    command += ['--device', 'cpu', '--tiny', '--steps', '3', *inputs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())

    assert {'command', 'date', 'commit', 'seconds', *PARTS} <= set(found)
    assert {'device', 'cpu', 'cores', 'memory_gib'} <= set(found['machine'])
    assert {'torch', 'timm', 'peft', 'lightning', 'kornia', 'torchgeo'} <= set(
        found['versions']
    )
    assert {part: found[part]['status'] for part in PARTS} == dict.fromkeys(
        PARTS, 'done'
    )
    assert found['parity']['within'] is True
    assert set(found['parity']['step_bfloat16']['largest']) == {
        'terms',
        'gradients',
        'gradient_norms',
    }

    kernels = found['step']['kernels']
    assert kernels['status'] == 'done'
    assert kernels['fused'] is True
    assert all('_for_cpu' in name for name in kernels['attention'])
    assert found['step']['projections']['split_over_fused'] > 0
    for run in found['step']['runs'].values():
        parts = dict(run['milliseconds'])
        assert set(parts) == {
            'augment',
            'masks',
            'teacher',
            'targets',
            'student',
            'loss',
            'backward',
            'optimizer',
            'average',
            'step',
        }
        assert all(value > 0 for value in parts.values())
        assert run['images_per_second'] == pytest.approx(4000 / parts['step'], rel=0.01)
        rate = 1000 * run['tflop'] / parts['step']
        peak = found['step']['matmul_bfloat16']['tflops']
        assert run['mfu'] == pytest.approx(rate / peak, rel=0.01)
    assert len(found['plain_port']['runs']) == 2
    for port in found['plain_port']['runs'].values():
        assert port['parameters']['trained'] > 0
    for row in found['masked']['runs'].values():
        assert row['status'] == 'done'
        assert row['images_per_second'] > 0
    # Three ways of ours against (a) and (b), MAE and views.
    assert len(found['ratios']) == len(('status', 'seconds')) + 3 * 2 + 2

    adaptation = found['adaptation']
    keys = {'knn_val', 'knn_test', 'linear_val', 'linear_test', 'linear_penalty'}
    assert set(adaptation['before']) == keys
    assert set(adaptation['variants']) == {'photometric', 'geometric'}
    for variant in adaptation['variants'].values():
        assert set(variant['after']) == keys
        assert [point['step'] for point in variant['curve']] == [0, 1, 2, 3]
        assert variant['steps'] == 3
        delta = output.with_name(variant['delta']['file'])
        base = ViT('vit_tiny_patch16_224', inputs[3], image_size=32, **SMALL)
        assert load_delta(base, delta).record.adapted.adaptation.name(2) == '[2]-r64'


@pytest.mark.cli
def test_toy_run_on_a_cpu_has_every_row(bench, tmp_path, monkeypatch):
    cpu, contenders = bench('cpu'), bench('contenders')
    order = []

    def contend(name, options):
        # In this process: to import everything twelve times over takes minutes.
        order.append(name)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            contenders.main([name, '--tiny', '--images', '4'])
        # One process has one largest size.
        return json.loads(out.getvalue()) | {'peak_memory_gib': 1.0}

    monkeypatch.setattr(cpu, 'contend', contend)
    monkeypatch.setattr(cpu, 'imports', lambda _: {'both_over_torchgeo_tasks': 1.0})
    output = tmp_path / 'cpu.json'
    assert cpu.main(['--tiny', '--rounds', '2', '--output', str(output)]) == 0
    found = json.loads(output.read_text())
    assert {found[part]['status'] for part in cpu.PARTS} == {'done'}
    assert {'command', 'commit', 'machine', 'versions', 'seconds'} <= set(found)
    assert len(found['ratios']) == 2 + len(cpu.RATIOS) + len(('imports', 'checkpoint'))
    assert order[:12] == [*cpu.RACES[0]] * 2
    for name in ('lightly_float32', 'peft_float32', 'lightly_bfloat16'):
        assert set(found[name]['milliseconds']) == {
            *('augment', 'masks', 'teacher', 'student', 'loss', 'backward'),
            *('optimizer', 'average', 'step'),
        }
    for name, record in found.items():
        if name.startswith(('lightly', 'explora', 'peft', 'mae')):
            assert len(record['rounds']) == 2
            assert 0 < record['mfu'] < 1
            assert record['tflop'] > 0
            assert record['images_per_second'] > 0


def test_ratios_are_taken_within_a_round(bench):
    cpu = bench('cpu')

    def record(*times):
        rounds = [{'milliseconds': {'step': t}, 'peak_memory_gib': t} for t in times]
        return {'status': 'done'} | cpu.summary(rounds)

    content = {part: {'status': 'not run'} for part in cpu.PARTS}
    content['mae_explora'] = record(2.0, 9.0, 8.0)
    # The last round was cut off.
    content['mae_lightly'] = record(4.0, 27.0)
    found = cpu.ratios(content)['MAE step against (c)']
    assert found == {'speed': 2.5, 'rounds': [2.0, 3.0], 'memory': 0.4165}
    assert content['mae_explora']['milliseconds'] == {'step': 8.0}
    assert content['mae_lightly']['peak_memory_gib'] == 15.5


@pytest.mark.parametrize('late', [False, True])
def test_contender_that_fails_or_comes_late_keeps_its_rounds(
    bench, tmp_path, monkeypatch, late
):
    cpu = bench('cpu')
    found = iter(range(1, 9))

    def contend(name, _):
        number = next(found)
        if late and number == 3:
            monkeypatch.setattr(cpu, 'BEGAN', -1e9)
        if not late and number == 4:
            raise RuntimeError('no such kernel')
        return {'milliseconds': {'step': float(number)}, 'peak_memory_gib': 1.0}

    monkeypatch.setattr(cpu, 'contend', contend)
    output = tmp_path / 'cpu.json'
    names = ['mae_lightly', 'mae_explora', 'ratios']
    code = cpu.main(['--output', str(output), '--only', *names])
    content = json.loads(output.read_text())
    status = {name: content[name]['status'] for name in names[:2]}
    # Each took part in the first round, one in the second.
    ratio = content['ratios']['MAE step against (c)']
    assert ratio['rounds'] == [0.5]
    assert content['mae_explora']['rounds'][0]['milliseconds']['step'] == 2.0
    if late:
        assert code == 0
        assert 'were over' in content['mae_explora']['reason']
        assert len(content['mae_lightly']['rounds']) == 2
    else:
        assert code == 1
        assert status == {'mae_lightly': 'done', 'mae_explora': 'failed'}
        # The third round of the other goes on.
        assert len(content['mae_lightly']['rounds']) == 3


@pytest.mark.cli
def test_toy_run_on_a_cpu_measures_in_processes_of_their_own(tmp_path):
    output = tmp_path / 'cpu.json'
    command = [sys.executable, ROOT / 'benchmarks' / 'cpu.py', '--output', output]
    command += ['--tiny', '--images', '4', '--rounds', '1']
    command += ['--only', 'explora_bfloat16', 'ratios']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(output.read_text())
    assert done.returncode == 0, found
    assert 'explora_bfloat16: ' in done.stdout
    assert found['explora_float32']['reason'] == 'left out by --only'
    assert found['ratios']['status'] == 'not run'
    assert 0 < found['explora_bfloat16']['peak_memory_gib'] < 2


def test_attention_that_is_not_fused_is_noticed(bench):
    steps, training = bench('steps'), bench('training')
    student = ViT('vit_small_patch14_dinov2', image_size=56, **SMALL)
    objective = training.build(student, training.TINY, CPU)
    assert steps.kernels(objective, 2, CPU)['fused']
    with sdpa_kernel(SDPBackend.MATH):
        assert not steps.kernels(objective, 2, CPU)['fused']


def test_checkpoints_of_a_delta_are_smaller(bench, tmp_path):
    found = bench('checkpoints').write_times(tmp_path, True)
    assert found['resumable_over_whole']['mib'] < 1
    kept = found['contents']
    assert kept["teacher's delta"] == kept['delta'] > 0
    assert kept['moments of head'] == pytest.approx(2 * kept['head'], abs=0.011)
    assert set(found['files']) == {
        *('delta', 'resumable', 'backbone', 'resumable_whole'),
    }
    assert not [*tmp_path.iterdir()]


def test_views_by_pil_are_those_of_a_batch(bench):
    views = bench('views').PILViews(1)[0]
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [
        (3, 98, 98)
    ] * 8


def test_port_with_lora_trains_the_adapter_the_last_block_and_the_norms(bench):
    port, training = bench('plain_port'), bench('training')
    model = port.PlainPort('vit_small_patch14_dinov2', training.TINY, True, **SMALL)
    names = {n for n, p in model.student.vit.named_parameters() if p.requires_grad}
    assert any('lora_A' in name for name in names)
    assert 'blocks.1.mlp.fc1.weight' in names
    assert 'blocks.0.norm1.weight' in names
    assert 'blocks.0.mlp.fc1.weight' not in names
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_parts_that_cannot_run_say_why(bench, tmp_path):
    output = tmp_path / 'results.json'
    gpu = bench('gpu')
    arguments = ['--output', str(output), '--device', 'cpu', '--tiny', '--parts']
    assert gpu.main([*arguments, 'adaptation']) == 0
    found = json.loads(output.read_text())
    assert {found[part]['status'] for part in PARTS} == {'not run'}
    assert found['adaptation']['reason'] == 'it needs --data and --weights'
    assert found['step']['reason'] == 'left out by --parts'
    # Started long ago: the time is over.
    assert gpu.main([*arguments, 'step', '--minutes', '0']) == 0
    found = json.loads(output.read_text())
    assert found['step']['reason'] == '--minutes 0.0 were over'


def test_failed_part_is_written_down_and_costs_no_other(bench, tmp_path, monkeypatch):
    gpu = bench('gpu')

    def fail(*_):
        raise RuntimeError('no such kernel')

    monkeypatch.setattr(bench('parity'), 'run', fail)
    monkeypatch.setattr(bench('steps'), 'run', lambda record, *_: record.update(ok=1))
    output = tmp_path / 'results.json'
    arguments = ['--output', str(output), '--device', 'cpu', '--tiny']
    assert gpu.main([*arguments, '--parts', 'parity', 'step']) == 1
    found = json.loads(output.read_text())
    assert found['parity']['status'] == 'failed'
    assert 'no such kernel' in found['parity']['trace']
    assert found['step']['ok'] == 1
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']


def test_part_that_is_cut_off_leaves_a_whole_file(bench, tmp_path):
    report = bench('report')
    file = tmp_path / 'results.json'
    results = report.Report(file, PARTS, {})

    def measure(record):
        record['half'] = 1
        results.save()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.run('step', measure)
    found = json.loads(file.read_text())
    assert found['step'] == {'status': 'running', 'half': 1}
    assert found['adaptation']['status'] == 'not run'


def test_parity_of_the_step_holds_and_a_wrong_loss_breaks_it(bench, monkeypatch):
    parity = bench('parity')
    assert parity.golden_step(CPU, torch.float32)['within'] is True

    def wrong(*args):
        return tuple(1.001 * term for term in dino_loss(*args))

    monkeypatch.setattr('torchgeo_explora.objectives.dinov2.dino_loss', wrong)
    found = parity.golden_step(CPU, torch.float32)
    assert found['within'] is False
    assert found['terms']['dino_local'] == pytest.approx(1e-3, rel=0.01)
    assert found['terms']['ibot'] < 1e-4
    record = {}
    parity.run(record, CPU, True)
    assert record['within'] is False


def test_parity_of_functions_breaks_where_targets_are_rounded(bench, monkeypatch):
    parity = bench('parity')
    assert parity.functions(CPU, True)['within'] is True
    exact = parity.sinkhorn_knopp
    monkeypatch.setattr(parity, 'sinkhorn_knopp', lambda x, t: exact(x, t).to(x.dtype))
    assert parity.functions(CPU, True)['within'] is False


def test_nan_never_agrees(bench):
    deviation = bench('parity').deviation
    assert deviation(torch.tensor([torch.nan, 1.0]), torch.ones(2)) == torch.inf
    assert deviation(torch.ones(2), torch.ones(2)) == 0.0


def test_formula_of_operations_agrees_with_torchs_counter(bench):
    training, flops, steps = bench('training'), bench('flops'), bench('steps')
    sizes = training.TINY
    student = ViT('vit_small_patch14_dinov2', image_size=56, **SMALL)
    objective = training.build(student, sizes, CPU, rank=4)
    torch.manual_seed(0)
    global_, local = torch.randn(2, 3, 3, 56, 56), torch.randn(2, 3, 3, 28, 28)
    mask = torch.rand(6, 16) < 0.4
    counter = FlopCounterMode(display=False)
    clock = bench('timing').Clock(CPU)
    clock.start()
    clock.mark('teacher')
    # Plain products, which torch counts one by one.
    with (
        steps.watch(objective, clock) as rows,
        sdpa_kernel(SDPBackend.MATH),
        counter,
    ):
        torch.stack(
            [*objective.terms(global_, local, mask, 0.05).values()]
        ).sum().backward()
    hidden = int(mask.sum())
    assert sum(rows['teacher']) == 6 + hidden
    assert sum(rows['student']) == 6 + hidden + 6
    found = flops.step_flops(
        student,
        objective.head,
        3,
        (56, 28),
        2,
        (sum(rows['student']), sum(rows['teacher'])),
    )
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_counter_knows_the_attention_of_a_cpu(bench):
    counter = bench('flops').counter()
    query, key, value = torch.randn(3, 2, 4, 10, 8, requires_grad=True)
    with counter:
        torch.nn.functional.scaled_dot_product_attention(
            query, key, value
        ).sum().backward()
    assert counter.get_total_flops() == 3 * 4 * (2 * 4 * 10 * 10 * 8)


def test_probe_separates_what_is_separable(bench):
    adaptation = bench('adaptation')
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    noise = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    features = noise / 10 + 2 * torch.eye(5, dtype=torch.float64)[label]
    layer = adaptation.probe(features, label, 1e-3)
    assert adaptation.accuracy(layer(features), label) == 1.0
    # The gradient of a minimum vanishes.
    layer.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(layer(features), label)
    (loss + 1e-3 / 2 * layer.weight.square().sum()).backward()
    assert layer.weight.grad.abs().max() < 1e-4


def test_learning_rate_follows_the_task(bench):
    training = bench('training')
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{'params': [w]} for w in weights], lr=1.0)

    def rates(step):
        training.set_rate(optimizer, step, 1000, 1e-3, 256)
        return [group['lr'] for group in optimizer.param_groups]

    assert rates(49) == pytest.approx([5e-4, 5e-4])
    assert rates(14)[1] == 0.0
    assert rates(15)[1] == rates(15)[0] > 0
    assert rates(1000) == pytest.approx([1e-6, 1e-6])


@pytest.mark.cli
def test_downstream_study_resumes_and_fills_its_table(bench, inputs, tmp_path):
    study = bench('eurosat_downstream')
    vit = ViT('vit_tiny_patch16_224', image_size=32)
    save_file(vit.state_dict(), tmp_path / 'weights.safetensors')
    base = ViT('vit_tiny_patch16_224', tmp_path / 'weights.safetensors', image_size=32)
    save_delta(adapt(base, Adaptation()), tmp_path / 'delta.safetensors')
    output = tmp_path / 'runs.jsonl'
    arguments = [
        '--data',
        str(inputs[1]),
        '--image-size',
        '32',
        '--output',
        str(output),
    ]
    for name in ('weights', 'delta'):
        arguments += [f'--{name}', str(tmp_path / f'{name}.safetensors')]
    arguments += ['--shares', '1', '--seeds', '2']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, 'BATCH', 8)
        patch.setattr(study, 'PROBE_STEPS', 3)
        patch.setitem(study.FINETUNING_STEPS, 1.0, 1)
        study.main([*arguments, '--methods', 'knn', 'probe'])
        first = output.read_text()
        output.write_text(first + '{"seed": 0, "met')
        study.main(arguments)
    assert output.read_text().startswith(first)
    found = study.read(output)
    done = [tuple(record[key] for key in study.Run._fields) for record in found]
    assert len(done) == len(set(done)) == 2 + 4 + 8
    assert all(
        {'command', 'commit', 'machine'} <= set(record['run']) for record in found
    )
    assert {record['precision'] for record in found} == {study.precision()}
    shown = study.table(found)
    for name in ('10-NN', 'held_out', 'paper', 'LoRA-r8', 'full fine-tuning'):
        assert name in shown
    assert '(2) |' in shown


@pytest.mark.cli
def test_study_runs_once_and_is_judged_on_the_test_split(
    bench, inputs, tmp_path, capsys, monkeypatch
):
    pytest.importorskip('scipy')
    study, contenders = bench('study'), bench('study_contenders')
    vit = ViT('vit_tiny_patch16_224', image_size=32)
    save_file(vit.state_dict(), tmp_path / 'weights.safetensors')
    mae = contenders.OBJECTIVES["MAE's objective"]
    chosen = {
        'short': contenders.Contender(2, {}, measured=(1,)),
        '12 images': contenders.Contender(2, {}, share=0.5, measured=(1,)),
        'short run': contenders.Contender(1, {}, measured=()),
        'mae': mae._replace(
            steps=1, measured=(), settings=mae.settings | {'image_size': 32}
        ),
    }
    monkeypatch.setattr(study, 'CONTENDERS', chosen)
    monkeypatch.setattr(study, 'BATCH', 8)
    small = {'image_size': 32, 'views': {'local_size': 16, 'local_views': 2}}
    monkeypatch.setattr(study, 'COMMON', contenders.COMMON | small)
    weights = str(tmp_path / 'weights.safetensors')
    given = (0, inputs[1], weights, tmp_path / 'study')
    for name in (*chosen, 'short'):
        study.run(name, *given)
    tables = bench('study_tables')
    lines = tables.rows(tmp_path / 'study' / 'study.jsonl')
    found = [(row['run'], row['step']) for row in lines]
    assert found == [
        *(('short', 0), ('short', 1), ('short', 2)),
        *(('12 images', 0), ('12 images', 1), ('12 images', 2)),
        *(('short run', 0), ('short run', 1), ('mae', 0), ('mae', 1)),
    ]
    assert all(row['trained'] > 0 and row['commit'] for row in lines)
    judge = bench('study_test_split')
    monkeypatch.setattr(judge, 'CONTENDERS', chosen)
    monkeypatch.setattr(judge, 'COMMON', contenders.COMMON | small)
    arguments = ['--data', str(inputs[1]), '--weights', weights]
    arguments += ['--only', 'short', '12 images', 'mae']
    arguments += ['--output', str(tmp_path / 'study')]
    for _ in range(2):
        monkeypatch.setattr(sys, 'argv', ['study_test_split.py', *arguments])
        judge.main()
    judged = tables.rows(tmp_path / 'study' / 'test.jsonl')
    assert [row['run'] for row in judged] == ['base', '12 images', 'mae', 'short']
    for row in judged:
        assert tables.right(row).mean() == pytest.approx(row['accuracy'], abs=1e-4)
    assert '| short | 1 |' in tables.on_test_split(judged, 'full')
    larger = contenders.Contender(2, {'image_size': 64})
    monkeypatch.setattr(judge, 'CONTENDERS', chosen | {'larger': larger})
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--only', 'short', 'larger'])
    with pytest.raises(SystemExit):
        judge.main()
    assert "'larger' has another base or size than 'short'" in capsys.readouterr().err


def test_means_over_three_seeds_are_judged(bench, tmp_path, monkeypatch):
    judge = bench('study_test_split')
    averaged = {}
    monkeypatch.setattr(
        judge, 'average_deltas', lambda deltas, mean: averaged.update({mean: deltas})
    )
    for run in ('short-0', 'short-1', 'short-2', 'full-0', 'full-1', 'rank 16-0'):
        (tmp_path / run).mkdir()
        for name in ('0000.safetensors', '0400.safetensors', 'done'):
            (tmp_path / run / name).touch()
    (tmp_path / 'full-2').mkdir()
    *_, last = judge.last_deltas(tmp_path, ['short', 'full'])
    mean = tmp_path / 'mean_of_short.safetensors'
    assert last == ('mean of 3 seeds of short', 0, mean)
    seeds = [tmp_path / f'short-{seed}' / '0400.safetensors' for seed in range(3)]
    assert averaged == {mean: seeds}


@pytest.mark.cli
def test_contenders_of_mae_are_measured_on_chips_held_out(bench, tmp_path, monkeypatch):
    study = bench('study_mae')
    names = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
    generator = np.random.default_rng(0)
    (tmp_path / 'chips').mkdir()
    place = rasterio.transform.from_origin(5e5, 5e6, 10, 10)
    profile = {'driver': 'GTiff', 'count': 10, 'height': 64, 'width': 64}
    profile |= {'crs': 'EPSG:32632', 'transform': place}
    for number in range(30):
        path = tmp_path / 'chips' / f'{number}.tif'
        with rasterio.open(path, 'w', dtype='uint16', **profile) as file:
            file.write(generator.integers(1, 4000, (10, 64, 64)).astype('uint16'))
            file.descriptions = names
    vit = ViT('vit_tiny_patch16_224', image_size=32)
    save_file(vit.state_dict(), tmp_path / 'weights.safetensors')
    monkeypatch.setattr(study, 'STEPS', (1, 2))
    given = (0, tmp_path / 'chips', str(tmp_path / 'weights.safetensors'), tmp_path)
    # Of a run of `study.py` into the same folder.
    (tmp_path / 'M-[1,12]-r16 on all-0').mkdir()
    (tmp_path / 'M-[1,12]-r16 on all-0' / 'done').touch()
    for _ in range(2):
        study.run('M-[1,12]-r16 on all', *given)
    lines = (tmp_path / 'mae.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1, 2]
    assert all(json.loads(line)['loss'] > 0 for line in lines)
    assert '| M-[1,12]-r16 on all | ' in study.table(tmp_path / 'mae.jsonl')


def test_share_explained_is_that_of_the_deviation(bench):
    true = torch.tensor([[0.0, 10.0], [2.0, 14.0]])
    explained = bench('study_mae').explained
    assert explained(true, true) == 1
    assert explained(true.mean(0).expand(2, 2), true) == pytest.approx(0)
    assert explained(true + 1, true) == pytest.approx(1 - 1 / 2.5)


def _curve(run, seed, *accuracy):
    rows = enumerate(zip((0, 25, 50, 400), accuracy, strict=True))
    same = {'run': run, 'seed': seed, 'trained': 1_500_000, 'commit': 'c'}
    return [
        same
        | {'step': step, 'images': 64 * step, 'cpu_seconds': 60.0 * number}
        | {'tflop': 1.0 * step, 'knn': value}
        for number, (step, value) in rows
    ]


def test_tables_of_the_study_have_the_right_values(bench):
    """Images of each seed, mean and deviation, and no run that was cut off."""
    pytest.importorskip('scipy')
    tables = bench('study_tables')
    lines = [
        *_curve('short', 0, 0.5, 0.56, 0.61, 0.70),
        *_curve('short', 1, 0.5, 0.49, 0.55, 0.60),
        *_curve('full', 0, 0.5, 0.51, 0.52, 0.53),
        *_curve('paper', 0, 0.5, 0.51, 0.52, 0.53)[:-1],
    ]
    accuracy = '0.6500 ± 0.0707'
    short = f'0.5000 | 1600, 3200 | 3200, 25600 | {accuracy} | {accuracy} | +17.0'
    full = '0.5000 | - | - | 0.5300 | 0.5300 | '
    assert tables.gains(lines).splitlines()[2:] == [
        f'| short | 2 | 1.50 M | {short} | -1.0 | 400 | 3.0 |',
        f'| full | 1 | 1.50 M | {full} | +0.0 | 400 | 3.0 |',
    ]
    few = [row | {'run': '70 images'} for row in lines[:8]]
    few[4:] = [row | {'knn': row['knn'] + 0.1} for row in few[4:]]
    # Each seed has a start of its own.
    cells = tables.gains(few, tables.IMAGES).splitlines()[2].split(' | ')
    assert cells[3:6] == ['0.5500 ± 0.0707', '1600, 3200', '3200, 25600']
    assert cells[8] == '-1.0'
    half = [row | {'run': 'half of the classes'} for row in lines[:4]]
    shown = '0.5000 | 1600 | 3200 | 0.7000 | 0.7000 | +0.0 | 400 | 3.0'
    assert tables.gains(half, tables.OTHERS).splitlines()[2:] == [
        f'| half of the classes | 1 | 1.50 M | {shown} |'
    ]
    names = {'short': 'short run', 'full': 'everything'}
    brief = [
        row | {'step': min(row['step'], 100), 'run': names.get(row['run'], row['run'])}
        for row in lines
    ]
    assert tables.ablation(brief).splitlines()[2:] == [
        f'| short run | 1.50 M | 2 | {accuracy} | +0.0, +0.0 |  | 3.0 |',
        '| everything | 1.50 M | 1 | 0.5300 | -17.0 |  | 3.0 |',
    ]
    brief += [
        row | {'run': 'OFT on Q, V', 'knn': row['knn'] - 0.1} for row in brief[:8]
    ]
    brief += [row | {'run': 'everything', 'seed': 1, 'knn': 0.4} for row in brief[:4]]
    # Variances of 0 (OFT) and of 4.5 (-17 and -20), one degree of freedom each.
    shown = [line.split(' | ')[4:6] for line in tables.ablation(brief).splitlines()[2:]]
    assert shown == [
        ['+0.0, +0.0', ''],
        ['-10.0, -10.0', '-10.0 ± 2.1'],
        ['-17.0, -20.0', '-18.5 ± 2.1'],
    ]


def test_intervals_of_the_study_are_over_the_same_images(bench):
    """Two runs that err on the same images differ by the rest alone."""
    pytest.importorskip('scipy')
    tables = bench('study_tables')
    base = np.arange(1003) % 2 == 0
    full, short = base | (np.arange(1003) < 100), np.ones(1003, bool)

    def row(run, right):
        accuracy = round(float(right.mean()), 4)
        packed = np.packbits(right).tobytes().hex()
        same = {'run': run, 'seed': 0, 'images': 1003}
        return same | {'accuracy': accuracy, 'right': packed}

    lines = [row('short', short), row('base', base), row('full', full)]
    table = tables.on_test_split(lines, 'full').splitlines()
    assert table[2] == '| base | 1 | 0.5005 |  | -5.0 (-6.4 to -3.7) |'
    assert table[3].startswith('| short | 1 | 1.0000 | +50.0 (')
    assert table[4].startswith('| full | 1 | 0.5503 | +5.0 (')


def test_accuracy_on_half_of_the_classes_is_that_of_half_of_the_images(bench):
    pytest.importorskip('scipy')
    tables = bench('study_tables')

    def row(run, seed, *right):
        packed = np.packbits(np.array(right, bool)).tobytes().hex()
        return {'run': run, 'seed': seed, 'images': len(right), 'right': packed}

    lines = [row('short', 0, 1, 1, 0, 0), row('short', 1, 1, 0, 0, 1)]
    expected = '| short | 2 | 0.7500 ± 0.3536 | 0.2500 ± 0.3536 |'
    assert tables.on_halves(lines).splitlines()[2:] == [expected]


def test_results_do_not_tell_the_folders_of_a_machine(bench, monkeypatch):
    report = bench('report')
    monkeypatch.setattr(sys, 'argv', ['a.py', '--data', '/home/me/data', '-n', '1/2'])
    header = report.header(torch.device('cpu'), 'abc')
    assert header['command'].endswith(' a.py --data data -n 1/2')
    results = Path(report.__file__).parent / 'results'
    for path in results.rglob('*.json*'):
        assert not re.search(r'[ "=](/[\w.-]+){2}', path.read_text()), path


def test_study_draws_the_same_share_of_each_class(bench, inputs, tmp_path):
    study = bench('eurosat_downstream')

    def drawn(share, seed, place):
        root = study.labelled_share(inputs[1], tmp_path / place, share, seed)
        return {str(path.relative_to(root)) for path in (root / 'train').glob('*/*')}

    quarter = drawn(0.25, 0, 'a')
    assert len(quarter) == 6
    assert quarter == drawn(0.25, 0, 'b')
    assert quarter != drawn(0.25, 1, 'a')
    assert quarter < drawn(0.5, 0, 'a') < drawn(1.0, 0, 'a')


def test_study_begins_with_what_fills_the_table(bench):
    study, models = bench('eurosat_downstream'), ('base', 'delta')
    runs = list(study.runs(3, models, 1))
    assert len(runs) == len(set(runs)) == 2 * (3 * 4 * 3 - 2)
    assert len(list(study.runs(3, models, 3))) == len(runs) + 2  # kNN of each delta
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run[1:] for run in runs} == {run[1:] for run in runs if run.seed == 0}


@pytest.mark.cli
def test_dense_tasks_are_measured(bench, tmp_path):
    output = tmp_path / 'dense.json'
    arguments = ['--output', str(output), '--image-size', '64', '--batch-size', '1']
    arguments += ['--steps', '1', '--cases', 'linear', 'fcos']
    assert bench('dense').main(arguments) == 0
    found = json.loads(output.read_text())
    for case in ('linear', 'fcos'):
        assert found[case]['status'] == 'done'
        assert 0 < found[case]['trained'] < found[case]['parameters']
        for stage in ('fit', 'predict'):
            assert found[case][stage]['images_per_second'] > 0
            assert 0 < found[case][stage]['peak_gib'] < 100
