"""A small ResNet-18 on shards of CIFAR-10, fed by bigbigan or, for comparison, by torchvision and a DataLoader.

    python cifar10.py DATA [--loader bigbigan|torchvision] [--seed 0] [--epochs 10] [--width 16]

`scripts/cifar10` makes DATA. Either way an image is padded by 4 mirrored pixels, cropped at random and flipped half of
the time.
"""

import argparse
import io
import tarfile
import time
from pathlib import Path

import bigbigan
import bigbigan.torch
import torch
from torch import nn
from torch.nn import functional

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, SIDE = 128, 32


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.skip(x))


def resnet18(classes: int, width: int) -> nn.Module:
    """ResNet-18 for small pictures: no pooling before the blocks; `width` is 64 in the paper."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage, after in enumerate([width, 2 * width, 4 * width, 8 * width]):
        layers += [Block(before, after, 1 if stage == 0 else 2), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Shards(torch.utils.data.Dataset):
    """The same images, as torchvision's transforms take them."""

    def __init__(self, data: str, transform) -> None:
        from PIL import Image

        self.images, self.labels, self.transform = [], [], transform
        for path in sorted(Path(data).glob("train-*.tar")):
            with tarfile.open(path) as shard:
                for member in shard:
                    content = shard.extractfile(member).read()
                    if member.name.endswith(".cls"):
                        self.labels.append(int(content))
                    else:
                        self.images.append(Image.open(io.BytesIO(content)).convert("RGB"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[number]), self.labels[number]


def by_torchvision(data: str, seed: int):
    from torchvision import transforms

    transform = transforms.Compose([
        transforms.RandomCrop(SIDE, 4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    shuffle = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(
        Shards(data, transform), BATCH, shuffle=True, drop_last=True, num_workers=1, generator=shuffle
    )


def accuracy(model: nn.Module, data: str) -> float:
    options = {"mode": "full", "shuffle": False, "last": "keep", "epochs": 1}
    right = images = 0
    model.eval()
    with torch.inference_mode():
        for x, labels in bigbigan.torch.Loader(data, "val", batch=500, size=SIDE, mean=MEAN, std=STD, **options):
            right += int((model(x).argmax(1) == labels).sum())
            images += len(labels)
    model.train()
    return right / images


def main(data: str, loader: str = "bigbigan", seed: int = 0, epochs: int = 10, width: int = 16) -> list[float]:
    """Trains, and returns the accuracy on val after each epoch."""
    if loader == "bigbigan":
        batches = bigbigan.torch.Loader(data, batch=BATCH, size=SIDE, mode="small", mean=MEAN, std=STD, seed=seed, threads=1)
    else:
        batches = by_torchvision(data, seed)
    torch.manual_seed(seed)
    model = resnet18(len(bigbigan.Loader(data, batch=1).classes), width).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=epochs * len(batches))
    found = []
    for epoch in range(epochs):
        begun = time.perf_counter()
        for images, labels in batches:
            loss = functional.cross_entropy(model(images), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        found.append(accuracy(model, data))
        took = time.perf_counter() - begun
        print(f"{loader}, seed {seed}, epoch {epoch}: {100 * found[-1]:.2f} % of val, {took:.1f} s", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--loader", choices=["bigbigan", "torchvision"], default="bigbigan")
    for name, default in [("seed", 0), ("epochs", 10), ("width", 16)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
