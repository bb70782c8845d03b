"""What bench.py rests on: that all of its contestants learn the same thing by the same
rules, that its turns are turns, and that its tables say what was measured.

A peer that is not installed is left out.
"""
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import bench  # noqa: E402
import minignn  # noqa: E402
from bench import MODELS, TRICKS, TURN, Minignn, PyG, SciPy, Turns  # noqa: E402

FORMS = "dense", "sparse", "tuned"


# 1. The same data, the same rules -----------------------------------------------------


def test_the_peers_read_the_same_cora_as_minignn():
    x, edge_index, y, *masks = bench.arrays_of(0, 0)
    ours = minignn.load_graph()
    theirs = minignn.make_graph(x, edge_index, y, *masks, normalize=False)
    for name in ("y", "train", "val", "test"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for a, b in ((ours.x, theirs.x), (ours.adj, theirs.adj)):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.cols, b.cols)
        np.testing.assert_allclose(a.values, b.values, rtol=1e-6)


def test_a_random_graph_has_its_training_nodes_and_no_node_in_two_splits():
    x, edge_index, y, train, val, test = bench.arrays_of(100, labels=30)
    assert x.shape == (100, 64) and edge_index.shape == (2, 1000) and y.max() < 7
    assert (train.sum(), val.sum(), test.sum()) == (30, 20, 20)
    assert not (train & val).any() and not (train & test).any()


@pytest.mark.parametrize("model", MODELS)
def test_a_peer_stops_when_minignn_does(model):
    rule, patience, most = bench.paper_rule(model)
    recipe = minignn.GCN_RECIPE if model == "GCN" else minignn.GAT_RECIPE
    assert (patience, most) == (recipe["patience"], recipe["epochs"])
    rng = np.random.default_rng(0)
    for _ in range(20):         # of few different numbers, so that some are equal
        history = {"val_loss": [], "val_accuracy": []}
        for _ in range(30):
            history["val_loss"].append(rng.integers(5) / 5)
            history["val_accuracy"].append(rng.integers(5) / 5)
            assert rule(history) == recipe["rule"](history)


class Script(bench.Peer):
    """A peer whose validation losses are known in advance."""

    def __init__(self, losses):
        self.losses = losses

    def start(self):
        self.epoch = 0

    def step(self):
        self.epoch += 1

    def evaluate(self):
        return {"val_loss": self.losses[self.epoch - 1], "val_accuracy": 0,
                "test_accuracy": self.epoch / 10}


def test_training_of_a_peer_ends_by_patience_and_keeps_what_the_rule_says():
    def rule(history):
        return history["val_loss"][-1] < 3, history["val_loss"][-1] == 1

    peer = Script([5, 1, 2, 3, 4, 5, 0])
    assert peer.train(rule, patience=3, most=100) == (6, 0.2)
    assert peer.train(rule, patience=3, most=2) == (2, 0.2)


# 2. The same model --------------------------------------------------------------------


def logits_and_gradient(peer):
    """Of a PyG without dropout: the loss's gradient by the first layer's weights."""
    import torch
    peer.net.zero_grad()
    train = peer.splits[0]
    logits = peer.logits(training=True)
    torch.nn.functional.cross_entropy(logits[train], peer.y[train]).backward()
    first = peer.net[0]
    gradients = [first.lin.weight.grad.numpy()]
    if peer.is_sparse:                                  # whose weights are [F, units]
        gradients[0] = gradients[0].T
    gradients += [p.grad.numpy() for p in peer.net[1].parameters()]
    return logits.detach().numpy(), gradients


def without_dropout(peer):
    """And with larger parameters, so that the attention matters to the loss."""
    peer.start()
    peer.rate = 0
    for parameter in peer.net.parameters():
        parameter.data *= 10
    for layer in peer.net:
        layer.dropout = 0
    return peer


@pytest.mark.parametrize("model", MODELS)
def test_the_forms_of_pytorch_geometric_have_the_same_outputs_and_gradients(model):
    pytest.importorskip("torch_geometric")
    expected, gradients = logits_and_gradient(without_dropout(PyG(model)))
    assert all(abs(g).max() > 1e-4 for g in gradients)
    for form in FORMS[1:]:
        peer = without_dropout(PyG(model, form=form))
        logits, others = logits_and_gradient(peer)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        for g, other in zip(gradients, others):
            np.testing.assert_allclose(other, g, atol=1e-4 * abs(g).max())


@pytest.mark.parametrize("form", FORMS[1:])
def test_dropout_of_sparse_features_drops_values_and_scales_the_others(form):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    peer = PyG("GCN", form=form)
    values = torch.arange(1.0, len(peer.x.values()) + 1)
    x = bench.with_values(peer.x, values).to_dense()
    # What torch drops is torch's business; here, each value has to find its place.
    places = peer.x.to_dense() != 0
    np.testing.assert_array_equal(x[places], values)
    assert not x[~places].any()


def test_scipy_and_pytorch_geometric_evaluate_as_minignn_does():
    pytest.importorskip("scipy")
    scipy = SciPy("GCN")
    scipy.start()
    W0, W1 = scipy.params
    _, apply_fun = minignn.GCN(16, 7)
    graph = minignn.load_graph()
    expected = minignn.evaluate(apply_fun, [(W0,), (W1,)], graph)
    assert scipy.evaluate() == pytest.approx(
        {name: float(value) for name, value in expected.items()}, abs=1e-5)

    torch = pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    for form in FORMS:
        peer = PyG("GCN", form=form)
        peer.start()
        with torch.no_grad():
            for layer, W in zip(peer.net, scipy.params):
                is_as_ours = tuple(layer.lin.weight.shape) == W.shape
                layer.lin.weight.copy_(torch.as_tensor(W if is_as_ours else W.T))
        assert peer.evaluate() == pytest.approx(scipy.evaluate(), abs=1e-5)


def test_scipys_gradient_against_finite_differences():
    pytest.importorskip("scipy")
    peer = SciPy("GCN")
    peer.x, peer.A = peer.x.astype(float), peer.A.astype(float)
    peer.dropped = peer.x.copy()
    peer.dropped_T = peer.dropped.T
    peer.mask = np.ones                                 # no dropout
    peer.start()
    params = [p.astype(float) for p in peer.params]
    rng = np.random.default_rng(1)
    direction = [rng.normal(size=p.shape) for p in params]

    def loss(step):
        peer.params = [p + step * d for p, d in zip(params, direction)]
        return peer.evaluate()["train_loss"] + 5e-4 * (peer.params[0] ** 2).sum() / 2

    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    gradients = peer.gradients(*params)
    along = sum((g * d).sum() for g, d in zip(gradients, direction))
    assert along == pytest.approx(expected, rel=1e-5)


def test_all_tricks_together_are_what_fast_is():
    fast = Minignn("GCN", tricks=TRICKS)
    from scale import faster
    assert fast.train_model is faster.faster_train
    assert fast.train_graph.adj.shape != fast.graph.adj.shape
    assert type(fast.graph.x) is type(fast.train_graph.x) is not minignn.Sparse
    assert fast.rng.dtype == jax.random.key(0, impl=faster.faster_bits).dtype
    plain = Minignn("GCN")
    assert plain.train_model is minignn.train and plain.train_graph is plain.graph
    assert plain.rng.dtype == jax.random.key(0).dtype != fast.rng.dtype


# 3. Turns and workers -----------------------------------------------------------------


def test_a_turn_ends_after_its_epochs_and_the_last_one_ends_the_training():
    answers = []
    turns = Turns(iter(["turn", "train"]), lambda **items: answers.append(items))
    epochs, _ = Script([1] * 10 * TURN).train(turns, patience=1, most=10 ** 9)
    assert epochs == 2 * TURN and turns.request == "train"
    assert len(answers) == 2 and all(answer["seconds"] > 0 for answer in answers)


def test_a_worker_answers_each_request():
    job = dict(by="minignn", model="GCN", nodes=60, labels=30)
    with bench.start(job) as worker:
        asked = ["ready", "turn", "turn", "train", "steps 2"]
        answers = [bench.ask(worker, request, limit=100) for request in asked]
    assert not any("note" in answer for answer in answers), answers
    ready, first, second, train, steps = answers
    assert ready["ready s"] > 0 and first["seconds"] > second["seconds"] > 0
    assert 0 <= train["accuracy"] <= 100 and 10 < train["epochs"] <= 200
    assert len(steps["seconds"]) == 2 and steps["first step s"] > 0
    assert all(answer["peak MB"] > 10 for answer in answers)


def test_a_worker_that_fails_says_why_and_a_late_one_is_ended():
    with bench.start(dict(by="nobody", model="GCN")) as worker:
        assert bench.ask(worker, "ready", limit=100) == {"note": "KeyError: 'nobody'"}
    with bench.start(dict(by="minignn", model="GCN")) as worker:
        assert bench.ask(worker, "ready", limit=0.01) == {
            "note": "not done after 0.01 s"}


# 4. Tables and flags ------------------------------------------------------------------


def test_numbers_have_three_digits():
    numbers = [0.0, 0.012345, 1.2345, 99.94, 123.45, 12345.6, 12345, None, "text"]
    assert [bench.text_of(number) for number in numbers] == [
        "0", "0.0123", "1.23", "99.9", "123", "12,346", "12,345", "", "text"]


def test_a_table_has_no_column_without_a_number():
    rows = [{"by": "a", "ms": 1.5, "GPU peak MB": None, "note": None, "seconds": [1]},
            {"by": "long name", "ms": None, "GPU peak MB": None, "note": "why"}]
    assert bench.markdown(rows).splitlines() == [
        "| by        | ms   | note |",
        "| --------- | ---- | ---- |",
        "| a         | 1.50 |      |",
        "| long name |      | why  |"]


def test_a_page_gets_its_tables_and_keeps_all_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table 1 -->\nold\n<!-- end of table 1 -->\nb\n")
    for _ in range(2):
        bench.write(page, "1", "new")
    assert page.read_text() == (
        "a\n<!-- table 1 -->\n\nnew\n\n<!-- end of table 1 -->\nb\n")
    with pytest.raises(ValueError, match="no <!-- table 2 -->"):
        bench.write(page, "2", "new")


def test_the_page_in_docs_has_a_place_for_each_table():
    text = (HERE.parent / "docs" / "speed.md").read_text(encoding="utf-8")
    assert re.findall("<!-- table (.*) -->", text) == list(bench.TABLES)
    assert re.findall("<!-- end of table (.*) -->", text) == list(bench.TABLES)


@pytest.mark.parametrize("flags, message", [
    ("--tables 4", "the tables are 1, tricks, 2, 3"),
    ("--models MLP", "the models are GCN, GAT"),
    ("--turns 0", "--turns and --repeats"),
    ("--max-nodes 10", "--max-nodes"),
    ("--cores 0", "--cores must be 1 to"),
    ("--train-peer MLP dense", "needs GCN or GAT"),
    ("--train-peer GCN csr", "dense, sparse or tuned"),
])
def test_a_bad_flag_is_refused(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags.split()])
    with pytest.raises(SystemExit) as stop:
        bench.read_flags()
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_command_beside_a_table_makes_it_again(monkeypatch):
    flags = "--tables 1,2 --models GAT --turns 2 --json x"
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags.split()])
    command = bench.command_for("2", *bench.read_flags())
    assert command == "python bench/bench.py --tables 2 --models GAT --turns 2"
    monkeypatch.setattr(sys, "argv", command.split()[1:])
    _, args = bench.read_flags()
    assert (args.tables, args.models, args.turns) == (["2"], ["GAT"], 2)
