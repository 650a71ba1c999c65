"""Random numbers are hashes of what they are for; draws are exact, by weight, and never what is excluded."""

import hashlib
import itertools
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrec.batch import PAD, Catalog
from hydrec.errors import InputError
from hydrec.sampling import (
    AllItems,
    InBatch,
    Sampled,
    below,
    cumulative,
    draw,
    exclude,
    hash64,
    lists,
    one_of,
    permuted,
)

WORD = 2**64


GAMMA = 0x9E3779B97F4A7C15


def splitmix(x: int) -> int:
    x = (x + GAMMA) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def slow_hash(seed: int, purpose: str, *keys: int) -> int:
    bits = 0
    for key in (
        seed,
        int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big"),
        *keys,
    ):
        bits = splitmix((bits + key * GAMMA) % WORD)
    return bits


def close(counts: torch.Tensor, expected: torch.Tensor) -> bool:
    """Pearson's chi-square within five standard deviations of its mean; nothing where nothing is expected."""
    some = expected > 0
    statistic = float(((counts - expected)[some] ** 2 / expected[some]).sum())
    free = int(some.sum()) - 1
    return int(counts[~some].sum()) == 0 and statistic < free + 5 * (2 * free) ** 0.5


def catalog(counts: list[int], users: list[int], items: list[int]) -> Catalog:
    return Catalog(
        n_users=max(users, default=0),
        n_items=len(counts),
        users=torch.tensor(users, dtype=torch.long),
        items=torch.tensor(items, dtype=torch.long),
        times=torch.zeros(len(users), dtype=torch.long),
        values=torch.ones(len(users)),
        targets=torch.tensor([0, *counts]),
    )


# Random numbers ---------------------------------------------------------------------------------------------


def test_splitmix_gives_the_published_stream():
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(1234567 + k * GAMMA) for k in range(3)] == first


@settings(deadline=None, max_examples=50)
@given(
    st.integers(-(2**63), 2**64 - 1),
    st.text(max_size=8),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)
def test_hash_equals_a_plain_loop(seed, purpose, keys):
    expected = slow_hash(seed, purpose, *keys)
    assert int(hash64(seed, purpose, *keys)) % WORD == expected
    assert int(hash64(seed, purpose, *map(torch.tensor, keys))) % WORD == expected


def test_hash_golden_values():
    rows = torch.tensor([[1], [2]])
    assert hash64(0, "shuffle", 3, rows, torch.arange(2)).tolist() == [
        [-2071261539314770775, -3423091325223835561],
        [-1462188941789835691, 753815532576079553],
    ]


def test_hash_broadcasts_and_tells_keys_apart():
    rows, number = torch.arange(300)[:, None], torch.arange(200)
    bits = hash64(1, "a", rows, number)
    assert bits.shape == (300, 200) and bits.unique().numel() == bits.numel()
    others = [hash64(2, "a", rows, number), hash64(1, "b", rows, number), hash64(1, "a", number, rows)]
    assert all((bits != other).float().mean() > 0.99 for other in others)
    assert torch.equal(bits[17, 5], hash64(1, "a", 17, 5))


def test_hashed_bits_are_even_and_independent():
    bits = hash64(0, "even", torch.arange(40_000))
    ones = torch.stack([(bits >> k) & 1 for k in range(64)]).double()
    assert (ones.mean(1) - 0.5).abs().max() < 5 * 0.5 / 200  # standard deviation .5 / sqrt(40,000)
    assert (torch.corrcoef(ones) - torch.eye(64)).abs().max() < 6 / 200


@pytest.mark.parametrize("bound", [1, 7, 1000])
def test_below_is_uniform(bound):
    numbers = below(hash64(5, "below", torch.arange(100_000)), bound)
    assert int(numbers.min()) >= 0 and int(numbers.max()) < bound
    if bound > 1:
        assert close(numbers.bincount(minlength=bound), torch.full((bound,), 100_000 / bound))


def test_below_takes_a_bound_for_each_number():
    bounds = torch.tensor([1, 2, 2**40])
    assert (below(hash64(5, "below", torch.arange(1000)[:, None]), bounds) < bounds).all()


# Weights and exclusion --------------------------------------------------------------------------------------


def test_weights_are_exact_for_exponents_0_and_1():
    counts = torch.tensor([9, 3, 0, 5])
    assert cumulative(counts, 0.0, "key").diff().unique().numel() == 1
    weights = cumulative(counts, 1.0, "key").diff(prepend=torch.zeros(1, dtype=torch.long))
    assert weights[0] == weights[2] == 0 and weights[1] * 5 == weights[3] * 3
    assert 2**39 < weights.sum() <= 2**40


def test_weights_follow_a_fractional_exponent():
    weights = cumulative(torch.tensor([0, 16, 0, 81]), 0.75, "key").diff()
    assert weights[1] == 0 and abs(float(weights[2] / weights[0]) - 27 / 8) < 1e-9


@pytest.mark.parametrize(
    ("counts", "exponent"), [([0, 1], -0.5), ([0, 1], float("nan")), ([0, 0], 1.0), ([0, 9], 1e9)]
)
def test_weights_that_cannot_be_are_refused(counts, exponent):
    with pytest.raises(InputError, match=r"loss\.candidates\.exponent"):
        cumulative(torch.tensor(counts), exponent, "loss.candidates.exponent")


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_every_unit_of_the_mass_that_is_left_is_drawn_once(data):
    weights = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    owners = data.draw(st.integers(1, 4))
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, owners - 1), st.integers(PAD, len(weights))), max_size=20)
    )
    cdf = torch.tensor([0, *weights]).cumsum(0)
    owner, item = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    rest = exclude(cdf, owner, item, owners)
    for me in range(owners):
        allowed = [0 if (me, k + 1) in pairs else weight for k, weight in enumerate(weights)]
        assert int(rest.left[me]) == sum(allowed)
        drawn = draw(cdf, rest, torch.tensor([me]), torch.arange(sum(allowed))[None])[0]
        assert drawn.tolist() == [k + 1 for k, weight in enumerate(allowed) for _ in range(weight)]


# Training candidates ----------------------------------------------------------------------------------------

M, V = 4000, 12
TARGETS = 1 + below(hash64(0, "targets", torch.arange(M)), V)
HISTORY = below(hash64(0, "history", torch.arange(M)[:, None], torch.arange(3)), V + 1)  # 0 is padding
USERS = 1 + torch.arange(M) % 5
ROWS = torch.arange(M) * 3
ONE = torch.arange(M)  # each position is of a row of its own
COUNTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 40]
OWNED = [(1 + k % 5, 1 + k % 7) for k in range(30)]
CATALOG = catalog(COUNTS, *map(list, zip(*OWNED, strict=True)))


def sampled(exponent: float, kind: str, count: int = 6, **kwargs) -> Sampled:
    kwargs = {"catalog": CATALOG, "correct": False} | kwargs
    return Sampled(kwargs.pop("catalog"), count=count, exponent=exponent, exclude=kind, **kwargs)


def shared(count: int, exponent: float = 0.0, correct: bool = False) -> InBatch:
    return InBatch(CATALOG, count=count, exponent=exponent, correct=correct)


def forbidden(kind: str) -> torch.Tensor:
    """(M, V+1) what a plain reading of the option forbids."""
    out = torch.zeros(M, V + 1, dtype=torch.bool)
    out[torch.arange(M), TARGETS] = True
    if kind == "window":
        out.scatter_(1, HISTORY, True)
    if kind == "user":
        out[:] = False
        for user, item in OWNED:
            out[user == USERS, item] = True
    return out


@pytest.mark.parametrize("kind", ["target", "window", "user"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_negatives_follow_the_weights_and_are_never_excluded(kind, exponent):
    sampler = sampled(exponent, kind)
    counts = torch.zeros(V + 1, dtype=torch.float64)
    for epoch in range(4):
        drawn = sampler(TARGETS, ONE, HISTORY, USERS, ROWS, seed=1, epoch=epoch)
        assert torch.equal(drawn.items[:, 0], TARGETS) and not drawn.target.any()
        assert not forbidden(kind).gather(1, drawn.items[:, 1:]).any()
        counts += drawn.items[:, 1:].flatten().bincount(minlength=V + 1)
    weights = torch.tensor([0.0, *COUNTS], dtype=torch.float64) ** exponent
    weights[PAD] = 0
    allowed = weights * ~forbidden(kind)
    assert close(counts, (allowed / allowed.sum(1, keepdim=True)).sum(0) * 4 * 6)


@pytest.mark.parametrize("kind", ["target", "window", "user"])
def test_a_row_draws_the_same_whatever_the_batch(kind):
    sampler, some = sampled(1.0, kind), torch.tensor([3, 99, 7, 2500])
    whole = sampler(TARGETS, ONE, HISTORY, USERS, ROWS, seed=1, epoch=2).items
    args = (TARGETS[some], torch.arange(4), HISTORY[some], USERS[some], ROWS[some])
    few = sampler(*args, seed=1, epoch=2).items
    assert torch.equal(whole[some], few)
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not torch.equal(whole, sampler(TARGETS, ONE, HISTORY, USERS, ROWS, **other).items)
    renamed = sampler(TARGETS, ONE, HISTORY, USERS, ROWS + 1, seed=1, epoch=2).items
    assert not torch.equal(whole, renamed)


def test_draws_of_neighbouring_rows_are_unrelated():
    drawn = sampled(0.0, "target", count=1)(TARGETS, ONE, HISTORY, USERS, ROWS, seed=1, epoch=0).items[:, 1]
    assert abs(float(torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]).double())[0, 1])) < 5 / M**0.5


@pytest.mark.parametrize("kind", ["target", "window", "user"])
def test_nothing_left_to_draw_is_an_input_error(kind):
    one = catalog([3], [1], [1])
    args = (torch.tensor([1]), torch.tensor([0]), torch.tensor([[PAD]]), torch.tensor([1]), torch.tensor([5]))
    with pytest.raises(InputError, match=r"loss\.candidates\.exclude"):
        sampled(0.0, kind, catalog=one)(*args, seed=0, epoch=0)


def test_no_rows_give_no_candidates():
    none = torch.zeros(0, dtype=torch.long)
    for kind in ("target", "window", "user"):
        drawn = sampled(0.0, kind)(none, none, HISTORY[:0], none, none, seed=0, epoch=0)
        assert drawn.items.shape == (0, 7) and drawn.target.shape == (0,)


def test_wrong_settings_name_the_key_and_the_nearest_value():
    with pytest.raises(InputError, match=r"loss\.candidates\.exclude=windw .*did you mean window"):
        sampled(0.0, "windw")
    with pytest.raises(InputError, match=r"loss\.candidates\.count=0"):
        sampled(0.0, "user", count=0)
    assert one_of("key", "b", ["a", "b"]) == "b"


def test_samplers_keep_nothing_in_checkpoints():
    for sampler in (sampled(1.0, "user"), sampled(0.0, "window"), AllItems(CATALOG), shared(3)):
        assert not sampler.state_dict() and not list(sampler.parameters())


THREE = (torch.tensor([3, 1, 3]), torch.tensor([0, 0, 1]), HISTORY[:2], USERS[:2], ROWS[:3])


def test_all_items_and_in_batch():
    everything = AllItems(CATALOG)(*THREE, seed=0, epoch=0)
    assert everything.items.tolist() == list(range(1, V + 1)) and everything.target.tolist() == [2, 0, 2]
    batch = shared(0)(*THREE, seed=0, epoch=0)
    assert batch.items.tolist() == [1, 3] and batch.target.tolist() == [1, 0, 1]
    assert everything.log_q is None and batch.log_q is None


def test_positions_of_a_row_are_not_given_what_stands_in_it():
    """Three positions, the first two of one row: neither draws the row's items or targets."""
    targets, owner, history, users, names = THREE
    history = torch.tensor([[3, 4, PAD], [5, PAD, PAD]])
    drawn = sampled(0.0, "window", count=500)(targets, owner, history, users, names, seed=0, epoch=0).items
    seen = [set(row) for row in drawn[:, 1:].tolist()]
    assert seen[0] == seen[1] == set(range(1, V + 1)) - {1, 3, 4}
    assert seen[2] == set(range(1, V + 1)) - {3, 5}
    assert not torch.equal(drawn[0, 1:], drawn[1, 1:]), "each draws for itself"
    own = sampled(0.0, "user", count=500)(targets, owner, history, users, names, seed=0, epoch=0).items
    items = [{item for user, item in OWNED if user == 1 + k} for k in (0, 0, 1)]
    assert [set(row) for row in own[:, 1:].tolist()] == [set(range(1, V + 1)) - taken for taken in items]


def test_nothing_as_large_as_positions_times_history_is_made(memory):
    positions, width = 10_000, 200
    number = torch.arange(positions)
    batch = (5 + number % 3, number // width, (1 + number % 4).view(50, width))
    with memory:
        sampled(0.0, "window", count=1)(*batch, USERS[:50], number, seed=0, epoch=0)
    assert positions <= memory.largest < 10 * positions


# Shared draws -----------------------------------------------------------------------------------------------


def test_shared_draws_join_the_targets_and_follow_the_weights():
    counts = torch.zeros(V + 1, dtype=torch.float64)
    sampler = shared(2, 1.0)
    for epoch in range(1000):
        drawn = sampler(*THREE, seed=1, epoch=epoch)
        assert drawn.items.tolist() == sorted(set(drawn.items.tolist()) | {1, 3})
        assert drawn.items[drawn.target].tolist() == [3, 1, 3]
        counts[drawn.items] += 1
    chance = torch.tensor([0.0, *COUNTS], dtype=torch.float64) / sum(COUNTS)
    expected = 1000 * (1 - (1 - chance) ** 2)
    others = [k for k in range(V + 1) if k not in (1, 3)]
    assert (counts[others] - expected[others]).abs().max() < 5 * expected.max() ** 0.5
    assert counts[[1, 3]].tolist() == [1000, 1000]


def test_shared_draws_depend_on_seed_epoch_and_batch_alone():
    def items(names=THREE[4], order=(0, 1, 2), **keys) -> list[int]:
        targets, owner, history, users, _ = THREE
        order = torch.tensor(order)
        args = (targets[order], owner[order], history, users, names[order])
        return shared(5)(*args, **({"seed": 1, "epoch": 2} | keys)).items.tolist()

    assert items() == items() == items(order=(2, 0, 1))
    assert len({tuple(x) for x in (items(), items(seed=2), items(epoch=3), items(names=THREE[4] + 1))}) == 4


# Correction -------------------------------------------------------------------------------------------------

SCORES = torch.linspace(-1, 2, V + 1, dtype=torch.float64)


def estimates(sampler, epochs: int, at: int = 0) -> torch.Tensor:
    """Of each epoch: the sum of exp over the negatives that position ``at`` of THREE has, corrected."""
    sums = []
    for epoch in range(epochs):
        drawn = sampler(*THREE, seed=1, epoch=epoch)
        scores = SCORES[drawn.items].expand(3, -1)
        corrected = drawn.corrected(scores)
        positive = drawn.target[:, None]
        assert torch.equal(corrected.gather(1, positive), scores.gather(1, positive)), "the positive stays"
        sums.append(corrected.exp().scatter(1, positive, 0.0)[at].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("exponent", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["target", "window", "user"])
def test_a_corrected_sum_over_drawn_negatives_estimates_that_over_all(kind, exponent):
    sums = estimates(sampled(exponent, kind, count=300, correct=True), 300)
    out = {"target": {3}, "window": {1, 3, *HISTORY[0].tolist()}, "user": {i for u, i in OWNED if u == 1}}
    allowed = [k for k in range(1, V + 1) if k not in out[kind] and (exponent == 0 or COUNTS[k - 1])]
    whole = SCORES[allowed].exp().sum()
    assert abs(sums.mean() - whole) < 4 * sums.std() / len(sums) ** 0.5 < 0.4


def test_a_corrected_sum_over_a_batch_estimates_that_over_all():
    """The other targets drawn by their counts, beside shared draws: every subset by its chance."""
    counts = torch.tensor([0, *COUNTS]).clamp(min=1).double()
    counts[PAD] = 0
    sampler, sums = shared(3, 0.75, correct=True), []
    others = torch.multinomial(counts, 6000, replacement=True, generator=torch.Generator().manual_seed(0))
    for epoch, pair in enumerate(others.view(2000, 3)):
        targets = torch.cat([torch.tensor([12]), pair])
        drawn = sampler(targets, torch.arange(4), HISTORY[:4], USERS[:4], ROWS[:4], seed=1, epoch=epoch)
        corrected = drawn.corrected(SCORES[drawn.items].expand(4, -1))[0].exp()
        sums.append(corrected.sum() - corrected[drawn.target[0]])
    sums = torch.stack(sums)
    assert abs(sums.mean() - SCORES[1:12].exp().sum()) < 4 * sums.std() / 2000**0.5 < 1


def test_corrections_are_finite_where_counts_are_not_there():
    lone = catalog([0, 7], [1], [2])
    sampler = InBatch(lone, count=0, exponent=0.0, correct=True)
    args = (torch.tensor([1, 2]), torch.arange(2), torch.tensor([[2], [2]]), USERS[:2], ROWS[:2])
    assert sampler(*args, seed=0, epoch=0).log_q.isfinite().all()


def test_a_part_of_what_is_drawn_keeps_rows_together():
    own = sampled(0.0, "target", correct=True)(*THREE, seed=0, epoch=0)
    whole = own.corrected(SCORES[own.items])
    part = own.part(slice(1, 3))
    assert torch.equal(part.corrected(SCORES[part.items]), whole[1:])
    both = shared(4, correct=True)(*THREE, seed=0, epoch=0)
    assert torch.equal(both.part(slice(1, 3)).items, both.items)
    scores = SCORES[both.items].expand(3, -1)
    assert torch.equal(both.part(slice(1, 3)).corrected(scores[1:]), both.corrected(scores)[1:])


# Evaluation candidates --------------------------------------------------------------------------------------


def some_lists(rows: torch.Tensor, **kwargs) -> torch.Tensor:
    """Lists for rows of the data above; the window is excluded."""
    window = torch.cat([HISTORY, TARGETS[:, None]], 1)[rows]
    owner = torch.arange(len(rows)).repeat_interleave(4)
    cdf = cumulative(CATALOG.targets, kwargs.pop("exponent"), "key")
    settings = {"count": 5, "replace": False, "seed": 63, "purpose": "test"} | kwargs
    return lists(cdf, owner, window.flatten(), USERS[rows], ROWS[rows], **settings)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("replace", [False, True])
def test_a_list_depends_on_its_row_alone(exponent, replace):
    rows = torch.arange(500)
    whole = some_lists(rows, exponent=exponent, replace=replace)
    shuffled = hash64(0, "order", rows).argsort()
    assert torch.equal(some_lists(shuffled, exponent=exponent, replace=replace), whole[shuffled])
    assert torch.equal(some_lists(rows[77:78], exponent=exponent, replace=replace), whole[77:78])
    assert not forbidden("window")[:500].gather(1, whole).any()
    for other in ({"seed": 64}, {"purpose": "validation"}):
        assert not torch.equal(some_lists(rows, exponent=exponent, replace=replace, **other), whole)


def test_without_replacement_items_are_distinct_with_it_they_are_not():
    distinct = some_lists(torch.arange(M), exponent=1.0, count=6).sort(dim=1).values
    assert (distinct.diff(dim=1) > 0).all() and (distinct != PAD).all()
    repeated = some_lists(torch.arange(M), exponent=1.0, count=6, replace=True).sort(dim=1).values
    assert (repeated.diff(dim=1) == 0).any() and (repeated != PAD).all()


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_list_is_all_that_is_left_where_that_is_less(exponent):
    found = some_lists(torch.arange(M), exponent=exponent, count=V + 3)
    left = ~forbidden("window")
    left[:, PAD] = False
    if exponent:
        left[:, 1] = False  # item 1 is never a training target
    lengths = left.sum(1)
    assert torch.equal((found != PAD).sum(1), lengths)
    assert ((found != PAD) == (torch.arange(V + 3) < lengths[:, None])).all()  # padding comes last
    present = torch.zeros_like(left).scatter(1, found, True)
    assert torch.equal(present[:, 1:], left[:, 1:])


def test_nothing_left_is_an_empty_list():
    cdf, one = torch.tensor([0, 1]), torch.ones(1, dtype=torch.long)
    for replace in (True, False):
        found = lists(cdf, one - 1, one, one, one, count=2, replace=replace, seed=0, purpose="test")
        assert found.tolist() == [[PAD, PAD]]


@pytest.mark.parametrize(("weights", "count"), [([1, 2, 3], 2), ([1, 1, 1, 1], 3)])
def test_lists_without_replacement_are_successive_samples(weights, count):
    """An order of items has the product of their shares of what was left."""
    none, rows = torch.zeros(0, dtype=torch.long), torch.arange(60_000)
    cdf = torch.tensor([0, *weights]).cumsum(0)
    found = lists(cdf, none, none, rows, rows, count=count, replace=False, seed=1, purpose="test")
    counts, expected = [], []
    for order in permutations(range(len(weights)), count):
        counts.append(int((found == torch.tensor(order) + 1).all(1).sum()))
        chance, left = 1.0, sum(weights)
        for item in order:
            chance, left = chance * weights[item] / left, left - weights[item]
        expected.append(chance * len(rows))
    assert close(torch.tensor(counts), torch.tensor(expected))


# Permutations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(1, 40), 99, 100, 101, 1000, 65_537])
def test_a_permutation_has_every_number_once_whichever_places_are_asked(n):
    whole = permuted(torch.arange(n), n, 0, "test", 7)
    assert whole.sort().values.tolist() == list(range(n))
    some = torch.randperm(n)[: n // 3 + 1]
    assert permuted(some, n, 0, "test", 7).tolist() == whole[some].tolist()


def test_permutations_of_other_seeds_purposes_and_keys_are_unlike():
    n = 10_000
    orders = [
        permuted(torch.arange(n), n, *of) for of in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    orders.append(torch.arange(n))
    for one, other in itertools.combinations(orders, 2):
        assert int((one == other).sum()) <= 8  # one is expected
        ranks = torch.stack([one, other]).double()
        assert abs(float(torch.corrcoef(ranks)[0, 1])) < 0.05  # five standard deviations


def test_pairs_of_neighbours_are_as_likely_as_any():
    """Of 7 numbers, which two come first: 42 ordered pairs, chi-square with 41 degrees of freedom."""
    firsts = torch.stack([permuted(torch.arange(2), 7, 0, "pairs", key) for key in range(4200)])
    counts = torch.bincount(firsts[:, 0] * 7 + firsts[:, 1], minlength=49).reshape(7, 7)
    assert counts.diagonal().sum() == 0
    chi = ((counts - 100.0) ** 2 / 100).sum() - 7 * 100
    assert chi < 41 + 5 * (2 * 41) ** 0.5
