"""Run folders as the pipeline leaves them, small, with numbers from loops."""

import json
import math
from functools import partial

import numpy as np
import polars as pl
import pytest
import yaml

USERS, ROWS = 60, 90


def places(greater, equal):
    return range(int(greater) + 1, int(greater) + int(equal) + 2)


GAINS = {
    "hit": lambda place, k: float(place <= k),
    "mrr": lambda place, k: 1 / place if place <= k else 0.0,
    "ndcg": lambda place, k: 1 / math.log2(place + 1) if place <= k else 0.0,
}


def slow(name, greater, equal):
    """A metric of one row, by its definition: the mean over the places that the target may have."""
    kind, _, k = name.partition("@")
    gains = [GAINS[kind](place, int(k)) for place in places(greater, equal)]
    return sum(gains) / len(gains)


def about_of(model, seed, protocol, parts):
    return {
        "names": {"dataset": "toy", "protocol": "leave_one_out", "model": model, "loss": "softmax"},
        "seed": seed,
        "dataset": {
            "name": "toy",
            "fingerprint": "f" * 64,
            "label": "",
            "stand_in": False,
            **{"users": USERS, "items": 100, "interactions": 1000},
            "parts": {"test": parts},
        },
        "protocol": protocol,
        "protocol_digest": "b" * 64,
        "parameters": 1234,
        "device": "cpu",
        "processes": 1,
        "precision": "32-true",
        "batch_size": 64,
        "versions": {"python": "3.11", "hydrec": "0.1.0"},
        "source_digest": "c" * 64,
        "epochs": {"trained": 3, "tested": 1, "steps": 20},
        "status": "finished",
        "seconds": {"data": 0.1, "fit": 2.0, "test": 0.2},
        "peak_memory_mib": {"process": 500},
    }


def leave(folder, model, seed, test, metrics, protocol, history, *, changes, trained):
    """Writes a run folder; ``changes`` go into run.json (a dictionary into that of the same key)."""
    parts = {"samples": len(test), "users": test["user"].n_unique()}
    about = about_of(model, seed, protocol, parts)
    for key, value in changes.get("about", {}).items():
        about[key] = about[key] | value if isinstance(value, dict) else value
    config = {
        "seed": seed,
        "paths": {"runs": str(folder)},
        "model": {"net": {"dim": 8}},
        "trainer": {"devices": seed},
    }
    config["model"]["net"] |= changes.get("net", {})
    run = folder / f"toy-{model}-s{seed}{changes.get('suffix', '')}"
    run.mkdir(parents=True)
    if not trained:
        del about["epochs"]
    else:
        history.write_csv(run / "history.csv")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "run.json").write_text(json.dumps(about))
    test.write_parquet(run / "test.parquet")
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture(scope="session")
def ranked_in():
    """Makes a run of a ranking model in a folder: ``better`` moves its targets up by so many places."""

    def make(folder, model, seed=0, *, better=0.0, trained=True, drop=0, **changes):
        shared = np.random.default_rng(7)
        user = np.concatenate([np.arange(USERS), shared.integers(0, USERS, ROWS - USERS)])
        hard = shared.uniform(0, 30, ROWS)
        own = np.random.default_rng([seed, *model.encode()])
        greater = np.clip(hard - better + own.normal(0, 0.5, ROWS), 0, None).astype(int)
        equal = own.integers(0, 3, ROWS)
        test = pl.DataFrame(
            {
                "sample": np.arange(ROWS) * 3,
                "user": [f"u{n:03d}" for n in user],
                "target": [f"i{n}" for n in range(ROWS)],
                "time": np.arange(ROWS),
                "greater": greater,
                "equal": equal,
                "candidates": np.full(ROWS, 100),
            }
        ).sample(fraction=1.0, shuffle=True, seed=seed)  # the order of rows says nothing
        test = test.head(ROWS - drop)
        names = [f"{kind}@{k}" for kind in GAINS for k in (5, 10)]
        metrics = {
            f"test/{name}": sum(map(slow, [name] * len(test), test["greater"], test["equal"])) / len(test)
            for name in names
        }
        metrics |= {"popularity/hit@10": 0.2, "popularity/ndcg@10": 0.1, "popularity/mrr@10": 0.05}
        metrics |= {"valid/hit@10": 0.5}
        history = pl.DataFrame({"epoch": [0, 1, 2], "step": [10, 20, 30], "valid/hit@10": [0.1, 0.5, 0.4]})
        if model.startswith("ia_"):
            blocks = {f"lambda/block{n}": [1.0, 0.9 - 0.1 * n - 0.01 * seed, 0.5] for n in (1, 2)}
            history = history.with_columns(**{name: pl.Series(each) for name, each in blocks.items()})
        protocol = {"protocol": "leave_one_out", "version": 1, "candidates": "full"}
        protocol |= {"metrics": {"version": 1, "at": [5, 10], "ties": "expected"}} | changes.pop(
            "protocol", {}
        )
        return leave(folder, model, seed, test, metrics, protocol, history, changes=changes, trained=trained)

    return make


@pytest.fixture
def ranked(ranked_in, tmp_path):
    """The same in ``study`` of the test's folder."""
    return partial(ranked_in, tmp_path / "study")


@pytest.fixture
def clicked(tmp_path):
    """Makes a run of a click model: ``better`` adds so much to the logits of positives."""

    def make(model, seed=0, *, better=0.0, **changes):
        from sklearn.metrics import log_loss, roc_auc_score

        user = np.repeat(np.arange(USERS), 4)
        label = np.tile([1, 0, 0, 1], USERS)
        label[:8] = 1  # two users without negatives
        own = np.random.default_rng([seed, *model.encode()])
        logit = (own.normal(0, 1, len(user)) + (0.5 + better) * label).round(1).astype(np.float32)
        test = pl.DataFrame(
            {
                "sample": np.arange(len(user)),
                "user": [f"u{n:03d}" for n in user],
                "item": [f"i{n}" for n in range(len(user))],
                "time": np.arange(len(user)),
                "label": label,
                "logit": logit,
            }
        )
        both = [u for u in range(USERS) if 0 < label[user == u].mean() < 1]
        each = [roc_auc_score(label[user == u], logit[user == u]) for u in both]
        metrics = {
            "test/auc": roc_auc_score(label, logit),
            "test/gauc": float(np.mean(each)),  # all users have as many rows
            "test/logloss": log_loss(label, 1 / (1 + np.exp(-logit.astype(np.float64)))),
            "test/ece": 0.1,
            "constant/auc": 0.5,
            "constant/gauc": 0.5,
            "constant/logloss": 0.6931,
        }
        history = pl.DataFrame({"epoch": [0, 1, 2], "step": [10, 20, 30], "valid/auc": [0.5, 0.6, 0.55]})
        protocol = {"protocol": "click_last", "version": 1, "window": 30}
        protocol |= {"metrics": {"version": 1, "gauc": "rows", "bins": 20}}
        names = {"names": {"protocol": "click_last", "loss": None}}
        changes["about"] = names | changes.get("about", {})
        study = tmp_path / "study"
        return leave(study, model, seed, test, metrics, protocol, history, changes=changes, trained=True)

    return make


@pytest.fixture
def slow_metric():
    """A metric of one row by its definition."""
    return slow
