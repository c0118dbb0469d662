"""One table of PEFT methods: each keeps the laws, or is refused with the reason."""

import copy

import peft
import pytest
import torch

from torchgeo_explora.adapt import (
    Adaptation,
    adapt,
    count,
    delta_state_dict,
    ema_update_,
    load_delta,
    merged,
    save_delta,
    store_frozen,
    twin,
)

pytestmark = [
    pytest.mark.filterwarnings('ignore:Failed to load the CUDA extension'),
    pytest.mark.filterwarnings('ignore:Setting boft_n_butterfly_factor'),
    pytest.mark.filterwarnings('ignore:Unsupported layer type'),
    pytest.mark.filterwarnings('ignore:.*Using default CorDA config'),
    pytest.mark.filterwarnings('ignore:Sparse invariant checks'),
]

TARGETS = ['q', 'v']
CONFIGS = {
    'LoRA': peft.LoraConfig(r=4, lora_alpha=1, target_modules=TARGETS),
    'LoRA on all layers': peft.LoraConfig(r=4, target_modules='all-linear'),
    'DoRA': peft.LoraConfig(r=4, use_dora=True, target_modules=TARGETS),
    'rsLoRA': peft.LoraConfig(r=4, use_rslora=True, target_modules=TARGETS),
    'orthogonal': peft.LoraConfig(
        r=4, init_lora_weights='orthogonal', target_modules=TARGETS
    ),
    'AdaLoRA': peft.AdaLoraConfig(total_step=10, target_modules=TARGETS),
    'LoHa': peft.LoHaConfig(r=4, target_modules=TARGETS),
    'LoKr': peft.LoKrConfig(r=4, target_modules=TARGETS),
    'BOFT': peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    'OFT': peft.OFTConfig(oft_block_size=8, target_modules=TARGETS),
    'IA3': peft.IA3Config(
        target_modules=['k', 'v', 'fc2'], feedforward_modules=['fc2']
    ),
    'HRA': peft.HRAConfig(r=4, target_modules=TARGETS),
    'RandLoRA': peft.RandLoraConfig(r=4, target_modules=TARGETS),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def adaptation(request):
    return Adaptation(adapter=request.param)


def test_adapter_is_the_identity_at_the_start(adaptation, tiny_backbone, images):
    before = tiny_backbone.eval()(images)
    after = adapt(tiny_backbone, adaptation)(images)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_adapter_learns_over_a_shared_base(
    adaptation, tiny_backbone, images, ten_steps
):
    student = adapt(tiny_backbone, adaptation)
    teacher = twin(student)
    delta = set(delta_state_dict(student))
    before = copy.deepcopy(student.state_dict())
    ten_steps(student, 2)
    after = student.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed <= delta
    # Every adapter has moved: two steps, for those whose one factor starts at zero.
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.grad.abs().max() > 0:
            assert name in changed
    assert any('attn' in name for name in changed)
    torch.testing.assert_close(delta_state_dict(teacher), {k: before[k] for k in delta})
    ema_update_(teacher, student, 0.0)
    torch.testing.assert_close(teacher(images), student(images), rtol=0, atol=0)


def test_base_in_half_precision_trains_what_a_whole_one_does(
    adaptation, tiny_backbone, images, disturb
):
    plain = disturb(adapt(tiny_backbone, adaptation)).train()
    stored = copy.deepcopy(plain)
    store_frozen(stored, torch.bfloat16)
    found = []
    for backbone in (plain, stored):
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16):
            features = backbone(images)
        features.cls.float().square().sum().backward()
        found.append(features.cls.float())
    # No bit changes, but where an adapter looks at the weights outside of autocast:
    # DoRA takes their norms.
    rounding = 0.02 if adaptation.adapter.__dict__.get('use_dora') else 0
    torch.testing.assert_close(*found, rtol=0, atol=rounding)
    for expected, own in zip(plain.parameters(), stored.parameters(), strict=True):
        assert (expected.grad is None) == (own.grad is None)
        if own.requires_grad:
            assert own.dtype == torch.float32
            assert own.grad is None or own.grad.isfinite().all()


@pytest.mark.parametrize('cast', ['autocast', 'none', 'stored'])
def test_lora_sees_what_it_would_by_pefts_own_cast(
    adaptation, tiny_backbone, images, disturb, cast
):
    disturb(adapt(tiny_backbone, adaptation)).eval()
    if cast == 'stored':
        # These layers work in bfloat16 outside of autocast too.
        store_frozen(tiny_backbone, torch.bfloat16)
    found = []
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16, enabled=cast == 'autocast'):
            found.append(tiny_backbone(images).cls)
        for layer in tiny_backbone.modules():
            if hasattr(layer, 'cast_input_dtype_enabled'):
                layer.cast_input_dtype_enabled = True
    assert torch.equal(*found)


def test_autocast_narrows_once_what_attention_projects(tiny_backbone, images):
    attention = adapt(tiny_backbone, Adaptation(())).blocks[0].attn
    seen = []

    def look(_, inputs):
        seen.append(inputs[0])

    for name, layer in attention.named_modules():
        if name in {'q.base_layer', 'k', 'v.base_layer'} or 'lora_A.' in name:
            layer.register_forward_pre_hook(look)
    with torch.autocast('cpu', torch.bfloat16):
        tiny_backbone(images)
    assert len(seen) == 5
    assert seen[0].dtype == torch.bfloat16
    assert all(x is seen[0] for x in seen)


def test_merged_equals_adapted(adaptation, tiny_backbone, images, disturb):
    keys = [*tiny_backbone.state_dict()]
    disturb(adapt(tiny_backbone.eval(), adaptation))
    plain = merged(tiny_backbone)
    assert [*plain.state_dict()] == keys
    torch.testing.assert_close(plain(images), tiny_backbone(images), rtol=0, atol=1e-5)


def test_delta_comes_back_from_its_file(
    adaptation, tiny_backbone, images, disturb, tmp_path
):
    base = copy.deepcopy(tiny_backbone).eval()
    disturb(adapt(tiny_backbone.eval(), adaptation))
    save_delta(tiny_backbone, tmp_path / 'delta.safetensors')
    load_delta(base, tmp_path / 'delta.safetensors')
    torch.testing.assert_close(base(images), tiny_backbone(images), rtol=0, atol=0)


def test_count_is_that_of_parameters(tiny_backbone):
    """RandLoRA's delta holds its random bases too, which do not train."""
    adapt(tiny_backbone, Adaptation(adapter=CONFIGS['RandLoRA']))
    trained = [p.numel() for p in tiny_backbone.parameters() if p.requires_grad]
    assert count(tiny_backbone)[0] == sum(trained)
    assert sum(p.numel() for p in delta_state_dict(tiny_backbone).values()) > sum(
        trained
    )


def test_adaptation_survives_plain_values(adaptation):
    plain = adaptation.to_dict()
    again = Adaptation.from_dict(plain)
    assert type(again.adapter) is type(adaptation.adapter)
    assert again.to_dict() == plain


@pytest.mark.parametrize(
    'start', ['pissa', 'pissa_niter_4', 'olora', 'corda', 'lora_ga']
)
def test_initialisation_that_rewrites_the_base_is_refused(tiny_backbone, start):
    adapter = peft.LoraConfig(r=4, init_lora_weights=start, target_modules=TARGETS)
    with pytest.raises(ValueError, match=f"'{start}' rewrites frozen weights"):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_eva_is_refused(tiny_backbone):
    adapter = peft.LoraConfig(
        init_lora_weights='eva', eva_config=peft.EvaConfig(), target_modules=TARGETS
    )
    with pytest.raises(ValueError, match="'eva' takes its first values from"):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_loftq_is_refused(tiny_backbone):
    adapter = peft.LoraConfig(r=4, target_modules=TARGETS)
    adapter.init_lora_weights = 'loftq'
    with pytest.raises(ValueError, match="'loftq' rewrites frozen weights"):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


@pytest.mark.parametrize(
    'adapter',
    [
        peft.FourierFTConfig(n_frequency=10, target_modules=TARGETS),
        peft.LoraConfig(r=4, init_lora_weights=False, target_modules=TARGETS),
    ],
    ids=['FourierFT', 'random LoRA'],
)
def test_adapter_that_changes_the_first_output_is_refused(tiny_backbone, adapter):
    with pytest.raises(ValueError, match='does not start as the identity'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_adapter_that_a_file_could_not_restore_is_refused(tiny_backbone):
    def random_mask(base_layer, r, **_):
        weights = base_layer.weight.numel()
        mask = torch.zeros(weights)
        mask[torch.randperm(weights)[: r * sum(base_layer.weight.shape)]] = 1
        return mask.view_as(base_layer.weight)

    adapter = peft.ShiraConfig(r=2, target_modules=TARGETS)
    adapter.mask_fn = random_mask
    with pytest.raises(ValueError, match='could not restore it'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_adapter_that_does_not_fold_into_the_base_is_refused(
    tiny_backbone, monkeypatch
):
    """As one whose effect is more than a change of the weights."""
    names = [*tiny_backbone.state_dict()]
    monkeypatch.setattr('peft.tuners.lora.Linear.merge', lambda self, *_: None)
    with pytest.raises(ValueError, match='LORA does not fold into the base'):
        adapt(tiny_backbone, Adaptation())
    assert [*tiny_backbone.state_dict()] == names


def test_adapter_that_rewrites_the_base_by_other_means_is_refused(tiny_backbone):
    def double(base_layer, r, **_):
        base_layer.weight.data.mul_(2)
        mask = torch.zeros(base_layer.weight.numel())
        mask[: r * sum(base_layer.weight.shape)] = 1
        return mask.view_as(base_layer.weight)

    adapter = peft.ShiraConfig(r=2, target_modules=TARGETS)
    adapter.mask_fn = double
    before = copy.deepcopy(tiny_backbone.state_dict())
    with pytest.raises(ValueError, match='SHIRA rewrites frozen weights'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))
    torch.testing.assert_close(tiny_backbone.state_dict(), before, rtol=0, atol=0)


def test_adapter_leaves_out_what_trains_whole(tiny_backbone):
    adapter = peft.LNTuningConfig(target_modules=['norm1'])
    with pytest.raises(ValueError, match='match no layer of the frozen blocks'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))
    adapt(tiny_backbone, Adaptation(norms=False, adapter=adapter))
    assert any('ln_tuning' in key for key in delta_state_dict(tiny_backbone))


def test_adapter_with_shared_state_is_refused(tiny_backbone):
    adapter = peft.VeraConfig(target_modules=TARGETS)
    with pytest.raises(ValueError, match='shared state'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


def test_adapter_that_does_not_fit_a_layer_is_refused(tiny_backbone):
    adapter = peft.BOFTConfig(boft_block_size=5, target_modules=TARGETS)
    with pytest.raises(ValueError, match=r'BOFT does not work on blocks.1.attn.v'):
        adapt(tiny_backbone, Adaptation(adapter=adapter))


@pytest.mark.parametrize(
    ('option', 'match'),
    [
        ({'bias': 'all'}, 'trains biases of the base'),
        ({'modules_to_save': ['norm']}, 'modules_to_save is not supported'),
        ({'target_parameters': ['q.weight']}, 'target_parameters is not supported'),
    ],
)
def test_option_that_goes_round_the_adaptation_is_refused(tiny_backbone, option, match):
    adapter = peft.LoraConfig(r=4, target_modules=TARGETS, **option)
    with pytest.raises(ValueError, match=match):
        adapt(tiny_backbone, Adaptation(adapter=adapter))
