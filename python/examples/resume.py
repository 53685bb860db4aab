"""Stops in the middle of an epoch and goes on with another number of processes: the same images, none twice.

    python resume.py DATA

Two ranks read for a while and save the position; four go on from it. One process that never stopped says what is right.
The batch of all ranks together stays the same.
"""

import sys

import bigbigan

GLOBAL_BATCH = 8
STOP = 5  # batches


def rank_of(data: str, rank: int, world: int) -> bigbigan.Loader:
    return bigbigan.Loader(data, batch=GLOBAL_BATCH // world, size=32, seed=1, rank=rank, world=world, threads=1)


def together(data: str, world: int, state: dict | None, count: int | None) -> tuple[list[list[int]], dict]:
    """The ids of each global batch, in order, as `world` ranks read them, and the position after them."""
    loaders = [rank_of(data, rank, world) for rank in range(world)]
    if state is not None:
        for loader in loaders:
            loader.load_state_dict(state)
    epochs = [iter(loader) for loader in loaders]
    batches = []
    while count is None or len(batches) < count:
        parts = [next(epoch, None) for epoch in epochs]
        if parts[0] is None:
            break
        # Rank r has rows r, r + world, … of the global batch.
        ids = [0] * GLOBAL_BATCH
        for rank, part in enumerate(parts):
            ids[rank::world] = part.ids.tolist()
        batches.append(ids)
    return batches, loaders[0].state_dict()


def main(data: str) -> None:
    undisturbed, _ = together(data, 1, None, None)
    if len(undisturbed) <= STOP:
        sys.exit(f"{data}: more than {STOP * GLOBAL_BATCH} images are wanted")
    first, state = together(data, 2, None, STOP)
    rest, _ = together(data, 4, state, None)
    assert first + rest == undisturbed
    print(f"{len(first)} batches of 2 ranks and {len(rest)} of 4 are the {len(undisturbed)} of one process")


if __name__ == "__main__":
    main(*sys.argv[1:])
