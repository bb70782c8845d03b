"""The parts of experiments.py, against something independent; on small graphs."""
import json
import re
import sys

import jax
import numpy as np
import pytest
from jax.nn import elu

import minignn
from conftest import KEY, ROOT, close, dense, small
from lab import experiments


@pytest.fixture(scope="module")
def graph():
    """The path 0 - 1 - 2 - 3 - 4, and a node alone."""
    path = small()["edge_index"]
    y = np.array([0, 1, 1, 1, 0, -1])
    return minignn.make_graph(**small(edge_index=np.hstack([path, path[::-1]]), y=y))


def layers(params, x, adj):
    """Layers that weigh neighbours by adj; W is first in the params, the bias last."""
    for i, (W, *_, b) in enumerate(params):
        x = adj @ (elu(x) if i else x) @ W + b.reshape(-1)
    return x


def deep(params, x, adj, is_residual=False):
    first, *middle, last = [W for (W,) in params]
    h = adj @ x @ first
    for W in middle:
        h = adj @ h.clip(0) @ W + (h.clip(0) if is_residual else 0)
    return adj @ h.clip(0) @ last


def own_apart(params, x, adj):
    V, W = params
    return x @ V + (adj - np.diag(np.diag(adj))) @ x @ W


def gatv2_layer(params, x, adj, last_layer=False):
    W1, W2, a, b = params
    own, h = [np.reshape(x @ W, (len(x), *a.shape)) for W in (W1, W2)]
    pairs = own[:, None] + h                                # [N, N, H, D]
    scores = np.where(pairs > 0, pairs, 0.2 * pairs) * a
    exp = np.exp(scores.sum(axis=-1)) * (adj > 0)[:, :, None]
    alpha = exp / exp.sum(axis=1, keepdims=True)            # [N, N, H]
    out = np.einsum("ijh,jhd->ihd", alpha, h) + b
    return out.mean(axis=1) if last_layer else out.reshape(len(x), -1)


FORMULAS = {
    "sgc": lambda params, x, adj: adj @ adj @ adj @ x @ params[0],
    "depth": deep,
    "residual": lambda params, x, adj: deep(params, x, adj, is_residual=True),
    "own-apart": lambda params, x, adj: own_apart(
        params[1], own_apart(params[0], x, adj).clip(0), adj),
    "gat-no-attention": lambda params, x, adj: layers(
        params, x, (adj > 0) / (adj > 0).sum(axis=1, keepdims=True)),
    "gat-gcn-weights": layers,
    "gcn-as-gat": layers,
    "gatv2": lambda params, x, adj: gatv2_layer(
        params[1], elu(gatv2_layer(params[0], x, adj)), adj, last_layer=True),
    "lookup-gatv2": lambda params, x, adj: elu(
        gatv2_layer(params[0], x, adj)) @ params[1][0],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_model_is_its_formula(graph, name):
    model = init_fun, apply_fun = experiments.make_model(name, 3, 16, 0.5, number=3)
    _, params = init_fun(KEY, graph.x.shape)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
    logits = apply_fun(params, graph.x, graph.adj)
    expected = FORMULAS[name](params, np.asarray(graph.x), dense(graph.adj))
    close(logits, expected, 1e-5)
    if name == "gat-no-attention":
        _, apply_by_kind = experiments.by_kind(model)
        close(apply_by_kind([*zip(*params)], graph.x, graph.adj), expected, 1e-5)
    if name != "sgc":
        dropped = apply_fun(params, graph.x, graph.adj, KEY)
        assert not np.allclose(dropped, logits, atol=1e-3)


def test_label_propagation_is_the_solution_of_a_linear_system(graph):
    # F = keep Â F + (1 - keep) Y, so (I - keep Â) F = (1 - keep) Y
    labels = np.zeros((6, 2))
    labels[graph.train, graph.y[graph.train]] = 1
    system = np.eye(6) - 0.8 * dense(graph.adj)
    scores = 0.2 * np.linalg.solve(system, labels)
    close(experiments.label_propagation(graph, 0.8), scores, 1e-5)
    val, test = [np.mean(scores[nodes].argmax(axis=1) == graph.y[nodes])
                 for nodes in (graph.val, graph.test)]
    numbers = experiments.fair_run("label-propagation", {"keep": 0.8}, graph, 0)
    close([numbers["val_loss"], numbers["test_accuracy"]], [1 - val, test], 1e-6)


def test_last_hidden_and_its_roughness(graph):
    _, params = experiments.make_model("depth", 3, 16, 0, 3)[0](KEY, graph.x.shape)
    adj = dense(graph.adj)
    h = (adj @ (adj @ graph.x @ params[0][0]).clip(0) @ params[1][0]).clip(0)
    close(experiments.last_hidden("depth", params, graph, 3), h, 1e-5)
    scaled = h / np.sqrt((adj > 0).sum(axis=1, keepdims=True))
    differences = (scaled[:, None] - scaled)[adj > 0]
    energy = (differences ** 2).sum() / 2
    close(experiments.roughness(h, graph.adj), energy / (h ** 2).sum(), 1e-5)


def test_changed_graphs(graph):
    links = dense(graph.adj) > 0
    mean = links / links.sum(axis=1, keepdims=True)
    close(dense(experiments.row_normalized(graph, 0, None).adj), mean, 1e-6)
    links = links - np.eye(6)
    root = np.sqrt(links.sum(axis=1)).clip(1)
    links = links / np.outer(root, root)
    close(dense(experiments.no_self_loops(graph, 0, None).adj), links, 1e-6)
    assert (dense(experiments.no_graph(graph).adj) == np.eye(6)).all()
    assert (dense(experiments.no_words(graph, 0, None).x) == np.eye(6)).all()


def test_random_graph():
    graph = experiments.random_graph(3, 40, num_classes=5, misleading=30)
    x, y, adj = np.asarray(graph.x), np.asarray(graph.y), dense(graph.adj)
    rows, cols = np.nonzero(adj - np.diag(np.diag(adj)))
    assert (adj == adj.T).all() and len(rows) == 2 * 2000
    assert (y[rows] == y[cols]).mean() == 0.4
    assert (np.bincount(y[graph.train]) == 20).all()
    misleads = x[:, 16] == 1
    assert misleads.sum() == 300                            # and no split has them
    splits = np.concatenate([graph.train, graph.val, graph.test])
    assert sorted(splits.tolist()) == np.flatnonzero(~misleads).tolist()


def test_a_node_that_looks_up_sees_all_entries_of_its_dictionary():
    graph = experiments.lookup(0, size=4)
    x, adj, y = dense(graph.x), dense(graph.adj), np.asarray(graph.y)
    key, value = x[:, :4].argmax(axis=1), x[:, 4:].argmax(axis=1)
    assert [len(s) for s in (graph.train, graph.val, graph.test)] == [240, 80, 80]
    for node in np.concatenate([graph.train, graph.val, graph.test]):
        entries = np.setdiff1d(np.flatnonzero(adj[node]), node)
        assert sorted(key[entries]) == sorted(value[entries]) == [0, 1, 2, 3]
        assert (y[entries] == -1).all() and not x[node, 4:].any()
        assert y[node] == value[entries][key[entries] == key[node]].item()


def test_splits_by_a_seed(cora):
    one, other, again = [experiments.random_split(cora, seed) for seed in (0, 1, 0)]
    assert (one.test == again.test).all() and (one.test != other.test).any()
    nodes = np.concatenate([one.train, one.val, one.test])
    assert len(np.unique(nodes)) == len(nodes) == 140 + 500 + 1000
    fewer = np.unique(experiments.labels(cora, 0, 5).train)
    assert np.isin(fewer, cora.train).all()
    for train, number in (one.train, 20), (fewer, 5):
        assert (np.bincount(cora.y[train]) == number).all()


def test_rules():
    assert experiments.lowest_loss({"val_loss": [2, 1]}) == (True, True)
    assert experiments.lowest_loss({"val_loss": [2, 2]}) == (False, False)
    assert experiments.code_rule({"val_loss": [1] * 10 + [5]})[0]     # too early
    assert not experiments.code_rule({"val_loss": [1] * 11 + [5]})[0]


@pytest.fixture
def run(monkeypatch, capsys, cora):
    def run(*words):
        monkeypatch.setattr(minignn, "load_graph", lambda path: cora)
        monkeypatch.setattr(sys, "argv", ["experiments.py", *map(str, words)])
        experiments.main()
        return capsys.readouterr().out.splitlines()
    return run


def test_fair_protocol(run, monkeypatch, cora, tmp_path):
    calls = []

    def fair_run(method, setting, graph, seed):
        calls.append((setting, seed, graph))
        is_best = setting == experiments.SETTINGS[method][7]
        return {"val_loss": 1.0 - is_best, "test_accuracy": 0.5}

    monkeypatch.setattr(experiments, "fair_run", fair_run)
    used = np.concatenate([cora.train, cora.val])
    for method, settings in experiments.SETTINGS.items():
        words = "fair", method, "--runs", 2, "--results", tmp_path / "results"
        printed = run(*words)
        tuning = [(s, seed) for s in settings for seed in (1000, 1001, 1002)]
        table = [(settings[7], seed) for seed in (0, 1, 0, 1)]
        assert [call[:2] for call in calls] == tuning + table
        assert len(settings) == 36
        graphs = [graph for *_, graph in calls]
        assert all(graph.test is cora.test for graph in graphs[:-2])
        for graph in graphs[-2:]:
            assert not np.isin([*graph.train, *graph.val, *graph.test], used).any()
        for graph in graphs:
            assert (len(graph.adj.rows) == 2708) == (method == "no-graph")

        calls.clear()
        assert run(*words) == printed and not calls             # all is in the file


def test_compare(run, tmp_path):
    path = tmp_path / "results"
    rows = [("a", 0, 0.5), ("a", 1, 0.6), ("gat", 0, 0.1), ("gat", 1, 0.4)]
    path.write_text("\n".join(
        json.dumps(["one", name, seed, "2026-01-01", {"test_accuracy": number}])
        for name, seed, number in rows))
    assert run("compare", "--results", path)[2] == (
        "one | gat minus a: -0.3000 ± 0.1000 over 2 runs, standard error 0.1000")


def test_every_command_on_the_page_runs(run, monkeypatch):
    def no_training(model, graph, rng, *_):
        return model[0](rng, graph.x.shape)[1], {"val_loss": [1]}

    keys = "train_accuracy", "val_loss", "val_accuracy", "test_accuracy"
    monkeypatch.setattr(minignn, "train", no_training)
    monkeypatch.setattr(minignn, "evaluate", lambda *_: dict.fromkeys(keys, 0))
    monkeypatch.setattr(experiments, "quick_steps", lambda *_: None)
    page = (ROOT / "docs" / "experiments.md").read_text()
    found = re.findall(r"^\|.*\| `(?:lab/experiments.py )?([^`]*)` \|$", page, re.M)
    found += re.findall(r"`python\s+lab/experiments.py ((?:noisy|lookup) \d+)`", page)
    commands = {words[0]: words for words in map(str.split, found)}
    del commands["train_gcn.py"]
    assert {*commands} == experiments.NAMES - {"fair", "compare"}     # tested above
    for words in commands.values():                                 # one for each name
        assert run(*words, "--runs", 1)


@pytest.mark.parametrize("words", [
    "gcn 5", "homophily 101", "labels", "fair sage", "gat --epochs 9", "gcn --runs 0",
    "lookup 2 --data cora.npz", "compare", "compare --results nowhere.jsonl"])
def test_what_a_row_does_not_take_is_refused(run, words):
    with pytest.raises(SystemExit):
        run(*words.split())
