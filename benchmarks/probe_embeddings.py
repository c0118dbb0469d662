"""Score embeddings that `torchgeo predict` wrote: kNN and a linear probe.

Usage: python benchmarks/probe_embeddings.py train.parquet val.parquet test.parquet

The bank of the kNN and the training set of the probe are the first file. The probe is
scikit-learn's LogisticRegression on standardised features; its strength is chosen on
the second file, and both are scored once on the third.
"""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchgeo_explora.functional import knn_vote

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, D) and labels (N,) of a file."""
    table = pq.read_table(path)
    features = np.stack(table['embedding'].to_numpy(zero_copy_only=False))
    return features, table['label'].to_numpy()


def knn(train: tuple, test: tuple, k: int = 10) -> float:
    """Return the accuracy of the weighted vote of k neighbours."""
    bank, queries = (
        torch.nn.functional.normalize(torch.from_numpy(part[0]), dim=-1)
        for part in (train, test)
    )
    classes = int(max(train[1].max(), test[1].max())) + 1
    votes = knn_vote(bank, torch.from_numpy(train[1]), queries, k, classes)
    return float((votes.argmax(-1).numpy() == test[1]).mean())


def linear(train: tuple, val: tuple, test: tuple) -> tuple[float, float]:
    """Return the accuracy of the probe chosen on *val*, and its strength."""
    probes = {
        strength: make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=1000)
        ).fit(*train)
        for strength in STRENGTHS
    }
    best = max(probes, key=lambda strength: probes[strength].score(*val))
    return float(probes[best].score(*test)), best


def main(paths: list[str]) -> None:
    """Print the scores as JSON."""
    train, val, test = (read(path) for path in paths)
    accuracy, strength = linear(train, val, test)
    print(
        json.dumps(
            {
                'bank': len(train[1]),
                'test': len(test[1]),
                'knn10': round(knn(train, test), 4),
                'linear': round(accuracy, 4),
                'C': strength,
            }
        )
    )


if __name__ == '__main__':
    main(sys.argv[1:])
