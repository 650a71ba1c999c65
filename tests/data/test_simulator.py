import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.batch import Catalog, SequenceBatch
from hydrec.data.movielens import MovieLens
from hydrec.data.simulator import EVENT_FIELDS, HORIZON, SHAPES, USER_FIELDS, Simulator
from hydrec.errors import InputError

DATA = os.environ.get("HYDREC_DATA")
CONF = Path(__file__).parents[2] / "conf"
OFF = {"preference": 0.0, "timespan": 0.0, "intensity": 0.0, "fields": 0.0, "popularity": 0.0}
ON = dict.fromkeys(OFF, 1.0)
COLUMNS = ("users", "items", "times", "values")


def simulate(**options):
    return Simulator(**{"name": "simulated", "shape": "tiny", "seed": 0, "factors": 6} | OFF | options)


def information(a, b):
    """Mutual information in nats of two columns of small integers, by their joint counts."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1 / len(a))
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    return (joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum()


def excess(statistic, shuffled):
    """By how many standard deviations a statistic exceeds its values on shuffled data."""
    return (statistic - np.mean(shuffled)) / np.std(shuffled)


def surprise(a, b, draws=40):
    """By how many standard deviations two columns tell more of each other than shuffled ones."""
    random = np.random.default_rng(0)
    return excess(information(a, b), [information(random.permutation(a), b) for _ in range(draws)])


def within_users(log, column, random):
    """The column, shuffled within each user."""
    return column[np.lexsort((random.random(len(log)), log.users))]


def pairs(log):
    """Rows whose predecessor is the same user's, and whether the gap between them is a short one."""
    later = np.flatnonzero(log.users[1:] == log.users[:-1]) + 1
    return later, log.times[later] - log.times[later - 1] < 86400


def gini(counts):
    counts = np.sort(counts)
    return 1 - 2 * (np.cumsum(counts) / counts.sum()).mean() + 1 / len(counts)


# What it returns -------------------------------------------------------------------------------------------


def test_same_options_give_the_same_bytes_and_another_seed_others():
    first, again, other = (simulate(**ON, seed=seed)() for seed in (3, 3, 4))
    for name, column in first.columns().items():
        assert column.tobytes() == again.columns()[name].tobytes(), name
    assert first.fingerprint == again.fingerprint
    assert all((getattr(first, name) != getattr(other, name)).any() for name in COLUMNS[1:])


def test_another_name_is_the_same_log():
    assert simulate(name="a")().fingerprint == simulate(name="b")().fingerprint


@pytest.mark.parametrize("shape", SHAPES)
def test_a_log_is_as_large_as_its_shape_says(shape):
    log, named = simulate(shape=shape, **ON)(), SHAPES[shape]
    lengths = np.diff(log.offsets)[1:]
    assert (len(log), log.n_users, log.n_items) == (named.events, named.users, named.items)
    assert lengths.min() == named.shortest
    assert 0.9 * named.longest <= lengths.max() <= named.longest
    assert log.tie_share == pytest.approx(named.ties, abs=0.01)
    assert named.start <= log.times.min()
    assert 0.97 * named.days < np.ptp(log.times) / 86400 <= named.days
    shares = np.bincount(np.rint(log.values * len(named.ratings) / 5).astype(int))[1:] / len(log)
    assert np.abs(shares - named.ratings).max() < 0.01


@pytest.mark.skipif(not DATA, reason="HYDREC_DATA is not set")
@pytest.mark.parametrize("folder", ["ml-100k", "ml-1m", "ml-latest-small"])
def test_shapes_are_those_of_the_published_files(folder):
    if not Path(DATA, folder).is_dir():
        pytest.skip(f"no {folder}")
    real = MovieLens(name="real", folder=folder, root=DATA, k_core=0, duplicates="error")()
    made = simulate(shape=folder, **ON)()
    assert (made.n_users, made.n_items, len(made)) == (real.n_users, real.n_items, len(real))
    assert made.tie_share == pytest.approx(real.tie_share, abs=0.01)
    assert np.ptp(made.times) == pytest.approx(np.ptp(real.times), rel=0.03)
    lengths = [np.quantile(np.diff(log.offsets)[1:], [0, 0.25, 0.5, 0.75, 0.95, 1]) for log in (made, real)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.2)
    counts = [np.unique(log.values, return_counts=True) for log in (made, real)]
    assert (counts[0][0] == counts[1][0]).all()
    assert counts[0][1] / len(made) == pytest.approx(counts[1][1] / len(real), abs=0.01)


@pytest.mark.skipif(not DATA or not Path(DATA, "ml-100k").is_dir(), reason="needs ml-100k in $HYDREC_DATA")
def test_items_are_as_unequal_as_those_of_movielens():
    real = MovieLens(name="real", folder="ml-100k", root=DATA, k_core=0, duplicates="error")()
    made = simulate(shape="ml-100k", factors=8, preference=0.8, popularity=1.0)()
    assert gini(np.bincount(made.items)[1:]) == pytest.approx(gini(np.bincount(real.items)[1:]), abs=0.03)


@pytest.mark.parametrize("dials", [OFF, ON], ids=["off", "on"])
@pytest.mark.parametrize("factors", [1, 2, 3, 18])
def test_no_user_meets_an_item_twice_and_times_ascend(dials, factors):
    log = simulate(**dials, factors=factors)()
    assert len(np.unique(log.users * 1000 + log.items)) == len(log)
    later, _ = pairs(log)
    assert (np.diff(log.times)[later - 1] >= 0).all()


def test_every_item_user_and_event_has_its_features():
    log = simulate(**ON | {"fields": 0.5})()
    assert set(log.item_features) == {"genres"}
    for features, names, rows in (
        (log.user_features, USER_FIELDS, log.n_users + 1),
        (log.event_features, EVENT_FIELDS, len(log)),
    ):
        assert set(features) == set(names)
        for field, feature in features.items():
            assert set(feature.vocabulary) == set(names[field])
            assert len(feature.offsets) == rows + 1
            assert 1 not in feature.codes
    counts = np.diff(log.item_features["genres"].offsets)[1:]
    assert 1 not in log.item_features["genres"].codes
    assert set(counts) == {1, 2}
    for item, title in zip(log.item_ids[1:], log.item_titles[1:], strict=True):
        assert re.fullmatch(rf"Film {item} \((19[4-9]\d|200[01])\)", title)


def test_there_are_no_files_and_the_options_are_plain():
    reader = simulate(preference=1, timespan=0.5)
    assert reader.files() == []
    options = json.loads(json.dumps(reader.options()))
    assert options == reader.options()
    assert json.dumps(options) == json.dumps(simulate(preference=1.0, timespan=0.5, name="other").options())
    assert type(options.pop("version")) is int
    assert simulate(**options).options() == reader.options()
    assert set(options) == {"shape", "seed", "factors", *OFF}


@pytest.mark.parametrize(
    ("key", "value", "range_"),
    [
        *((dial, value, "0.0 to 1.0") for dial in OFF for value in (-0.1, 1.1, float("nan"), "half", True)),
        *(("factors", value, "1 to 18") for value in (0, 19, 2.5)),
        ("seed", -1, "0 to"),
        ("shape", "ml-2m", "tiny, ml-100k, ml-1m, ml-latest-small"),
    ],
)
def test_a_wrong_dial_is_refused_by_its_key_and_range(key, value, range_):
    with pytest.raises(InputError, match=rf"^dataset\.reader\.{key}={value} .*{range_}"):
        simulate(**{key: value})


def test_the_configured_log_is_made_by_these_keys():
    reader = instantiate(OmegaConf.load(CONF / "dataset" / "simulated.yaml").reader)
    assert isinstance(reader, Simulator)


# What is planted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["tiny", "ml-latest-small"])
def test_truth_has_the_ids_and_rows_of_the_log(shape):
    reader = simulate(**ON, shape=shape)
    log, truth = reader(), reader.truth()
    assert len(truth.item_factors) == log.n_items + 1
    assert (truth.factors == truth.item_factors[log.items]).all()
    genres = log.item_features["genres"]
    named = genres.vocabulary[genres.codes[genres.offsets[1:-1]] - 2]
    assert (named == np.array(truth.genres)[truth.item_factors[1:]]).all()
    assert truth.user_weights.shape == (log.n_users + 1, 6)
    assert truth.user_weights[1:].sum(1) == pytest.approx(1)
    assert (truth.user_weights[1:].argmax(1) == truth.user_factors[1:]).all()
    assert len(truth.sessions) == len(truth.planted) == len(truth.telling) == len(log)


@pytest.mark.parametrize(
    ("dial", "unchanged"),
    [
        ("preference", {"users", "times", "user_features"}),
        ("timespan", {"users", "times", "user_features"}),
        ("intensity", {"users", "items", "times", "user_features", "event_features"}),
        ("fields", {"users", "items", "times", "values"}),
        ("popularity", {"users", "times", "values", "user_features", "event_features"}),
    ],
)
def test_a_dial_turns_nothing_but_its_own(dial, unchanged):
    half = dict.fromkeys(OFF, 0.5)
    before, after = (simulate(**half | {dial: at})().columns() for at in (0.2, 0.9))
    groups = {"users", "items", "times", "values", "user_features", "event_features"}
    changed = {name.split("/")[0] for name in before if before[name].tobytes() != after[name].tobytes()}
    assert groups - changed == unchanged
    # Which genre an item has is nobody's dial; a dial may only change which codes the log gives to the words.
    assert not changed & {"item_ids", "user_ids", "item_titles", "item_features"}


def test_purposes_have_random_numbers_of_their_own():
    reader = simulate(shape="ml-100k", intensity=0.5)
    log, truth = reader(), reader.truth()
    later, short = pairs(log)
    columns = {
        "begins": ~short,
        "tied": log.times[later] == log.times[later - 1],
        "telling": truth.telling[later],
        "factor": truth.factors[later] == 0,
        "company": log.event_features["company"].codes[later] - 2,
        "device": log.event_features["device"].codes[later] - 2,
    }
    for (a, first), (b, second) in itertools.combinations(columns.items(), 2):
        if (a, b) != ("begins", "tied"):
            assert abs(surprise(first.astype(int), second.astype(int))) < 5, (a, b)


def test_without_preference_all_users_are_alike():
    reader = simulate(shape="ml-100k")
    log, truth = reader(), reader.truth()
    assert abs(surprise(log.users, truth.factors)) < 4
    assert abs(surprise(truth.user_factors[log.users], truth.factors)) < 4
    assert truth.user_weights[1:] == pytest.approx(1 / 6)


def test_with_preference_users_keep_to_their_factors():
    reader = simulate(shape="ml-100k", preference=1.0)
    log, truth = reader(), reader.truth()
    assert surprise(log.users, truth.factors) > 100
    counts = np.zeros(truth.user_weights.shape)
    np.add.at(counts, (log.users, truth.factors), 1)
    short = np.flatnonzero(np.diff(log.offsets) == 20)
    assert np.sort(truth.user_weights[short])[:, -4:] == pytest.approx(
        np.broadcast_to((0, 0.25, 0.35, 0.4), (len(short), 4))
    )
    # The weights are the true ones: counts deviate from them as those of a multinomial do.
    expected = truth.user_weights * np.diff(log.offsets)[:, None]
    likely = expected > 1
    pearson = ((counts - expected)[likely] ** 2 / expected[likely]).sum() / (likely.sum() - log.n_users)
    assert 0.9 < pearson < 1.1


def test_at_timespan_zero_times_and_order_tell_nothing():
    reader = simulate(shape="ml-100k", preference=1.0, popularity=1.0)
    log, truth = reader(), reader.truth()
    later, short = pairs(log)
    when = (10 * (np.arange(len(log)) - log.offsets[log.users]) / np.diff(log.offsets)[log.users]).astype(int)
    often = np.bincount(log.items)[log.items]
    new = np.flatnonzero(np.diff(truth.sessions))

    def statistics(factors, often):
        same = factors[later] == factors[later - 1]
        return (
            same.mean(),  # recency
            same[short].mean() - same[~short].mean(),  # timespan
            information(when, factors),  # order
            np.corrcoef(when, often)[0, 1],  # order, by popularity
            (factors[new] == factors[new + 1]).mean(),  # sessions
        )

    random = np.random.default_rng(0)
    orders = [within_users(log, np.arange(len(log)), random) for _ in range(40)]
    shuffled = np.array([statistics(truth.factors[o], often[o]) for o in orders])
    found = np.array(statistics(truth.factors, often))
    assert (np.abs((found - shuffled.mean(0)) / shuffled.std(0)) < 4).all()
    assert not truth.planted.any()


def test_at_timespan_one_the_gap_tells_whether_the_factor_stays():
    reader = simulate(shape="ml-latest-small", preference=1.0, timespan=1.0)
    log, truth = reader(), reader.truth()
    later, short = pairs(log)
    assert (short == (truth.sessions[later] == truth.sessions[later - 1])).all()
    assert (log.times[later] - log.times[later - 1])[~short].min() >= 31 * 86400
    same = truth.factors[later] == truth.factors[later - 1]
    assert same[short].mean() > 0.98
    assert same[~short].mean() < 0.01
    # Sessions are of the user's factors as often as the weights say.
    begins = np.flatnonzero(np.diff(truth.sessions, prepend=-1))
    weights = truth.user_weights[log.users[begins]]
    rank = np.argsort(np.argsort(-weights, axis=1), axis=1)[np.arange(len(begins)), truth.factors[begins]]
    shares = np.bincount(rank, minlength=6) / len(begins)
    assert shares == pytest.approx(-np.sort(-weights, axis=1).mean(0), abs=0.02)
    first = np.diff(log.users[begins], prepend=0) > 0
    assert np.bincount(rank[first], minlength=6)[:3] / first.sum() == pytest.approx(
        (0.4, 0.35, 0.25), abs=0.06
    )


@pytest.mark.parametrize("factors", [6, 18])  # 18 of few items each, where some events do not fit
def test_planted_events_are_exactly_those_that_the_gap_tells(factors):
    reader = simulate(preference=1.0, timespan=0.8, factors=factors)
    log, truth = reader(), reader.truth()
    later, short = pairs(log)
    planted = truth.planted[later] & truth.planted[later - 1]
    same = truth.factors[later] == truth.factors[later - 1]
    assert same[short & planted].all()
    assert not same[~short & planted].any()
    assert 0.5 < truth.planted.mean() < 0.8


def test_what_a_factor_has_no_items_for_goes_to_others_whenever_it_came():
    reader = simulate(preference=1.0, timespan=1.0, factors=18)
    log, truth = reader(), reader.truth()
    moved = np.flatnonzero(~truth.planted)
    assert len(moved) > 1000
    place = moved - log.offsets[log.users[moved]]
    random = np.random.default_rng(0)
    orders = [np.lexsort((random.random(len(moved)), log.users[moved])) for _ in range(40)]
    found, *shuffled = (np.corrcoef(place, truth.factors[moved][o])[0, 1] for o in [slice(None), *orders])
    assert abs(excess(found, shuffled)) < 4


def guidance(intensity):
    """By how much ratings improve the guess of the next factor from ten events, and its standard error."""
    reader = simulate(shape="ml-100k", preference=1.0, intensity=intensity)
    log, truth = reader(), reader.truth()
    rows = np.flatnonzero(np.arange(len(log)) - log.offsets[log.users] >= 10)
    history = rows[:, None] + np.arange(-10, 0)
    factors = np.eye(6)[truth.factors[history]]
    votes = factors.sum(1), (factors * log.values[history][:, :, None] ** 2).sum(1)
    hits = [vote.argmax(1) == truth.factors[rows] for vote in votes]
    gain = hits[1].astype(float) - hits[0]
    return gain.mean(), gain.std() / len(gain) ** 0.5


def test_values_tell_the_future_as_far_as_intensity_says():
    gains = [guidance(intensity) for intensity in (0.0, 0.5, 1.0)]
    assert abs(surprise_of_values(0.0)) < 4
    assert surprise_of_values(1.0) > 100
    assert gains[0][0] < 3 * gains[0][1]
    assert 5 * gains[1][1] < gains[1][0] < gains[2][0] - 5 * gains[2][1]


def surprise_of_values(intensity):
    reader = simulate(preference=1.0, intensity=intensity)
    log, truth = reader(), reader.truth()
    later, _ = pairs(log)
    ahead = log.offsets[log.users + 1] - 1 - np.arange(len(log))
    assert truth.telling[ahead >= HORIZON].mean() == intensity
    assert not truth.telling[ahead < HORIZON].any()
    later = later[truth.telling[later - 1]] if intensity else later
    same = truth.factors[later] == truth.factors[later - 1]
    return surprise(np.rint(2 * log.values[later - 1]).astype(int), same.astype(int))


def test_fields_tell_factors_as_far_as_the_dial_says():
    for strength in (0.0, 1.0):
        reader = simulate(shape="ml-100k", factors=12, fields=strength)
        log, truth = reader(), reader.truth()
        for features, factors in (
            (log.user_features, truth.user_factors),
            (log.event_features, np.append(-1, truth.factors)),
        ):
            told = np.zeros_like(factors[1:])
            for feature in features.values():
                codes = feature.codes[-len(told) :] - 2
                assert len(feature.vocabulary) > 1
                if strength:  # a function of the factor
                    assert information(codes, factors[1:]) == pytest.approx(information(codes, codes))
                else:
                    assert abs(surprise(codes, factors[1:])) < 4
                told = told * 100 + codes
            if strength:  # together they are all there is to know
                told = np.unique(told, return_inverse=True)[1]
                assert information(told, factors[1:]) == pytest.approx(np.log(12), abs=0.02)


def test_popularity_is_as_unequal_as_its_dial_says():
    logs = [simulate(shape="ml-100k", preference=1.0, popularity=at)() for at in (0.0, 0.5, 1.0)]
    counts = [np.bincount(log.items)[1:] for log in logs]
    assert counts[0].var() / counts[0].mean() < 1.2  # no more than of equal chances
    assert gini(counts[0]) < gini(counts[1]) - 0.2 < gini(counts[2]) - 0.4


# What a model makes of it ----------------------------------------------------------------------------------


def windows(log, window=12, tested=5):
    """Each event with those before it as a batch: to train, and the last of each user to test."""
    place = np.arange(len(log)) - log.offsets[log.users]
    ahead = np.diff(log.offsets)[log.users] - place

    def batch(rows):
        history = rows[:, None] + np.arange(-window, 0)
        first = log.times[history[:, :1]]
        return SequenceBatch(
            items=torch.tensor(log.items[history], dtype=torch.long),
            times=torch.tensor(log.times[history] - first),
            values=torch.tensor(log.values[history]),
            lengths=torch.full((len(rows),), window),
            targets=torch.tensor(log.items[rows, None], dtype=torch.long),
            target_times=torch.tensor(log.times[rows, None] - first),
            users=torch.tensor(log.users[rows], dtype=torch.long),
            rows=torch.tensor(rows),
        )

    full = place >= window
    return batch(np.flatnonzero(full & (ahead > tested))), batch(np.flatnonzero(full & (ahead <= tested)))


def scores(net, batch, items):
    state, auxiliary = net.encode(batch)
    return net.score(type(state)(*(x[:, 0] for x in state)), items), auxiliary


def accuracy(config, log, seed, epochs=20):
    """Trains a net; for each test row, the share of other items that it places below the target."""
    torch.manual_seed(seed)
    train, test = windows(log)
    nothing = torch.zeros(0, dtype=torch.long)
    catalog = Catalog(
        *(log.n_users, log.n_items, nothing, nothing, nothing, nothing.float()),
        torch.zeros(log.n_items + 1).long(),
    )
    net = instantiate(config | {"dim": 16, "head_dim": 16})(catalog)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.005)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.rows)).split(256):
            batch = SequenceBatch(*(column[rows] for column in train))
            negatives = torch.randint(1, log.n_items + 1, (len(rows), 8))
            score, auxiliary = scores(net, batch, torch.cat([batch.targets, negatives], dim=1))
            loss = F.softplus(score[:, 1:] - score[:, :1]).mean() + auxiliary
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        score, _ = scores(net, test, torch.arange(1, log.n_items + 1))
    own = score.gather(1, test.targets - 1)
    return test.users.numpy(), (own > score).sum(1).numpy() / (log.n_items - 1)


def advantage(net_config, timespan, seeds=(0, 1, 2)):
    """Accuracy of HGNN beyond that of HGNN-T, paired, and its standard error over users and seeds."""
    differences = []
    for seed in seeds:
        log = simulate(seed=seed, preference=0.8, timespan=timespan, popularity=0.3)()
        users, timed = accuracy(net_config("model=hgnn"), log, seed)
        _, untimed = accuracy(net_config("model=hgnn_t"), log, seed)
        rows = np.bincount(users)
        differences.append((np.bincount(users, timed - untimed) / np.maximum(rows, 1))[rows > 0])
    difference = np.concatenate(differences)
    return difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5


@pytest.mark.slow
def test_hgnn_gains_by_timespans_where_they_tell_and_only_there(net_config):
    gain, error = advantage(net_config, timespan=0.0)
    assert abs(gain) < 3 * error
    gain, error = advantage(net_config, timespan=1.0)
    assert gain > 5 * error
