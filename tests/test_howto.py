"""howto.md: each answer runs by itself, and what it computes is right.

A test runs its answer in a session of its own and then compares the names that the
answer has made with loops, dense forms, or what the page says.
"""
import dataclasses
import math
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minignn
from conftest import BLOCK, KEY, ROOT, close, dense, leaves_close, normal, run_blocks
from conftest import small as small_arrays
from minignn import GCN, GCN_RECIPE, evaluate, make_graph, predict, train

PAGE = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
ANSWERS = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.M)[1:])


@pytest.fixture(autouse=True)
def reader(as_a_reader, monkeypatch, cora):
    """Cora is read once for all answers."""
    def load_graph(*args, **kwargs):
        return real(*args, **kwargs) if args else cora

    real = minignn.load_graph
    monkeypatch.setattr(minignn, "load_graph", load_graph)


def run(title):
    """Paste an answer's blocks -> the names that they have made."""
    return types.SimpleNamespace(**run_blocks(ANSWERS[title]).locals)


def small_graph():
    return make_graph(**small_arrays())


def gcn_matrix(A):
    """The GCN's matrix of an adjacency [N, N] without self-loops, row i hearing j."""
    A = A + np.eye(len(A))
    degree = A.sum(axis=1)
    return A / np.sqrt(np.outer(degree, degree))


# The page -----------------------------------------------------------------------------


def test_every_answer_has_its_test():
    tested = re.findall(r'run\("(.*?)"\)', pathlib.Path(__file__).read_text("utf-8"))
    assert tested == [title for title in ANSWERS if BLOCK.search(ANSWERS[title])]


def test_the_index_is_complete():
    index, _ = PAGE.split("\n## ", 1)
    links = re.findall(r"^- .*?: \[(.*?)\]\(#(.*?)\)$", index, re.M | re.S)
    assert [re.sub(r"\s+", " ", title) for title, _ in links] == list(ANSWERS)
    anchors = [anchor_of(title) for title in ANSWERS]
    assert [anchor for _, anchor in links] == anchors
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) == set(anchors)


def anchor_of(title):
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_other_pages_have_what_is_linked():
    text = re.sub(r"^```.*?^```|`.*?`", "", PAGE, flags=re.M | re.S)
    for page, anchor in re.findall(r"\]\(([^#)]+)#?(.*?)\)", text):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        titles = re.findall(r"^#+ (.*)", text, re.M)
        assert not anchor or anchor in map(anchor_of, titles), (page, anchor)


# Data ---------------------------------------------------------------------------------


def test_csv():
    ns = run("Own data, from csv files")
    talks = {(talk["from"], talk["to"]) for talk in ns.talks}
    pairs = np.argwhere(dense(ns.graph.adj)).tolist()
    names = [person["name"] for person in ns.people]
    found = {(names[i], names[j]) for i, j in pairs if i != j}
    assert found == talks | {(b, a) for a, b in talks}
    for i, person in enumerate(ns.people):
        for split in ("train", "val", "test"):
            assert (i in getattr(ns.graph, split)) == (person["split"] == split)
    assert list(ns.graph.class_names) == ns.teams
    close(ns.graph.x.std(axis=0), 1, 1e-5)

    chosen = np.concatenate([np.flatnonzero(mask) for mask in ns.masks.values()])
    assert sorted(chosen) == np.flatnonzero(ns.y >= 0).tolist()         # each once
    assert sorted(ns.y[ns.masks["train_mask"]]) == [0, 1]

    pathlib.Path("excel.csv").write_bytes(b"\xef\xbb\xbfname,age\r\nzo\xc3\xab,3\r\n")
    assert ns.read("excel.csv") == [{"name": "zoë", "age": "3"}]
    with pytest.raises(ValueError, match="'bob'"):
        ns.number_of(["ann", "bob", "cat", "bob"])
    constant = ns.standardize(np.array([[0.1, 1], [0.1, 2], [0.1, 3]]))
    close(constant, [[0, -1.5 ** 0.5], [0, 0], [0, 1.5 ** 0.5]], 1e-12)


def test_networkx():
    nx = pytest.importorskip("networkx", reason="networkx is not installed")
    ns = run("From networkx")
    names = nx.MultiGraph([("c", "a"), ("a", "b"), ("b", "d"), ("a", "b")])
    numbers = nx.DiGraph([(7, 2), (0, 2), (0, 5), (5, 7), (7, 5)])
    for net in names, numbers:
        nodes = list(net)
        for node, kind in zip(nodes, ["odd", "even", "odd", "even"]):
            net.nodes[node]["kind"] = kind
        train_nodes, val_nodes = set(nodes[2:]), {nodes[0]}
        graph = ns.graph_of(net, "kind", train_nodes, val_nodes, np.eye(4))
        matrix = dense(graph.adj)
        for i, one in enumerate(nodes):
            assert graph.class_names[graph.y[i]] == net.nodes[one]["kind"]
            assert (i in graph.train) == (one in train_nodes)
            assert (i in graph.val) == (one in val_nodes)
            assert (i in graph.test) == (one not in train_nodes | val_nodes)
            for j, other in enumerate(nodes):
                assert (matrix[i, j] > 0) == (i == j or net.has_edge(other, one))


def test_scipy():
    pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    ns = run("From scipy")
    coo = ns.matrix.tocoo()
    x = minignn.make_sparse(coo.row, coo.col, coo.data, coo.shape)
    close(dense(x), ns.matrix.toarray(), 0)


def test_without_features():
    ns = run("A graph without features")
    close(dense(ns.graph.x), np.eye(4), 0)


def test_directed():
    run("A directed graph")


def test_weighted():
    ns = run("A weighted graph")
    edge_index = np.array([[0, 1, 4, 2, 0], [1, 0, 2, 4, 1]])           # 0 to 1 twice
    weights = [0.5, 0, 3, 1.5, 2]
    A = np.zeros((6, 6))                                # nodes 3 and 5 have no edges
    for (source, target), weight in zip(edge_index.T, weights):
        A[target, source] += weight
    close(dense(ns.weighted_adjacency(edge_index, weights, 6)), gcn_matrix(A), 1e-6)
    for edges, wrong, message in (
            ([[1, 2], [2, 3]], [1, 1], r"edge_index\[1, 1\] is 3"),     # ids from 1
            ([[0, 1], [1, 2]], [1, -0.4], "-0.4"),
            ([[0, 1], [1, 2]], [np.nan, 1], "nan"),
            ([[0, 1], [1, 2]], [1, np.inf], "inf")):
        with pytest.raises(ValueError, match=message):
            ns.weighted_adjacency(edges, wrong, 3)


# Models -------------------------------------------------------------------------------


def test_edge_features():
    ns = run("Edge features in a GAT")
    edge_index, features = np.array([[0, 1, 1, 3], [1, 0, 2, 1]]), normal(4, 2, seed=1)
    adj = minignn.normalize_adjacency(edge_index, 4)
    adj = ns.with_features(adj, edge_index, features)
    x = normal(4, 3)
    init_fun, apply_fun = ns.EdgeAttention(5, 2)
    shape, params = init_fun(KEY, x.shape)
    W, a1, a2, a3 = map(np.asarray, params)
    logits = apply_fun(params, x, adj)
    h = x @ W
    for i in range(4):
        edges = [(j, e) for (j, to), e in zip(edge_index.T, features) if to == i]
        edges += [(i, np.zeros(2))]
        scores = np.array([(h[i] @ a1 + h[j] @ a2 + e @ a3)[0] for j, e in edges])
        alpha = jax.nn.softmax(np.where(scores > 0, scores, 0.2 * scores))
        out = sum(weight * h[j] for weight, (j, _) in zip(alpha, edges))
        close(logits[i], out, 1e-5)
    assert shape == logits.shape == (4, 5)


def test_regression_several_labels_and_class_weights():
    ns = run("Regression, several labels, class weights")
    graph, model = small_graph(), GCN(4, 2)
    recipe = dataclasses.replace(GCN_RECIPE, epochs=3, weight_decay=0.1,
                                 penalise_all=True)

    def cross_entropy(out, targets):
        return -(targets * minignn.log_softmax(out)).sum(axis=1).mean()

    steps = ns.steps_for(cross_entropy, jax.nn.one_hot(graph.y, 2))
    mine, history = train(model, graph, KEY, recipe, 0, steps)
    params, expected = train(model, graph, KEY, recipe, 0)
    leaves_close(mine, params, 1e-5)
    for name in ("train_loss", "val_loss"):
        close(history[name], expected[name], 1e-5)

    out, classes = normal(5, 2), np.array([0, 1, 1, 0, 1])
    targets = np.eye(2)[classes]
    p = 1 / (1 + np.exp(-out))
    expected = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
    close(ns.binary_cross_entropy(out, targets), expected, 1e-5)

    num_hot = np.sum(ns.heat[:50] > 1.5)                # of those that train
    weights = np.where(classes == 1, 1 / num_hot, 1 / (50 - num_hot))
    losses = -np.log(jax.nn.softmax(out)[np.arange(5), classes])
    expected = np.average(losses, weights=weights)
    close(ns.weighted_cross_entropy(out, targets), expected, 1e-5)
    called_hot = np.asarray(ns.is_hot)[100:]
    assert np.mean(called_hot[ns.heat[100:] <= 1.5]) < 0.15


def test_link_prediction():
    ns = run("Link prediction")
    linked = dense(ns.adj) > 0
    hidden, links = ns.hidden.T.tolist(), ns.links.T.tolist()
    assert len({frozenset(link) for link in hidden + links}) == 5278
    assert not any(linked[i, j] or linked[j, i] for i, j in hidden)
    assert all(linked[i, j] and linked[j, i] for i, j in links)

    z = np.asarray(ns.apply_fun(ns.params, ns.cora.x, ns.adj))
    random = [z[i] @ z[j] for i, j in ns.pairs.T]
    above = [np.mean(z[i] @ z[j] > random) for i, j in hidden]
    close(ns.auc, np.mean(above), 1e-3)


def test_one_prediction_per_graph():
    ns = run("One prediction per graph")
    init_fun, _ = ns.model
    shape, _ = init_fun(KEY, ns.graph.x.shape)
    params = jax.tree.map(lambda array: np.asarray(array) + 0.1, ns.params)     # b, too
    logits = predict(ns.model, params, ns.graph)
    assert shape == logits.shape
    ((W0,), (W1,)), (W, b) = params
    for g in range(20):
        kind = ns.kind[ns.graph_of_node == g].tolist()
        bonds = [set(pair) for pair in zip(kind, kind[1:])]
        assert ns.labels[g] == ({0, 1} in bonds)
        x = np.eye(3)[kind]
        A = gcn_matrix(np.eye(len(kind), k=1) + np.eye(len(kind), k=-1))
        h = A @ np.maximum(A @ x @ W0, 0) @ W1
        close(logits[g], np.maximum(h, 0).sum(axis=0) @ W + b, 1e-4)


def test_residual():
    ns = run("Residual layers")
    graph = small_graph()
    x, A = np.asarray(graph.x), dense(graph.adj)
    init_fun, apply_fun = ns.model
    shape, params = init_fun(KEY, x.shape)
    assert shape == (6, 7) and len(params) == 6
    (first,), *middle, (last,) = jax.tree.map(np.asarray, params)
    h = A @ x @ first
    for (W,) in middle:
        r = np.maximum(h, 0)
        h = r + A @ r @ W
    expected = A @ np.maximum(h, 0) @ last
    close(apply_fun(params, x, graph.adj), expected, 1e-5)

    # Without the layer's part, x remains, and nothing of it is dropped.
    _, apply_layer = ns.residual(ns.layer(3))
    close(apply_layer((jnp.zeros((3, 3)),), x, graph.adj, KEY), x, 0)
    one = apply_layer((jnp.eye(3),), x, graph.adj, KEY)
    assert np.any(np.asarray(one) != apply_layer((jnp.eye(3),), x, graph.adj))


def test_no_validation_nodes(cora):
    ns = run("No validation nodes")
    assert ns.graph.val.tolist() == cora.train.tolist() == ns.graph.train.tolist()
    assert ns.recipe.patience == ns.recipe.epochs == 100


# Use ----------------------------------------------------------------------------------


def test_predictions(cora):
    ns = run("Predictions")
    close(ns.probabilities, jax.nn.softmax(ns.logits), 1e-5)
    close(cora.adj @ (ns.embeddings @ ns.params[1][0]), ns.logits, 1e-5)
    assert ns.new.x.values.tolist() == [0.5, 0.5, 1, 1]         # scaled as Cora's
    assert ns.new.adj.cols.tolist() == [0, 1, 0, 1, 2, 1, 2]


def test_inductive(cora):
    ns = run("Nodes that come after the training: the inductive setting")
    A = dense(cora.adj) > 0
    A[np.arange(2708), np.arange(2708)] = False
    test = np.asarray(cora.test)
    seen = A.copy()
    seen[test], seen[:, test] = False, False
    close(dense(ns.seen.adj), gcn_matrix(seen), 1e-6)

    larger = np.pad(A, (0, 1))
    larger[2708, :2], larger[:2, 2708] = True, True
    close(dense(ns.more.adj), gcn_matrix(larger), 1e-6)
    close(ns.more.x[2708], dense(cora.x)[0], 0)
    assert ns.more.y[2708] == -1


def test_attention_weights():
    ns = run("Attention weights")
    edge_index = np.array([[0, 1, 1, 3, 4], [1, 0, 2, 1, 1]])
    adj = minignn.normalize_adjacency(edge_index, 5)
    x = normal(5, 4)
    W, a1, a2, _ = map(np.asarray, ns.params[0])
    alpha = ns.weights_of([[3, 4, 1, 0], [1, 4, 1, 1]], ns.params[0], x, adj)
    h = (x @ W).reshape(5, 2, 8)
    for k in (0, 1):
        scores = np.array([a1[k] @ h[1, k] + a2[k] @ h[j, k] for j in (0, 1, 3, 4)])
        into_1 = jax.nn.softmax(np.where(scores > 0, scores, 0.2 * scores))
        close(alpha[:, k], [into_1[2], 1, into_1[1], into_1[0]], 1e-5)

    # "The second layer's x", as the page says it.
    layers = [minignn.MultiHeadLayer(2, 8, 0),
              minignn.MultiHeadLayer(1, 3, 0, last_layer=True)]
    hidden = jax.nn.elu(layers[0][1](ns.params[0], x, adj))
    _, apply_fun = minignn.GAT([2, 1], [8], 3)
    close(layers[1][1](ns.params[1], hidden, adj), apply_fun(ns.params, x, adj), 1e-5)


def test_saved_params_are_loaded_in_another_process(cora):
    ns = run("Save and load")
    (_, _), (load, _) = BLOCK.findall(ANSWERS["Save and load"])
    path, = re.findall(r"^```py\n(.*?)^```",
                       ANSWERS["Another folder, Windows, a hosted notebook"],
                       re.M | re.S)
    path = path.replace("path/to/minignn", str(ROOT))
    source = f'{path}{load}np.save("logits.npy", logits)\n'
    subprocess.run([sys.executable, "-c", source], check=True)

    init_fun, _ = ns.model
    _, params = init_fun(jax.random.key(1), cora.x.shape)
    close(np.load("logits.npy"), predict(ns.model, params, cora), 1e-5)
    close(ns.logits, predict(ns.model, params, cora), 1e-5)


def test_pictures(cora):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    source, = re.findall(r"^```py\n(.*?)^```", ANSWERS["Pictures"], re.M | re.S)
    model = GCN(16, 7)
    _, params = model[0](KEY, cora.x.shape)
    params = jax.tree.map(lambda W: 10 * W, params)     # so that logits are not tiny
    history = {"train_loss": [2, 1], "val_loss": [2, 1.5]}
    exec(source, names := {"model": model, "params": params, "graph": cora,
                           "history": history})
    assert pathlib.Path("pictures.png").stat().st_size > 10_000

    test = np.asarray(cora.test)
    y, classes = np.asarray(cora.y)[test], names["classes"][test]
    for c in range(7):
        for predicted in range(7):
            number = np.sum((y == c) & (classes == predicted))
            assert names["confusion"][c, predicted] == number
    points = np.asarray(names["right"].collections[0].get_offsets())
    variances = np.linalg.eigvalsh(np.cov(names["logits"].T))[::-1]
    close(np.cov(points[:, 0], points[:, 1]), np.diag(variances[:2]), 1e-3)


# Trouble ------------------------------------------------------------------------------


def test_it_does_not_learn(cora):
    text = ANSWERS["It does not learn"]
    assert f"$\\ln C$, {math.log(7):.2f} for seven" in text
    best = -jax.nn.log_softmax(np.eye(7)[0])[0]        # softmax of probabilities 1, 0
    assert f"$\\ln(e + 6) - 1 = {best:.2f}$" in text

    model = GCN(16, 7)
    recipe = dataclasses.replace(GCN_RECIPE, step_size=0.05, epochs=15)
    edges = np.stack([cora.adj.cols, cora.adj.rows])
    off_by_one = minignn.normalize_adjacency((edges + 1) % 2708, 2708)
    shuffled = jnp.asarray(np.random.default_rng(2).permutation(cora.y))
    found = {}
    for name, change in (("none", {}), ("edges", {"adj": off_by_one}),
                         ("labels", {"y": shuffled})):
        graph = dataclasses.replace(cora, **change)
        params, history = train(model, graph, KEY, recipe, log_every=0)
        found[name] = evaluate(model, params, graph)
        assert abs(history["train_loss"][0] - math.log(7)) < 0.1
    assert found["none"]["train_accuracy"] > 0.9 and found["none"]["val_accuracy"] > 0.7
    assert found["edges"]["train_accuracy"] > 0.7
    assert found["edges"]["val_accuracy"] < 0.45
    assert found["labels"]["train_accuracy"] < 0.7


def test_half_types():
    graph, model = small_graph(), GCN(4, 2)
    _, params = model[0](KEY, graph.x.shape)
    x = graph.x.astype(jnp.bfloat16)
    logits = predict(model, params, dataclasses.replace(graph, x=x))
    assert logits.dtype == jnp.float32
    close(logits, predict(model, params, graph), 1e-2)


def test_devices():
    ns = run("A GPU, several devices, several hosts")
    assert ns.graph.adj.rows.sharding.spec == jax.sharding.PartitionSpec(("edges",))
