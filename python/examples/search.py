"""Finds, among your own photographs, those most like one of them, and learns to tell folders apart.

    python search.py EXPORTED PHOTOS [QUERY]

EXPORTED is what `trainer export` wrote, PHOTOS a folder of folders of JPEG and PNG files: each folder is a class.
"""

import sys
from pathlib import Path

import bigbigan
import torch


def nearest(features: torch.Tensor, query: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of the features most like the query's, by cosine, the most like first."""
    unit = torch.nn.functional.normalize
    return (unit(features) @ unit(query, dim=0)).topk(min(count, len(features))).indices


def probe(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.nn.Linear:
    """A linear classifier of features, by all of them at once."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(features.shape[1], classes)
    descent = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        descent.zero_grad()
        value = torch.nn.functional.cross_entropy(linear(features), labels)
        value += 1e-4 * linear.weight.square().sum()
        value.backward()
        return value

    descent.step(loss)
    return linear


def main(exported: str, photos: str, query: str | None = None) -> None:
    model = bigbigan.load(exported, "cuda" if torch.cuda.is_available() else "cpu")
    paths = sorted(path for path in Path(photos).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    classes = sorted({path.parent.name for path in paths})
    if len(classes) < 2 or len(paths) < 10:
        sys.exit(f"{photos}: two folders of photographs at least, and ten photographs")
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    features = model.encode(paths)

    asked = model.encode(query or paths[0])[0]
    print("nearest:", *(paths[row] for row in nearest(features, asked, 6)), sep="\n  ")

    # Every fifth is kept from the classifier, to ask it.
    held = torch.arange(len(paths)) % 5 == 0
    scale = features[~held].std(dim=0).clamp_min(1e-6)
    linear = probe(features[~held] / scale, labels[~held], len(classes))
    right = linear(features[held] / scale).argmax(dim=1) == labels[held]
    print(f"probe: {right.float().mean():.1%} of {len(right)} images that it has not seen, {len(classes)} classes")


if __name__ == "__main__":
    main(*sys.argv[1:])
