"""What is planted is there, as strongly as its dial says, and nothing else is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.optimize import brentq
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from hydrec.data import click_simulator
from hydrec.data.click_simulator import CELLS, DIALS, SHAPES, ClickSimulator, Shape, match
from hydrec.data.features import derive
from hydrec.errors import InputError

CONF = Path(__file__).parents[2] / "conf"
OFF = dict.fromkeys(DIALS, 0.0)
ON = dict.fromkeys(DIALS, 1.0)
KINDS = {"category": 4, "format": 3, "topic": 3}


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """Shapes for tests, one of them the commercial one a thousandth as large."""
    large = SHAPES["commercial"]
    scaled = Shape(large.users // 1000, large.items, large.showings // 1000)
    monkeypatch.setitem(click_simulator.SHAPES, "commercial", scaled)
    monkeypatch.setitem(click_simulator.SHAPES, "small", Shape(3000, 80, 60_000))


def simulate(**options):
    given = {"name": "x", "shape": "tiny", "seed": 0, "base_rate": 0.2} | OFF | options
    return ClickSimulator(**given)


def code(log, of, name):
    """The number in the value of a field, by the rows of the log."""
    feature = getattr(log, f"{of}_features")[name]
    number = np.array([-1, -1, *(int(value.split()[1]) for value in feature.vocabulary)])[feature.codes]
    return number if of == "event" else number[log.users if of == "user" else log.items]


def probability(logits):
    return 1 / (1 + np.exp(-logits))


def day(log):
    return (log.times - log.times.min() // 86400 * 86400) // 86400


# What it returns --------------------------------------------------------------------------------------------


def test_same_options_give_the_same_bytes_and_another_seed_others():
    first, again, other = (simulate(**ON, seed=seed) for seed in (3, 3, 4))
    for name, column in first().columns().items():
        assert column.tobytes() == again().columns()[name].tobytes(), name
    assert first.truth().tobytes() == again.truth().tobytes()
    assert (first().labels != other().labels).any() and (first().times != other().times).any()
    assert simulate(**ON, seed=3, name="y")().fingerprint == first().fingerprint


def test_the_commercial_shape_has_the_counts_of_mian(monkeypatch):
    monkeypatch.undo()
    assert SHAPES["commercial"] == (2_160_000, 41, 36_000_000)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_is_as_large_as_its_shape_says(shape):
    log, named = simulate(shape=shape, **ON)(), click_simulator.SHAPES[shape]
    assert (log.n_users, log.n_items, len(log)) == named
    assert named.items >= CELLS
    found = np.bincount(day(log))
    assert len(found) == 30
    expected = named.showings / 30
    assert np.abs(found - expected).max() < 5 * expected**0.5
    assert log.dated and log.past_items is None and np.isnan(log.values).all()
    assert set(np.unique(log.labels)) == {0, 1}
    lengths = np.diff(log.offsets)[1:]
    assert lengths.min() >= 1 and lengths.max() > 3 * lengths.mean()


def test_every_user_item_and_showing_has_its_fields():
    log = simulate(shape="small", **ON)()
    sizes = {
        "user": {"segment": 8, "gender": 2, "age": 7, "city": 50},
        "event": {"daypart": 6, "position": 8, "device": 3},
        "item": KINDS,
    }
    for of, fields in sizes.items():
        features = getattr(log, f"{of}_features")
        assert {name: len(feature.vocabulary) for name, feature in features.items()} == fields
        assert all(1 not in feature.codes for feature in features.values())
    hour = derive(log, "hour").codes - 2
    assert (code(log, "event", "daypart") == hour // 4).all()
    # segments are of as many users; combinations of kinds are shown alike often, whoever is there and when
    assert len(set(np.bincount(log.user_features["segment"].codes)[2:])) == 1
    cell = (code(log, "item", "category") * 3 + code(log, "item", "format")) * 3 + code(log, "item", "topic")
    for context in (
        code(log, "user", "segment"),
        code(log, "event", "daypart"),
        code(log, "event", "device"),
    ):
        counts = np.zeros((context.max() + 1, CELLS))
        np.add.at(counts, (context, cell), 1)
        expected = counts.sum(1, keepdims=True) / CELLS
        assert ((counts - expected) ** 2 / expected).sum() < counts.size + 5 * (2 * counts.size) ** 0.5


def test_there_are_no_files_and_the_options_are_plain():
    reader = simulate(**ON | {"history": 1})
    assert reader.files() == []
    options = json.loads(json.dumps(reader.options()))
    assert type(options.pop("version")) is int
    assert simulate(**options).options() == reader.options()
    assert set(options) == {"shape", "seed", "base_rate", *DIALS}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *((dial, value, "0 to 1") for dial in DIALS for value in (-0.1, 1.1, float("nan"), "half", True)),
        ("base_rate", 0, "one label"),
        ("base_rate", 1.0, "one label"),
        ("base_rate", 2, "0 to 1"),
        ("seed", -1, "0 or more"),
        ("shape", "smal", "did you mean small?"),
    ],
)
def test_a_wrong_dial_is_refused_by_its_key(key, value, said):
    with pytest.raises(InputError, match=rf"^dataset\.reader\.{key}={value}.*{said}"):
        simulate(**{key: value})


@pytest.mark.parametrize(
    "protocol", [["protocol=click_days"], ["protocol=click_rating", "protocol.threshold=null"]]
)
def test_the_configured_log_is_split_and_batched(protocol, tmp_path):
    overrides = ["dataset=simulated_clicks", "dataset.reader.shape=tiny", "model=lr", *protocol]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, f"paths.cache={tmp_path}"])
    data = instantiate(cfg.dataset, _convert_="all")
    data.prepare()
    parts = {name: len(part) for name, part in data.split.parts().items()}
    assert sum(parts.values()) == 6000 and min(parts.values()) > 100
    batch = data.feed.evaluate("test", np.arange(64))
    assert (batch.codes >= 2).all() and batch.lengths.max() > 3
    if protocol == ["protocol=click_days"]:
        assert set(day(data.log)[data.split.test.row]) == {29}


# What is planted --------------------------------------------------------------------------------------------


def slow_truth(log, dials, rate):
    """The logits, from the log alone, row by row; without popularity."""
    fields = {name: code(log, "item", name) for name in KINDS}
    items = {int(item): tuple(int(fields[name][row]) for name in KINDS) for row, item in enumerate(log.items)}
    combinations = sorted(items.values())
    segment, daypart = code(log, "user", "segment"), code(log, "event", "daypart")
    today, known, logits = day(log), {}, []
    for row in range(len(log)):
        mine = range(log.offsets[log.users[row]], row)
        clicked = [items[log.items[r]][2] for r in mine if log.labels[r] and today[r] < today[row]][-5:]

        def planted(item, row=row, clicked=clicked):
            matches = [
                (dials["user_item"], 4, [segment[row] % 4 == item[0]]),
                (dials["context_item"], 3, [daypart[row] % 3 == item[1]]),
                (dials["history"], 3, [topic == item[2] for topic in clicked]),
            ]
            return sum(
                dial * (kinds * np.mean(same) - 1) / math.sqrt(kinds - 1)
                for dial, kinds, same in matches
                if same
            )

        key = (segment[row] % 4, daypart[row] % 3, tuple(sorted(clicked)))
        if key not in known:
            each = [(planted(item), combinations.count(item)) for item in combinations]
            known[key] = brentq(
                lambda b, each=each: sum(probability(b + z) / count for z, count in each) / 36 - rate, -20, 20
            )
        logits.append(known[key] + planted(items[log.items[row]]))
    return logits


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_truth_is_what_a_slow_loop_makes_of_the_log(rate):
    dials = {"user_item": 0.7, "context_item": 0.4, "history": 1.0}
    reader = simulate(**OFF | dials, base_rate=rate)
    log = reader()
    assert log.n_items == 48
    assert reader.truth() == pytest.approx(slow_truth(log, dials, rate))


def test_a_history_is_the_last_five_clicks():
    random = np.random.default_rng(0)
    recent, clicked = np.full((4, 5), 3), [[3] * 5 for _ in range(4)]
    for _ in range(30):
        users = np.sort(random.integers(0, 4, random.integers(0, 30)))
        topics = random.integers(0, 3, len(users))
        click_simulator._remember(recent, users, topics)
        for user, topic in zip(users, topics, strict=True):
            clicked[user].append(topic)
        assert recent.tolist() == [some[-5:] for some in clicked]


def test_a_match_is_balanced():
    for kinds in (2, 3, 4):
        table = match(kinds)
        assert table.sum(0) == pytest.approx(0) and table.sum(1) == pytest.approx(0)
        assert table.var(0) == pytest.approx(1) and (np.diag(table) == table.max()).all()


def table_of(reader):
    """The planted logits (segment, daypart, history, item) and the share of showings of each item."""
    cells = reader._showings().cells
    return reader._table(cells), 1 / (CELLS * np.bincount(cells)[cells])


def test_every_user_context_and_history_has_the_base_rate():
    table, share = table_of(simulate(**ON, shape="commercial", base_rate=0.03))
    assert table.shape == (4, 3, 6**3, 41)
    assert probability(table) @ share == pytest.approx(np.full(table.shape[:3], 0.03), rel=1e-12)


def test_without_popularity_every_item_has_the_base_rate():
    table, _ = table_of(simulate(**ON | {"popularity": 0.0}, shape="commercial"))
    by_history = probability(table).mean((0, 1))  # all segments and dayparts are alike often
    counts = np.sort(np.indices((6, 6, 6)).reshape(3, -1), axis=0)
    for pattern in np.unique(counts, axis=1).T:  # as are histories that differ in the names of topics only
        alike = (counts == pattern[:, None]).all(0)
        assert by_history[alike].mean(0) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize(("dial", "axis"), [("user_item", 0), ("context_item", 1), ("history", 2)])
def test_an_interaction_is_exactly_absent_at_zero(dial, axis):
    table, _ = table_of(simulate(**ON | {dial: 0.0}))
    first = np.take(table, [0], axis)
    assert np.abs(table - first).max() < 1e-13
    table, _ = table_of(simulate(**OFF | {dial: 0.01}))
    assert np.abs(table - np.take(table, [0], axis)).max() > 0.01


def test_with_all_dials_at_zero_nothing_tells():
    truth = simulate(base_rate=0.07).truth()
    assert truth == pytest.approx(np.full(6000, math.log(0.07 / 0.93)))


def test_a_dial_turns_nothing_but_labels():
    before = simulate()().columns()
    for dial in DIALS:
        after = simulate(**{dial: 1.0})().columns()
        changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
        assert changed == {"labels"}, dial


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_labels_are_drawn_by_the_truth(rate):
    reader = simulate(**ON, shape="small", base_rate=rate)
    log, truth = reader(), reader.truth()
    p = probability(truth)
    assert p.mean() == pytest.approx(rate, rel=0.03)
    left = log.labels - p
    for weight in (np.ones(len(log)), truth, np.abs(truth), truth < np.quantile(truth, 0.1)):
        assert abs((weight * left).sum()) < 4 * (weight**2 * p * (1 - p)).sum() ** 0.5


def test_what_was_clicked_on_earlier_days_is_clicked_more_and_how_much_was_says_nothing():
    for history in (0.0, 1.0):
        log = simulate(shape="small", history=history)()
        topic, today = code(log, "item", "topic"), day(log)
        clicks = np.concatenate([np.zeros((1, 3)), np.cumsum(log.labels[:, None] * np.eye(3)[topic], 0)])
        begins = np.append(True, (np.diff(today) != 0) | (np.diff(log.users) != 0))
        morning = np.maximum.accumulate(np.where(begins, np.arange(len(log)), 0))
        before = clicks[morning] - clicks[log.offsets[log.users]]
        known = before.sum(1)
        same = before[np.arange(len(log)), topic] / np.maximum(known, 1)
        rates = [log.labels[(known > 0) & which] for which in (same < 0.2, same > 0.6)]
        gain = rates[1].mean() - rates[0].mean()
        error = math.sqrt(sum(0.16 / len(rate) for rate in rates))
        assert gain > 40 * error if history else abs(gain) < 3 * error
        for some in (known == 0, known == 1, known > 4):
            assert abs(log.labels[some].mean() - 0.2) < 3.5 * math.sqrt(0.16 / some.sum())


# What a model makes of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("popularity", [0.0, 0.5])
def test_regression_sees_items_alone_and_nearly_all_with_crossed_fields(popularity):
    reader = simulate(shape="small", user_item=1.0, context_item=1.0, popularity=popularity)
    log, truth = reader(), reader.truth()
    fields = {
        name: code(log, of, name)
        for of in ("user", "event", "item")
        for name in getattr(log, f"{of}_features")
    }
    crossed = [fields["segment"] * 4 + fields["category"], fields["daypart"] * 3 + fields["format"]]
    train = day(log) < 24
    labels, n = log.labels[~train], (~train).sum()

    def auc(*columns):
        codes = OneHotEncoder().fit_transform(np.stack(columns, 1))
        fitted = LogisticRegression(C=0.1, max_iter=200).fit(codes[train], log.labels[train])
        return roc_auc_score(labels, fitted.decision_function(codes[~train]))

    items, single, pairs = auc(log.items), auc(log.items, *fields.values()), auc(log.items, *crossed)
    bayes = roc_auc_score(labels, truth[~train])
    error = math.sqrt(1 / (12 * 0.16 * n))
    assert abs(single - items) < 2 * error
    assert items > 0.5 + 10 * error if popularity else abs(items - 0.5) < 4 * error
    assert pairs > bayes - 2 * error > single + 20 * error


def test_the_configured_log_is_made_by_these_keys():
    reader = instantiate(OmegaConf.load(CONF / "dataset" / "simulated_clicks.yaml").reader)
    assert isinstance(reader, ClickSimulator)
