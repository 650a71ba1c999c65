import inspect
import itertools
import json
import math
import multiprocessing
import os
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hydrec import metrics
from hydrec.batch import PAD, EvalCandidates
from hydrec.errors import InputError
from hydrec.metrics import NonFiniteScores, RankMetrics, Ranks, rank

EVERYTHING = EvalCandidates(None, None)


def ranks(greater, equal, candidates=1000):
    greater, equal = torch.as_tensor(greater), torch.as_tensor(equal)
    return Ranks(greater, equal, torch.full_like(greater, candidates))


def scorer(scores):
    """A net that knows its (M, V+1) scores by heart, column 0 being PAD's."""
    return lambda items: scores[:, items] if items.ndim == 1 else scores.gather(1, items)


def case(seed, rows=9, n_items=23, levels=6):
    """Scores with many ties, and targets."""
    torch.manual_seed(seed)
    scores = torch.randint(levels, (rows, n_items + 1)) / levels
    return scores, torch.randint(1, n_items + 1, (rows,))


def excluded_without(targets, n_items, count):
    """(M, count) distinct items that are not the target, fewer and then PAD in the later rows."""
    order = torch.rand(len(targets), n_items).scatter(1, targets[:, None] - 1, 2.0).argsort(1)
    excluded = order[:, :count] + 1
    real = torch.arange(count) < count - torch.arange(len(targets))[:, None] % (count + 1)
    return excluded.where(real, PAD)


def slow_rank(scores, target, competitors):
    """The two counts, one competitor at a time; ``scores`` are those of one row."""
    own = float(scores[target])
    others = [float(scores[item]) for item in competitors]
    return sum(s > own for s in others), sum(s == own for s in others), len(others) + 1


def slow_ranks(scores, targets, competitors):
    counts = [slow_rank(*row) for row in zip(scores, targets.tolist(), competitors, strict=True)]
    return Ranks(*torch.tensor(counts).T)


def gain(name, k, place):
    """A metric at one place, from its definition for one relevant item."""
    if k is not None and place > k:
        return 0.0
    return {
        "hit": 1.0,
        "recall": 1.0,
        "precision": 1 / k if k else None,
        "mrr": 1 / place,
        "ndcg": 1 / math.log2(place + 1),
        "map": 1 / place,
        "mean_rank": float(place),
    }[name]


def slow_metric(name, k, greater, equal):
    places = range(greater + 1, greater + equal + 2)
    return math.fsum(gain(name, k, place) for place in places) / len(places)


# Counting


@pytest.mark.parametrize("limit", [1, 9, 30, 9 * 10, 9 * 23, 10**6])
@pytest.mark.parametrize("count", [0, 5])
def test_the_catalogue_is_counted_as_by_a_loop(limit, count):
    scores, targets = case(seed=limit)
    excluded = excluded_without(targets, 23, count)
    found = rank(scorer(scores), targets, EvalCandidates(None, excluded), n_items=23, limit=limit)
    left = [
        [item for item in range(1, 24) if item != target and item not in out]
        for target, out in zip(targets.tolist(), excluded.tolist(), strict=True)
    ]
    assert_close(found, slow_ranks(scores, targets, left), rtol=0, atol=0)
    assert all(x.dtype == torch.int64 for x in found)


def test_no_exclusion_is_as_an_empty_one():
    scores, targets = case(seed=0)
    empty = torch.empty(9, 0, dtype=torch.int64)
    whole = rank(scorer(scores), targets, EVERYTHING, n_items=23, limit=40)
    assert_close(whole, rank(scorer(scores), targets, EvalCandidates(None, empty), n_items=23, limit=40))


@pytest.mark.parametrize("limit", [1, 9, 9 * 10, 9 * 22, 9 * 23, 10**6])
def test_scores_are_asked_for_in_one_width_within_the_limit(limit):
    scores, targets = case(seed=1)
    asked = []

    def score(items):
        asked.append(items)
        return scores[:, items]

    rank(score, targets, EVERYTHING, n_items=23, limit=limit)
    width = min(23, max(1, limit // 9))
    assert {items.shape for items in asked} == {(width,)}
    assert torch.cat(asked).unique().tolist() == list(range(1, 24))
    assert len(asked) == 1 if width == 23 else len(asked) <= 2 * math.ceil(23 / width)


def test_chunks_without_a_target_are_scored_once():
    scores, _ = case(seed=1, rows=2)
    asked = []

    def score(items):
        asked.append(items.tolist())
        return scores[:, items]

    rank(score, torch.tensor([5, 5]), EVERYTHING, n_items=23, limit=20)
    assert sorted(items[0] for items in asked) == [1, 1, 11, 21]


@pytest.mark.parametrize("limit", [7 * 40, 7 * 64, 10**6])
def test_items_of_one_embedding_tie_in_a_matrix_product(limit):
    torch.manual_seed(0)
    item = torch.randn(40, 33).repeat(25, 1)  # each vector 25 times, all over the catalogue
    state = torch.randn(7, 33)
    targets = torch.tensor([1, 39, 500, 999, 1000, 80, 640])
    found = rank(lambda items: state @ item[items - 1].T, targets, EVERYTHING, n_items=1000, limit=limit)
    assert found.equal.tolist() == [24] * 7
    assert (found.greater % 25 == 0).all()


def test_no_rows_give_no_ranks():
    scores, targets = case(seed=0, rows=0)
    found = rank(scorer(scores), targets, EVERYTHING, n_items=23, limit=50)
    assert [x.tolist() for x in found] == [[], [], []]


def test_listed_candidates_are_counted_as_by_a_loop():
    scores, targets = case(seed=2)
    listed = torch.randint(0, 24, (9, 12))  # with PAD and with repeats
    listed[listed == targets[:, None]] = PAD
    found = rank(scorer(scores), targets, EvalCandidates(listed, None), n_items=23, limit=1)
    left = [[item for item in row if item != PAD] for row in listed.tolist()]
    assert (listed == PAD).any() and any(len(set(row)) < len(row) for row in left)
    assert_close(found, slow_ranks(scores, targets, left), rtol=0, atol=0)


def test_listed_candidates_take_one_call_with_the_target_first():
    scores, targets = case(seed=3)
    listed = excluded_without(targets, 23, 4)
    asked = []

    def score(items):
        asked.append(items)
        return scores.gather(1, items)

    rank(score, targets, EvalCandidates(listed, None), n_items=23, limit=1)
    assert len(asked) == 1
    assert torch.equal(asked[0], torch.cat([targets[:, None], listed], 1))


def test_an_excluded_item_does_not_compete_where_it_is_listed():
    scores, targets = case(seed=4)
    listed, excluded = excluded_without(targets, 23, 15), excluded_without(targets, 23, 6)
    excluded[0], excluded[1] = listed[1, :6], PAD  # what another row excludes stays
    found = rank(scorer(scores), targets, EvalCandidates(listed, excluded), n_items=23, limit=1)
    left = [
        [item for item in row if item != PAD and item not in out]
        for row, out in zip(listed.tolist(), excluded.tolist(), strict=True)
    ]
    assert_close(found, slow_ranks(scores, targets, left), rtol=0, atol=0)


def test_a_list_of_all_items_is_the_catalogue():
    scores, targets = case(seed=5)
    others = torch.arange(1, 24).expand(9, 23)
    others = others[others != targets[:, None]].view(9, 22)
    whole = rank(scorer(scores), targets, EVERYTHING, n_items=23, limit=1000)
    assert_close(rank(scorer(scores), targets, EvalCandidates(others, None), n_items=23, limit=1), whole)


@given(st.permutations(range(12)), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_the_order_of_candidates_and_padding_change_nothing(order, padding):
    scores, targets = case(seed=6)
    listed = excluded_without(targets, 23, 12)
    before = rank(scorer(scores), targets, EvalCandidates(listed, None), n_items=23, limit=1)
    wider = torch.cat([torch.zeros(9, padding, dtype=torch.int64), listed[:, order]], 1)
    assert_close(rank(scorer(scores), targets, EvalCandidates(wider, None), n_items=23, limit=1), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("item", [3, 20])
@pytest.mark.parametrize("limit", [9 * 4, 10**6])
@pytest.mark.parametrize("listed", [False, True])
def test_a_score_that_is_not_finite_stops_and_names_the_row(bad, item, limit, listed):
    scores, targets = case(seed=7)
    targets[5] = 20
    scores[5, item] = scores[7, item] = bad
    others = torch.arange(1, 24).expand(9, 23)
    others = others[others != targets[:, None]].view(9, 22)
    candidates = EvalCandidates(others, None) if listed else EVERYTHING
    with pytest.raises(NonFiniteScores, match=rf"item {item} is -?(nan|inf) in row 5 ") as error:
        rank(scorer(scores), targets, candidates, n_items=23, limit=limit)
    assert (error.value.row, error.value.item) == (5, item)
    assert isinstance(error.value, InputError) and "\n" not in str(error.value)


def test_the_score_of_padding_is_nobodys_business():
    scores, targets = case(seed=8)
    listed = excluded_without(targets, 23, 8)
    before = rank(scorer(scores), targets, EvalCandidates(listed, None), n_items=23, limit=1)
    scores[:, PAD] = math.nan
    assert_close(rank(scorer(scores), targets, EvalCandidates(listed, None), n_items=23, limit=1), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_counted_exactly(dtype):
    scores = torch.zeros(2, 3001, dtype=dtype)
    scores[1, 1:3000] = 1  # 2,999 ones: half precision has no such number
    found = rank(scorer(scores), torch.tensor([3000, 3000]), EVERYTHING, n_items=3000, limit=10**6)
    assert [x.tolist() for x in found] == [[0, 2999], [2999, 0], [3000, 3000]]


def test_double_precision_is_kept():
    scores = torch.tensor([[0.0, 1.0, 1.0 + 1e-12, 1.0 - 1e-12]], dtype=torch.float64)
    found = rank(scorer(scores), torch.tensor([1]), EVERYTHING, n_items=3, limit=3)
    assert [x.tolist() for x in found] == [[1], [0], [3]]


def test_neighbouring_and_huge_scores_are_told_apart():
    big = torch.finfo(torch.float32).max
    scores = torch.tensor([[0.0, -big, big, 0.1, torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))]])
    found = rank(scorer(scores), torch.tensor([3]), EVERYTHING, n_items=4, limit=4)
    assert [x.tolist() for x in found] == [[2], [0], [4]]


def test_a_score_that_needs_gradients_keeps_no_graph():
    weight = torch.ones(1, 24, requires_grad=True)
    made = []

    def score(items):
        made.append(weight[:, items] * 2)
        return made[-1]

    rank(score, torch.tensor([1]), EVERYTHING, n_items=23, limit=5)
    assert made and not any(scores.requires_grad for scores in made)


# Metrics of one row


UNCUT = [("mrr", None), ("mean_rank", None)]
NAMES = [(name, k) for name in metrics.AT_K for k in (1, 2, 3, 5, 10, 100)] + UNCUT


def value(name, k, rank_):
    if name == "mean_rank":
        return metrics.mean_rank(rank_)
    return metrics.mrr(rank_) if k is None else metrics.AT_K[name](rank_, k)


@pytest.mark.parametrize(("name", "k"), NAMES)
def test_expected_metrics_match_a_slow_loop(name, k):
    pairs = list(itertools.product((0, 1, 2, 3, 4, 5, 9, 10, 40, 99, 100, 3000), (0, 1, 2, 6, 7, 30, 500)))
    found = value(name, k, ranks(*map(list, zip(*pairs, strict=True))))
    assert found.dtype == torch.float64
    exact = torch.tensor([slow_metric(name, k, g, e) for g, e in pairs], dtype=torch.float64)
    assert_close(found, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "k"), [(name, k) for name, k in NAMES if k in (None, 1, 2, 3, 5)])
def test_the_expectation_is_the_mean_over_all_orders_of_the_candidates(name, k):
    scores = [2, 1, 1, 3, 1, 0]  # of which the second is the target's: 2 above, 2 the same
    places = []
    for order in itertools.permutations(range(len(scores))):
        order = sorted(order, key=lambda c: -scores[c])  # stable: ties keep the order of the permutation
        places.append(order.index(1) + 1)
    mean = math.fsum(gain(name, k, place) for place in places) / len(places)
    assert value(name, k, ranks([2], [2], 6)).item() == pytest.approx(mean, abs=1e-15)


def test_ties_at_the_cut_by_hand():
    # One candidate ahead and two beside the target: places 2, 3 and 4.
    cut = ranks([1], [2], 6)
    assert metrics.hit(cut, 1).item() == 0
    assert metrics.hit(cut, 2).item() == pytest.approx(1 / 3)
    assert metrics.recall(cut, 3).item() == pytest.approx(2 / 3)
    assert metrics.precision(cut, 3).item() == pytest.approx(2 / 9)
    assert metrics.mrr(cut, 3).item() == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert metrics.average_precision(cut, 3).item() == pytest.approx((1 / 2 + 1 / 3) / 3)
    assert metrics.ndcg(cut, 3).item() == pytest.approx((1 / math.log2(3) + 1 / 2) / 3)
    assert metrics.mrr(cut).item() == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert metrics.mean_rank(cut).item() == 3


@pytest.mark.parametrize(("ties", "place"), [("pessimistic", 4), ("optimistic", 2)])
def test_settled_ties_leave_one_place(ties, place):
    settled = metrics.break_ties(ranks([1], [2], 6), ties)
    assert [x.tolist() for x in settled] == [[place - 1], [0], [6]]
    computed = RankMetrics(at=[3], ties=ties)
    computed.update(torch.tensor([0]), torch.tensor([1]), ranks([1], [2], 6))
    found = computed.compute()
    for name in ("hit", "mrr", "ndcg", "precision", "map", "recall"):
        assert found[f"{name}@3"].item() == pytest.approx(gain(name, 3, place))
    assert found["mean_rank"] == place
    assert found["mean_equal"] == 2  # the ties there were


def test_expected_ties_are_left_alone():
    assert metrics.break_ties(ranks([1], [2], 6), "expected") == ranks([1], [2], 6)


def test_more_places_than_candidates():
    whole = ranks([0, 1, 0], [0, 1, 2], 3)
    for k in (3, 10, 1000):
        assert_close(metrics.hit(whole, k), torch.ones(3, dtype=torch.float64))
        assert_close(metrics.precision(whole, k), torch.full((3,), 1 / k, dtype=torch.float64))
        assert_close(metrics.mrr(whole, k), metrics.mrr(whole))


ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30)


@given(ROWS, st.sampled_from(metrics.TIES))
@settings(max_examples=60, deadline=None)
def test_what_holds_between_metrics_of_one_target(rows, ties):
    metric = RankMetrics(at=[1, 5, 10, 200], ties=ties)
    number = torch.arange(len(rows))
    metric.update(number, number, ranks(*map(list, zip(*rows, strict=True))))
    v = {name: x.item() for name, x in metric.compute().items()}
    tiny = 1e-12
    assert v["hit@5"] / 5 - tiny <= v["mrr@5"] <= v["hit@5"] + tiny
    gained = v["hit@10"] - v["hit@5"]
    assert gained / 10 - tiny <= v["mrr@10"] - v["mrr@5"] <= gained / 6 + tiny
    for k in (1, 5, 10, 200):
        assert v[f"mrr@{k}"] <= v[f"ndcg@{k}"] + tiny and v[f"ndcg@{k}"] <= v[f"hit@{k}"] + tiny
        assert v[f"recall@{k}"] == v[f"hit@{k}"] and v[f"map@{k}"] == v[f"mrr@{k}"]
        assert v[f"precision@{k}"] * k == pytest.approx(v[f"hit@{k}"], abs=tiny)
    for name in ("hit", "recall", "mrr", "ndcg", "map"):
        assert v[f"{name}@1"] <= v[f"{name}@5"] <= v[f"{name}@10"] <= v[f"{name}@200"]
    assert v["mrr"] == pytest.approx(v["mrr@200"], abs=tiny)  # no place is beyond 121


def test_ndcg_and_auc_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    scores, targets = case(seed=9, rows=12)
    found = rank(scorer(scores), targets, EVERYTHING, n_items=23, limit=100)
    relevant, scores = torch.nn.functional.one_hot(targets - 1, 23).numpy(), scores[:, 1:].numpy()
    for k in (1, 5, 10, 23):
        theirs = sklearn.ndcg_score(relevant, scores, k=k)
        assert metrics.ndcg(found, k).mean().item() == pytest.approx(theirs)
    others = found.candidates - 1
    auc = (others - found.greater - found.equal / 2) / others
    theirs = [sklearn.roc_auc_score(*row) for row in zip(relevant, scores, strict=True)]
    assert auc.tolist() == pytest.approx(theirs)


# Means over rows


def ranked(n, users=7, seed=0):
    """Rows in no order, with users of unequal numbers of rows, and ranks with ties."""
    torch.manual_seed(seed)
    rows = torch.randperm(10 * n)[:n]
    found = Ranks(torch.randint(0, 40, (n,)), torch.randint(0, 4, (n,)), torch.randint(50, 60, (n,)))
    return rows, torch.randint(1, users + 1, (n,)), found


def filled(rows, users, found, *, batches, at=(5, 10), ties="expected"):
    metric = RankMetrics(at=at, ties=ties)
    for part in batches:
        metric.update(rows[part], users[part], Ranks(*(x[part] for x in found)))
    return metric


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("ties", metrics.TIES)
def test_means_match_a_slow_loop(ties):
    rows, users, found = ranked(60)
    v = filled(rows, users, found, batches=[slice(None)], ties=ties).compute()
    settled = []
    for g, e in zip(found.greater.tolist(), found.equal.tolist(), strict=True):
        settled.append({"expected": (g, e), "pessimistic": (g + e, 0), "optimistic": (g, 0)}[ties])
    for name, k in [(name, k) for name in metrics.AT_K for k in (5, 10)] + UNCUT:
        key = name if k is None else f"{name}@{k}"
        values = [slow_metric(name, k, g, e) for g, e in settled]
        assert v[key].item() == pytest.approx(sum(values) / 60, rel=1e-12)
        of_user = {}
        for user, x in zip(users.tolist(), values, strict=True):
            of_user.setdefault(user, []).append(x)
        user_means = [sum(x) / len(x) for x in of_user.values()]
        assert v[f"user/{key}"].item() == pytest.approx(sum(user_means) / len(user_means), rel=1e-12)
    assert v["mean_equal"].item() == pytest.approx(found.equal.double().mean().item())
    assert all(x.dtype == torch.float64 and x.ndim == 0 for x in v.values())


def test_names_and_their_order():
    metric = filled(*ranked(3, users=1), batches=[slice(None)], at=(10, 5))
    names = [f"{name}@{k}" for k in (10, 5) for name in ("hit", "recall", "precision", "mrr", "ndcg", "map")]
    assert list(metric.compute()) == [*names, "mrr", "mean_rank", "mean_equal"]


def test_users_of_equal_numbers_of_rows_need_no_means_of_their_own():
    _, _, found = ranked(12)
    for users, uneven in ((torch.arange(12) % 3, False), (torch.arange(12) % 5, True)):
        metric = filled(torch.arange(12), users, found, batches=[slice(None)])
        assert any(name.startswith("user/") for name in metric.compute()) == uneven


def test_batches_and_their_order_change_no_bit():
    case_ = ranked(997)
    whole = filled(*case_, batches=[slice(None)])
    torch.manual_seed(1)
    for size in (1, 10, 400):
        batches = list(torch.randperm(997).split(size))
        parts = filled(*case_, batches=batches)
        assert same_bits(parts.compute(), whole.compute())
        assert same_bits(parts.table(), whole.table())


def test_the_number_of_threads_changes_no_bit():
    # torch.sum splits rows among threads from 32,768 on.
    case_ = ranked(40_000, users=9_000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(filled(*case_, batches=[slice(None)]).compute())
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


def test_the_table_gives_the_rows_back():
    rows, users, found = ranked(20)
    metric = filled(rows, users, found, batches=[slice(0, 5), slice(5, 20)])
    table = metric.table()
    assert tuple(table) == metrics.COLUMNS
    order = rows.argsort()
    for name, column in zip(metrics.COLUMNS, (rows, users, *found), strict=True):
        assert torch.equal(table[name], column[order])
    metric.reset()
    assert tuple(metric.table()) == metrics.COLUMNS and not len(metric.table()["row"])


def test_rows_are_still_added_after_a_look_at_the_means():
    rows, users, found = ranked(20)
    metric = filled(rows, users, found, batches=[slice(0, 5)])
    metric.compute(), metric.table()
    metric.update(rows[5:], users[5:], Ranks(*(x[5:] for x in found)))
    assert same_bits(metric.compute(), filled(rows, users, found, batches=[slice(None)]).compute())


def test_a_row_counts_once():
    rows, users, found = ranked(20)
    metric = filled(rows, users, found, batches=[slice(0, 12), slice(11, 20)])
    for look in (metric.compute, metric.table):
        with pytest.raises(InputError, match=f"row {rows[11]} .*trainer.use_distributed_sampler=false"):
            look()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_rows_have_no_mean():
    with pytest.raises(InputError, match=r"no row was ranked.*protocol\.valid"):
        RankMetrics(at=[5], ties="expected").compute()


@pytest.mark.parametrize("ties", metrics.TIES)
def test_a_constant_model_gets_the_random_row(ties):
    targets, n = torch.tensor([1, 17, 51, 30]), torch.arange(4)
    found = rank(lambda items: torch.zeros(4, len(items)), targets, EVERYTHING, n_items=51, limit=100)
    expected = filled(n, n, found, batches=[slice(None)]).compute()
    random = RankMetrics(at=[5, 10], ties=ties).random_row(found.candidates)
    assert set(expected) - set(random) == {"mean_equal"}
    for name, x in random.items():
        assert torch.equal(x, expected[name])
    by_hand = {
        "hit@5": 5 / 51,
        "hit@10": 10 / 51,
        "recall@10": 10 / 51,
        "precision@10": 1 / 51,
        "mrr@5": sum(1 / r for r in range(1, 6)) / 51,
        "map@10": sum(1 / r for r in range(1, 11)) / 51,
        "ndcg@10": sum(1 / math.log2(r + 1) for r in range(1, 11)) / 51,
        "mrr": sum(1 / r for r in range(1, 52)) / 51,
        "mean_rank": 26,
    }
    assert {name: random[name].item() for name in by_hand} == pytest.approx(by_hand, rel=1e-12)
    rounded = [round(random[name].item(), 3) for name in ("hit@5", "hit@10", "mrr@5", "mrr@10")]
    assert rounded == [0.098, 0.196, 0.045, 0.057]


def test_the_random_row_is_the_mean_over_rows_of_unequal_lists():
    random = RankMetrics(at=[5], ties="expected").random_row(torch.tensor([3, 20]))
    assert random["hit@5"].item() == pytest.approx((1 + 5 / 20) / 2)


def test_settings_are_kept_and_told():
    metric = RankMetrics(at=[5, 10], ties="pessimistic")
    assert (metric.at, metric.ties) == ((5, 10), "pessimistic")
    assert json.loads(json.dumps(metric.identity())) == {"version": 1, "at": [5, 10], "ties": "pessimistic"}
    assert metric.clone().identity() == metric.identity()


@pytest.mark.parametrize("at", [[], [0], [5, -1], [5.0], [True], ["5"], "5", 10, None])
def test_a_wrong_cut_is_named(at):
    unchecked = inspect.unwrap(RankMetrics.__init__)  # a configuration may hold any type
    with pytest.raises(InputError, match=r"protocol\.metrics\.at="):
        unchecked(RankMetrics.__new__(RankMetrics), at=at, ties="expected")


def test_a_mistyped_tie_rule_names_the_nearest():
    with pytest.raises(InputError, match=r"protocol\.metrics\.ties=optimist .*did you mean optimistic"):
        RankMetrics(at=[5], ties="optimist")


# Several processes

ROWS_OF = {"even": 60, "one batch": 7, "uneven": 53, "none": 0, "twice": 60}


def evaluate(process, processes, name):
    """What one process gets when it takes whole batches of 20 rows, every ``processes``-th."""
    n = ROWS_OF[name]
    rows, users, found = ranked(n, seed=n)
    batches = list(torch.arange(n).split(20))[process::processes]
    if name == "twice" and process == processes - 1:
        batches = [torch.arange(40, 60), torch.arange(0, 1)]
    metric = filled(rows, users, found, batches=batches)
    try:
        table, means = metric.table(), metric.compute()
        metric.update(torch.tensor([10**6 + process]), torch.tensor([1]), ranks([0], [0]))
        return table, means, len(metric.table()["row"]), None
    except InputError as error:
        return {}, {}, 0, str(error)


def work(process, folder):
    torch.set_num_threads(1)
    if "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    results = {}
    for processes in (2, 3, 4):
        if process < processes:
            store = f"file://{folder}/store{processes}"
            torch.distributed.init_process_group("gloo", store, rank=process, world_size=processes)
            results[processes] = {name: evaluate(process, processes, name) for name in ROWS_OF}
            torch.distributed.destroy_process_group()
    torch.save(results, folder / f"{process}.pt")


@pytest.fixture(scope="module")
def by_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.set_forkserver_preload(["hydrec.metrics", "hypothesis"])  # imported once for all four
    torch.multiprocessing.start_processes(work, (folder,), nprocs=4, start_method="forkserver")
    return [torch.load(folder / f"{process}.pt") for process in range(4)]


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("name", ["even", "uneven", "one batch"])
def test_any_number_of_processes_gives_the_same_bits(by_process, name, processes):
    n = ROWS_OF[name]
    alone = filled(*ranked(n, seed=n), batches=[slice(None)])
    for process in range(processes):
        table, means, after, error = by_process[process][processes][name]
        assert error is None
        assert same_bits(table, alone.table())
        assert same_bits(means, alone.compute())
        assert after == n + processes


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize(("name", "message"), [("none", "no row was"), ("twice", "was evaluated twice")])
def test_every_process_sees_the_error(by_process, name, message, processes):
    for process in range(processes):
        assert message in by_process[process][processes][name][3]
