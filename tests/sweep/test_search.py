"""The search: what is proposed follows from the trials that are through, and from nothing else."""

import optuna
import pytest

from hydrec.errors import InputError
from hydrec.sweep.search import Trial, best, check, distributions, hopeless, propose

SPACE = {
    "model.optimiser.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.net.dim": [32, 64],
    "model.net.blocks": {"low": 1, "high": 3},
}
DEFAULTS = {"model.optimiser.lr": 1e-3, "model.net.dim": 64, "model.net.blocks": 2}


def quality(params):
    """Best at a learning rate of 3e-3 and a width of 32."""
    return -abs(params["model.optimiser.lr"] - 3e-3) * 100 - (params["model.net.dim"] == 64)


def searched(trials, at_once=1, space=SPACE, defaults=DEFAULTS, mode="max"):
    done = []
    for number in range(trials):
        known = done[: number - number % at_once]
        params = propose(space, defaults, known, number, mode=mode, key="0/cell")
        value = quality(params) if mode == "max" else -quality(params)
        done.append(Trial(params, "finished", value, {}))
    return done


def test_the_first_trial_has_the_defaults_and_all_stay_in_the_space():
    trials = searched(15)
    assert trials[0].params == DEFAULTS
    for trial in trials[1:]:
        assert 1e-4 <= trial.params["model.optimiser.lr"] <= 1e-2
        assert trial.params["model.net.dim"] in (32, 64)
        assert trial.params["model.net.blocks"] in (1, 2, 3) and type(trial.params["model.net.blocks"]) is int


def test_a_proposal_is_a_function_of_the_trials_before_and_its_number():
    trials = searched(14)
    again = propose(SPACE, DEFAULTS, trials[:13], 13, mode="max", key="0/cell")
    assert again == trials[13].params
    assert propose(SPACE, DEFAULTS, trials[:13], 13, mode="max", key="1/cell") != again
    # the sampler looks at the values, once its random start is over
    upside_down = [trial._replace(value=-trial.value) for trial in trials[:13]]
    assert propose(SPACE, DEFAULTS, upside_down, 13, mode="max", key="0/cell") != again


def test_trials_that_go_together_do_not_know_of_one_another():
    trials = searched(16, at_once=4)
    own = propose(SPACE, DEFAULTS, trials[:12], 15, mode="max", key="0/cell")
    assert own == trials[15].params


@pytest.mark.parametrize("mode", ["max", "min"])
def test_tpe_finds_better_settings_than_chance(mode):
    trials = searched(40, mode=mode)
    quality_of = [quality(trial.params) for trial in trials]
    late, early = sum(quality_of[30:]) / 10, sum(quality_of[1:11]) / 10
    assert late > early + 0.3  # chance: -0.5 - 0.2 for the width and the rate


def test_the_best_is_the_first_of_the_best_that_finished():
    trials = [
        Trial({"a": 0}, "failed", None, {}),
        Trial({"a": 1}, "finished", 0.5, {}),
        Trial({"a": 2}, "finished", 0.5, {}),
        Trial({"a": 3}, "pruned", 0.9, {0: 0.9}),
        Trial({"a": 4}, "finished", float("nan"), {}),
        Trial({"a": 5}, "finished", 0.4, {}),
    ]
    assert best(trials, mode="max") == {"a": 1}
    assert best(trials, mode="min") == {"a": 5}
    assert best(trials[:1], mode="max") is None


def test_defaults_outside_the_space_are_tried_but_do_not_mislead_the_sampler():
    trials = searched(12, defaults=DEFAULTS | {"model.net.dim": 100})
    assert trials[0].params["model.net.dim"] == 100
    without = propose(SPACE, DEFAULTS, trials[1:12], 12, mode="max", key="0/cell")
    assert propose(SPACE, DEFAULTS, trials, 12, mode="max", key="0/cell") == without


def test_failed_and_pruned_trials_are_told_to_the_sampler():
    trials = searched(14)
    other = [*trials[:12], trials[12]._replace(state="failed", value=None)]
    assert propose(SPACE, DEFAULTS, other, 13, mode="max", key="k") != propose(
        SPACE, DEFAULTS, trials[:13], 13, mode="max", key="k"
    )
    pruned = [*trials[:12], trials[12]._replace(state="pruned", curve={0: 0.1, 1: 0.2})]
    assert set(propose(SPACE, DEFAULTS, pruned, 13, mode="max", key="k")) == set(SPACE)


def test_a_pruner_ends_what_is_below_the_median():
    pruner = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 1}
    others = [Trial({}, "finished", v, {0: v / 2, 1: v, 2: v}) for v in (0.2, 0.3, 0.4)]
    assert not hopeless(pruner, others, {0: 0.0}, mode="max")  # warming up
    assert hopeless(pruner, others, {0: 0.0, 1: 0.1}, mode="max")
    assert not hopeless(pruner, others, {0: 0.0, 1: 0.35}, mode="max")
    assert hopeless(pruner, others, {0: 0.35, 1: 0.35}, mode="min")
    assert not hopeless(pruner, others[:1], {0: 0.0, 1: 0.1}, mode="max")  # too few to compare with


def test_domains():
    found = distributions(SPACE)
    assert isinstance(found["model.optimiser.lr"], optuna.distributions.FloatDistribution)
    assert found["model.optimiser.lr"].log
    assert isinstance(found["model.net.blocks"], optuna.distributions.IntDistribution)
    assert found["model.net.dim"].choices == (32, 64)


SEARCH = {"trials": 3, "epochs": 1, "seed": 0, "at_once": 1, "mode": "max", "space": SPACE}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"trials": 0}, "study.search.trials=0"),
        ({"epochs": "many"}, "study.search.epochs=many"),
        ({"mode": "maximum"}, "study.search.mode=maximum is none of max, min; did you mean max?"),
        ({"space": {}}, "study.search.space is empty"),
        ({"space": {"lr": 3}}, "study.search.space.lr=3: is neither"),
        ({"space": {"lr": {"low": 1.0, "high": 0.1}}}, "study.search.space.lr: "),
        ({"space": {"lr": {"low": 0.0, "high": 0.1, "log": True}}}, "study.search.space.lr: "),
        ({"space": {"lr": {"from": 1, "to": 2}}}, "study.search.space.lr="),
    ],
)
def test_a_search_that_makes_no_sense(changed, said):
    check(SEARCH)
    with pytest.raises(InputError) as caught:
        check(SEARCH | changed)
    assert said in str(caught.value)
