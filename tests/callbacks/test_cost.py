"""The cost of a run: what is counted, what adds up, energy and carbon."""

import json
import sys
from types import SimpleNamespace

import fsspec
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from torchgeo_explora.callbacks import Cost
from torchgeo_explora.callbacks.cost import callback as cost_module
from torchgeo_explora.callbacks.cost import cost_line, read_cost
from torchgeo_explora.callbacks.cost.energy import DeviceMeter

pytestmark = pytest.mark.filterwarnings('ignore')


class Model(LightningModule):
    planned_steps = 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.objective = SimpleNamespace(augment=torch.nn.Identity())

    def training_step(self, batch):
        return self.layer(self.objective.augment(batch['image'])).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets; an image takes 2 TFLOP."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(cost_module.time, 'monotonic', lambda: clock.now)
    monkeypatch.setattr(cost_module, 'image_operations', lambda *_: 2e12)
    return clock


def images(count=10):
    return DataLoader([{'image': torch.rand(2)} for _ in range(count)], batch_size=4)


def fit(place, clock, cost, steps=3, seconds=1800, checkpoint=None):
    def ahead(*_):
        """Let time pass in each batch."""
        clock.now += seconds

    model = Model()
    model.on_train_batch_start = ahead
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=place,
        callbacks=[cost],
    )
    trainer.fit(model, images(), ckpt_path=checkpoint)
    return trainer


def test_file_has_time_images_operations_energy_and_carbon(tmp_path, clock):
    fit(tmp_path, clock, Cost(power=200, intensity=0.4))
    found = read_cost(tmp_path)
    assert (found['steps'], found['planned_steps']) == (3, 3)
    # The last of three batches is smaller.
    assert found['images'] == 10
    assert found['tflop'] == 20
    assert found['wall_seconds'] == 3 * 1800
    assert found['device_hours'] == 1.5
    assert found['energy_kwh'] == pytest.approx(1.5 * 200 / 1000)
    assert found['kg_co2e'] == pytest.approx(0.3 * 0.4)
    assert found['energy_source'] == 'estimated: device hours x 200 W per device'
    assert '4 S^2 D' in found['tflop_formula']
    assert cost_line(found) == (
        '1.5 device hours, 10 images, 20 TFLOP, 0.3 kWh, 0.12 kg CO2e'
    )


def test_nothing_is_estimated_unless_asked(tmp_path, clock):
    fit(tmp_path, clock, Cost())
    content = json.loads((tmp_path / 'cost.json').read_text())
    assert content['energy_kwh'] is None
    assert content['kg_co2e'] is None
    assert 'energy_kwh' not in read_cost(tmp_path)


def test_a_resumed_run_adds_up(tmp_path, clock):
    trainer = fit(tmp_path, clock, Cost(power=100), steps=2)
    trainer.save_checkpoint(tmp_path / 'two.ckpt')
    clock.now += 1e6  # between the two parts
    fit(tmp_path, clock, Cost(power=100), checkpoint=tmp_path / 'two.ckpt')
    found = read_cost(tmp_path)
    # This plain loader starts again, with a whole batch.
    assert (found['steps'], found['images'], found['tflop']) == (3, 12, 24)
    assert found['wall_seconds'] == 3 * 1800


def test_the_cost_follows_the_run_to_another_place(tmp_path, clock, monkeypatch):
    """And no folder here is named like its address."""
    monkeypatch.chdir(tmp_path)
    fit('memory://explora/cost', clock, Cost(power=100))
    content = json.loads(fsspec.filesystem('memory').cat('/explora/cost/cost.json'))
    assert (content['steps'], content['images']) == (3, 10)
    assert not [*tmp_path.iterdir()]
    fit(tmp_path, clock, Cost(folder='memory://explora/elsewhere'))
    assert fsspec.filesystem('memory').exists('/explora/elsewhere/cost.json')
    assert not [*tmp_path.iterdir()]


def test_a_delta_says_only_what_depends_on_the_run_alone(tmp_path, clock):
    """Equal runs on other machines have equal deltas, to the byte."""
    cost = Cost(power=100, intensity=0.4)
    fit(tmp_path, clock, cost)
    assert cost.metadata() == {'images': '10', 'tflop': '20'}


def test_an_interrupted_run_leaves_its_cost(tmp_path, clock, monkeypatch):
    def stop(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, 'training_step', stop)
    with pytest.raises(SystemExit):
        fit(tmp_path, clock, Cost())
    assert read_cost(tmp_path)['wall_seconds'] == 1800


@pytest.mark.parametrize('kind', [OSError, RuntimeError])
def test_a_full_disk_does_not_hide_what_ended_the_run(
    tmp_path, clock, monkeypatch, kind
):
    """Nor does what file systems of other machines raise instead of OSError."""

    def stop(self, batch):
        raise ZeroDivisionError

    def full(path):
        raise kind('no space left')

    monkeypatch.setattr(Model, 'training_step', stop)
    monkeypatch.setattr(cost_module, 'replacing', full)
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, clock, Cost())


def fake_nvml(monkeypatch, joules):
    """Install a `pynvml` whose devices have counted these energies, one after other."""

    class NVMLError(Exception):
        pass

    def read(handle):
        if joules is None:
            raise NVMLError('not supported')
        return 1000 * joules.pop(0)

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, 'pynvml', fake)
    properties = SimpleNamespace(uuid='1234')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)


def test_devices_report_their_energy(monkeypatch):
    fake_nvml(monkeypatch, [100.0, 200.0, 100.0 + 1.8e6, 200.0 + 5.4e6])
    meter = DeviceMeter.of([torch.device('cuda', 0), torch.device('cuda', 1)])
    assert meter.kwh() == pytest.approx(2.0)  # 7.2 MJ


def test_devices_without_a_counter_have_no_meter(monkeypatch):
    fake_nvml(monkeypatch, None)
    assert DeviceMeter.of([torch.device('cuda', 0)]) is None
    assert DeviceMeter.of([torch.device('cpu')]) is None


def test_nvml_that_is_missing_is_named(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    with caplog.at_level('INFO'):
        assert DeviceMeter.of([torch.device('cpu')]) is None
        assert not caplog.messages
        assert DeviceMeter.of([torch.device('cuda', 0)]) is None
    assert 'pip install nvidia-ml-py' in caplog.text


def test_what_is_measured_goes_before_the_estimate(tmp_path, clock, monkeypatch):
    meter = SimpleNamespace(
        source='a meter', intensity=None, kwh=lambda: 5.0, stop=lambda: None
    )
    monkeypatch.setattr(cost_module.DeviceMeter, 'of', lambda devices: meter)
    trainer = fit(tmp_path, clock, Cost(power=100), steps=2)
    assert read_cost(tmp_path)['energy_kwh'] == 5
    assert read_cost(tmp_path)['energy_source'] == 'a meter'
    trainer.save_checkpoint(tmp_path / 'two.ckpt')
    # The rest runs where nothing is measured: the sum is not known.
    monkeypatch.setattr(cost_module.DeviceMeter, 'of', lambda devices: None)
    fit(tmp_path, clock, Cost(power=100), checkpoint=tmp_path / 'two.ckpt')
    assert read_cost(tmp_path)['energy_kwh'] == pytest.approx(1.5 * 0.1)


def test_codecarbon_that_is_missing_is_named(tmp_path, clock, monkeypatch):
    monkeypatch.setitem(sys.modules, 'codecarbon', None)
    with pytest.raises(ImportError, match='pip install codecarbon'):
        fit(tmp_path, clock, Cost(country='DEU'))


def test_codecarbon_measures_the_machine(tmp_path, clock, monkeypatch):
    class Tracker:
        def __init__(self, output_handlers, country_iso_code, **_):
            assert country_iso_code == 'DEU'
            (self.handler,) = output_handlers

        def start(self):
            pass

        def flush(self):
            total = SimpleNamespace(energy_consumed=2.0, emissions=0.7)
            self.handler.out(total, total)

        stop = start

    fake = SimpleNamespace(OfflineEmissionsTracker=Tracker, __version__='3')
    monkeypatch.setitem(sys.modules, 'codecarbon', fake)
    output = SimpleNamespace(BaseOutput=object)
    monkeypatch.setitem(sys.modules, 'codecarbon.output', output)
    fit(tmp_path, clock, Cost(country='DEU'))
    found = read_cost(tmp_path)
    assert found['energy_kwh'] == 2
    assert found['kg_co2e'] == pytest.approx(0.7)
    assert found['energy_source'] == 'codecarbon 3: the whole machine, in DEU'


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'power': 0}, r'\*power\* is 0'),
        ({'intensity': -1.0}, r'\*intensity\* is -1'),
        ({'intensity': 0.4, 'country': 'DEU'}, 'both set'),
    ],
)
def test_impossible_settings_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Cost(**arguments)


def test_reading_takes_only_what_cost_writes(tmp_path):
    assert read_cost(tmp_path) == {}
    content = {
        'images': 'many',
        'tflop': -1,
        'device': '<script>',
        'own': 3,
        'devices': True,
        'wall_seconds': 12.5,
    }
    (tmp_path / 'cost.json').write_text(json.dumps(content))
    assert read_cost(tmp_path) == {'device': '<script>', 'wall_seconds': 12.5}
    (tmp_path / 'cost.json').write_text('{"images": Infinity}')
    assert read_cost(tmp_path) == {}
    for damaged in ('{"images"', '[1]', '[' * 100_000):
        (tmp_path / 'cost.json').write_text(damaged)
        with pytest.raises(ValueError, match=r'cost\.json'):
            read_cost(tmp_path)
