"""Figures: what they show, what is left out, and that nothing but the runs changes them."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hydrec.study import figures
from hydrec.study.results import finished, settings, study
from hydrec.study.verdicts import judged


@pytest.fixture
def read(tmp_path):
    """The settings of the runs made so far, and the verdicts against ``base``."""

    def of(metrics=()):
        runs = finished(tmp_path / "study")
        asked = study(tmp_path / "study", runs, "base", metrics)
        found = settings(runs, asked)
        pairs = {each.key: [("base", model) for model in each.models if model != "base"] for each in found}
        return found, judged(found, pairs, asked)[0]

    return of


@pytest.fixture
def made(ranked, read):
    for seed in range(3):
        ranked("base", seed)
        ranked("ia_add", seed, better=6)
        ranked("bad", seed, better=-6)
    return read(["ndcg@10", "hit@10"])


def texts(page: Figure) -> list[str]:
    legends = [text.get_text() for legend in page.legends for text in legend.get_texts()]
    ticks = [label.get_text() for axes in page.axes for label in axes.get_yticklabels()]
    return [*legends, *ticks, *(text.get_text() for axes in page.axes for text in axes.texts)]


def points(page: Figure) -> dict[float, tuple[float, float, float]]:
    """Of a forest: by height, the ends of the interval and the point."""
    found = {}
    for container in page.axes[0].containers:
        (ends,) = container[2][0].get_segments()
        found[float(ends[0][1])] = (ends[0][0], container[0].get_xdata()[0], ends[1][0])
    return found


def test_the_forest_has_each_cell_with_its_interval(made) -> None:
    (setting,), verdicts = made
    page = figures.forest(setting, verdicts, 0.05)
    shown = texts(page)
    assert {"ia_add", "bad", "NDCG@10", "Hit@10", "robust gain", "robust loss"} <= {*shown}
    drawn = [points(page)[at] for at in sorted(points(page))]
    rows = [
        row
        for metric in ("ndcg@10", "hit@10")
        for row in verdicts.filter(metric=metric).iter_rows(named=True)
    ]
    assert len(drawn) == len(rows) == 4
    for ends, row in zip(drawn, rows, strict=True):
        expected = [100 * row[key] / row["baseline_mean"] for key in ("low", "difference", "high")]
        assert ends == pytest.approx(expected)
    assert "95 % intervals" in page.axes[0].get_xlabel()
    assert "90 % intervals" in figures.forest(setting, verdicts, 0.1).axes[0].get_xlabel()


def test_labels_of_a_large_forest_do_not_overlap(ranked, read) -> None:
    for seed in range(2):
        ranked("base", seed)
        for place in range(25):
            ranked(f"a_model_with_a_long_name_{place}", seed, better=place - 12)
    (setting,), verdicts = read()
    page = figures.forest(setting, verdicts, 0.05)
    canvas = FigureCanvasAgg(page)
    canvas.draw()
    renderer = canvas.get_renderer()
    labels = [*page.axes[0].get_yticklabels(), *page.axes[0].texts]
    boxes = sorted((label.get_window_extent(renderer) for label in labels), key=lambda box: box.y0)
    for one, other in pairwise(boxes):
        assert one.y1 <= other.y0 + 1
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= page.bbox.x1


def test_lambda_is_that_of_the_tested_epoch(made) -> None:
    (setting,), _ = made
    run = setting.models["ia_add"][2]
    assert figures.lambdas_tested(run) == pytest.approx([0.9 - 0.1 - 0.02, 0.9 - 0.2 - 0.02])
    assert figures.lambdas_tested(setting.models["base"][0]) == []


def test_lambda_against_difference(made) -> None:
    found, verdicts = made
    (axes,) = figures.lambda_difference(found, verdicts, 0.05).axes
    point = axes.containers[0][0]
    (row,) = verdicts.filter(model="ia_add", metric="ndcg@10").iter_rows(named=True)
    assert point.get_xdata()[0] == pytest.approx(0.75 - 0.01)  # blocks .8 and .7, seeds 0, -.01 and -.02
    assert point.get_ydata()[0] == pytest.approx(100 * row["difference"] / row["baseline_mean"])


def test_curves_are_means_over_seeds(made) -> None:
    (setting,), _ = made
    (axes,) = figures.curves(setting).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert {*lines} == {"base", "ia_add", "bad"}
    assert lines["base"].get_xdata().tolist() == [1, 2, 3]
    assert lines["base"].get_ydata() == pytest.approx([0.1, 0.5, 0.4])
    steps = figures.lambda_steps(setting).axes[0].get_lines()
    assert [line.get_label() for line in steps] == ["ia_add"]
    assert steps[0].get_xdata().tolist() == [10, 20, 30]
    assert steps[0].get_ydata() == pytest.approx([1, 0.74, 0.5])


def test_seeds_that_stop_early_end_the_mean(ranked, read) -> None:
    ranked("base", 0)
    path = ranked("base", 1)
    lines = (path / "history.csv").read_text().splitlines()
    (path / "history.csv").write_text("\n".join(lines[:3]))
    ((setting,), _) = read()
    assert figures.curves(setting).axes[0].get_lines()[0].get_xdata().tolist() == [1, 2]


def test_cost_has_seconds_and_parameters(made) -> None:
    (setting,), _ = made
    time, size = figures.cost(setting).axes
    assert [line[0].get_xdata()[0] for line in time.containers] == [2.0] * 3
    assert [line[0].get_xdata()[0] for line in size.containers] == [1234] * 3


def test_figures_with_nothing_to_show_are_left_out(ranked, read) -> None:
    ranked("base")
    ranked("itemknn", trained=False)
    found, verdicts = read()
    assert figures.lambda_steps(found[0]) is None
    assert figures.lambda_difference(found, verdicts, 0.05) is None
    assert figures.cost(found[0]) is None  # of one model


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_same_runs_give_the_same_bytes(made, form) -> None:
    (setting,), verdicts = made
    one, other = (figures.drawn(figures.forest(setting, verdicts, 0.05), form) for _ in range(2))
    assert one == other
