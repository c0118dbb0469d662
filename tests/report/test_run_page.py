"""`explora report`: what the page of a run shows, and what it survives."""

import csv
import re
import shutil

import pytest
import torch
import yaml

from tests.report.conftest import CONFIG, METADATA, write_events, write_picture
from tests.report.html_page import Parsed, check
from torchgeo_explora.adapt import save_delta
from torchgeo_explora.analysis import block_changes
from torchgeo_explora.cli import main
from torchgeo_explora.models import ViT
from torchgeo_explora.report import read_run, report_run
from torchgeo_explora.report.changes import lora_norms, relative_changes, whole_blocks
from torchgeo_explora.report.charts import COLOURS

HOSTILE = '<script>alert(1)</script>"\'><img src=http://x.y/z onerror=alert(2)>{{7*7}}$'


def page_of(folder, **arguments):
    path, _ = report_run(folder, **arguments)
    page = Parsed(path)
    check(page)
    return page


def test_page_has_what_a_run_left(run):
    page = page_of(run)
    text = page.text
    assert page.content.startswith('<!DOCTYPE html>')
    assert 'D-[4]-r2: run' in text
    assert 'Finished: 40 of 40 optimizer steps' in text
    assert 'kNN accuracy, before → after 0.25 → 0.375' in text
    # The best is not the last.
    assert 'kNN accuracy 0.25 0.375 +0.125 0.5 at step 20' in text
    assert 'effective rank (RankMe) 12.5 13.75 +1.25' in text
    assert 'images per optimizer step 8' in text
    assert 'settings left at their defaults short' in text
    assert 'base rate 0.01' in text
    assert 'lightning.pytorch==2.6.6' in text
    metadata = read_run(run).metadata
    assert metadata['delta'] in text
    assert metadata['base'] in text
    assert 'Configuration (config.yaml)' in text
    # Four pictures, but the page draws its own curves.
    assert [image['alt'][:5] for image in page.all('img')] == [
        'Crops',
        'Patch',
        'Pictu',
    ]
    labels = [a['aria-label'] for a in page.all('svg')]
    assert labels[0] == 'kNN accuracy: 0.25 at step 0, 0.375 at step 39'
    assert 'loss: 9 at step 0, 8.125 at step 35' in labels
    assert len(labels) == 5


def test_page_shows_the_cost_with_its_formula(run):
    text = page_of(run).text
    assert 'wall time 1 h 30 min' in text
    assert 'device hours 3 (2 x a chip)' in text
    assert 'training images seen 320' in text
    assert 'operations, counted 12.5 TFLOP' in text
    assert 'energy 0.3 kWh' in text
    assert 'carbon of the grid 0.4 kg CO2e per kWh' in text
    assert 'carbon 0.12 kg CO2e' in text
    assert 'estimated: device hours x 100 W per device' in text
    assert 'Carbon = energy x carbon of the grid.' in text


def test_page_has_the_command_that_does_it_again(run):
    renamed = run.rename(run.with_name("my run's; rm -rf x"))
    text = page_of(renamed).text
    path = renamed / 'lightning_logs/version_0/config.yaml'
    quoted = "'" + str(path).replace("'", "'\"'\"'") + "'"
    assert f'explora fit --config {quoted} --trainer.default_root_dir' in text


@pytest.mark.parametrize(
    ('weights', 'said'),
    [
        ('vit_base_patch16_224.mae', 'derived from the base: cc-by-nc-4.0 or stricter'),
        ('vit_small_patch14_dinov2.lvd142m', 'base apache-2.0 this delta derived'),
        # The name of the model tells.
        (True, 'base apache-2.0 this delta derived'),
        # Files are of anyone, even one that is named like a model.
        ('data/vit_tiny_patch16_224.safetensors', 'base not known by its name'),
        ('base.pth', 'base not known by its name'),
        (None, 'base not known by its name'),
    ],
)
def test_page_tells_the_chain_of_licences(run, weights, said):
    path = run / 'lightning_logs/version_0/config.yaml'
    config = yaml.safe_load(path.read_text())
    config['model']['init_args']['weights'] = weights
    path.write_text(yaml.safe_dump(config))
    assert said in page_of(run).text


def test_norms_of_blocks_are_those_of_the_lora_product(run, adapted_vit):
    norms = lora_norms(read_run(run))
    assert sorted(norms) == [0, 1, 2]
    assert whole_blocks(read_run(run)) == {3}
    for index, norm in norms.items():
        square = 0.0
        for layer in (
            adapted_vit.blocks[index].attn.q,
            adapted_vit.blocks[index].attn.v,
        ):
            down, up = layer.lora_A['default'].weight, layer.lora_B['default'].weight
            square += (0.5 * up @ down).double().square().sum().item()
        assert norm == pytest.approx(square**0.5, rel=1e-5)


def test_with_the_base_the_change_of_blocks_is_relative(run, base, adapted_vit):
    found = relative_changes(read_run(run), str(base))
    plain = ViT(
        'vit_tiny_patch16_224', base, image_size=32, embed_dim=16, depth=4, num_heads=2
    )
    expected = block_changes(plain, adapted_vit)
    assert [block['all'] for block in found] == pytest.approx(
        [block['all'] for block in expected], rel=1e-5
    )
    text = page_of(run, weights=str(base)).text
    assert "Relative change of each block, ||W' - W|| / ||W||" in text
    with pytest.raises((ValueError, RuntimeError)):
        report_run(run, str(run / 'delta.safetensors'))


def test_text_from_files_is_only_ever_text(run, adapted_vit):
    """Nobody who opens a report of somebody else's run runs their code."""
    evil = {**METADATA, 'bands': HOSTILE, 'pooling': HOSTILE}
    save_delta(adapted_vit, run / 'delta.safetensors', evil)
    logs = run / 'lightning_logs' / 'version_0'
    config = yaml.safe_load((logs / 'config.yaml').read_text())
    config['model']['class_path'] = f'a.{HOSTILE}'
    config['model']['init_args'] |= {'model': HOSTILE, 'weights': HOSTILE}
    config['data']['init_args'][HOSTILE] = {HOSTILE: HOSTILE}
    (logs / 'config.yaml').write_text(yaml.safe_dump(config))
    (run / 'probe.csv').write_text(f'a,"{HOSTILE}"\n"{HOSTILE}",1\n')
    (run / 'metrics.csv').write_text(
        f'step,"{HOSTILE.replace(chr(34), "")}",loss\n1,2,3\n2,3,4\n'
    )
    write_picture(run / f'{HOSTILE.replace("/", "")}.png')
    (run / 'cost.json').write_text(
        '{"device": "</td><script>", "devices": 1, "device_hours": 1,'
        ' "energy_source": "<b>", "tflop": 1, "tflop_formula": "<i>"}'
    )
    page = page_of(run)
    assert HOSTILE in page.text


def test_a_run_that_is_still_going_is_reported(run):
    (run / 'delta.safetensors').rename(run / 'last.safetensors')
    text = page_of(run).text
    assert 'Still going, or stopped early: 40 of 40 optimizer steps' in text
    assert 'before → now' in text


def test_a_run_without_a_delta_is_reported(run):
    (run / 'delta.safetensors').unlink()
    page = page_of(run)
    assert 'Still going, or stopped before its first checkpoint' in page.text
    assert 'There is no delta (*.safetensors) in the folder' in page.text
    assert 'Delta and licences' not in page.text


def test_a_run_that_stopped_early_says_so(run, adapted_vit):
    (run / 'cost.json').unlink()
    save_delta(
        adapted_vit, run / 'delta.safetensors', {**METADATA, 'planned_steps': '90'}
    )
    assert 'stopped early: 40 of 90 optimizer steps' in page_of(run).text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match='none of the files that a run'):
        report_run(tmp_path)
    with pytest.raises(NotADirectoryError, match='no folder'):
        report_run(tmp_path / 'none')
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.97])
def test_an_event_file_that_is_cut_short_gives_what_it_has(run, share):
    (path,) = run.glob('**/events.out*')
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    page = page_of(run)
    few = share < 0.1
    assert ('has no curves' in page.text) == few
    assert bool([a for a in page.all('svg') if 'loss' in a['aria-label']]) != few


def test_an_event_file_with_flipped_bytes_is_survived(run):
    (path,) = run.glob('**/events.out*')
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    page_of(run)


@pytest.mark.parametrize(
    ('name', 'content', 'said'),
    [
        ('delta.safetensors', b'\x00' * 50, 'delta.safetensors: '),
        ('cost.json', b'{', 'cost.json is damaged'),
        ('crops.png', b'\x89PNG\r\n\x1a\n', 'crops.png is not a picture'),
        ('last.ckpt', b'PK', 'last.ckpt cannot be read as a checkpoint'),
        ('lightning_logs/version_0/config.yaml', b'[1', 'config.yaml cannot be read'),
        ('lightning_logs/version_0/config.yaml', b'\xff\xfe', 'config.yaml cannot be'),
        ('probe.csv', b'a,b\n\x00,1\n', ''),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, name, content, said):
    (run / name).write_bytes(content)
    page = page_of(run)
    assert said in page.text
    assert 'Curves' in page.text


def test_a_configuration_that_grows_without_end_is_not_unrolled(run):
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    for depth in range(1, 12):
        lines.append(f'a{depth}: &a{depth} [{", ".join([f"*a{depth - 1}"] * 9)}]')
    lines.append('model: {init_args: {model: *a11, rank: *a11}}')
    lines.append('data: {init_args: {x: *a11}}')
    path = run / 'lightning_logs/version_0/config.yaml'
    path.write_text('\n'.join(lines))
    assert len(page_of(run).content) < 1_000_000


def test_large_pictures_shrink_until_they_fit(run):
    for number in range(5):
        write_picture(run / f'large{number}.png', 1400, 1600)
    page = page_of(run)
    assert len(page.all('img')) == 8
    widths = [int(image['width']) for image in page.all('img')]
    assert max(widths) < 1400


def test_what_callbacks_measured_goes_before_what_was_logged(run):
    """A logger repeats the last value, and can leave out the end."""
    callbacks = {
        "OnlineKNN{'k': 3}": {'history': {0: 0.25, 20: 0.5, 40: 0.75}},
        'LabelFreeQuality': {'history': {0: {'lidar': 3.0}, 40: {'lidar': 4.0}}},
    }
    torch.save({'callbacks': callbacks}, run / 'last.ckpt')
    text = page_of(run).text
    assert 'kNN accuracy 0.25 0.75 +0.5 0.75 at step 40' in text
    assert 'effective rank of places (LiDAR) 3 4 +1' in text


def test_broad_pictures_are_moved_sideways_on_a_phone(run):
    """They would be too small to read; by the keyboard, too."""
    write_picture(run / 'broad.png', 400, 100)
    regions = [a for a in page_of(run).all('div') if 'broad' in a.get('class', '')]
    (region,) = regions
    assert region['tabindex'] == '0'
    assert region['aria-label'] == 'Picture broad.png of the run.'


def test_repeated_values_are_not_drawn(tmp_path):
    (tmp_path / 'metrics.csv').write_text(
        'step,knn,loss\n0,0.25,\n5,0.25,1\n10,0.25,1\n15,0.5,1\n20,0.5,1\n'
    )
    run = read_run(tmp_path)
    assert run.curve('knn') == {0: 0.25, 15: 0.5, 20: 0.5}
    assert run.curve('loss') == {5: 1, 10: 1, 15: 1, 20: 1}


def test_a_probe_shows_metrics_tables_confusion_and_worst_examples(tmp_path):
    config = {
        **CONFIG,
        'model': {
            'class_path': 'torchgeo_explora.tasks.ExploraProbeTask',
            'init_args': {'model': 'vit_tiny_patch16_224', 'num_classes': 3},
        },
    }
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config))
    (tmp_path / 'metrics.csv').write_text(
        'epoch,step,test_OverallAccuracy,test_loss,test_IoU_a,val_accuracy\n'
        '0,3,,,,0.5\n1,6,,,,0.625\n1,6,0.75,1.5,0.25,\n'
    )
    for name in ('worst_val', 'worst_test', 'segmentation'):
        write_picture(tmp_path / f'{name}.png')
    for name in ('confusion_val', 'confusion_test', 'confusion'):
        write_picture(tmp_path / f'{name}.png')
    for split, right in (('val', 4), ('test', 5)):
        text = f'true,as a,as b\na,{right},1\nb,0,6\n'
        (tmp_path / f'confusion_{split}.csv').write_text(text)
        text = f'loss,true,predicted\n{right}.5,a,b\n'
        (tmp_path / f'worst_{split}.csv').write_text(text)
    # Of the user.
    (tmp_path / 'worst.csv').write_text('street,times\nElm,3\n')
    with (tmp_path / 'probe.csv').open('w') as file:
        writer = csv.writer(file)
        writer.writerow(['lr', 'val'])
        writer.writerows([index, index / 100] for index in range(80))
    page = page_of(tmp_path)
    assert 'test_OverallAccuracy 0.75' in page.text
    assert 'test_loss 1.5' in page.text
    # Those of classes may be many, and are folded.
    assert 'Metrics of each class, last values test_IoU_a 0.25' in page.text
    assert 'Classifiers of the probe (probe.csv), first lines' in page.text
    tables = [
        '(confusion_test.csv) true as a as b a 5 1 b 0 6',
        '(confusion_val.csv) true as a as b a 4 1 b 0 6',
        'worst.csv street times Elm 3',
        'examples of the test: the highest losses (worst_test.csv) loss true predicted',
        'of the validation: the highest losses (worst_val.csv) loss true predicted 4.5',
    ]
    places = [page.text.index(table) for table in tables]
    assert places == sorted(places)
    starts = [image['alt'].partition(':')[0] for image in page.all('img')]
    assert starts[:5] == [
        *('Confusion matrix of the test', 'Confusion matrix of the validation'),
        'Confusion matrix',
        *('Worst examples of the test', 'Worst examples of the validation'),
    ]
    assert 'true and the predicted class of each pixel' in starts[5]
    # It has no delta, and needs none.
    assert 'no delta' not in page.text


def test_a_resumed_run_has_one_curve(run):
    write_events(run / 'lightning_logs' / 'version_1', knn=(0.25, 0.5, 0.625))
    assert read_run(run).curve('knn') == {0: 0.25, 20: 0.5, 39: 0.625}


def test_an_analysis_in_the_folder_adds_pictures_and_no_curves(run):
    """`explora analyze` writes events by block, where a run has them by step."""
    curves = read_run(run).curves
    write_events(run / 'analysis', knn=(0.5, 0.5, 0.5))
    write_events(run / 'analysis' / 'adapted', knn=(0.5, 0.5, 0.5))
    write_picture(run / 'analysis' / 'attention.png')
    assert read_run(run).curves == curves
    assert any('Attention' in image['alt'] for image in page_of(run).all('img'))


def test_colours_have_enough_contrast(run):
    """4.5 to 1, as WCAG asks for text, in light, dark and print."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a, b):
        low, high = sorted([light(a), light(b)])
        return (high + 0.05) / (low + 0.05)

    schemes = re.findall(r':root \{(.*?)\}', page_of(run).content, re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r'--([\w-]+): (#\w{6})', scheme))
        for ink in ('ink', 'quiet', 'accent', 'warn'):
            assert contrast(colours[ink], colours['paper']) >= 4.5
        for ink in ('ink', 'quiet', 'accent'):
            assert contrast(colours[ink], colours['card']) >= 4.5
        assert contrast(colours['warn'], colours['warn-card']) >= 4.5
        # Lines of charts.
        assert all(contrast(line, colours['paper']) >= 3 for line in COLOURS)


def test_command_writes_the_page_and_says_what_is_missing(run, capsys):
    (run / 'cost.json').write_text('[]')
    main(['report', str(run)])
    said = capsys.readouterr().out
    assert f'wrote {run / "report.html"} (' in said
    assert 'note: ' in said
    # Again, over the old page.
    shutil.rmtree(run / 'lightning_logs')
    main(['report', str(run)])
    with pytest.raises(SystemExit, match='explora report: no folder'):
        main(['report', str(run / 'none')])
