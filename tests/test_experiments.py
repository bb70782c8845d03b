"""The parts of experiments.py, against something independent; on small graphs."""
import dataclasses
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from docs import experiments  # noqa: E402
from docs.test_pages import read, run_blocks  # noqa: E402
from minignn import (  # noqa: E402
    GCN,
    MultiHeadLayer,
    Sparse,
    adam,
    load_graph,
    make_graph,
    normalize_adjacency,
    train_step,
)
from scale.faster import faster_bits  # noqa: E402


def dense(sparse):
    matrix = np.zeros(sparse.shape)
    np.add.at(matrix, (np.asarray(sparse.rows), np.asarray(sparse.cols)), sparse.values)
    return matrix


@pytest.fixture
def graph():
    """Twelve nodes of three classes, random edges; four nodes in each split."""
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 12, (2, 15))
    edges = edges[:, edges[0] != edges[1]]
    node = np.arange(12)
    return make_graph(
        x=rng.random((12, 5)) + 0.1, edge_index=np.hstack([edges, edges[::-1]]),
        y=node % 3, train_mask=node < 4, val_mask=(node > 3) & (node < 8),
        test_mask=node > 7)


@pytest.fixture(scope="module")
def cora():
    return load_graph()


# 1. Models ----------------------------------------------------------------------------


def test_label_propagation_is_the_solution_of_a_linear_system(graph):
    # F = keep Â F + (1 - keep) Y, so (I - keep Â) F = (1 - keep) Y
    labels = np.zeros((12, 3))
    for node in np.asarray(graph.train):
        labels[node, graph.y[node]] = 1
    for keep in (0.5, 0.99):
        system = np.eye(12) - keep * dense(graph.adj)
        expected = (1 - keep) * np.linalg.solve(system, labels)
        scores = experiments.label_propagation(graph, keep)
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_sgc_is_a_power_of_the_adjacency(graph):
    init_fun, apply_fun = experiments.SGC(hops=3, nclass=4)
    shape, params = init_fun(jax.random.key(0), graph.x.shape)
    power = np.linalg.matrix_power(dense(graph.adj), 3)
    expected = power @ np.asarray(graph.x) @ np.asarray(params[0])
    out = apply_fun(params, graph.x, graph.adj)
    assert shape == out.shape
    np.testing.assert_allclose(out, expected, atol=1e-5)


def leaky_relu(number):
    return np.where(number > 0, number, 0.2 * number)


@pytest.mark.parametrize("last_layer", [False, True])
def test_gatv2_is_the_papers_equations_as_loops(graph, last_layer):
    layer = experiments.GATv2Layer(2, 3, 0.6, last_layer)
    init_fun, apply_fun = layer
    shape, params = init_fun(jax.random.key(0), graph.x.shape)
    params = [*params[:3], jax.random.normal(jax.random.key(1), (2, 3))]
    W1, W2, a, b = [np.asarray(p, float) for p in params]
    x, adj = np.asarray(graph.x, float), dense(graph.adj)

    expected = np.zeros((12, 2, 3))
    for i in range(12):
        neighbours = np.flatnonzero(adj[i])
        for head in range(2):
            scores = []
            for j in neighbours:
                pair = leaky_relu(x[i] @ W1[:, head] + x[j] @ W2[:, head])
                scores.append(a[head] @ pair)
            alpha = np.exp(scores) / np.exp(scores).sum()
            for weight, j in zip(alpha, neighbours):
                expected[i, head] += weight * (x[j] @ W2[:, head])
            expected[i, head] += b[head]
    expected = expected.mean(1) if last_layer else expected.reshape(12, 6)
    out = apply_fun(params, graph.x, graph.adj)
    assert shape == out.shape
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_gatv2_can_order_shared_neighbours_differently():
    # Nodes 0 and 1 both gather from 2 and 3. One unit sees the first feature only, the
    # other the second; node 0 lifts the first unit over 0, node 1 the second.
    adj = Sparse(jnp.array([0, 0, 1, 1]), jnp.array([2, 3, 2, 3]), jnp.ones(4), (4, 4))
    x = jnp.array([[9.0, -9], [-9, 9], [1, 0], [0, 1]])
    eye = jnp.eye(2)[:, None, :]                            # [F, H, D], one head
    _, apply_fun = experiments.GATv2Layer(1, 2, 0)
    params = (eye, eye, jnp.ones((1, 2)), jnp.zeros((1, 2)))
    out = apply_fun(params, x, adj)                         # alpha of node 2, of node 3
    assert out[0, 0] > out[0, 1] and out[1, 0] < out[1, 1]


def test_head_masks_without_dropout_is_a_multi_head_layer(graph):
    init_fun, apply_fun = experiments.head_masks(2, 3, 0.6)
    _, params = init_fun(jax.random.key(0), graph.x.shape)
    _, multi_head = MultiHeadLayer(2, 3, 0.6)
    np.testing.assert_allclose(apply_fun(params, graph.x, graph.adj),
                               multi_head(params, graph.x, graph.adj), atol=1e-6)


@pytest.mark.parametrize("last_layer", [False, True])
def test_equal_weights_are_a_mean_over_the_neighbours(graph, last_layer):
    init_fun, apply_fun = experiments.equal_weights(2, 3, 0.6, last_layer)
    shape, (W, a1, a2, b) = init_fun(jax.random.key(0), graph.x.shape)
    b = jax.random.normal(jax.random.key(1), b.shape)
    is_neighbour = dense(graph.adj) > 0
    h = np.einsum("nf,fhd->nhd", graph.x, W)                # [N, H, D]
    expected = np.array([h[row].mean(0) for row in is_neighbour]) + b
    expected = expected.mean(1) if last_layer else expected.reshape(12, 6)
    out = apply_fun((W, a1, a2, b), graph.x, graph.adj)
    assert shape == out.shape
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_no_attention_and_gcn_as_gat_have_the_gats_sizes_and_dropout(graph):
    def outputs_of(model):
        init_fun, apply_fun = model
        _, params = init_fun(jax.random.key(0), graph.x.shape)
        params = jax.tree.map(jnp.ones_like, params)
        dropped = apply_fun(params, graph.x, graph.adj, jax.random.key(0))
        return params, apply_fun(params, graph.x, graph.adj), dropped

    params, logits, dropped = outputs_of(
        experiments.make_model("gat-no-attention", None, 0.5, 3))
    assert [W.shape for W, *_ in params] == [(5, 8, 8), (64, 1, 3)]
    assert not np.allclose(logits, dropped)

    (layer, last), logits, dropped = outputs_of(
        experiments.make_model("gcn-as-gat", None, 0.5, 3))
    assert [p.shape for p in layer] == [(5, 64), (64,)]
    assert [p.shape for p in last] == [(64, 3), (3,)]
    adj, x = dense(graph.adj), np.asarray(graph.x)
    h = np.full((12, 64), (adj @ x).sum(1, keepdims=True) + 1)      # ELU leaves it
    np.testing.assert_allclose(logits, np.full((12, 3), (adj @ h).sum(1)[:, None] + 1),
                               rtol=1e-5)
    assert not np.allclose(logits, dropped)


def test_last_hidden_is_what_the_last_layer_is_given(graph):
    init_fun, _ = experiments.make_model("depth", 3, 0.5, 3)
    _, params = init_fun(jax.random.key(0), graph.x.shape)
    adj, h = dense(graph.adj), np.asarray(graph.x)
    np.testing.assert_allclose(experiments.last_hidden(params[:1], graph, 3), h)
    for (W,) in params[:2]:
        h = np.maximum(adj @ h @ np.asarray(W), 0)
    hidden = experiments.last_hidden(params, graph, 3)
    np.testing.assert_allclose(hidden, h, atol=1e-5)

    same, different = [], []
    for i in range(12):
        for j in range(12):
            norm = np.linalg.norm(h[i]) * np.linalg.norm(h[j])
            cosine = h[i] @ h[j] / norm if norm > 0 else 0
            if i != j:
                (same if i % 3 == j % 3 else different).append(cosine)
    means = experiments.mean_cosines(hidden, graph.y)
    np.testing.assert_allclose(means, [np.mean(same), np.mean(different)], atol=1e-5)


# 2. Graphs, splits and rules ----------------------------------------------------------


def test_adjacencies(graph):
    links = (dense(graph.adj) > 0) * 1.0
    mean = links / links.sum(1, keepdims=True)
    adj = experiments.row_normalized(graph, 0, None).adj
    np.testing.assert_allclose(dense(adj), mean, atol=1e-6)

    np.fill_diagonal(links, 0)
    degree = links.sum(1)
    scale = np.sqrt(np.outer(degree, degree))
    expected = links / np.where(scale == 0, 1, scale)
    adj = experiments.no_self_loops(graph, 0, None).adj
    np.testing.assert_allclose(dense(adj), expected, atol=1e-6)

    assert (dense(experiments.no_graph(graph, 0, None).adj) == np.eye(12)).all()
    assert (dense(experiments.no_words(graph, 0, None).x) == np.eye(12)).all()


@pytest.mark.parametrize("percent, num_classes", [(0, 5), (40, 5), (100, 2)])
def test_homophily_is_exact(percent, num_classes):
    graph = experiments.homophily(3, percent, num_classes)
    rows, cols, y = [np.asarray(a) for a in (graph.adj.rows, graph.adj.cols, graph.y)]
    is_edge = rows != cols
    assert is_edge.sum() == 2 * 2000 and len(rows) == 2 * 2000 + 1000
    assert (y[rows] == y[cols])[is_edge].mean() == percent / 100
    adj = dense(graph.adj)
    assert (adj == adj.T).all()
    assert (np.bincount(y) == 1000 // num_classes).all()
    assert (np.bincount(y[np.asarray(graph.train)]) == 20).all()
    splits = np.concatenate([graph.train, graph.val, graph.test])
    assert sorted(splits.tolist()) == list(range(1000))


def test_random_splits_leave_out_what_the_settings_were_chosen_on(cora):
    used = {*np.asarray(cora.train).tolist(), *np.asarray(cora.val).tolist()}
    y = np.asarray(cora.y)
    seen = []
    for seed in (0, 1, 0):
        split = experiments.other_split(cora, seed)
        assert (np.bincount(y[split["train"]]) == 20).all()
        assert [len(nodes) for nodes in split.values()] == [140, 500, 1000]
        nodes = set(np.concatenate(list(split.values())).tolist())
        assert len(nodes) == 1640 and not nodes & used
        seen.append(split["test"].tolist())
    assert seen[0] == seen[2] != seen[1]


def test_choosing_a_setting_never_reads_a_test_label(monkeypatch, capsys):
    monkeypatch.setattr(experiments, "TUNING_SEEDS", 1)
    monkeypatch.setitem(experiments.SETTINGS, "label-propagation",
                        experiments.grid(keep=[0.8, 0.99]))
    graph = experiments.homophily(0, percent=60)

    def chosen(nodes):
        """The setting and what is printed, with other labels at these nodes."""
        y = graph.y.at[nodes].set((graph.y[nodes] + 1) % 5)
        changed = dataclasses.replace(graph, y=y)
        setting = experiments.choose_setting(changed, "label-propagation")
        return setting, capsys.readouterr().out

    nobody = jnp.zeros(0, int)
    assert chosen(graph.test) == chosen(nobody)
    assert chosen(graph.val) != chosen(nobody)              # the check can fail


def test_what_a_network_is_chosen_by_does_not_depend_on_the_test_nodes(monkeypatch):
    setting = experiments.SETTINGS["sgc"][0]
    model, recipe = experiments.fair_model("sgc", setting, nclass=5)
    monkeypatch.setattr(experiments, "fair_model",
                        lambda *_: (model, recipe | dict(epochs=10)))
    graph = experiments.homophily(0, percent=60)
    score = experiments.fair_scorer("sgc", setting, graph, narrow=True)
    split = experiments.public_split(graph)
    half = dict(split, test=split["test"][:350])
    others = dict(split, test=split["test"][350:])
    val_accuracy, test_accuracy = score(0, half)
    assert 0.2 < val_accuracy < 1
    assert score(0, others) == (val_accuracy, pytest.approx(test_accuracy, abs=0.2))


def test_every_method_has_as_many_settings():
    assert {len(settings) for settings in experiments.SETTINGS.values()} == {4}


def test_rules():
    def history(losses, accuracies):
        return {"val_loss": losses, "val_accuracy": accuracies}

    assert experiments.no_ties(history([2, 1], [3, 4])) == (True, True)
    assert experiments.no_ties(history([2, 1], [3, 3])) == (True, False)
    assert experiments.no_ties(history([2, 2], [3, 3])) == (False, False)
    falling = list(range(20, 8, -1))                        # twelve epochs
    assert experiments.code_rule(history(falling, []))[0]
    assert not experiments.code_rule(history([*falling, 20], []))[0]
    assert experiments.code_rule(history([1] * 10 + [5], []))[0]    # only eleven


# 3. The page's claims, and the command line -------------------------------------------


def test_every_python_block_runs_and_prints_what_the_page_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    console = run_blocks(read("docs/experiments.md"))
    assert console.locals["accuracies"].shape == (20,)


def test_every_command_on_the_page_is_one():
    names = [*experiments.GRAPHS, "homophily"]
    commands = re.findall(r"`(?:docs/experiments\.py )?([a-z][a-z0-9-]*)"
                          r"((?: [0-9]+)?(?: --[a-z]+(?: [0-9.]+)?)*)` \|\n",
                          read("docs/experiments.md"))
    assert {name for name, _ in commands} >= {
        "no-graph", "labels", "depth", "homophily", "gatv2"}
    for name, flags in commands:
        assert name in names
        number = re.match(" [0-9]+", flags)
        assert (number is not None) == (name in experiments.TAKES_NUMBER)


def test_many_keys_at_once_give_what_each_gives_alone(graph):
    init_fun, apply_fun = GCN(nhid=4, nclass=3)
    init_adam, _ = adam(0.01)

    @jax.jit
    def one_run(rng):
        init_rng, dropout_rng = jax.random.split(rng)
        _, params = init_fun(init_rng, graph.x.shape)

        def epoch(number, carried):
            return train_step(apply_fun, False, *carried, graph, dropout_rng, number,
                              0.01, 5e-4)

        params, _ = jax.lax.fori_loop(1, 6, epoch, (params, init_adam(params)))
        return apply_fun(params, graph.x, graph.adj)

    rngs = jax.random.split(jax.random.key(0, impl=faster_bits), 2)
    together = jax.vmap(one_run)(rngs)
    for rng, logits in zip(rngs, together):
        np.testing.assert_allclose(logits, one_run(rng), atol=1e-5)


def test_powers_of_the_adjacency_end_at_the_root_of_the_degree():
    edges = np.array([[0, 1, 1, 3], [1, 2, 3, 4]])          # one component, and node 5
    adj = dense(normalize_adjacency(np.hstack([edges, edges[::-1]]), 6))
    root = np.sqrt([2, 4, 2, 3, 2, 1])                      # degrees with self-loops
    limit = np.linalg.matrix_power(adj, 500)
    part = root[:5] / np.linalg.norm(root[:5])
    np.testing.assert_allclose(limit[:5, :5], np.outer(part, part), atol=1e-6)
    assert limit[5, 5] == 1 and not limit[5, :5].any()


def run(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["experiments.py", *flags])
    experiments.main()


@pytest.mark.parametrize("name, ends", [
    ("depth", ["mean cosine of the last hidden layer: same class 0."]),
    ("homophily", ["without the graph, test accuracy: 0."]),
])
def test_commands(monkeypatch, capsys, name, ends):
    def no_training(model, graph, rng, **recipe):
        init_fun, _ = model
        _, params = init_fun(rng, graph.x.shape)
        return params, dict(val_loss=np.ones(7), train_accuracy=np.ones(7))

    monkeypatch.setattr(experiments, "train", no_training)
    run(monkeypatch, name, "2", "--seed", "3", "--runs", "1")
    printed = capsys.readouterr().out.splitlines()
    starts = ["run   1 | seed 3 | 7 epochs | train accuracy 1.0000 | test accuracy 0.",
              "test accuracy: 0.", *ends]
    assert len(printed) == len(starts)
    for line, start in zip(printed, starts):
        assert line.startswith(start)


def test_fair_command(monkeypatch, capsys):
    monkeypatch.setattr(experiments, "TUNING_SEEDS", 1)
    monkeypatch.setitem(experiments.SETTINGS, "label-propagation",
                        experiments.grid(keep=[0.8, 0.9]))
    run(monkeypatch, "fair", "label-propagation", "--runs", "2")
    *tuning, chosen, public, random = capsys.readouterr().out.splitlines()
    assert len(tuning) == 2 and chosen.startswith("label-propagation | chosen: {'keep'")
    # The public split is one graph, and nothing here is drawn: both runs are the same.
    assert "± 0.0000 over 2 runs" in public and "± 0.0000" not in random


@pytest.mark.parametrize("flags, reason", [
    (["nothing"], "invalid choice"),
    (["labels"], "take a NUMBER"),
    (["default", "3"], "take a NUMBER"),
    (["labels", "21"], "there are 20 labels per class"),
    (["labels", "0"], "at least 1"),
    (["depth", "two"], "must be a whole number"),
    (["homophily", "101"], "percentage"),
    (["homophily", "10", "--classes", "1"], "at least 2"),
    (["fair", "mlp"], "must be one of label-propagation, no-graph, sgc, gcn, gat,"),
    (["fair", "--seed", "1"], "takes no --seed"),
    (["default", "--runs", "0"], "at least 1"),
    (["default", "--dropout", "1"], "below 1"),
])
def test_what_is_refused(monkeypatch, capsys, flags, reason):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *flags)
    assert stop.value.code == 2 and reason in capsys.readouterr().err
