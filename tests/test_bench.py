"""lab/bench.py: its peers compute what minignn computes, its commands print tables."""
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import KEY, ROOT, close, leaves_close, slow
from lab import bench
from minignn import GCN, GCN_RECIPE, adam, evaluate, predict, train_step
from scale import faster


def close_to_largest(a, b):
    """But for a hundred-thousandth of the largest number."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * abs(np.asarray(b)).max())


def test_scipy_takes_the_steps_of_minignn(cora):
    graph = jax.tree.map(np.asarray, cora)
    peer = bench.scipy_by_hand(
        graph, seed=0, mask=lambda rng, size: np.ones(size, np.float32))
    params = [(W.copy(),) for W in peer.params]
    model, state = GCN(16, 7, dropout_rate=0), adam(GCN_RECIPE.step_size)[0](params)
    for _ in range(3):
        params, state = train_step(model, params, state, cora, KEY, GCN_RECIPE)
        peer.step()
    _, means, _ = state                     # of the gradients; they keep their scale
    for (of_minignn,), of_scipy in zip(means, peer.means):
        close_to_largest(of_scipy, of_minignn)
    leaves_close([(W,) for W in peer.params], params, 1e-4)
    expected = evaluate(model, params, cora)
    assert peer.evaluate() == pytest.approx(jax.tree.map(float, expected), abs=1e-4)


def test_scipy_drops_half_of_all_numbers():
    mask = bench.two_or_zero(np.random.default_rng(0), 100_003)
    assert mask.shape == (100_003,) and set(mask.tolist()) == {0, 2}
    assert abs(mask.mean() - 1) < 5 / 100_003 ** 0.5            # 5 standard deviations


@pytest.mark.parametrize("form", ["dense", "sparse", "tuned"])
@pytest.mark.parametrize("name", ["GCN", "GAT"])
def test_pytorch_geometric_computes_what_minignn_does(name, form, cora):
    torch = pytest.importorskip("torch", reason="the peer needs PyTorch")
    pytest.importorskip("torch_geometric", reason="the peer needs PyTorch Geometric")
    model, _ = bench.MODELS[name]
    _, params = model[0](KEY, cora.x.shape)
    rng = np.random.default_rng(0)          # a1 and a2 differ, and b is not 0
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    peer = bench.make_peer(bench.PYG + form, name, cora, seed=0)
    for layer, (W, *rest) in zip(peer.net, params):
        is_ours = layer.lin.weight.shape == W.shape             # PyTorch has it as W.T
        layer.lin.weight.data = torch.tensor(W if is_ours else W.T)
        if name == "GAT":
            a1, a2, b = rest
            layer.att_dst.data = torch.tensor(a1[None])
            layer.att_src.data = torch.tensor(a2[None])
            layer.bias.data = torch.tensor(b.reshape(-1))

    logits = peer.logits(training=False)
    close(logits.detach(), predict(model, params, cora), 1e-4)
    logits.sin().mean().backward()

    def mean_of_sines(params):
        return jnp.sin(predict(model, params, cora)).mean()

    for layer, (of_minignn, *_) in zip(peer.net, jax.grad(mean_of_sines)(params)):
        grad = layer.lin.weight.grad
        close_to_largest(grad if grad.shape == of_minignn.shape else grad.T, of_minignn)


def test_each_trick_has_its_name():
    for name, _ in bench.TRICKS.values():
        assert hasattr(faster, name)


@slow
@pytest.mark.parametrize("command, row", [
    ("epoch --only SciPy", "GCN | SciPy"),
    ("tricks --only GCN.*bits", "GCN | minignn --fast without random bits"),
    ("step --nodes 50 --only GCN.minignn$", "GCN | minignn"),
    ("prompt --only GCN.minignn$", "GCN | minignn")])
def test_a_command_prints_its_table(command, row):
    out = subprocess.check_output(
        [sys.executable, ROOT / "lab" / "bench.py", *command.split(), "--rounds", "1"],
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}, text=True)
    heading, _, line = out.splitlines()
    assert heading.startswith("| model | by | time, ")
    assert re.match(rf"\| {re.escape(row)} \| [\d.e-]+ \|", line)
