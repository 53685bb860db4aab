"""A linear classifier in JAX: batches go to it by DLPack, without TensorFlow.

    python jax_loop.py DATA
"""

import sys

import bigbigan
import jax
import jax.numpy as jnp

SIZE = 32


def loss(weights: dict, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    images = (pixels.astype(jnp.float32) / 127.5 - 1).reshape(len(labels), -1)
    scores = jax.nn.log_softmax(images @ weights["w"] + weights["b"])
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


@jax.jit
def step(weights: dict, pixels: jax.Array, labels: jax.Array) -> tuple[dict, jax.Array]:
    value, gradients = jax.value_and_grad(loss)(weights, pixels, labels)
    return jax.tree.map(lambda weight, gradient: weight - 1e-3 * gradient, weights, gradients), value


def main(data: str, epochs: int = 3) -> list[float]:
    loader = bigbigan.Loader(data, batch=32, size=SIZE, mode="random-resized-crop", seed=1, epochs=epochs)
    weights = {"w": jnp.zeros((SIZE * SIZE * 3, len(loader.classes))), "b": jnp.zeros(len(loader.classes))}
    means = []
    for epoch in range(epochs):
        losses = []
        for batch in loader:
            # No copy where the device is the CPU: the batch's memory is free again when `pixels` goes, which JAX holds
            # as long as a computation reads it.
            pixels = jax.dlpack.from_dlpack(batch.images)
            weights, value = step(weights, pixels, jnp.asarray(batch.labels.astype("int32")))
            losses.append(value)
        means.append(float(jnp.stack(losses).mean()))
        print(f"epoch {epoch}: loss {means[-1]:.4f}")
    return means


if __name__ == "__main__":
    main(sys.argv[1])
