"""A transformer over one history in float64, key by key, written from the papers' equations."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest


def softmax(values):
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def norm(x, weights, name, eps):
    out = []
    for row in x:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        out.append((row - mean) / math.sqrt(variance + eps))
    return np.array(out) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def attend(queries, keys, weights, name, o, weigh):
    """Each query over the keys up to it; ``weigh(head, query, logits)`` gives their weights."""
    q, k, v = (
        linear(x, weights, f"{name}.{part}")
        for x, part in ((queries, "query"), (keys, "key"), (keys, "value"))
    )
    width, out = o["dim"] // o["heads"], np.zeros_like(q)
    for head in range(o["heads"]):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            logits = [sum(q[i, part] * k[j, part]) / math.sqrt(width) for j in range(i + 1)]
            for j, share in enumerate(weigh(head, i, logits)):
                out[i, part] += share * v[j, part]
    return out


def encode(x, weights, o, weigh=None):
    """The last block's output for the vectors ``x`` of a history without padding.

    ``weigh(block, head, query, logits)`` gives the weights of the keys, by default their softmax.
    """
    weigh, eps = weigh or (lambda block, head, query, logits: softmax(logits)), o["eps"]
    if o["block"] == "recbole":
        x = norm(x, weights, "encoder.enter.0", eps)
    for number in range(o["blocks"]):
        block, own = f"encoder.blocks.{number}", partial(weigh, number)
        if o["block"] == "recbole":
            found = attend(x, x, weights, f"{block}.attention", o, own)
            y = norm(
                x + linear(found, weights, f"{block}.attention.mix"), weights, f"{block}.attention_norm", eps
            )
            fed = linear(gelu(linear(y, weights, f"{block}.feed.0")), weights, f"{block}.feed.2")
            x = norm(y + fed, weights, f"{block}.feed_norm", eps)
        else:
            q = norm(x, weights, f"{block}.query_norm", eps)
            y = norm(
                q + attend(q, x, weights, f"{block}.attention", o, own), weights, f"{block}.feed_norm", eps
            )
            x = y + linear(np.maximum(linear(y, weights, f"{block}.feed.0"), 0), weights, f"{block}.feed.3")
    return x if o["block"] == "recbole" else norm(x, weights, "encoder.leave", eps)


def vectors(items, weights, o):
    """What enters the transformer: items and positions."""
    first = o["window"] - len(items) if o["position"] == "slot" else 0
    scale = math.sqrt(o["dim"]) if o["scale"] else 1.0
    places = weights["position.table.weight"][first : first + len(items)]
    return scale * weights["item.weight"][items] + places


@pytest.fixture(scope="session")
def loops():
    """``loops.encode``, ``loops.vectors`` and ``loops.softmax``."""
    return SimpleNamespace(encode=encode, vectors=vectors, softmax=softmax)
