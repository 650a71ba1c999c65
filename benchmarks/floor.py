"""The arithmetic of a model by formula, and the rate at which this machine multiplies matrices.

    python benchmarks/floor.py                     # the rate, with as many threads as there are processors

The floor of an epoch is its floating-point operations over that rate: what nothing but faster products, or
fewer of them, can beat. Counted are the products of linear maps, attention and output layer, two operations
a multiplication, once forward and twice backward; of real events and targets alone, each history passed once.
"""

import argparse
import os
import time

import numpy as np
import torch


def rate(threads: int, size: int = 1024, seconds: float = 3.0) -> float:
    """Floating-point operations a second of the best of many products of float32 matrices."""
    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        before = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def sasrec(lengths: np.ndarray, targets: int, *, dim: int, blocks: int, inner: int, items: int) -> float:
    """Operations of an epoch of SASRec with cross-entropy over the catalogue.

    Attention is counted as the square of a length: no product leaves out what a position may not see.

    Args:
        lengths: real events of each history that is passed.
        targets: supervised positions.
        dim: width of the net.
        blocks: their number.
        inner: width inside the feed-forward layers.
        items: candidates of each target.
    """
    n = np.asarray(lengths, float)
    maps = 4 * dim**2 + 2 * dim * inner  # query, key, value, mix; feed-forward
    forward = blocks * (maps * n.sum() + 2 * dim * (n**2).sum()) + targets * dim * items
    return float(3 * 2 * forward)


def pieces(user: np.ndarray, targets: int, window: int) -> np.ndarray:
    """Lengths of the histories that leave-one-out trains on, each passed once.

    Args:
        user: (N,) of each interaction.
        targets: of an epoch. Where they are more than the last ``window`` of each user, whole histories are
            passed in pieces of that many.
        window: events of a piece, at most.
    """
    counts = np.bincount(user)
    lengths = np.maximum(
        counts[counts > 0] - 3, 0
    )  # neither the test, nor the validation, nor the last target
    if targets <= np.minimum(lengths, window).sum():
        return np.minimum(lengths, window)
    return np.concatenate([np.full((lengths // window).sum(), window), lengths % window])


def main() -> None:
    """Prints the rate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    print(f"{rate(args.threads, seconds=args.seconds) / 1e9:.1f} GFLOP/s with {args.threads} threads")


if __name__ == "__main__":
    main()
