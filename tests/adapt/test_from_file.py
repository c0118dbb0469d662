"""Adapters that a file describes are plain values of PEFT's own fields (A1, A3)."""

import sys

import pytest

from torchgeo_explora.adapt import Adaptation, lora
from torchgeo_explora.adapt.from_file import ways_to_match

PLAIN = Adaptation().to_dict()


def described(**changes):
    return {**PLAIN, 'adapter': {**PLAIN['adapter'], **changes}}


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        ({'peft_type': 'TOMORROW'}, 'does not know the method TOMORROW: upgrade'),
        ({'peft_type': ['LORA']}, 'does not know the method'),
        ({'peft_type': None}, 'does not know the method'),
        ({'peft_type': 'XLORA'}, 'no option'),
        ({'megatron_core': 'antigravity'}, 'megatron_core is antigravity: a file may'),
        ({'megatron_config': {'a': 1}}, 'megatron_config is .*: a file may not'),
        ({'auto_mapping': {'parent_library': 'os'}}, 'auto_mapping is .*: a file may'),
        ({'class_path': 'os.system'}, 'no option class_path'),
        ({'new_option': 3}, 'no option new_option in the installed PEFT: upgrade'),
        ({'r': 'many'}, r'r is many, expected a whole number from 1 to 4096'),
        ({'r': 0}, 'r is 0, expected'),
        ({'r': True}, 'r is True, expected'),
        ({'r': 10**9}, 'r is 1000000000, expected'),
        ({'lora_alpha': float('nan')}, 'lora_alpha is nan, expected a number'),
        ({'lora_dropout': 'x'}, 'lora_dropout is x, expected a number'),
        ({'use_dora': 1}, 'use_dora is 1, expected true or false'),
        ({'bias': {}}, 'bias is {}, expected a string'),
        ({'rank_pattern': {'q': 10**9}}, 'rank_pattern is .*expected names with ranks'),
        ({'rank_pattern': {'(a+)+': 4}}, r'rank_pattern has \(a\+\)\+, .* very long'),
        ({'target_modules': 3}, 'target_modules is 3, expected names'),
        ({'target_modules': '(.*)*'}, r'target_modules has .* very long to match'),
        ({'target_modules': '('}, 'not a regular expression'),
        ({'target_modules': '(' * 1900}, 'not a regular expression'),
        ({'target_modules': 'a' * 3000}, 'at most 2000 characters|plain values'),
        ({'modules_to_save': '('}, 'modules_to_save has .* not a regular expression'),
        ({'exclude_modules': '(a|a)*b'}, 'exclude_modules has .* very long'),
        ({'layers_pattern': ['(x+x+)+y']}, 'layers_pattern has .* very long'),
        ({'eva_config': {'a': {'b': {'c': 1}}}}, 'eva_config is .*plain values'),
        ({'revision': object()}, 'revision is .*expected plain values'),
    ],
)
def test_hostile_adapters_are_refused(changes, match):
    before = set(sys.modules)
    with pytest.raises(ValueError, match=match):
        Adaptation.from_dict(described(**changes))
    assert not {'antigravity', 'os.system'} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (
            {'unfreeze': 'all'},
            r'\*unfreeze\* of the adaptation is all, expected a list',
        ),
        ({'unfreeze': [True]}, r'\*unfreeze\*'),
        ({'norms': 1}, r'\*norms\* .*expected true or false'),
        ({'cls_token': None}, r'\*cls_token\*'),
        ({'modules': 'blocks'}, r'\*modules\* .*a list of names'),
        ({'adapter': 'LORA'}, 'the adapter is LORA, expected fields'),
        ({'adapter': [1]}, 'the adapter is'),
        ({'callable': 'os.system'}, 'an adaptation has no callable: choose from'),
        ({'\x1b[2J': 1}, r'has no \\x1b\[2J: choose'),
    ],
)
def test_hostile_adaptations_are_refused(changes, match):
    with pytest.raises(ValueError, match=match) as error:
        Adaptation.from_dict({**PLAIN, **changes})
    assert str(error.value).isprintable()


def test_options_that_are_off_in_a_newer_peft_are_left_out():
    found = Adaptation.from_dict(described(tomorrow=None, later=False, pattern={}))
    assert found == Adaptation()


@pytest.mark.parametrize(
    'expression',
    [
        'q',
        r'.*\.(q|v)',
        r'.*blocks\.(\d+)\..*(q|v)',
        r'blocks\.([0-9]|1[0-9])\.attn\.(q|k|v)',
        r'(?:.*\.)?attn\.q',
        '|'.join(f'blocks.{index}.attn.q' for index in range(60)),
    ],
)
def test_usual_expressions_are_taken(expression):
    found = Adaptation.from_dict(described(target_modules=expression))
    assert found.adapter.target_modules == expression


@pytest.mark.parametrize(
    'expression',
    [
        '(a+)+$',
        '(a|a)*$',
        '(a?){50}',
        '(.*a){20}',
        '.*.*.*.*.*x',
        '(a|a)' * 40,
        'a?' * 40,
    ],
)
def test_expressions_that_take_for_ever_are_found_at_once(expression):
    # The expression is read, not run: running it would not end.
    assert ways_to_match(expression) > 1_000_000


def test_means_of_many_deltas_have_ranks_that_load():
    assert (
        Adaptation.from_dict(Adaptation(adapter=lora(640)).to_dict()).adapter.r == 640
    )
