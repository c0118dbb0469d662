from lightning.pytorch import Callback, Trainer

from torchgeo_explora.callbacks import Plugin


def test_it_changes_nothing():
    assert {name for name in vars(Plugin) if not name.startswith('__')} == set()
    assert isinstance(Plugin(), Callback)
    Trainer(accelerator='cpu', logger=False, callbacks=[Plugin()], barebones=False)
