"""The parts of experiments.py, against something independent; on small graphs."""
import dataclasses
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minignn
from conftest import KEY, ROOT, close, dense, leaves_close, run_blocks
from lab import experiments
from minignn import (
    GAT,
    GCN,
    GCN_RECIPE,
    MultiHeadLayer,
    Sparse,
    adam,
    adam_steps,
    train_step,
)
from scale.faster import faster_bits

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


# 1. Models ----------------------------------------------------------------------------


def test_label_propagation_is_the_solution_of_a_linear_system(graph):
    # F = keep Â F + (1 - keep) Y, so (I - keep Â) F = (1 - keep) Y
    labels = np.zeros((12, 3))
    for node in np.asarray(graph.train):
        labels[node, graph.y[node]] = 1
    for keep in (0.5, 0.99):
        system = np.eye(12) - keep * dense(graph.adj)
        expected = (1 - keep) * np.linalg.solve(system, labels)
        close(experiments.label_propagation(graph, keep), expected, 1e-4)


@pytest.mark.parametrize("hops", [0, 3])
def test_sgc_is_a_power_of_the_adjacency(graph, hops):
    init_fun, apply_fun = experiments.SGC(hops, nclass=4)
    shape, params = init_fun(KEY, graph.x.shape)
    power = np.linalg.matrix_power(dense(graph.adj), hops)
    out = apply_fun(params, graph.x, graph.adj)
    assert shape == out.shape
    close(out, power @ np.asarray(graph.x) @ np.asarray(params[0]), 1e-5)


def leaky_relu(number):
    return np.where(number > 0, number, 0.2 * number)


@pytest.mark.parametrize("last_layer", [False, True])
def test_gatv2_is_the_papers_equations_as_loops(graph, last_layer):
    layer = experiments.GATv2Layer(2, 3, 0.6, last_layer)
    shape, _ = layer[0](KEY, graph.x.shape)
    params = init(layer, graph)
    W1, W2, a, b = [np.asarray(p, float) for p in params]
    W1, W2 = W1.reshape(5, 2, 3), W2.reshape(5, 2, 3)       # [F, H, D]
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
    out = layer[1](params, graph.x, graph.adj)
    assert shape == out.shape
    close(out, expected, 1e-5)


def test_gatv2_can_order_shared_neighbours_differently():
    # Nodes 0 and 1 both gather from 2 and 3. One unit sees the first feature only, the
    # other the second; node 0 lifts the first unit over 0, node 1 the second.
    adj = Sparse(jnp.array([0, 0, 1, 1]), jnp.array([2, 3, 2, 3]), jnp.ones(4), (4, 4))
    x = jnp.array([[9.0, -9], [-9, 9], [1, 0], [0, 1]])
    _, apply_fun = experiments.GATv2Layer(1, 2, 0)
    params = (jnp.eye(2), jnp.eye(2), jnp.ones((1, 2)), jnp.zeros((1, 2)))
    out = apply_fun(params, x, adj)                         # alpha of node 2, of node 3
    assert out[0, 0] > out[0, 1] and out[1, 0] < out[1, 1]


def test_head_masks(graph):
    layer = experiments.head_masks(2, 3, 0.6)
    params = init(layer, graph)
    multi_head = MultiHeadLayer(2, 3, 0.6)[1](params, graph.x, graph.adj)
    close(layer[1](params, graph.x, graph.adj), multi_head, 1e-6)

    # One node whose second head is the first once more. With one mask for both, a
    # dropped x, and so an output of 0, would come in both heads.
    adj = experiments.identity(1)
    ones = (jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.zeros((2, 1)))
    _, apply_fun = experiments.head_masks(2, 1, 0.5)
    outs = jax.vmap(lambda key: apply_fun(ones, jnp.ones((1, 1)), adj, key))(
        jax.random.split(KEY, 100))
    heads = np.asarray(outs)[:, 0] > 0                      # [100, 2]
    assert abs(np.corrcoef(heads.T)[0, 1]) < 0.3


@pytest.mark.parametrize("name", ["gat-no-attention", "gat-gcn-weights"])
def test_other_weights_in_place_of_attention(graph, name):
    model = experiments.make_model(name, nclass=3)
    params = init(model, graph)
    weights = dense(graph.adj)
    if name == "gat-no-attention":
        weights = (weights > 0) / (weights > 0).sum(axis=1, keepdims=True)
    h = np.asarray(graph.x)
    for i, (W, _, _, b) in enumerate(params):
        h = weights @ h @ np.asarray(W) + np.asarray(b).reshape(-1)
        h = np.where(h > 0, h, np.exp(h) - 1) if i == 0 else h
    apply_fun = jax.jit(model[1])
    close(apply_fun(params, graph.x, graph.adj), h, 1e-5)

    # minignn's own attention is as before, and the model drops numbers as a GAT does.
    gat = jax.jit(GAT([8, 1], [8], 3)[1])
    assert not np.allclose(gat(params, graph.x, graph.adj), h, atol=1e-3)
    assert not np.allclose(apply_fun(params, graph.x, graph.adj, KEY), h, atol=1e-3)


def test_W_first_is_the_same_model_with_a_penalty_on_W_alone(graph):
    gat = GAT([2, 1], [3], 3, dropout_rate=0)
    W_first = experiments.W_first(gat)
    params = init(gat, graph)
    changed = [W for W, *_ in params], [others for _, *others in params]
    _, made = W_first[0](KEY, graph.x.shape)
    assert jax.tree.structure(made) == jax.tree.structure(changed)
    close(W_first[1](changed, graph.x, graph.adj),
          gat[1](params, graph.x, graph.adj), 1e-6)

    def step(weight_decay):
        recipe = dataclasses.replace(GCN_RECIPE, weight_decay=weight_decay)
        state = adam(recipe.step_size)[0](changed)
        (Ws, others), _ = train_step(W_first, changed, state, graph, KEY, recipe)
        return jax.tree.map(lambda W, new: new - W, changed[0], Ws), others

    # So large a penalty moves all that it is on towards 0, by a first step of Adam.
    moves, others = step(1e6)
    leaves_close(moves, jax.tree.map(lambda W: -0.01 * jnp.sign(W), changed[0]), 1e-5)
    leaves_close(others, step(0.0)[1], 1e-6)


def test_gcn_as_gat_has_the_gats_sizes_and_dropout(graph):
    model = experiments.make_model("gcn-as-gat", nclass=3)
    params = init(model, graph)
    (W0, b0), (W1, b1) = [[np.asarray(p) for p in layer] for layer in params]
    assert W0.shape == (5, 64) and b0.shape == (64,) and b1.shape == (3,)
    h = dense(graph.adj) @ np.asarray(graph.x) @ W0 + b0
    h = np.where(h > 0, h, np.exp(h) - 1)
    logits = model[1](params, graph.x, graph.adj)
    close(logits, dense(graph.adj) @ h @ W1 + b1, 1e-5)
    dropped = model[1](params, graph.x, graph.adj, KEY)
    assert not np.allclose(dropped, logits, atol=1e-3)


def test_last_hidden_is_what_the_last_layer_is_given(graph):
    model = experiments.make_model("depth", nclass=3, number=3)
    _, params = model[0](KEY, graph.x.shape)
    adj, h = dense(graph.adj), np.asarray(graph.x)
    close(experiments.last_hidden(params[:1], graph, 3), h, 1e-6)
    for (W,) in params[:2]:
        h = np.maximum(adj @ h @ np.asarray(W), 0)
    hidden = experiments.last_hidden(params, graph, 3)
    close(hidden, h, 1e-5)

    same, different = [], []
    for i in range(12):
        for j in range(12):
            norm = np.linalg.norm(h[i]) * np.linalg.norm(h[j])
            cosine = h[i] @ h[j] / norm if norm > 0 else 0
            if i != j:
                (same if i % 3 == j % 3 else different).append(cosine)
    means = experiments.mean_cosines(hidden, graph.y)
    close(means, [np.mean(same), np.mean(different)], 1e-5)


# 2. Graphs, splits and rules ----------------------------------------------------------


def test_adjacencies(graph):
    links = (dense(graph.adj) > 0) * 1.0
    mean = links / links.sum(1, keepdims=True)
    close(dense(experiments.row_normalized(graph, 0, None).adj), mean, 1e-6)

    np.fill_diagonal(links, 0)
    degree = links.sum(1)
    scale = np.sqrt(np.outer(degree, degree))
    expected = links / np.where(scale == 0, 1, scale)
    close(dense(experiments.no_self_loops(graph, 0, None).adj), expected, 1e-6)

    assert (dense(experiments.no_graph(graph).adj) == np.eye(12)).all()
    assert (dense(experiments.no_words(graph, 0, None).x) == np.eye(12)).all()


@pytest.mark.parametrize("percent, num_classes", [(0, 5), (40, 5), (100, 2)])
def test_homophily_is_exact(percent, num_classes):
    graph = experiments.random_graph(3, percent, num_classes)
    rows, cols, y = [np.asarray(a) for a in (graph.adj.rows, graph.adj.cols, graph.y)]
    is_edge = rows != cols
    assert is_edge.sum() == 2 * 2000 and len(rows) == 2 * 2000 + 1000
    assert (y[rows] == y[cols])[is_edge].mean() == percent / 100
    adj = dense(graph.adj)
    assert (adj == adj.T).all() and graph.x.shape == (1000, 16)
    assert (np.bincount(y) == 1000 // num_classes).all()
    assert (np.bincount(y[np.asarray(graph.train)]) == 20).all()
    splits = np.concatenate([graph.train, graph.val, graph.test])
    assert sorted(splits.tolist()) == list(range(1000)) and len(graph.val) == 200


def test_misleading_nodes_are_marked_and_in_no_split():
    graph = experiments.random_graph(3, 80, misleading=30)
    x, y, nodes = np.asarray(graph.x), np.asarray(graph.y), np.arange(1000)
    misleads = x[:, -1] == 1
    assert misleads.sum() == 300 and set(x[:, -1]) == {0, 1}
    splits = np.concatenate([graph.train, graph.val, graph.test])
    assert sorted(splits.tolist()) == nodes[~misleads].tolist()

    # The other features tell the class of a node, unless it misleads.
    def mean(c):
        return x[(y == c) & ~misleads, :16].mean(axis=0)

    distance = [np.linalg.norm(x[:, :16] - mean(c), axis=1) for c in range(5)]
    right = np.argmin(distance, axis=0) == y
    assert right[~misleads].mean() > 0.6 and right[misleads].mean() < 0.35


def test_a_node_that_looks_up_sees_all_entries_of_its_dictionary():
    graph = experiments.lookup(0, size=4, num=10)
    x, adj, y = np.asarray(dense(graph.x)), dense(graph.adj), np.asarray(graph.y)
    key, value = x[:, :4].argmax(axis=1), x[:, 4:].argmax(axis=1)
    assert (x[:, :4].sum(axis=1) == 1).all() and len(y) == 80
    asking = {}
    for name, size in (("train", 24), ("val", 8), ("test", 8)):
        asking[name] = np.asarray(getattr(graph, name))
        assert len(asking[name]) == size
    for node in np.concatenate(list(asking.values())):
        entries = np.setdiff1d(np.flatnonzero(adj[node]), node)
        assert sorted(key[entries]) == sorted(value[entries]) == [0, 1, 2, 3]
        assert (y[entries] == -1).all() and not x[node, 4:].any()
        assert y[node] == value[entries][key[entries] == key[node]].item()
        # All that ask these entries are in the same split.
        others = np.setdiff1d(np.flatnonzero(adj[:, entries[0]]), entries)
        assert sum(set(others) <= set(nodes) for nodes in asking.values()) == 1


def test_random_splits_leave_out_what_they_are_told_to(cora):
    used = np.concatenate([cora.train, cora.val])
    y = cora.y.at[:50].set(-1)                      # no class: drawn for no split
    graph = dataclasses.replace(cora, y=y)
    seen = []
    for seed in (0, 1, 0):
        split = experiments.random_split(graph, seed, without=used)
        assert (np.bincount(y[split.train]) == 20).all()
        sizes = [len(nodes) for nodes in (split.train, split.val, split.test)]
        assert sizes == [140, 500, 1000]
        nodes = set(np.concatenate([split.train, split.val, split.test]).tolist())
        assert len(nodes) == 1640 and not nodes & {*used.tolist(), *range(50)}
        seen.append(split.test.tolist())
    assert seen[0] == seen[2] != seen[1]


def test_fewer_labels_are_of_the_public_ones(cora):
    nodes = experiments.labels(cora, 0, 5).train
    assert set(nodes.tolist()) <= set(cora.train.tolist()) and len(set(nodes)) == 35
    assert (np.bincount(cora.y[nodes]) == 5).all()


def test_rules():
    def history(losses, accuracies):
        return {"val_loss": losses, "val_accuracy": accuracies}

    assert experiments.no_ties(history([2, 1], [3, 4])) == (True, True)
    assert experiments.no_ties(history([2, 1], [3, 3])) == (True, False)
    assert experiments.no_ties(history([2, 2], [3, 3])) == (False, False)
    assert experiments.lowest_loss(history([2, 1], [])) == (True, True)
    assert experiments.lowest_loss(history([2, 2], [])) == (False, False)
    falling = list(range(20, 8, -1))                        # twelve epochs
    assert experiments.code_rule(history(falling, []))[0]
    assert not experiments.code_rule(history([*falling, 20], []))[0]
    assert experiments.code_rule(history([1] * 10 + [5], []))[0]    # only eleven


# 3. The fair table and the results ----------------------------------------------------


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Two settings a method, one seed to choose, ten epochs, a small file."""
    monkeypatch.setattr(experiments, "TUNING_SEEDS", [1000])
    settings = {method: [settings[0], settings[-1]]
                for method, settings in experiments.SETTINGS.items()}
    monkeypatch.setattr(experiments, "SETTINGS", settings)
    monkeypatch.setattr(experiments, "FAIR_RECIPE", dataclasses.replace(
        experiments.FAIR_RECIPE, epochs=10))
    random_graph = experiments.random_graph(0, percent=60)
    monkeypatch.setattr(minignn, "load_graph", lambda path: random_graph)
    monkeypatch.setattr(experiments, "quick_steps", lambda graph, hops: adam_steps)


def run(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["experiments.py", *flags])
    experiments.main()
    return capsys.readouterr().out.splitlines()


def test_settings_are_as_many_and_the_papers_are_there():
    assert {len(settings) for settings in experiments.SETTINGS.values()} == {36}
    for hidden, rate, step_size in ((16, 0.5, 0.01), (64, 0.6, 0.005)):
        setting = dict(hidden=hidden, dropout_rate=rate, step_size=step_size,
                       weight_decay=5e-4)
        assert setting in experiments.SETTINGS["gcn"]


@pytest.mark.parametrize("method", ["label-propagation", "sgc"])
def test_choosing_a_setting_never_reads_a_test_label(quick, capsys, method):
    graph = minignn.load_graph(None)

    def chosen(nodes):
        """What is printed until a setting is chosen, with other labels at nodes."""
        y = graph.y.at[nodes].set((graph.y[nodes] + 1) % 5)
        minignn.load_graph = lambda path: dataclasses.replace(graph, y=y)
        args = experiments.argparse.Namespace(data=ROOT / "no.npz")
        _, name, _ = next(experiments.fair_rows(method, args, experiments.Results()))
        printed = capsys.readouterr().out
        return name, re.sub(r"test_accuracy [0-9.]+", "", printed)

    nobody = jnp.zeros(0, int)
    assert chosen(graph.test) == chosen(nobody)
    assert chosen(graph.val) != chosen(nobody)              # the check can fail


def test_fair_trains_once_and_adds_to_its_file(quick, monkeypatch, capsys, tmp_path):
    flags = ["fair", "gcn", "--data", "some.npz", "--runs", "2",
             "--results", str(tmp_path / "results")]
    # The public split of this small graph leaves too few nodes for a random one.
    monkeypatch.setattr(experiments, "random_split", lambda graph, seed, without: graph)
    printed = run(monkeypatch, capsys, *flags)
    lines = (tmp_path / "results").read_text().splitlines()
    groups = [json.loads(line)[0] for line in lines]
    assert groups == [*["some, tuning"] * 2, *["some, public split"] * 2,
                      *["some, random splits"] * 2]

    names, losses = [], []
    for line in lines:
        _, name, _, _, numbers = json.loads(line)
        names.append(name)
        losses.append(numbers["val_loss"])
    assert names[0] != names[1] and set(names[2:]) == {names[np.argmin(losses[:2])]}

    def no_training(*args):
        raise AssertionError

    monkeypatch.setattr(minignn, "train", no_training)      # all is in the file
    assert run(monkeypatch, capsys, *flags) == printed
    assert (tmp_path / "results").read_text().splitlines() == lines
    with pytest.raises(AssertionError):
        run(monkeypatch, capsys, *flags, "--seed", "2")


def test_compare(monkeypatch, capsys, tmp_path):
    def rows(**runs):
        return [json.dumps([group, name, seed, "2026-01-01", {
            "val_loss": 1, "test_accuracy": number}])
            for group in ("one", "one, tuning")
            for name, numbers in runs.items() for seed, number in enumerate(numbers)]

    path = tmp_path / "results"
    path.write_text("\n".join(rows(a=[0.5, 0.6], gat=[0.1, 0.4], b=[0.3])))
    assert run(monkeypatch, capsys, "compare", "--results", str(path)) == [
        "one | a | test_accuracy: 0.5500 ± 0.0500 over 2 runs, standard error 0.0500",
        "one | gat | test_accuracy: 0.2500 ± 0.1500 over 2 runs, standard error 0.1500",
        "one | b | test_accuracy: 0.3000 ± 0.0000 over 1 runs",
        "one | a minus gat: 0.3000 ± 0.1000 over 2 runs, standard error 0.1000",
        "one | b minus gat: 0.2000 ± 0.0000 over 1 runs",
        "one | 2 comparisons",
    ]
    path.write_text("\n".join(rows(a=[0.5], b=[0.3], c=[0.2])))
    *_, last_pair, count = run(monkeypatch, capsys, "compare", "--results", str(path))
    assert last_pair.startswith("one | c minus b: -0.1") and "3 comparisons" in count


# 4. The page's claims, and the command line -------------------------------------------


def test_every_python_block_runs_and_prints_what_the_page_says(as_a_reader):
    console = run_blocks(PAGE)
    assert console.locals["accuracies"].shape == (20,)


def test_every_command_on_the_page_is_one():
    commands = re.findall(r"`(?:lab/experiments\.py )?([a-z][a-z0-9-]*)"
                          r"((?: [0-9]+)?)(?: --[a-z]+(?: [0-9.]+)?)*` \|\n", PAGE)
    assert {name for name, _ in commands} >= {
        "no-graph", "labels", "depth", "homophily", "gatv2"}
    for name, number in commands:
        assert name in experiments.NAMES
        numbers = [int(number)] if number else []
        assert bool(numbers) == (name in experiments.NUMBERS)
        assert all(n in experiments.NUMBERS[name] for n in numbers)


def test_many_keys_at_once_give_what_each_gives_alone(graph):
    model = GCN(nhid=4, nclass=3)

    @jax.jit
    def one_run(rng):
        init_rng, dropout_rng = jax.random.split(rng)
        _, params = model[0](init_rng, graph.x.shape)

        def epoch(_, carried):
            return train_step(model, *carried, graph, dropout_rng, GCN_RECIPE)

        params, _ = jax.lax.fori_loop(0, 5, epoch, (params, adam(0.01)[0](params)))
        return minignn.predict(model, params, graph)

    rngs = jax.random.split(jax.random.key(0, impl=faster_bits), 2)
    for rng, logits in zip(rngs, jax.vmap(one_run)(rngs)):
        close(logits, one_run(rng), 1e-5)


def test_powers_of_the_adjacency_end_at_the_root_of_the_degree():
    edges = np.array([[0, 1, 1, 3], [1, 2, 3, 4]])          # one component, and node 5
    adj = dense(minignn.normalize_adjacency(np.hstack([edges, edges[::-1]]), 6))
    root = np.sqrt([2, 4, 2, 3, 2, 1])                      # degrees with self-loops
    limit = np.linalg.matrix_power(adj.astype(float), 500)
    part = root[:5] / np.linalg.norm(root[:5])
    close(limit[:5, :5], np.outer(part, part), 1e-5)
    close(limit[5], np.eye(6)[5], 1e-5)


@pytest.mark.parametrize("flags, rows", [
    (["depth", "2"], ["depth 2"]),
    (["gat", "--penalty", "W"], ["gat --penalty W"]),
    (["no-graph", "--fast"], ["no-graph"]),
    (["homophily", "40"], ["gcn", "no-graph"]),
    (["noisy", "30"], ["gcn", "no-graph", "gat", "gat-no-attention", "gat-gcn-weights",
                       "gatv2"]),
    (["lookup", "4"], ["lookup-gat, heads: 1", "lookup-gat, heads: 8",
                       "lookup-gatv2, heads: 1", "lookup-gatv2, heads: 8"]),
])
def test_commands(monkeypatch, capsys, flags, rows):
    calls = []

    def no_training(model, graph, rng, recipe, log_every, steps):
        calls.append((jax.random.key_data(rng).tolist(), recipe))
        _, params = model[0](rng, graph.x.shape)
        return params, {"val_loss": [1] * 7}

    numbers = dict.fromkeys(("train_accuracy", "val_loss", "val_accuracy",
                             "test_accuracy"), 0.5)
    monkeypatch.setattr(minignn, "train", no_training)
    monkeypatch.setattr(minignn, "evaluate", lambda model, params, graph: numbers)
    printed = run(monkeypatch, capsys, *flags, "--seed", "3", "--runs", "1")
    lines = [line for line in printed if "seed 3 | epochs 7 | train_accuracy" in line]
    assert [line.split(" | ")[1] for line in lines] == rows
    assert all(data == [0, 3] for data, _ in calls)
    if flags[0] == "depth":
        assert "same_class: 0." in printed[-2]
        assert "different_classes: 0." in printed[-1]
    if flags[0] == "gat":
        assert not calls[0][1].penalise_all and calls[0][1].patience == 100


@pytest.mark.parametrize("flags, reason", [
    (["nothing"], "invalid choice"),
    (["labels"], "labels takes a NUMBER, 1 to 20"),
    (["gcn", "3"], "gcn takes no 3"),
    (["labels", "21"], "1 to 20"),
    (["depth", "two"], "depth takes a NUMBER"),
    (["fair", "mlp"], "fair takes one of label-propagation, sgc"),
    (["gcn", "--runs", "0"], "--runs must be at least 1"),
    (["gcn", "--seed", "-1"], "--seed 0"),
    (["homophily", "10", "--classes", "1"], "--classes 2"),
    (["gcn", "--dropout", "1"], "below 1"),
    (["gcn", "--penalty", "W"], "gcn takes no --penalty"),
])
def test_what_is_refused(monkeypatch, capsys, flags, reason):
    monkeypatch.setattr(sys, "argv", ["experiments.py", *flags])
    with pytest.raises(SystemExit) as stop:
        experiments.main()
    assert stop.value.code == 2 and reason in capsys.readouterr().err
