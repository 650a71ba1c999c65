import math

import numpy as np
import pytest

from hydrec.errors import InputError
from hydrec.study import lint as module
from hydrec.study.lint import lint


@pytest.fixture
def check(tmp_path):
    """What lint says of a table given as text."""

    def run(text):
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return lint(path)

    return run


def printed(values, digits=3):
    return ",".join(f"{value:.{digits}f}" for value in values)


# Ranking ----------------------------------------------------------------------------------------------------


def test_what_is_known_of_the_second_table_of_hgnn(check):
    """Rows that the specification gives: two that stand, and one of its ten that do not."""
    found = check(
        "Model,Steam Hit@5,Steam RR@5,Steam Hit@10,Steam RR@10,ML Hit@5,ML RR@5,ML Hit@10,ML RR@10\n"
        "SASRec,,,,,0.488,0.292,0.651,0.319\n"
        "HGNN-Ent,0.586,0.358,0.740,0.358,,,,\n"
        "HGNN,,,,,0.586,0.351,0.769,0.380\n"
    )
    assert [(f.line, f.row, f.column, f.value, f.certain) for f in found] == [
        (3, "HGNN-Ent", "Steam RR@10", "0.358", True)
    ]


@pytest.mark.parametrize("hit", np.arange(0.36, 0.85, 0.04))
def test_rr_that_stays_while_hit_rises_is_impossible_whatever_hit_is(check, hit):
    """HGNN-Ent on Steam: RR .358 at 5 and 10, and Hit rises by .154; from what, our sources do not say."""
    (found,) = check(f"hit@5,rr@5,hit@10,rr@10\n{hit:.3f},0.358,{hit + 0.154:.3f},0.358\n")
    # within rounding RR rises by (.154 - .001) / 10 to (.154 + .001) / 6 from .358 +- .0005
    assert "it lies from 0.3728 to 0.3843 with" in str(found)


def brute(rows, rng):
    """Metrics at 5 and 10 of random ranks, from their definitions."""
    rank = rng.integers(1, rng.integers(3, 40), size=rows)
    values = {}
    for k in (5, 10):
        inside = rank <= k
        values[f"hit@{k}"] = values[f"recall@{k}"] = inside.mean()
        values[f"precision@{k}"] = inside.mean() / k
        values[f"rr@{k}"] = values[f"map@{k}"] = (inside / rank).mean()
        values[f"ndcg@{k}"] = (inside / np.log2(rank + 1)).mean()
    values["mrr"] = (1 / rank).mean()
    return values


@pytest.mark.parametrize("unit", [1, 100])
def test_no_row_of_a_model_is_found(check, unit):
    rng = np.random.default_rng(1)
    rows = [brute(rng.integers(20, 500), rng) for _ in range(60)]
    lines = [printed((unit * value for value in row.values()), digits=rng.integers(1, 5)) for row in rows]
    assert check("\n".join([",".join(rows[0]), *lines])) == []


def breaks(values, half):
    """The inequalities of one target per case, each value anywhere within its rounding."""
    h5, r5, h10, r10 = values
    bounds = [
        (h5 / 5 - r5, 1.2),
        (r5 - h5, 2),
        (h5 - h10, 2),
        (h10 - 1, 1),
        ((h10 - h5) / 10 - (r10 - r5), 2.2),
        ((r10 - r5) - (h10 - h5) / 6, 2 + 1 / 3),
    ]
    return max(excess - terms * half for excess, terms in bounds), max(excess for excess, _ in bounds)


def test_finds_what_breaks_the_inequalities_and_nothing_else(check):
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(300):
        h5 = rng.uniform(0.1, 0.7)
        r5 = h5 * rng.uniform(0.15, 1.05)
        h10 = h5 + rng.uniform(-0.02, 0.35)
        values = np.round([h5, r5, h10, r5 + (h10 - h5) * rng.uniform(0.07, 0.2)], 4)
        beyond, without = breaks(values, 0.5e-4)
        found = check(f"hit@5,rr@5,hit@10,rr@10\n{printed(values, 4)}\n")
        if beyond > 1e-5:
            assert found
            outcomes.add("broken")
        elif without < 0:
            assert not found
            outcomes.add("kept")
    assert outcomes == {"broken", "kept"}


@pytest.mark.parametrize(
    ("header", "kept", "broken"),
    [
        ("hit@5,rr@5", ".500,.100", ".500,.098"),  # Hit / k <= RR
        ("hit@5,rr@5", ".500,.500", ".500,.502"),  # RR <= Hit
        ("rr@5,ndcg@5", ".400,.400", ".400,.398"),  # RR <= NDCG
        ("hit@5,ndcg@5", ".500,.500", ".500,.502"),  # NDCG <= Hit
        ("hit@5,ndcg@5", ".500,.193", ".500,.192"),  # Hit / log2(6) <= NDCG
        ("hit@5,rr@5,ndcg@5", ".500,.500,.500", ".500,.500,.498"),  # all at rank 1
        # with half of the cases at 1 and half at 2, RR .75 and NDCG (1 + 1 / log2 3) / 2; ranks 1 and 5 in
        # such shares as give RR .75 too give the least NDCG, .6875 + .3125 / log2 6
        ("hit@5,rr@5,ndcg@5", "1.000,.750,.808", "1.000,.750,.807"),
        ("hit@5,hit@10", ".500,.500", ".500,.498"),  # grows with k
        ("rr@10,rr@20", ".500,.500", ".500,.498"),
        ("ndcg@5,ndcg@100", ".500,.500", ".500,.498"),
        ("hit@1,hit@10,ndcg@10", ".300,.400,.363", ".300,.400,.366"),  # .3 + .1 / log2 3
        ("hit@10,mrr", ".500,.545", ".500,.547"),  # the other half at 11
        ("recall@5,hit@5", ".500,.500", ".500,.502"),
        ("hit@10,precision@10", ".500,.050", ".500,.051"),
        ("rr@5,map@5", ".400,.400", ".400,.402"),
        ("hit@5", "1.000", "1.002"),
        ("precision@5", "0.200", "0.202"),
        ("hit@5", "0.000", "-0.002"),
        ("rr@1,hit@1", ".300,.300", ".300,.302"),
    ],
)
def test_bounds(check, header, kept, broken):
    assert check(f"{header}\n{kept}\n") == []
    (found,) = check(f"{header}\n{kept}\n{kept}\n{broken}\n")
    assert found.certain and found.line == 4 and found.column == header.split(",")[-1]


def test_a_value_is_what_rounds_to_its_digits(check):
    assert check("hit@5,rr@5\n.50,.5\n") == []  # .5 may be .45, and below .495
    assert len(check("hit@5,rr@5\n.50,.61\n")) == 1
    assert check("hit@5,hit@10\n.50,.495\n") == []
    assert len(check("hit@5,hit@10\n.500,.495\n")) == 1


def test_each_contradiction_of_a_row_is_one_finding(check):
    found = check("hit@5,rr@5,ndcg@5,hit@10\n.500,.700,.490,.300\n")
    assert [finding.column for finding in found] == ["rr@5", "hit@10"]
    assert str(found[1]) == "line 2: hit@10 = .300 is impossible: it lies from 0.4995 to 1 with hit@5 = .500"


def test_percentages(check):
    assert check("model,HR@10,MRR@10,HR@1\nA,45.1,20.2,0.9\nB,44.0,19.9,.8\n") == []
    (found,) = check("model,HR@10,MRR@10\nA,45.1,46.2\nB,44.0,19.9\n")
    assert (found.row, found.value) == ("A", "46.2") and "it lies from 4.505 to 45.15 with" in found.bound
    assert check("hit@10,rr@10\n.500,9.9%\n") == []
    assert check("hit@10,rr@10 (%)\n.500,9.9\n") == []
    (found,) = check("hit@10,hit@20\n.5,.6\n.5,.6\n.5,1.2\n")  # mostly shares
    assert found.line == 4


def test_names_and_numbers_as_people_write_them(check):
    same = [
        "Hit@5",
        "HR@5",
        "hits @ 5",
        "Hit Rate@5",
        "steam_hit@5",
        "Steam H@5",
        "test/hit@5",
        "Steam: HR@5",
    ]
    for name in same:
        (found,) = check(f"method,{name},{name.lower().replace('5', '10')}\nX,.500,.400\n")
        assert found.row == "X" and found.column == name.lower().replace("5", "10")
    for cell in ("**0.400**", "0.400*", "0.400 ± 0.010", r"\textbf{0.400}", '"0,400"', "4.00e-1", "$.400$"):
        assert len(check(f"hit@5,hit@10\n.5000,{cell}\n")) == 1, cell
    for cell in ("-", "", "OOM-24GB", "n/a", "> 1 day", '"1,2,3"'):
        assert check(f"hit@5,hit@10\n.5000,{cell}\n") == [], cell


def test_data_sets_in_columns_and_in_rows_are_kept_apart(check):
    assert check("model,A hit@5,A rr@5,B hit@5,B rr@5\nX,.2,.1,.8,.5\n") == []
    (found,) = check("model,A hit@5,A rr@5,B hit@5,B rr@5\nX,.20,.50,.80,.50\n")
    assert found.column == "A rr@5" and found.row == "X"
    (found,) = check("dataset,model,hit@5,rr@5\nA,X,.20,.15\nB,X,.20,.50\n")
    assert found.row == "B X" and found.line == 3


# Counts -----------------------------------------------------------------------------------------------------


def test_shares_of_n_cases(check):
    assert check("hit@5,n\n.333,3\n.667,3\n") == []  # 1/3, 2/3
    (found,) = check("hit@5,n\n.350,3\n")
    assert not found.certain and "3 cases give 0.333333 or 0.666667" in found.bound
    assert check("hit@5,precision@5,recall@5,n,seeds\n.35,.07,.35,4,5\n") == []  # 7 of 20
    assert [f.column for f in check("hit@5,precision@5,n\n.350,.070,4\n")] == ["hit@5", "precision@5"]
    assert check('hit@5,n\n.5001,"7,407"\n') == []
    (found,) = check("A hit@5,A n,B hit@5,B n\n.50,2,.50,3\n")
    assert found.column == "B hit@5"
    assert check("rr@5,ndcg@5,n\n.35,.40,4\n") == []  # those are no counts


def test_every_share_of_n_cases_is_accepted(check):
    rng = np.random.default_rng(3)
    lines = []
    for _ in range(200):
        n = int(rng.integers(1, 9000))
        lines.append(f"{rng.integers(0, n + 1) / n:.{rng.integers(1, 7)}f},{n}")
    assert check("\n".join(["hit@5,n", *lines])) == []


# Clicks -----------------------------------------------------------------------------------------------------


def test_logloss_and_auc_of_the_specification():
    """Pairs of AUC and logloss of MIAN's second table, and what the specification says they imply."""
    assert abs(module._calibrated(0.8913, 0.5) - 0.415) < 5e-4
    assert abs(module._calibrated(0.8209, 0.5) - 0.518) < 5e-4
    cells = {
        text: module._cell(module.Column("", "", "auc", None, False), text)
        for text in (".8913", ".1136", ".8209", ".4018")
    }
    assert all(abs(rate - 0.039) < 5e-4 for rate in module._implied(cells[".1136"], cells[".8913"]))
    assert all(0.218 < rate < 0.232 for rate in module._implied(cells[".4018"], cells[".8209"]))


def test_the_calibrated_logloss_is_that_of_drawn_scores():
    rng = np.random.default_rng(4)
    rate, gap, rows = 0.2, 1.5, 400_000
    label = rng.random(rows) < rate
    ratio = (label - 0.5) * gap**2 + gap * rng.normal(size=rows)
    logit = ratio + math.log(rate / (1 - rate))
    drawn = np.logaddexp(0, np.where(label, -logit, logit)).mean()
    auc = 0.5 * (1 + math.erf(gap / 2))  # P(a difference N(gap^2, 2 gap^2) is above 0)
    assert abs(module._calibrated(auc, rate) - drawn) < 4 * 0.6 / math.sqrt(rows)


def test_rows_that_imply_different_base_rates(check):
    assert check("model,AUC,Logloss\nA,.8209,.4018\nB,.8159,.4054\n") == []
    (found,) = check("model,AUC,Logloss\nA,.8209,.4018\nB,.8913,.1136\n")
    assert not found.certain and found.row == "B"
    assert "at a base rate of 0.039, and what line 2 has at 0.220" in found.bound
    assert check("model,dataset,AUC,Logloss\nA,Books,.8209,.4018\nB,Electronics,.8913,.1136\n") == []
    assert check("model,Books AUC,Books Logloss,El AUC,El Logloss\nA,.8209,.4018,.8913,.1136\n") == []


def test_logloss_beside_the_base_rate(check):
    assert check("auc,logloss,ctr\n.8209,.520,.500\n") == []
    (found,) = check("auc,logloss,ctr\n.8209,.4018,.500\n")  # the specification's 1 : 1 sampling
    assert not found.certain and "have 0.5179" in found.bound
    (found,) = check("auc,logloss,ctr\n.8209,.1200,.500\n")  # (1 - .8209) ln 2 = .1241
    assert found.certain and "above 0.1241" in found.bound
    assert check("auc,logloss,base_rate\n82.09,.520,50.0\n") == []


def test_no_logloss_of_scores_is_impossible(check):
    """The bound of the module's docstring holds for any scores, good, bad, tied or overconfident."""
    rng = np.random.default_rng(5)
    tight = 1.0
    lines = []
    for case in range(300):
        rows = int(rng.integers(2, 60))
        label = np.zeros(rows, dtype=int)
        label[: rng.integers(1, rows)] = 1
        rate = label.mean()
        score = rng.normal(size=rows) * rng.choice([0, 0.5, 3]) + rng.choice([0, 2, 8]) * (label - 0.5)
        if case % 3 == 0:  # all sure and right but some, who share the base rate
            score = np.where(rng.random(rows) < rng.random(), math.log(rate / (1 - rate)), 40 * (label - 0.5))
        positive, negative = score[label == 1][:, None], score[label == 0]
        auc = ((positive > negative) + 0.5 * (positive == negative)).mean()
        logloss = np.logaddexp(0, np.where(label == 1, -score, score)).mean()
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        tight = min(tight, logloss - (1 - auc) * entropy)
        lines.append(f"{auc:.6f},{logloss:.6f},{rate:.6f}")
    assert -1e-9 < tight < 0.02  # near to some, beyond none
    assert [found for found in check("\n".join(["auc,logloss,ctr", *lines])) if found.certain] == []


@pytest.mark.parametrize(
    ("header", "row", "column"),
    [
        ("auc,logloss", "1.100,.400", "auc"),
        ("auc,logloss", "-.100,.400", "auc"),
        ("gauc", "-.300", "gauc"),
        ("auc,logloss", ".800,-.100", "logloss"),
    ],
)
def test_values_of_clicks_out_of_range(check, header, row, column):
    found = check(
        f"{header}\n"
        + ".700,.500\n"[: 6 * len(header.split(",")) - 1].rstrip(",\n")
        + f"\n{row}\n"
        + ".7,.5\n"[: 3 * len(header.split(",")) - 1].rstrip(",\n")
    )
    assert [finding.column for finding in found if finding.certain] == [column]


# Tables that cannot be read ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model,score\nA,1\n", r"none of its columns \(model, score\) is known; name them as hit@10"),
        ("model,hit\nA,1\n", "is known"),  # at which k?
        ("model,n\nA,1\n", "is known"),
        ("", "no CSV table"),
        ("hit@5,rr@5\n.5\n", "line 2: 1 cells under 2 columns"),
        ("hit@5,HR@5\n.5,.5\n", "hit@5 and HR@5 are the same metric"),
        ("hit@5,n\n.5,5.3k\n", "line 2: n = 5.3k is no whole number"),
        ("hit@5,n\n.5,0\n", "line 2: n = 0 is no whole number"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(check, text, says):
    with pytest.raises(InputError, match=says) as error:
        check(text)
    assert "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        lint(tmp_path / "absent.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00hit@5")
    with pytest.raises(InputError, match="no CSV table in UTF-8"):
        lint(str(path))
