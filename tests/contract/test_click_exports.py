"""Every click net of conf/model as ONNX, against the net itself on batches of other sizes."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from hydrec.scorer import ClickScorer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime") is None, reason="pip install onnx onnxscript onnxruntime"
    ),
]
# in a process of its own: in this one, shapes are checked, which a trace would see
EXPORTER = """
import contextlib, pathlib, sys, torch
from hydra.utils import instantiate
from hydrec import scorer
for line in sys.stdin:
    folder = pathlib.Path(line.strip())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            catalog, config, weights, tried = torch.load(folder / "given.pt", weights_only=False)
            net = instantiate(config)(catalog)
            net.load_state_dict(weights)
            content, read, free, _ = scorer.exported(scorer.ClickScorer(net).eval(), tried, "onnx")
            (folder / "scorer.onnx").write_bytes(content)
            torch.save((read, free), folder / "said.pt")
        print("done", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""
NEVER = {"values", "users"}  # read by no net, beside labels and rows
UNROLLED = ("dien", "dien_official")  # step by step, so that T is fixed


@pytest.fixture(scope="module")
def exporter():
    """Exports what lies in a folder, and says "done" or what went wrong."""
    command = [sys.executable, "-c", EXPORTER]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipe) as process:

        def export(folder):
            print(folder, file=process.stdin, flush=True)
            return process.stdout.readline().strip()

        yield export
        process.stdin.close()


def inputs(batch):
    return {name: getattr(batch, name) for name in ClickScorer.inputs}


def test_the_file_gives_the_logits_of_the_net(
    click_model, make_click_net, net_config, click_catalog, random_clicks, exporter, tmp_path
):
    net = make_click_net(f"model={click_model}").eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * (torch.rand(tensor.shape) - 0.5))
    config = net_config(f"model={click_model}", "protocol=click_last")
    given = click_catalog, config, net.state_dict(), inputs(random_clicks(rows=9))
    torch.save(given, tmp_path / "given.pt")
    assert exporter(tmp_path) == "done"
    read, free = torch.load(tmp_path / "said.pt", weights_only=False)
    assert "candidates" in read or click_model == "click_constant"
    assert not read & NEVER
    assert free == ("batch" if click_model in UNROLLED else "batch and length")
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "scorer.onnx")
    for rows in (1, 4, 30):
        other = random_clicks(rows=rows, seed=rows)
        expected = net(other)[0].detach()
        assert rows == 1 or expected.std() > 1e-4 * expected.abs().max() or click_model == "click_constant"
        arrays = {name: value.numpy() for name, value in inputs(other).items()}
        (logits,) = session.run(None, {each.name: arrays[each.name] for each in session.get_inputs()})
        assert abs(torch.from_numpy(logits) - expected).max() <= 1e-5 * expected.abs().max().clamp(min=1)
