"""The faster dropout is dropout."""

import pytest
import torch

from hydrec.layers.dropout import LEVELS, Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1001,), (64, 3, 1000), (0, 4)])
def test_drops_the_share_and_keeps_the_mean(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(shape, dtype=torch.float64))
    scale = LEVELS / (LEVELS - round(p * LEVELS))
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4)
    assert torch.isin(out, torch.tensor([0, scale], dtype=torch.float64)).all()
    if len(out):
        assert float((out == 0).double().mean()) == pytest.approx(
            p, abs=4 * (p * (1 - p) / out.numel()) ** 0.5
        )


def test_draws_are_independent_of_their_neighbours() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(4 * 100_000)) > 0).long()
    words = kept.view(-1, 4) @ torch.tensor([1, 2, 4, 8])  # draws that come from one word
    seen = torch.bincount(words, minlength=16)
    assert float(((seen - 6250.0) ** 2 / 6250).sum()) < 37.7  # chi-square of 15 degrees, p = .001
    pairs = torch.bincount(words[1:] * 16 + words[:-1], minlength=256)
    expected = (len(words) - 1) / 256
    assert float(((pairs - expected) ** 2 / expected).sum()) < 330.5  # of 255 degrees


def test_gradient_is_that_of_what_was_kept() -> None:
    x = torch.randn(50, 40, dtype=torch.float64).mT.requires_grad_()
    out = Dropout(0.3)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x, out)
    assert 0.5 < float((x.grad > 0).double().mean()) < 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_keeps_dtype_and_follows_the_seed(dtype: torch.dtype) -> None:
    x, drop = torch.ones(1000, dtype=dtype), Dropout(0.2)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(drop(x))
    assert runs[0].dtype == dtype
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_leaves_evaluation_alone_and_knows_the_ends() -> None:
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(10))
