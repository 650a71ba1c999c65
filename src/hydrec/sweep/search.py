"""The search for settings: Optuna's samplers and pruners as functions of the trials that are through.

Nothing is kept between two calls, and the random numbers of a proposal follow from its number: a search that
was cut off goes on as if it had not been.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from hydra.utils import instantiate
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hydrec.errors import InputError, at_least, one_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Trial(NamedTuple):
    """A trial as the next one sees it.

    Attributes:
        params: what it tried, by configuration key.
        state: of ``STATES``, or ``None`` while it is not through.
        value: the best of the monitored metric; of a pruned one, up to there.
        curve: the metric by epoch, as far as it is known.
    """

    params: dict[str, Any]
    state: str | None
    value: float | None
    curve: dict[int, float]


def check(search: Mapping[str, Any]) -> None:
    """Refuses a search that cannot be made.

    Raises:
        InputError: names the key.
    """
    for key in ("trials", "epochs", "at_once"):
        at_least(f"study.search.{key}", search[key], 1)
    at_least("study.search.seed", search["seed"], 0)
    one_of("study.search.mode", search["mode"], ("max", "min"))
    if not search["space"]:
        raise InputError("study.search.space is empty: give keys with their values, or study.search=null")
    distributions(search["space"])


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Optuna's form of a space: a list is a choice, ``{low, high}`` a range, of whole numbers if both are.

    Raises:
        InputError: a domain is neither; names the key.
    """
    return {key: _distribution(f"study.search.space.{key}", domain) for key, domain in space.items()}


def _distribution(key: str, domain: Any) -> BaseDistribution:
    if isinstance(domain, Sequence) and not isinstance(domain, str) and domain:
        return CategoricalDistribution(list(domain))
    if isinstance(domain, Mapping) and {"low", "high"} <= domain.keys() <= {"low", "high", "log", "step"}:
        whole = all(type(domain[bound]) is int for bound in ("low", "high"))
        try:
            return (IntDistribution if whole else FloatDistribution)(**domain)
        except (TypeError, ValueError) as error:
            raise InputError(f"{key}: {error}") from error
    raise InputError(f"{key}={domain}: is neither [a, b, ...] nor {{low: A, high: B, log: true}}")


def propose(
    space: Mapping[str, Any],
    defaults: Mapping[str, Any],
    trials: Sequence[Trial],
    number: int,
    *,
    mode: str,
    key: str,
) -> dict[str, Any]:
    """What a trial tries: the defaults at first, then what Optuna's TPE makes of the trials before.

    Args:
        space: by configuration key.
        defaults: the values of trial 0; where they lie outside the space, TPE does not see them.
        trials: those that it follows from.
        number: of the trial.
        mode: ``max`` or ``min``.
        key: names the search: its random numbers follow from it and ``number``.
    """
    if number == 0:
        return dict(defaults)
    domains = distributions(space)
    seed = int.from_bytes(hashlib.sha256(f"{key}/{number}".encode()).digest()[:4])
    study = _study(mode, domains, trials, optuna.samplers.TPESampler(seed=seed))
    return study.ask(domains).params


def hopeless(
    pruner: Mapping[str, Any], trials: Sequence[Trial], curve: Mapping[int, float], *, mode: str
) -> bool:
    """Whether a pruner of Optuna's would end a trial.

    Args:
        pruner: its ``_target_`` and arguments.
        trials: the others, with their curves.
        curve: its metric by epoch so far, at least one.
        mode: ``max`` or ``min``.
    """
    study = _study(mode, {}, [trial._replace(params={}) for trial in trials], None)
    own = create_trial(state=TrialState.RUNNING, intermediate_values=dict(curve))
    return bool(instantiate(dict(pruner)).prune(study, own))


def best(trials: Sequence[Trial], *, mode: str) -> dict[str, Any] | None:
    """The settings of the best finished trial, of the first among equals; ``None`` where none finished."""
    finished = [t for t in trials if t.state == "finished" and t.value is not None and math.isfinite(t.value)]
    if not finished:
        return None
    return (max if mode == "max" else min)(finished, key=lambda trial: trial.value or 0.0).params


def _study(
    mode: str,
    domains: Mapping[str, BaseDistribution],
    trials: Sequence[Trial],
    sampler: optuna.samplers.BaseSampler | None,
) -> optuna.Study:
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
    study.add_trials(
        [
            _frozen(trial, domains)
            for trial in trials
            if trial.state is not None and _within(trial.params, domains)
        ]
    )
    return study


def _within(params: Mapping[str, Any], domains: Mapping[str, BaseDistribution]) -> bool:
    try:
        return all(domains[key]._contains(domains[key].to_internal_repr(v)) for key, v in params.items())
    except ValueError:  # a choice that is not there
        return False


def _frozen(trial: Trial, domains: Mapping[str, BaseDistribution]) -> FrozenTrial:
    assert trial.state is not None
    return create_trial(
        state=STATES[trial.state],
        params=trial.params,
        distributions=dict(domains) if trial.params else {},
        value=trial.value if trial.state == "finished" else None,
        intermediate_values=trial.curve,
    )
