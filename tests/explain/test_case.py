"""A user's last case and what a model puts first, against loops over items one by one."""

import numpy as np
import polars as pl
import pytest
import torch

from hydrec.batch import PAD, EvalCandidates
from hydrec.errors import InputError
from hydrec.explain.case import case_of, history, top
from hydrec.explain.run import FinishedRun


@pytest.fixture
def opened(runs):
    run = FinishedRun(str(runs["sasrec"]))
    return run, *run.load()


def slow(task, batch, row, items):
    """The scores of some items in one row of a batch, one by one, best first."""
    with torch.no_grad():
        state, _ = task.net.encode(batch)
        vectors = type(state)(*(x[row : row + 1, 0] for x in state))
        scored = [(float(task.net.score(vectors, torch.tensor([item]))), item) for item in items]
    return sorted(scored, key=lambda pair: -pair[0])


def test_the_best_of_all_items_but_those_met_before(opened):
    _, data, task = opened
    batch, candidates = data.feed.evaluate("test", np.array([0, 5, 9]))
    found = top(task, batch, candidates, 7)
    for row in range(3):
        out = {*candidates.excluded[row].tolist()}
        assert len(out) > 1  # the history, and PAD
        best = slow(task, batch, row, [item for item in range(1, task.n_items + 1) if item not in out])[:7]
        assert found.items[row].tolist() == [item for _, item in best]
        assert found.scores[row].tolist() == pytest.approx([score for score, _ in best], abs=1e-5)


def test_of_listed_candidates_the_target_is_one(opened):
    _, data, task = opened
    batch, _ = data.feed.evaluate("test", np.array([2, 3]))
    listed = torch.tensor([[4, 9, 17, 30], [8, 2, PAD, PAD]])
    found = top(task, batch, EvalCandidates(listed, None), 9)
    for row in range(2):
        some = [*(item for item in listed[row].tolist() if item), int(batch.targets[row, 0])]
        best = [item for _, item in slow(task, batch, row, some)]
        assert found.items[row].tolist() == best + [PAD] * (5 - len(best))
    assert found.scores[1, 3:].tolist() == [-torch.inf] * 2
    fewer = top(task, batch, EvalCandidates(listed, torch.tensor([[17], [2]])), 9)
    for row, out in enumerate((17, 2)):
        left = [item for item in found.items[row].tolist() if item not in (out, PAD)]
        assert fewer.items[row].tolist() == left + [PAD] * (5 - len(left))


def test_memory_changes_no_recommendation(opened, monkeypatch):
    _, data, task = opened
    batch, candidates = data.feed.evaluate("test", np.arange(60))
    whole = top(task, batch, candidates, 3)
    task.chunk, sizes, score = 2 * task.n_items, [], task.net.score
    monkeypatch.setattr(
        task.net, "score", lambda *given: sizes.append(len(given[0].vectors)) or score(*given)
    )
    parts = top(task, batch, candidates, 3)
    assert whole.items.equal(parts.items)
    assert sizes == [2] * 30


def test_targets_stand_where_the_test_put_them(opened):
    run, data, task = opened
    tested, place = run.tested(), 0
    for batch, candidates in data.test_dataloader():
        found = top(task, batch, candidates, task.n_items)
        for row, target in enumerate(batch.targets[:, 0].tolist()):
            greater, equal = tested["greater"][place], tested["equal"][place]
            assert greater <= found.items[row].tolist().index(target) <= greater + equal
            place += 1
    assert place == len(tested)


def test_a_case_is_the_last_of_the_user(opened):
    run, data, _ = opened
    tested = run.tested()
    several = tested.group_by("user").len().filter(pl.col("len") > 1)["user"]
    for user in several.sort()[:3]:
        batch, candidates = case_of(data, user)
        assert batch.rows.tolist() == [tested.filter(user=user)["sample"].max()]
        assert candidates.excluded.shape[0] == 1
    assert case_of(data, "")[0].users.equal(data.feed.evaluate("test", np.array([0]))[0].users)


def test_a_user_without_a_case_is_told_who_has_one(opened):
    run, data, _ = opened
    tested = {*run.tested()["user"]}
    without = next(user for user in data.log.user_ids[1:] if user not in tested)
    with pytest.raises(InputError, match=f"user={without} has no case in the test part: give one who has"):
        case_of(data, without)
    with pytest.raises(InputError, match="user=nobody is no user of simulated: give one") as error:
        case_of(data, "nobody")
    named = str(error.value).rpartition("such as ")[2].split(", ")
    assert {*named} <= tested


def test_a_history_has_titles_and_times_of_the_log(opened):
    run, data, _ = opened
    batch, _ = case_of(data, "")
    past, row, n = history(data, batch, run.items()), int(batch.rows[0]), int(batch.lengths[0])
    log = data.log
    rows = range(row - n, row)
    assert past["title"].to_list() == [log.item_titles[log.items[each]] for each in rows]
    assert past["time"].dt.epoch("s").to_list() == [log.times[each] for each in rows]
    assert past["value"].to_list() == [log.values[each] for each in rows]
    assert past["place"].to_list() == [*range(1, n + 1)]
    assert all(past["genres"].list.len() > 0)
