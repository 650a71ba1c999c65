"""What verdicts cost, how often they are wrong where nothing differs, and what they find.

    python benchmarks/significance.py              # all tables
    python benchmarks/significance.py --families 2000

Cost: the cells of the IA-SASRec study, 7 data sets x 36 cells of 5 seeds with 6,040 users and 2,000 draws;
and AUC. Simulations: each user's difference is normal, and each seed has a shift common to all its users,
whose standard deviation is so many standard errors of a seed's mean over users; effects are in the same unit.
200 users, 2,000 draws, level 0.05.
"""

import argparse
import time

import numpy as np

from hydrec.study.significance import compare, compare_auc, resamples

USERS, DRAWS = 200, 2_000
RATIOS = (0, 1, 2, 3, 5)
SEEDS = (2, 3, 4, 5, 6, 8, 10)
EFFECTS = ((0, 3), (1, 2), (1, 3), (1, 5), (3, 5))  # shift, effect
AT_ONCE = 2_000  # families of one call


def verdicts(families: int, seeds: int, ratio: float, effect: float, rng: np.random.Generator) -> np.ndarray:
    """(families, 3): p over seeds below 0.05, p over users below 0.05, robust in either direction."""
    found = []
    counts = resamples(USERS, DRAWS, "benchmark")
    for start in range(0, families, AT_ONCE):
        size = min(AT_ONCE, families - start)
        shift = (effect + ratio * rng.normal(size=(size, seeds, 1))) / np.sqrt(USERS)
        model = shift + rng.normal(size=(size, seeds, USERS))
        cells = compare(
            np.zeros_like(model),
            model,
            np.ones(USERS),
            counts,
            alpha=0.05,
            pooling="users",
            higher_is_better=True,
        )
        found += [(cell.p_seeds < 0.05, cell.p_users < 0.05, cell.verdict != "none") for cell in cells]
    return np.array(found)


def cost(rows: int) -> None:
    """Prints the seconds of the study's cells, and of AUC."""
    rng = np.random.default_rng(0)
    seconds = {"users": 0.0, "rows": 0.0}
    for data_set in range(7):
        base = rng.random((36, 5, 6_040)) * (rng.random((36, 5, 6_040)) < 0.3)
        model = np.where(rng.random(base.shape) < 0.9, base, rng.random(base.shape))
        for pooling in seconds:
            start = time.perf_counter()
            counts = resamples(6_040, DRAWS, f"data set {data_set}")
            compare(base, model, np.ones(6_040), counts, alpha=0.05, pooling=pooling, higher_is_better=True)
            seconds[pooling] += time.perf_counter() - start
    print("| | cells | seconds |\n|---|---|---|")
    for pooling, total in seconds.items():
        print(f"| resamples and verdicts of 7 data sets, pooled by {pooling} | 252 | {total:.1f} |")
    labels, user = rng.integers(0, 2, rows), rng.integers(0, 6_040, rows)
    logits = rng.normal(size=(2, 5, rows)).astype(np.float32) + labels
    start = time.perf_counter()
    compare_auc(labels, *logits, user, counts, alpha=0.05)
    print(f"| AUC of {rows:,} click rows | 1 | {time.perf_counter() - start:.1f} |\n", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", type=int, default=20_000, help="of each simulation without a difference"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="click rows of the AUC that is timed")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    cost(args.rows)

    print("| shift, in standard errors over users | p over seeds < .05 | p over users < .05 | robust |")
    print("|---|---|---|---|")
    for ratio in RATIOS:
        rates = verdicts(args.families, 5, ratio, 0, rng).mean(0)
        print(f"| {ratio} |" + "".join(f" {rate:.4f} |" for rate in rates), flush=True)

    print(f"\n| shift, effect | {' | '.join(f'{seeds} seeds' for seeds in SEEDS)} |")
    print("|---" * (1 + len(SEEDS)) + "|")
    for ratio, effect in EFFECTS:
        rates = [verdicts(args.families // 10, seeds, ratio, effect, rng)[:, 2].mean() for seeds in SEEDS]
        print(f"| {ratio}, {effect} | {' | '.join(f'{rate:.2f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main()
