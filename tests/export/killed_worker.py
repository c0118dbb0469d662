"""Embed a scene in processes that are killed, and once to the end.

`python tests/export/killed_worker.py WEIGHTS SCENE OUTPUT TIMES`
"""

import os
import signal
import sys

from torchgeo_explora.export import embed
from torchgeo_explora.models import ViT
from torchgeo_explora.tasks import ExploraKNNTask

SIZES = {'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 2}
MODEL = 'vit_tiny_patch16_224'


def write(weights, scene, output):
    model = ViT(MODEL, weights, image_size=32, **SIZES)
    quiet = {'accelerator': 'cpu', 'enable_progress_bar': False}
    embed(scene, output, model, None, batch_size=4, **quiet)


def die_in_the_second_batch():
    predict, seen = ExploraKNNTask.predict_batch, []

    def cut(self, batch):
        if seen:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(batch)
        return predict(self, batch)

    ExploraKNNTask.predict_batch = cut


if __name__ == '__main__':
    *files, times = sys.argv[1:]
    for _ in range(int(times)):
        child = os.fork()
        if child == 0:
            die_in_the_second_batch()
            write(*files)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    write(*files)
