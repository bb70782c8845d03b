"""The parts of experiments.py, against something independent; on small graphs."""
import json
import re
import sys

import jax
import numpy as np
import pytest
from jax.nn import elu

import minignn
from conftest import KEY, ROOT, close, dense
from lab import experiments

PAGE = (ROOT / "docs" / "experiments.md").read_text()


@pytest.fixture(scope="module")
def graph():
    """Twelve nodes of three classes, random edges; four nodes in each split."""
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 12, (2, 15))
    edges = edges[:, edges[0] != edges[1]]
    node = np.arange(12)
    return minignn.make_graph(
        x=rng.random((12, 5)) + 0.1, edge_index=np.hstack([edges, edges[::-1]]),
        y=node % 3, train_mask=node < 4, val_mask=(node > 3) & (node < 8),
        test_mask=node > 7)


def init(model, graph):
    """Params, biases included, at random."""
    _, params = model[0](KEY, graph.x.shape)
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)


def layers(params, x, adj, activation=elu):
    """Layers that weigh neighbours by adj; W is first in the params, the bias last."""
    for i, (W, *_, b) in enumerate(params):
        x = adj @ (activation(x) if i else x) @ W + b.reshape(-1)
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
    out = np.zeros((len(x), *a.shape))                      # [N, H, D]
    own, h = [np.asarray(x @ W).reshape(out.shape) for W in (W1, W2)]
    for i, head in np.ndindex(out.shape[:2]):
        neighbours = np.flatnonzero(adj[i])
        pairs = own[i, head] + h[neighbours, head]
        scores = np.where(pairs > 0, pairs, 0.2 * pairs) @ a[head]
        alpha = np.exp(scores) / np.exp(scores).sum()
        out[i, head] = alpha @ h[neighbours, head] + b[head]
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
    model = experiments.make_model(name, nclass=3, number=3)
    params = init(model, graph)
    logits = model[1](params, graph.x, graph.adj)
    expected = FORMULAS[name](params, np.asarray(graph.x), dense(graph.adj))
    close(logits, expected, 1e-5)
    if name == "gat-no-attention":
        params_W_first = [W for W, *_ in params], [others for _, *others in params]
        _, apply_fun = experiments.W_first(model)
        close(apply_fun(params_W_first, graph.x, graph.adj), expected, 1e-5)
    if name not in ("sgc", "lookup-gatv2"):
        dropped = model[1](params, graph.x, graph.adj, KEY)
        assert not np.allclose(dropped, logits, atol=1e-3)


def test_label_propagation_is_the_solution_of_a_linear_system(graph):
    # F = keep Â F + (1 - keep) Y, so (I - keep Â) F = (1 - keep) Y
    labels = np.zeros((12, 3))
    labels[graph.train, graph.y[graph.train]] = 1
    system = np.eye(12) - 0.8 * dense(graph.adj)
    scores = 0.2 * np.linalg.solve(system, labels)
    close(experiments.label_propagation(graph, 0.8), scores, 1e-5)
    val, test = [np.mean(scores[nodes].argmax(axis=1) == graph.y[nodes])
                 for nodes in (graph.val, graph.test)]
    numbers = experiments.fair_run("label-propagation", {"keep": 0.8}, graph, 0)
    close([numbers["val_loss"], numbers["test_accuracy"]], [1 - val, test], 1e-6)


def test_last_hidden_and_its_roughness(graph):
    _, params = experiments.make_model("depth", 3, 3)[0](KEY, graph.x.shape)
    adj = dense(graph.adj)
    h = (adj @ (adj @ graph.x @ params[0][0]).clip(0) @ params[1][0]).clip(0)
    close(experiments.last_hidden("depth", params, graph, 3), h, 1e-5)
    root = np.sqrt((adj > 0).sum(axis=1))
    energy = 0
    for i, j in np.argwhere(adj):
        energy += ((h[i] / root[i] - h[j] / root[j]) ** 2).sum() / 2
    close(experiments.roughness(h, graph.adj), energy / (h ** 2).sum(), 1e-5)
    close(experiments.roughness(root[:, None] * [1.0, 2.0], graph.adj), 0, 1e-5)


def test_changed_graphs(graph):
    links = dense(graph.adj) > 0
    mean = links / links.sum(axis=1, keepdims=True)
    close(dense(experiments.row_normalized(graph, 0, None).adj), mean, 1e-6)
    links = links - np.eye(12)
    root = np.sqrt(links.sum(axis=1)).clip(1)
    links = links / np.outer(root, root)
    close(dense(experiments.no_self_loops(graph, 0, None).adj), links, 1e-6)
    assert (dense(experiments.no_graph(graph).adj) == np.eye(12)).all()
    assert (dense(experiments.no_words(graph, 0, None).x) == np.eye(12)).all()


def test_random_graph():
    graph = experiments.random_graph(3, percent=40, misleading=30)
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
    graph = experiments.lookup(0, size=4, num=10)
    x, adj, y = dense(graph.x), dense(graph.adj), np.asarray(graph.y)
    key, value = x[:, :4].argmax(axis=1), x[:, 4:].argmax(axis=1)
    assert [len(s) for s in (graph.train, graph.val, graph.test)] == [24, 8, 8]
    for node in np.concatenate([graph.train, graph.val, graph.test]):
        entries = np.setdiff1d(np.flatnonzero(adj[node]), node)
        assert sorted(key[entries]) == sorted(value[entries]) == [0, 1, 2, 3]
        assert (y[entries] == -1).all() and not x[node, 4:].any()
        assert y[node] == value[entries][key[entries] == key[node]].item()


def test_splits_by_a_seed(cora):
    used = np.concatenate([cora.train, cora.val])
    draw = experiments.random_split
    one, other, again = [draw(cora, seed, None, used) for seed in (0, 1, 0)]
    assert (one.test == again.test).all() and (one.test != other.test).any()
    nodes = np.concatenate([one.train, one.val, one.test])
    assert len(np.unique(nodes)) == len(nodes) == 140 + 500 + 1000
    assert (np.bincount(cora.y[one.train]) == 20).all()
    fewer = experiments.labels(cora, 0, 5).train
    assert np.isin(fewer, cora.train).all() and len(np.unique(fewer)) == 35
    assert (np.bincount(cora.y[fewer]) == 5).all()


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
        calls.append((method, setting, graph, seed))
        is_best = setting == experiments.SETTINGS[method][7]    # but not on the test
        return {"val_loss": 1.0 - is_best, "test_accuracy": 0.9 - 0.1 * is_best}

    monkeypatch.setattr(experiments, "fair_run", fair_run)
    words = "fair", "--runs", 2, "--results", tmp_path / "results"
    printed, used = run(*words), np.concatenate([cora.train, cora.val])
    for method, settings in experiments.SETTINGS.items():
        made = [call[1:] for call in calls if call[0] == method]
        tuning = [(s, seed) for s in settings for seed in experiments.TUNING_SEEDS]
        table = [(settings[7], seed) for seed in (0, 1, 0, 1)]
        assert [(s, seed) for s, _, seed in made] == tuning + table
        assert len(settings) == 36
        assert all(graph.test is cora.test for _, graph, _ in made[:-2])
        for _, graph, _ in made[-2:]:
            assert not np.isin([*graph.train, *graph.val, *graph.test], used).any()
        for _, graph, _ in made:
            assert (len(graph.adj.rows) == 2708) == (method == "no-graph")
    assert min(experiments.TUNING_SEEDS) >= 20              # the table's are below

    calls.clear()
    assert run(*words) == printed and not calls                     # all is in the file
    run(*words, "--seed", 1)                                        # but for seed 2
    assert [seed for *_, seed in calls] == [2] * 2 * len(experiments.SETTINGS)


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
    found = re.findall(r"^\|.*\| `(?:lab/experiments.py )?([^`]*)` \|$", PAGE, re.M)
    found += re.findall(r"`python\s+lab/experiments.py ((?:noisy|lookup) \d+)`", PAGE)
    commands = {}
    for words in map(str.split, found):
        if not words[0].startswith("train_"):
            monkeypatch.setattr(sys, "argv", ["experiments.py", *words])
            commands[experiments.read_flags().name] = words
    assert {*commands} == experiments.NAMES - {"fair", "compare"}     # tested above
    for words in commands.values():                                 # one for each name
        assert run(*words, "--runs", 1)
