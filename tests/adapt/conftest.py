"""What the tests of adapt share."""

import pytest
import torch


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 32, 32, generator=generator)


@pytest.fixture
def disturb():
    """Return a function that changes what trains, and nothing else."""

    @torch.no_grad()
    def change(module, scale=0.02):
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=scale)
        return module

    return change


@pytest.fixture
def ten_steps(images):
    """Return a function that takes AdamW steps on what trains."""

    def train(module, steps=10):
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        module.train()
        for _ in range(steps):
            optimizer.zero_grad()
            features = module(images)
            (features.cls.square().mean() - features.patch.std()).backward()
            optimizer.step()
        return module.eval()

    return train
