"""What the architecture page shows works as printed."""

import re
from pathlib import Path

from lightning.pytorch import Trainer

from torchgeo_explora.datamodules import ImageFolderDataModule

PAGE = (Path(__file__).parent.parent / 'docs' / 'architecture.md').read_text()
SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}


def test_the_task_of_the_page_trains(tmp_path, tiny_images):
    (code,) = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    names = {'__name__': 'page'}
    exec(code, names)  # noqa: S102
    task = names['MyTask'](
        'vit_tiny_patch16_224',
        weights=None,
        image_size=32,
        model_args=SIZES,
        objective={'decoder_dim': 16, 'decoder_depth': 1, 'decoder_heads': 2},
    )
    trainer = Trainer(
        accelerator='cpu', max_steps=2, logger=False, default_root_dir=tmp_path
    )
    trainer.fit(task, datamodule=ImageFolderDataModule(tiny_images, batch_size=4))
    assert (tmp_path / 'delta.safetensors').exists()


def test_every_file_that_the_page_names_exists():
    root = Path(__file__).parent.parent
    for name in re.findall(r'`((?:tests|docs)/[\w/]+\.(?:py|md))`', PAGE):
        assert (root / name).exists(), name
    walked = re.findall(r' {4,}((?:tasks|objectives|adapt|augment)/[\w/]+\.py)', PAGE)
    for name in walked:
        assert (root / 'torchgeo_explora' / name).exists(), name
