"""What minignn.py and README.md claim, checked against something independent, in minignn.py's order. (What takes
longer than minutes is a command in README.md and docs/course.md instead.)

The oracles: NumPy loops that transcribe the papers' equations, dense matrices, finite differences in float64,
JAX's own libraries, and sums that fit on a sheet of paper.
"""
import ast
import code
import contextlib
import dataclasses
import inspect
import io
import os
import pathlib
import re
import runpy
import socket
import subprocess
import sys
import tokenize
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import optimizers
from jax.flatten_util import ravel_pytree

import minignn
import train_gcn
from minignn import (CORA, GAT, GCN, GraphAttentionLayer, GraphConvolution, MultiHeadLayer, Sparse, accuracy, adam,
                     aggregate, cross_entropy, dropout, evaluate, from_dense, glorot_uniform, l2_penalty, load_graph,
                     log_softmax, loss_or_accuracy_rule, loss_rule, make_graph, matmul, normalize_adjacency,
                     row_normalize, segment_softmax, train)

HERE = pathlib.Path(__file__).resolve().parent
KEY = jax.random.key(0)

# name: (number of nodes, edges (source, target))
GRAPHS = {
    "one node": (1, []),
    "no edges": (4, []),
    "undirected": (5, [(0, 1), (1, 0), (1, 2), (2, 1), (3, 4), (4, 3), (0, 4), (4, 0)]),
    "directed": (5, [(0, 1), (1, 2), (2, 0), (3, 1), (4, 3), (4, 0)]),
    "isolated nodes": (6, [(1, 3), (3, 1), (4, 1)]),
    "repeated edges and self-loops": (4, [(0, 1), (0, 1), (2, 2), (1, 0), (3, 3), (3, 3)]),
    "complete": (6, [(i, j) for i in range(6) for j in range(6) if i != j]),
    "a hub of 19": (20, [(i, 0) for i in range(1, 20)] + [(0, 7)]),
}
offset, union = 0, []
for n, edges in GRAPHS.values():
    union += [(source + offset, target + offset) for source, target in edges]
    offset += n
GRAPHS["all of them as one"] = (offset, union)
each_graph = pytest.mark.parametrize("name", GRAPHS)
# each graph takes a compilation of the layer
layer_graphs = pytest.mark.parametrize("name", ["one node", "no edges", "complete", "all of them as one"])


def edge_index(name):
    return np.array(GRAPHS[name][1], int).reshape(-1, 2).T


def neighbourhoods(name):
    """For each node, itself and the nodes that point at it."""
    n, edges = GRAPHS[name]
    return [sorted({i} | {source for source, target in edges if target == i}) for i in range(n)]


def dense(sparse):
    matrix = np.zeros(sparse.shape, np.asarray(sparse.values).dtype)
    np.add.at(matrix, (np.asarray(sparse.rows), np.asarray(sparse.cols)), np.asarray(sparse.values))
    return matrix


def plain(sparse):
    """The same Sparse of its four documented fields only."""
    return Sparse(sparse.rows, sparse.cols, sparse.values, sparse.shape)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.result_type(float))


@contextlib.contextmanager
def x64():
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.fixture(params=["float32", "float64"])
def tolerance(request):
    """Run the test in both precisions; the value is the largest error that is allowed."""
    with x64() if request.param == "float64" else contextlib.nullcontext():
        yield {"float32": 1e-5, "float64": 1e-10}[request.param]


@pytest.fixture(scope="module")
def cora():
    return load_graph()


def close(a, b, tolerance):
    """Equal but for the tolerance, absolute for numbers below 1 and relative above."""
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


def check_gradient(f, x, tolerance=1e-7):
    """jax.grad of f: array -> scalar against central finite differences, element by element, in float64."""
    x, f = np.asarray(x, np.float64), jax.jit(f)
    numeric = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        numeric[index] = (f(jnp.asarray(x + step)) - f(jnp.asarray(x - step))) / 2e-5
    close(jax.jit(jax.grad(f))(jnp.asarray(x)), numeric, tolerance)


# 1. Sparse matrices ---------------------------------------------------------------------------------------

MATRIX = np.array([[0, 2, 0, -1], [0, 0, 0, 0], [3, 0, 0.5, 0]])


def test_from_dense_stores_the_nonzero_entries_by_row():
    a = from_dense(MATRIX)
    assert a.rows.tolist() == [0, 0, 2, 2] and a.cols.tolist() == [1, 3, 0, 2] and a.values.tolist() == [2, -1, 3, 0.5]
    assert (a.rows.dtype, a.cols.dtype, a.values.dtype, a.shape) == (np.int32, np.int32, np.float32, (3, 4))


def test_sparse_is_a_pytree_whose_shape_is_static():
    a = plain(from_dense(MATRIX))
    assert len(jax.tree.leaves(a)) == 3
    assert jax.jit(lambda a: jnp.zeros(a.shape))(a).shape == (3, 4)
    assert jax.tree.map(lambda leaf: leaf, from_dense(MATRIX)).shape == (3, 4)


@pytest.mark.parametrize("form", [lambda a: a, plain], ids=["grouped", "four fields"])
@pytest.mark.parametrize("shape, density", [((3, 40), 0.9), ((40, 3), 0.5), ((4, 4), 0)])
def test_matmul_and_its_gradients_are_those_of_the_dense_product(form, shape, density, tolerance):
    matrix = normal(*shape) * (np.random.default_rng(1).random(shape) < density)
    a, b = form(from_dense(matrix)), jnp.asarray(normal(shape[1], 6))
    close(jax.jit(matmul)(a, b), matrix @ np.asarray(b), tolerance)
    close(matmul(jnp.asarray(matrix), b), matrix @ np.asarray(b), tolerance)

    g = normal(shape[0], 6, seed=2)
    weighted_sum = lambda v, b: (matmul(dataclasses.replace(a, values=v), b) * g).sum()
    by_value, by_b = jax.jit(jax.grad(weighted_sum, (0, 1)))(a.values, b)
    close(by_value, (g @ np.asarray(b).T)[np.asarray(a.rows), np.asarray(a.cols)], tolerance)
    close(by_b, matrix.T @ g, tolerance)


@pytest.mark.parametrize("form", [lambda a: a, plain], ids=["grouped", "four fields"])
def test_matmul_works_under_vmap_over_either_argument(form):
    a, bs = form(from_dense(MATRIX)), normal(3, 4, 2)
    close(jax.vmap(matmul, (None, 0))(a, bs), MATRIX @ bs, 1e-5)
    scaled = jax.vmap(lambda s, b: matmul(dataclasses.replace(a, values=s * a.values), b), (0, None))
    close(scaled(jnp.arange(3.0), bs[0]), np.arange(3)[:, None, None] * (MATRIX @ bs[0]), 1e-5)


def test_matmul_can_be_differentiated_twice():
    a, b = from_dense(MATRIX), jnp.asarray(normal(4, 1))
    hessian = jax.jit(jax.jacrev(jax.grad(lambda b: (matmul(a, b) ** 2).sum())))(b)
    close(hessian[:, 0, :, 0], 2 * MATRIX.T @ MATRIX, 1e-5)


@pytest.mark.parametrize("form", [lambda a: a, plain], ids=["grouped", "four fields"])
def test_a_row_reads_nothing_but_its_entries(form):
    h = jnp.array([[np.nan], [1], [2], [3]])  # row 0 of MATRIX has entries in columns 1 and 3, row 2 in 0 and 2
    assert matmul(form(from_dense(MATRIX)), h).ravel()[:2].tolist() == [2 * 1 - 3, 0]


def test_groups_keep_the_message_of_each_entry_out_of_memory():
    a, h, g = from_dense(normal(40, 7)), jnp.ones((7, 2, 3)), jnp.ones((40, 2, 3))

    def has_messages(a):  # [nnz, H, D] in the sum or in its gradient
        both = lambda weights, h: jax.vjp(lambda *inputs: aggregate(a, *inputs), weights, h)[1](g)
        return f"[{40 * 7},2,3]" in str(jax.make_jaxpr(both)(jnp.ones((40 * 7, 2)), h))

    assert [has_messages(form) for form in (plain(a), a, dropout(KEY, a, 0.5))] == [True, False, False]


def test_aggregate_weights_each_head_by_its_own_number(tolerance):
    a, weights, h = normalize_adjacency(edge_index("directed"), 5), normal(11, 2), normal(5, 2, 3, seed=1)
    expected = np.zeros((5, 2, 3))
    for e, (i, j) in enumerate(zip(a.rows.tolist(), a.cols.tolist())):
        for head in range(2):
            expected[i, head] += weights[e, head] * h[j, head]
    for form in a, plain(a):
        close(aggregate(form, jnp.asarray(weights), jnp.asarray(h)), expected, tolerance)


# 2. Graphs ------------------------------------------------------------------------------------------------

def test_normalized_adjacency_by_hand():
    # 1 -> 0, 2 -> 0, 0 -> 1. With self-loops, row 0 has 3 entries, row 1 has 2, row 2 has 1: D = diag(3, 2, 1).
    # Entry (i, j) is 1 / sqrt(D_ii D_jj) where j points at i.
    adj = normalize_adjacency(np.array([[1, 2, 0], [0, 0, 1]]), 3)
    close(dense(adj), [[1 / 3, 6 ** -0.5, 3 ** -0.5], [6 ** -0.5, 1 / 2, 0], [0, 0, 1]], 1e-6)
    assert adj.rows.tolist() == [0, 0, 0, 1, 1, 2] and adj.cols.tolist() == [0, 1, 2, 0, 1, 2]


@each_graph
def test_normalized_adjacency_is_the_papers_formula(name, tolerance):
    n, edges = GRAPHS[name]
    A = np.eye(n)
    for source, target in edges:
        A[target, source] = 1
    D = np.diag(A.sum(1) ** -0.5)
    adj = normalize_adjacency(edge_index(name), n)
    close(dense(adj), D @ A @ D, tolerance)
    assert len(adj.values) == A.sum() and np.all(np.diff(adj.rows) >= 0)


def test_normalized_adjacency_refuses_what_is_not_an_edge():
    for bad, message in (([[0.5], [1]], "edge_index.dtype is float64"), ([[0], [2]], r"edge_index\[1, 0\] is 2")):
        with pytest.raises(ValueError, match=message):
            normalize_adjacency(bad, 2)


@pytest.mark.parametrize("name", ["undirected", "complete", "no edges"])
def test_normalized_adjacency_of_an_undirected_graph_is_symmetric_and_its_eigenvalues_reach_one_in_size(name):
    matrix = dense(normalize_adjacency(edge_index(name), GRAPHS[name][0]))
    close(matrix, matrix.T, 1e-7)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[-1] == np.abs(eigenvalues).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [np.float32, np.uint8, bool, jnp.float32])
def test_row_normalize_makes_rows_sum_to_one_and_leaves_zero_rows(kind):
    x = (jnp if kind is jnp.float32 else np).array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], kind)
    close(row_normalize(x), [[0.25, 0.25, 0, 0.25, 0.25], [0, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0]], 1e-7)


def test_row_normalize_divides_by_the_sum_whatever_its_sign():
    close(row_normalize(np.array([[-1.0, -3], [3, -2], [1, -1]])), [[0.25, 0.75], [3, -2], [1, -1]], 1e-7)


def test_cora_is_the_cora_of_the_papers(cora):
    with np.load(HERE / "data" / "cora.npz", allow_pickle=False) as file:
        d = dict(file)
    assert d["x"].shape == (2708, 1433) and d["x"].dtype == np.uint8 and set(np.unique(d["x"])) == {0, 1}
    assert d["x"].sum() == 49216
    edges = set(map(tuple, d["edge_index"].T.tolist()))
    assert d["edge_index"].shape == (2, 10556) and len(edges) == 10556
    assert all((j, i) in edges and i != j for i, j in edges)
    assert np.bincount(d["y"]).tolist() == [298, 418, 818, 426, 217, 180, 351]
    assert d["class_names"].tolist() == sorted(d["class_names"].tolist()) and len(d["class_names"]) == 7
    assert len(set(d["paper_id"].tolist())) == 2708 and d["paper_id"][0] == 31336
    masks = [d[f"{split}_mask"] for split in ("train", "val", "test")]
    assert [int(mask.sum()) for mask in masks] == [140, 500, 1000] and max(sum(mask.astype(int) for mask in masks)) == 1
    assert np.bincount(d["y"][masks[0]]).tolist() == [20] * 7
    assert os.path.getsize(HERE / "data" / "cora.npz") < 300_000

    assert isinstance(cora.x, Sparse) and len(cora.x.values) == 49216 and cora.x.shape == (2708, 1433)
    assert len(cora.adj.values) == 13264 and cora.adj.shape == (2708, 2708)
    assert cora.y.dtype == np.int32 and cora.train.dtype == np.int32
    assert np.array_equal(cora.test, np.flatnonzero(d["test_mask"])) and cora.class_names[2] == "Neural_Networks"
    close(dense(cora.x).sum(1), np.ones(2708), 1e-5)
    close(dense(load_graph(normalize=False).x), d["x"], 0)


def small(**changes):
    """The arrays of a graph of six nodes, some of them replaced."""
    masks = {name: np.isin(np.arange(6), nodes)
             for name, nodes in dict(train_mask=[0, 1], val_mask=[2, 3], test_mask=[4]).items()}
    arrays = dict(x=np.arange(18.0).reshape(6, 3), edge_index=np.array([[0, 1, 2, 3], [1, 2, 3, 4]]),
                  y=np.array([0, 1, 1, 0, 1, -1]), **masks)
    return arrays | changes


def changed(name, index, value):
    array = small()[name].copy()
    array[index] = value
    return small(**{name: array})


def test_features_become_sparse_when_more_than_half_are_zeros():
    half = np.array([[0, 1, 0], [2, 0, 3], [0, 4, 0], [5, 0, 6], [0, 7, 0], [8, 0, 9]])  # 9 of 18
    fewer = np.where(half == 9, 0, half)
    assert isinstance(make_graph(**small(x=half)).x, jax.Array)
    graph = make_graph(**small(x=fewer))
    assert isinstance(graph.x, Sparse)
    close(dense(graph.x), fewer / fewer.sum(1, keepdims=True), 1e-7)


def test_features_of_any_kind_of_number_become_floats_of_jaxs_precision():
    beyond_float16 = make_graph(**small(x=np.full((6, 3), 6e4, np.float16)))  # its rows' sums are
    close(beyond_float16.x, np.full((6, 3), 1 / 3), 1e-6)
    for kind in bool, np.uint8, np.int64, np.float16, np.float64:
        assert make_graph(**small(x=np.eye(6, 3, dtype=kind))).x.values.tolist() == [1, 1, 1]
    assert make_graph(**small()).x.dtype == np.float32
    with x64():
        graph = make_graph(**small())
        assert graph.x.dtype == graph.adj.values.dtype == np.float64


def test_make_graph_names_the_classes_and_takes_a_graph_without_edges():
    assert make_graph(**small()).class_names == ("0", "1")
    assert len(make_graph(**changed("y", 5, 2 ** 16 - 1)).class_names) == 2 ** 16
    assert make_graph(**small(class_names=np.array([b"a", b"b"]))).class_names == ("a", "b")
    assert make_graph(**small(class_names=["a", "b", "c"])).class_names == ("a", "b", "c")
    assert make_graph(**small(edge_index=np.zeros((2, 0)))).adj.rows.tolist() == list(range(6))


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_indices_may_be_integers_of_any_kind(kind):
    adj = make_graph(**small(edge_index=small()["edge_index"].astype(kind))).adj
    assert (adj.rows.tolist(), adj.cols.tolist()) == ([0, 1, 1, 2, 2, 3, 3, 4, 4, 5], [0, 0, 1, 1, 2, 2, 3, 3, 4, 5])
    assert len(make_graph(**small(y=np.array([0, 1, 1, 0, 1, 127], kind))).class_names) == 128
    assert len(make_graph(**small(y=np.array([0, 1, 1, 0, 1, 255], np.uint8))).class_names) == 256


def test_arrays_that_come_in_stay_as_they_are():
    arrays = small(x=np.arange(1, 19, dtype=np.float32).reshape(6, 3))
    before = {name: array.copy() for name, array in arrays.items()}
    make_graph(**arrays), row_normalize(arrays["x"]), from_dense(arrays["x"])
    assert all(np.array_equal(before[name], arrays[name]) for name in arrays)


BAD_GRAPHS = {
    "x[2, 1] is nan": changed("x", (2, 1), np.nan),
    "x[2, 2] is nan": changed("x", (slice(2, 4), 2), np.nan),  # the first of two
    "x[5, 0] is inf": changed("x", (5, 0), np.inf),
    "x[0, 2] is -inf": changed("x", (0, 2), -np.inf),
    "x[1, 1] is 1e+300": changed("x", (1, 1), 1e300),
    "x[1, 1] is 1e+30": changed("x", (1, 1), 1e30),
    "x.ndim is 1": small(x=np.ones(6)),
    "x.dtype is complex128": small(x=np.ones((6, 3), complex)),
    "x.dtype is <U1": small(x=np.full((6, 3), "a")),
    "edge_index.shape is (3, 4)": small(edge_index=np.zeros((3, 4), int)),
    "edge_index.dtype is float64": small(edge_index=np.zeros((2, 4))),
    "edge_index[1, 3] is 6": changed("edge_index", (1, 3), 6),
    "edge_index[0, 0] is -1": changed("edge_index", (0, 0), -1),
    "y.shape is (5,)": small(y=np.zeros(5, int)),
    "y.ndim is 2": small(y=np.zeros((6, 1), int)),
    "y.dtype is float64": small(y=np.zeros(6)),
    "y[5] is -2": changed("y", 5, -2),
    "y[4] is 2": changed("y", 4, 2) | dict(class_names=["a", "b"]),
    "y[3] is -1": changed("y", 3, -1),
    "y[4] is -1": changed("y", 4, -1),
    "y[1] is 1000000000": changed("y", 1, 10 ** 9),
    "train_mask.dtype is int64": small(train_mask=np.array([1, 1, 0, 0, 0, 0])),
    "val_mask.shape is (7,)": small(val_mask=np.zeros(7, bool)),
    "train_mask.dtype is float64": dict(x=np.zeros((0, 3)), edge_index=np.zeros((2, 0)), y=np.zeros(0, int), **{
        f"{split}_mask": np.zeros(0) for split in ("train", "val", "test")}),
    "test_mask.ndim is 2": small(test_mask=np.zeros((6, 1), bool)),
    "train_mask[1] is True: another mask": changed("val_mask", 1, True),
    "val_mask[4] is True: another mask": changed("val_mask", 4, True),
    "class_names.ndim is 0": small(class_names="ab"),
    "train_mask.sum() is 0": small(train_mask=np.zeros(6, bool)),
}


@pytest.mark.parametrize("message", BAD_GRAPHS)
def test_bad_graphs_are_refused_with_array_index_and_value(message, tmp_path):
    with pytest.raises(ValueError) as from_arrays:
        make_graph(**BAD_GRAPHS[message])
    assert message in str(from_arrays.value) and "\n" not in str(from_arrays.value)
    path = tmp_path / "graph.npz"
    np.savez(path, **BAD_GRAPHS[message])
    with pytest.raises(ValueError) as from_file:
        load_graph(path)
    assert str(from_file.value) == f"{path}: {from_arrays.value}"


def test_bad_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        load_graph(tmp_path / "nowhere.npz")
    text = tmp_path / "text.npz"
    text.write_text("node,label\n")
    names = "single", "missing", "pickled", "damaged"
    single, missing, pickled, damaged = (tmp_path / f"{name}.npz" for name in names)
    with open(single, "wb") as file:
        np.save(file, np.zeros(3))
    np.savez(missing, **{name: array for name, array in small().items() if name != "y"})
    np.savez(pickled, **small(y=np.array([0, 1, 1, 0, 1, None], object)))
    damaged.write_bytes((HERE / "data" / "cora.npz").read_bytes()[:-5000])
    for path, words in ((text, "archive"), (single, "archive"), (missing, "y"), (pickled, "y"), (damaged, "archive")):
        with pytest.raises(ValueError, match=f"{path.name}: cannot read (the )?{words}"):
            load_graph(path)


# 3. Building blocks ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape, fans", [((300, 200), ()), ((1433, 8, 8), (1433, 8)), ((64, 8), (8, 1))])
def test_glorot_uniform_is_jaxs_in_bound_and_distribution(shape, fans):
    matrix, keys = fans or shape, jax.random.split(KEY, 9)
    matrices = (np.prod(shape) // np.prod(matrix), *matrix)  # as many numbers, in matrices with the same fans
    bound = np.sqrt(6 / sum(matrix))
    jaxs = jax.nn.initializers.glorot_uniform(batch_axis=0)
    for draw in lambda key: glorot_uniform(key, shape, *fans), lambda key: jaxs(key, matrices):
        numbers = np.stack([np.sort(np.ravel(draw(key))) for key in keys])
        assert 0.98 * bound < np.abs(numbers).max() <= bound * (1 + 1e-6)  # 1e-6: float32 rounds the bound, too
        # Kolmogorov-Smirnov: the largest gap between the empirical and the uniform distribution function. A gap of
        # 1.36 / sqrt(n) is exceeded with probability 0.05, so by five keys of nine with probability 0.00004.
        n = numbers.shape[1]
        uniform = (numbers + bound) / (2 * bound)
        gaps = np.maximum(np.max(np.arange(1, n + 1) / n - uniform, axis=1), np.max(uniform - np.arange(n) / n, axis=1))
        assert np.median(gaps) < 1.36 / np.sqrt(n)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.6, 0.95])
def test_dropout_drops_the_rate_and_scales_the_rest(rate):
    n = 1_000_000
    out = np.asarray(dropout(KEY, jnp.full((1000, 1000), 3.0), rate))
    assert abs(np.mean(out == 0) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)  # four standard deviations
    close(out[out != 0], 3 / (1 - rate), 1e-6)


def test_dropout_masks_are_independent_of_place_and_of_key():
    n, rate = 250_000, 0.4
    keys = [*map(jax.random.key, (0, 1)), *jax.random.split(KEY), *(jax.random.fold_in(KEY, i) for i in (7, 8))]
    masks = [np.asarray(dropout(key, jnp.ones(n), rate) == 0) for key in keys]
    masks += [np.roll(masks[0], shift) for shift in (1, 2, 3, 8, 64, 500, 512)]
    correlation = np.corrcoef(masks)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    grid = masks[0].reshape(500, 500)
    for axis in 0, 1:  # rows and columns are dropped as often as chance has it
        assert np.abs(grid.mean(axis) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / 500)


def test_every_bit_of_the_key_changes_the_mask():
    n, key = 2 ** 16, np.array([0x1234ABCD, 0x9876FEDC], np.uint32)
    flips = np.array([[1 << bit, 0] for bit in range(32)] + [[0, 1 << bit] for bit in range(32)], np.uint32)
    draw = jax.jit(jax.vmap(lambda data: dropout(jax.random.wrap_key_data(data), jnp.ones(n), 0.5)))
    one, *others = 1 - np.asarray(draw(np.vstack([key, key ^ flips])))  # 1 dropped, -1 kept
    assert np.abs(np.array(others) @ one / n).max() < 5 / np.sqrt(n)


def test_dropout_without_key_or_rate_changes_nothing_and_with_a_key_repeats():
    x = jnp.arange(5.0)
    assert dropout(None, x, 0.5) is x and dropout(KEY, x, 0) is x
    assert np.array_equal(dropout(KEY, jnp.ones(99), 0.5), dropout(KEY, jnp.ones(99), 0.5))
    old_style = jax.random.PRNGKey(3)
    assert np.array_equal(dropout(old_style, jnp.ones(99), 0.5), dropout(jax.random.key(3), jnp.ones(99), 0.5))


def test_dropout_of_a_sparse_drops_stored_values():
    a = from_dense(np.triu(np.ones((60, 60))))
    out = dropout(KEY, a, 0.25)
    assert np.array_equal(out.rows, a.rows) and out.shape == a.shape
    assert set(np.unique(out.values).tolist()) == {0, np.float32(1 / 0.75)}
    b = normal(60, 2)
    close(matmul(out, b), dense(out) @ b, 1e-4)


@pytest.mark.parametrize("rate", [1, -0.1, 1.5, float("nan")])
def test_a_dropout_rate_outside_its_range_is_refused(rate):
    for build in lambda: dropout(KEY, jnp.ones(3), rate), lambda: GCN(4, 2, rate), lambda: GAT([1], [], 2, rate):
        with pytest.raises(ValueError, match="dropout is"):
            build()


def test_segment_softmax_is_a_softmax_over_each_row(tolerance):
    rows = np.array([0, 0, 0, 2, 2, 5])  # rows 1, 3 and 4 have no entries
    scores = jnp.asarray(normal(6, 2))
    softmax = jax.jit(lambda s: segment_softmax(s, jnp.asarray(rows), 6))
    out = softmax(scores)
    for row in 0, 2, 5:
        close(out[rows == row], jax.nn.softmax(scores[rows == row], axis=0), tolerance)
    assert np.isfinite(jax.jit(jax.grad(lambda s: (softmax(s) ** 2).sum()))(scores)).all()


def test_segment_softmax_is_stable_for_scores_of_any_size():
    rows = jnp.array([0, 0, 1, 1, 2])
    for size in 1e4, 1e30:
        out = segment_softmax(jnp.array([size, -size, -size, -size, size]), rows, 4)
        close(out, [1, 0, 0.5, 0.5, 1], 1e-6)


# 4. Layers ------------------------------------------------------------------------------------------------

def gcn_layer_loops(params, x, name):
    """Kipf & Welling, equation 2, for one node after the other."""
    neighbours, W = neighbourhoods(name), np.asarray(params[0])
    out = np.zeros((len(x), W.shape[1]))
    for i, js in enumerate(neighbours):
        for j in js:
            out[i] += x[j] @ W / np.sqrt(len(js) * len(neighbours[j]))
        if len(params) == 2:
            out[i] += np.asarray(params[1])
    return out


def gat_layer_loops(params, x, name, last_layer):
    """Veličković et al., equations 1 to 6, for one node and one head after the other."""
    W, a1, a2, b = map(np.asarray, params)
    heads = []
    for head in range(W.shape[1]):
        h = [W[:, head].T @ x_i for x_i in x]
        a = np.concatenate([a1[head], a2[head]])
        out = []
        for i, js in enumerate(neighbourhoods(name)):
            e = [a @ np.concatenate([h[i], h[j]]) for j in js]
            e = np.array([value if value > 0 else 0.2 * value for value in e])
            alpha = np.exp(e) / np.exp(e).sum()
            out.append(sum(weight * h[j] for weight, j in zip(alpha, js)) + b[head])
        heads.append(out)
    return np.mean(heads, axis=0) if last_layer else np.concatenate(heads, axis=1)


def random_params(init_fun, shape, seed=0):
    """Params of a layer with every number random: no bias stays zero."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(lambda: init_fun(KEY, shape)[1])
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@layer_graphs
@pytest.mark.parametrize("bias", [False, True])
def test_graph_convolution_is_equation_2(name, bias, tolerance):
    n = GRAPHS[name][0]
    x, adj = normal(n, 4), normalize_adjacency(edge_index(name), n)
    init_fun, apply_fun = GraphConvolution(3, bias=bias)
    params = random_params(init_fun, (n, 4))
    close(jax.jit(apply_fun)(params, from_dense(x), adj), gcn_layer_loops(params, x, name), tolerance)


@layer_graphs
@pytest.mark.parametrize("last_layer", [False, True])
def test_multi_head_layer_is_equations_1_to_6(name, last_layer, tolerance):
    n = GRAPHS[name][0]
    x, adj = normal(n, 4), normalize_adjacency(edge_index(name), n)
    init_fun, apply_fun = MultiHeadLayer(3, 2, 0.6, last_layer)
    params = random_params(init_fun, (n, 4))
    close(jax.jit(apply_fun)(params, from_dense(x), adj), gat_layer_loops(params, x, name, last_layer), tolerance)


def test_graph_convolution_by_hand():
    # 0 - 1 - 2: with self-loops the nodes have 2, 3 and 2 neighbours. x W = (1, 2, 3) 2 = (2, 4, 6).
    # out_0 = 2/2 + 4/sqrt(6),  out_1 = 2/sqrt(6) + 4/3 + 6/sqrt(6),  out_2 = 4/sqrt(6) + 6/2
    adj = normalize_adjacency(np.array([[0, 1, 1, 2], [1, 0, 2, 1]]), 3)
    out = GraphConvolution(1)[1]((jnp.array([[2.0]]),), jnp.array([[1.0], [2], [3]]), adj)
    close(out.ravel(), [2.632993, 4.599320, 4.632993], 1e-5)


def test_attention_by_hand():
    # 1 -> 0 and 2 -> 0; W = 1, so h = x = (1, 2, -4); a1 = -log 2, a2 = log 2, b = 10. Node 0:
    #   e_00 = LeakyReLU(-log 2 + log 2) = 0,  e_01 = LeakyReLU(-log 2 + 2 log 2) = log 2,
    #   e_02 = LeakyReLU(-log 2 - 4 log 2) = 0.2 (-5 log 2) = -log 2
    #   alpha = (1, 2, 1/2) / 3.5,  out_0 = (1*1 + 2*2 - 4/2) / 3.5 + 10 = 6/7 + 10
    # Nodes 1 and 2 have only themselves: alpha = 1, out = h + 10 = 12 and 6.
    adj = normalize_adjacency(np.array([[1, 2], [0, 0]]), 3)
    params = tuple(jnp.array(p) for p in ([[[1.0]]], [[-np.log(2)]], [[np.log(2)]], [[10.0]]))
    out = GraphAttentionLayer(1, 0)[1](params, jnp.array([[1.0], [2], [-4]]), adj)
    close(out.ravel(), [10 + 6 / 7, 12, 6], 1e-5)


def test_graph_attention_layer_is_one_head_of_equations_1_to_5():
    adj, x = normalize_adjacency(edge_index("directed"), 5), normal(5, 4)
    init_fun, apply_fun = GraphAttentionLayer(3, 0.5)
    params = random_params(init_fun, (5, 4))
    close(apply_fun(params, x, adj), gat_layer_loops(params, x, "directed", last_layer=False), 1e-5)
    assert np.array_equal(apply_fun(params, x, adj, KEY), MultiHeadLayer(1, 3, 0.5)[1](params, x, adj, KEY))


def dense_attention(params, x, mask, last_layer=False):
    """The masked form: a score for every pair, minus infinity where there is no edge."""
    W, a1, a2, b = params
    h = jnp.einsum("nf,fhd->nhd", x, W)
    scores = jax.nn.leaky_relu((h * a1).sum(-1)[:, None] + (h * a2).sum(-1)[None], 0.2)
    alpha = jax.nn.softmax(jnp.where(mask[:, :, None], scores, -jnp.inf), axis=1)
    out = jnp.einsum("ijh,jhd->ihd", alpha, h) + b
    return out.mean(1) if last_layer else out.reshape(len(x), -1)


@pytest.mark.parametrize("name", ["one node", "all of them as one"])
def test_layers_equal_their_dense_form_in_output_and_gradients(name):
    with x64():
        n = GRAPHS[name][0]
        x, adj = jnp.asarray(normal(n, 4)), normalize_adjacency(edge_index(name), n)
        full = jnp.asarray(dense(adj))
        for (init_fun, apply_fun), reference in (
                (GraphConvolution(3), lambda params, x: full @ x @ params[0]),
                (MultiHeadLayer(2, 3, 0.6), lambda params, x: dense_attention(params, x, full > 0)),
                (MultiHeadLayer(2, 3, 0.6, True), lambda params, x: dense_attention(params, x, full > 0, True))):
            params = random_params(init_fun, (n, 4))

            def sum_of_sines(apply):  # and its gradients
                return jax.jit(jax.value_and_grad(lambda p, x: jnp.sin(apply(p, x)).sum(), (0, 1)))(params, x)

            theirs = sum_of_sines(reference)
            for form in adj, plain(adj):
                jax.tree.map(lambda a, b: close(a, b, 1e-10), sum_of_sines(lambda p, x: apply_fun(p, x, form)), theirs)


@pytest.mark.parametrize("layer, rng", [
    (GraphConvolution(2, bias=True), None), (GCN(2, 2), KEY), (MultiHeadLayer(2, 2, 0.6), None),
    (MultiHeadLayer(2, 2, 0.6), KEY), (MultiHeadLayer(2, 2, 0.6, True), None), (MultiHeadLayer(2, 2, 0.6, True), KEY)],
    ids=["convolution", "GCN in training", "heads", "heads in training", "last heads", "last heads in training"])
def test_layer_gradients_are_finite_differences(layer, rng):
    with x64():
        adj, x = normalize_adjacency(edge_index("directed"), 5), jnp.asarray(normal(5, 3))
        params = random_params(layer[0], (5, 3))
        numbers, unravel = ravel_pytree((params, x))  # every number that the output depends on, in one array
        check_gradient(lambda numbers: jnp.sin(layer[1](*unravel(numbers), adj, rng)).sum(), numbers)


def test_attention_over_each_neighbourhood_sums_to_one():
    # One head of two units: unit 0 is 1 for every node, so its output is the sum of the attention weights, which
    # unit 1, random, decides (a1 and a2 are 0 for unit 0).
    adj = normalize_adjacency(edge_index("a hub of 19"), 20)
    x = np.hstack([normal(20, 3), np.ones((20, 1))])
    W = jnp.array([[[0, 1]], [[0, 2]], [[0, 3]], [[1, 0]]], float)  # [F, H, D]
    params = (W, jnp.array([[0.0, 1]]), jnp.array([[0.0, 1]]), jnp.zeros((1, 2)))
    out = MultiHeadLayer(1, 2, 0.6)[1](params, jnp.asarray(x), adj)
    close(out[:, 0], np.ones(20), 1e-6)


def test_attention_dropout_draws_three_masks_each_over_all_that_it_drops():
    # Two nodes without edges: alpha = 1, and W makes h = x W = 1. Each of the three masks keeps with probability 1/2
    # and scales by 2, so an output is 8 with probability 1/8, else 0. Two outputs of one head share the masks of the
    # input and of alpha, those of two heads only the input's, those of two nodes none.
    adj, (_, apply_fun) = normalize_adjacency(np.zeros((2, 0), int), 2), MultiHeadLayer(2, 2, 0.5)
    params = (jnp.ones((1, 2, 2)), *(jnp.zeros((2, 2)) for _ in range(3)))
    outs = jax.jit(jax.vmap(lambda key: apply_fun(params, jnp.ones((2, 1)), adj, key)))(jax.random.split(KEY, 4000))
    assert set(np.unique(outs)) == {0, 8}
    kept = np.asarray(outs == 8, float).reshape(4000, 8)  # columns: node, head, unit
    unit, head, node = 1 / 8, 1 / 16, 1 / 32
    per_node = np.array([[unit, head, node, node], [head, unit, node, node],
                         [node, node, unit, head], [node, node, head, unit]])
    other = np.full((4, 4), 1 / 64)
    both = np.block([[per_node, other], [other, per_node]])  # the probability that two outputs are kept together
    assert np.all(np.abs(kept.T @ kept / 4000 - both) < 4 * np.sqrt(both * (1 - both) / 4000))


# 5. Models ------------------------------------------------------------------------------------------------

MODELS = {"GCN": GCN(8, 3), "GAT": GAT([4, 1], [5], 3)}
each_model = pytest.mark.parametrize("name", MODELS)


def random_graph(n=40, edges=70, features=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, features)).astype(np.float32), rng.integers(0, n, (2, edges))


W_a1_a2_b = lambda F, H, D: ((F, H, D), (H, D), (H, D), (H, D))


@pytest.mark.parametrize("init_fun, output_shape, shapes", [
    (GraphConvolution(3)[0], (5, 3), ((4, 3),)),
    (GraphConvolution(3, bias=True)[0], (5, 3), ((4, 3), (3,))),
    (MultiHeadLayer(3, 2, 0.6)[0], (5, 6), W_a1_a2_b(4, 3, 2)),
    (MultiHeadLayer(3, 2, 0.6, last_layer=True)[0], (5, 2), W_a1_a2_b(4, 3, 2)),
    (GraphAttentionLayer(2, 0.6)[0], (5, 2), W_a1_a2_b(4, 1, 2)),
    (GCN(6, 3)[0], (5, 3), [((4, 6),), ((6, 3),)]),
    (GAT([3, 2, 2], [2, 4], 3)[0], (5, 3), [W_a1_a2_b(4, 3, 2), W_a1_a2_b(6, 2, 4), W_a1_a2_b(8, 2, 3)])])
def test_init_fun_gives_the_output_shape_and_the_documented_params(init_fun, output_shape, shapes):
    shape, params = init_fun(KEY, (5, 4))
    assert shape == output_shape and jax.tree.map(lambda leaf: leaf.shape, params) == shapes


def reaches_glorots_bound(array, fans):
    bound = np.sqrt(6 / sum(fans))
    return (1 - 10 / array.size) * bound < np.abs(array).max() <= bound


def test_gcn_draws_each_layer_with_its_own_fans():
    for (W,), fans in zip(GCN(16, 7)[0](KEY, (2708, 1433))[1], [(1433, 16), (16, 7)]):
        assert reaches_glorots_bound(W, fans)
    assert not np.any(GraphConvolution(3, bias=True)[0](KEY, (5, 4))[1][1])


def test_every_array_of_params_is_drawn_with_a_key_of_its_own():
    # Shapes and fans are such that arrays drawn with the same key would be the same.
    (W0, a1, a2, _), (W1, *_) = GAT([1, 1], [1], 1)[0](KEY, (3, 1))[1]
    assert len({float(a.ravel()[0]) for a in (W0, a1, a2, W1)}) == 4
    (V0,), (V1,) = GCN(4, 4)[0](KEY, (3, 4))[1]
    assert not np.any(V0 == V1)


def test_gcn_is_two_layers_with_relu_between(tolerance):
    name = "all of them as one"
    n, (init_fun, apply_fun) = GRAPHS[name][0], GCN(5, 3)
    x, params = normal(n, 4), random_params(init_fun, (n, 4))
    hidden = np.maximum(gcn_layer_loops(params[0], x, name), 0)
    out = jax.jit(apply_fun)(params, jnp.asarray(x), normalize_adjacency(edge_index(name), n))
    close(out, gcn_layer_loops(params[1], hidden, name), tolerance)


def test_gat_is_layers_with_elu_between_and_the_last_averaged(tolerance):
    name, nheads, nhid = "all of them as one", [3, 2, 2], [2, 4]
    n, (init_fun, apply_fun) = GRAPHS[name][0], GAT(nheads, nhid, 3)
    assert (nheads, nhid) == ([3, 2, 2], [2, 4])  # the lists of the caller are as they were
    x, params = normal(n, 4), random_params(init_fun, (n, 4))
    out = x
    for i, layer_params in enumerate(params):
        out = np.where(out > 0, out, np.expm1(out)) if i else out
        out = gat_layer_loops(layer_params, out, name, last_layer=i == 2)
    close(jax.jit(apply_fun)(params, jnp.asarray(x), normalize_adjacency(edge_index(name), n)), out, tolerance)


def test_gat_draws_each_head_with_the_fans_of_one_head():
    params = GAT([8, 1], [8], 7)[0](KEY, (2708, 1433))[1]
    for array, fans in zip(params[0], [(1433, 8), (8, 1), (8, 1)]):
        assert reaches_glorots_bound(array, fans)
    assert not np.any(params[0][3]) and not np.array_equal(params[0][1], params[0][2])


@each_model
def test_relabelling_the_nodes_permutes_the_output(name):
    x, edges = random_graph()
    init_fun, apply_fun = MODELS[name][0], jax.jit(MODELS[name][1])
    params = init_fun(KEY, x.shape)[1]
    order = np.random.default_rng(1).permutation(len(x))  # node order[i] is called i from now on
    out = apply_fun(params, x, normalize_adjacency(edges, len(x)))
    permuted = apply_fun(params, x[order], normalize_adjacency(np.argsort(order)[edges], len(x)))
    close(permuted, np.asarray(out)[order], 1e-5)


@each_model
def test_nothing_beyond_two_hops_matters_and_everything_within_does(name):
    # 0 -> 1 -> 2 -> 3 -> 4: node 3 sees 1, 2 and itself, not 0 and not 4.
    adj = normalize_adjacency(np.array([[0, 1, 2, 3], [1, 2, 3, 4]]), 5)
    init_fun, apply_fun = MODELS[name]
    params = random_params(init_fun, (5, 6))
    influence = jax.jit(jax.jacrev(lambda x: apply_fun(params, x, adj)[3]))(jnp.asarray(normal(5, 6)))  # [C, N, F]
    assert np.abs(influence).max(axis=(0, 2)).astype(bool).tolist() == [False, True, True, True, False]


@each_model
def test_jit_and_eager_agree_in_training_and_evaluation_and_a_key_repeats_to_the_bit(name):
    x, edges = random_graph()
    adj, (init_fun, apply_fun) = normalize_adjacency(edges, len(x)), MODELS[name]
    params = init_fun(KEY, x.shape)[1]
    for rng in None, KEY:
        close(jax.jit(apply_fun)(params, x, adj, rng), apply_fun(params, x, adj, rng), 1e-5)
        assert np.array_equal(jax.jit(apply_fun)(params, x, adj, rng), jax.jit(apply_fun)(params, x, adj, rng))
    one, two, none = (jax.jit(apply_fun)(params, x, adj, rng) for rng in (KEY, jax.random.key(1), None))
    assert not np.allclose(one, two) and not np.allclose(one, none)


@each_model
def test_dropout_is_off_without_a_key_and_right_on_average_with_one(name):
    # With a linear activation range (all numbers positive) the mean over masks of a GCN is its evaluation.
    x, edges = random_graph()
    adj, (init_fun, apply_fun) = normalize_adjacency(edges, len(x)), MODELS[name]
    params = jax.tree.map(jnp.abs, init_fun(KEY, x.shape)[1])
    if name == "GAT":  # attention must not depend on the masks
        params = [(W, 0 * a1, 0 * a2, b) for W, a1, a2, b in params]
    x = np.abs(x)
    outs = jax.jit(jax.vmap(lambda key: apply_fun(params, x, adj, key)))(jax.random.split(KEY, 2000))
    error = outs.mean(0) - apply_fun(params, x, adj)
    assert np.all(np.abs(error) < 5 * outs.std(0) / np.sqrt(2000))  # five standard errors


def test_gcn_dropout_hits_both_layers_inputs():
    # One node, both weights 1: each of two masks keeps it with probability 1/2 and scales by 2.
    adj, params = normalize_adjacency(np.zeros((2, 0), int), 1), [(jnp.ones((1, 1)),), (jnp.ones((1, 1)),)]
    apply_fun = jax.jit(jax.vmap(lambda key: GCN(1, 1)[1](params, jnp.ones((1, 1)), adj, key)))
    out = np.asarray(apply_fun(jax.random.split(KEY, 4000))).ravel()
    assert set(np.unique(out)) == {0, 4} and abs(np.mean(out == 4) - 1 / 4) < 4 * np.sqrt(3 / 16 / 4000)


@each_model
def test_float32_and_float64_agree(name):
    x, edges = random_graph()
    init_fun, apply_fun = MODELS[name][0], jax.jit(MODELS[name][1])
    params = init_fun(KEY, x.shape)[1]
    single = np.asarray(apply_fun(params, x, normalize_adjacency(edges, len(x))))
    with x64():
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), params)
        double = apply_fun(params, jnp.asarray(x, np.float64), normalize_adjacency(edges, len(x)))
        assert double.dtype == np.float64
    close(single, double, 1e-5)


@pytest.mark.parametrize("build, name", [
    (lambda: GCN(0, 7), "nhid"), (lambda: GCN(2.5, 7), "nhid"), (lambda: GCN(16, 0), "nclass"),
    (lambda: GAT([0, 1], [8], 7), "nheads"), (lambda: GAT([8, 1], [-1], 7), "nhid"),
    (lambda: GAT([8], [8], 7), "nheads"), (lambda: GraphConvolution(0), "out_dim")])
def test_sizes_that_are_no_counts_and_lists_that_do_not_fit_are_refused(build, name):
    with pytest.raises(ValueError, match=name):
        build()


# 6. Loss --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scale", [1, 100, 1e4, 1e30])
def test_log_softmax_is_jaxs_at_logits_of_any_size(scale):
    logits = jnp.asarray(normal(9, 5) * scale)
    close(log_softmax(logits), jax.nn.log_softmax(logits), 1e-6)


def test_log_softmax_by_hand():
    # log(1/4), log(3/4); and where exp(z) would overflow: log(1 / (1 + exp(-20000))) = 0 and -20000 - 0
    close(log_softmax(jnp.array([[0, np.log(3)], [1e4, -1e4]])), [[np.log(0.25), np.log(0.75)], [0, -2e4]], 1e-6)


def test_cross_entropy_by_hand():
    # Node 0: logits (log 1, log 3), right class 1: probability 3/4. Node 1: (log 4, log 1), class 1: 1/5.
    logits = jnp.log(jnp.array([[1.0, 3], [4, 1]]))
    assert float(cross_entropy(logits, jnp.array([1, 1]))) == pytest.approx(-(np.log(3 / 4) + np.log(1 / 5)) / 2)


def test_loss_gradients_are_finite_differences_and_softmax_minus_one_hot():
    with x64():
        logits, labels = normal(4, 3), jnp.array([0, 2, 1, 1])
        check_gradient(lambda z: cross_entropy(z, labels), logits)
        check_gradient(lambda z: (log_softmax(z) ** 2).sum(), logits)
        check_gradient(lambda p: l2_penalty([p, (2 * p,)]), logits)
        formula = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)) / 4
        close(jax.grad(cross_entropy)(jnp.asarray(logits), labels), formula, 1e-12)


def test_l2_penalty_is_half_the_sum_of_squares_of_every_leaf():
    assert float(l2_penalty([(jnp.array([1.0, 2]),), {"b": jnp.array([[3.0]])}, 4.0])) == (1 + 4 + 9 + 16) / 2


def test_accuracy_is_the_fraction_of_right_classes():
    logits = jnp.array([[0, 5.0, 1], [2, 1, 0], [0, 0, 9], [3, 0, 0]])
    assert float(accuracy(logits, jnp.array([1, 0, 0, 2]))) == 0.5


# 7. Optimiser ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{}, dict(b1=0.5, b2=0.9, eps=1e-2)])
def test_adam_is_jaxs_for_100_steps_on_any_pytree(settings):
    with x64():
        params = {"list": [normal(3, 2), (normal(4, seed=1), 0.5)], "tuple": (normal(2, 2, seed=2),), "scalar": -2.0}
        grad = jax.grad(lambda p: sum(jnp.sum(jnp.cosh(leaf - 0.3)) for leaf in jax.tree.leaves(p)))
        init, update = adam(0.05, **settings)
        their_init, their_update, get_params = optimizers.adam(0.05, **settings)
        grad, update, their_update = map(jax.jit, (grad, update, their_update))
        ours, state, theirs = params, init(params), their_init(params)
        for step in range(100):
            ours, state = update(grad(ours), state, ours)
            theirs = their_update(step, grad(get_params(theirs)), theirs)
            jax.tree.map(lambda a, b: close(a, b, 1e-10), ours, get_params(theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(params)


def test_the_first_step_of_adam_has_the_step_size_whatever_the_gradient():
    # m/(1-b1) = g and v/(1-b2) = g^2: the step is g/|g| times the step size (eps aside).
    init, update = adam(0.1)
    params, _ = update(jnp.array([1e-3, -50.0]), init(jnp.zeros(2)), jnp.zeros(2))
    close(params, [-0.1, 0.1], 1e-4)


# 8. Training ----------------------------------------------------------------------------------------------

def history_of(losses, accuracies):
    return dict(val_loss=losses, val_accuracy=accuracies)


def test_the_gcn_rule_counts_lower_losses_only_and_keeps_the_last_params():
    assert loss_rule(history_of([1.0], [0.1])) == (True, True)
    assert loss_rule(history_of([1.0, 0.9], [0.5, 0.1])) == (True, True)
    assert loss_rule(history_of([0.9, 1.0, 0.9], [0.1, 0.2, 0.9])) == (False, True)


def test_the_gat_rule_counts_either_and_keeps_the_best_in_both():
    assert loss_or_accuracy_rule(history_of([1.0], [0.1])) == (True, True)
    assert loss_or_accuracy_rule(history_of([1.0, 0.9], [0.5, 0.1])) == (True, False)
    assert loss_or_accuracy_rule(history_of([0.9, 1.0], [0.1, 0.2])) == (True, False)
    assert loss_or_accuracy_rule(history_of([0.9, 0.8], [0.1, 0.2])) == (True, True)
    assert loss_or_accuracy_rule(history_of([0.9, 0.9], [0.2, 0.2])) == (True, True)
    assert loss_or_accuracy_rule(history_of([0.9, 0.8, 0.9], [0.3, 0.2, 0.2])) == (False, False)


TINY = GCN(4, 2)  # one for all tests: a new model means a new compilation


def three_classes(sparse=True):
    """Sixty nodes that their features, and the edges within each class, put into three classes."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20)
    x = (np.eye(3)[y] if sparse else np.eye(3)[y] + 0.1) * rng.uniform(0.5, 2, (60, 3))
    edges = rng.integers(0, 20, (2, 150)) + 20 * rng.integers(0, 3, 150)
    return make_graph(x, edges, y, *(np.arange(60) % 4 == i for i in range(3)))


def quiet_train(model, graph, seed=0, **settings):
    return train(model, graph, jax.random.key(seed), **dict(dict(log_every=0), **settings))


def test_train_is_the_loop_that_its_parts_spell_out():
    graph, model = make_graph(**small()), TINY
    params, history = quiet_train(model, graph, epochs=3, step_size=0.1, weight_decay=0.3)
    init_rng, dropout_rng = jax.random.split(jax.random.key(0))
    expected = model[0](init_rng, graph.x.shape)[1]
    init, update = optimizers.adam(0.1)[:2]
    state, get_params = init(expected), optimizers.adam(0.1)[2]

    @jax.jit
    @jax.grad
    def gradient_of_loss(params, epoch):
        logits = model[1](params, graph.x, graph.adj, jax.random.fold_in(dropout_rng, epoch))
        log_probability = jax.nn.log_softmax(logits)[jnp.array([0, 1]), jnp.array([0, 1])]  # labels of nodes 0, 1
        return -log_probability.mean() + 0.3 * jnp.sum(params[0][0] ** 2) / 2

    for epoch in 1, 2, 3:
        state = update(epoch - 1, gradient_of_loss(get_params(state), epoch), state)
    jax.tree.map(lambda a, b: close(a, b, 1e-5), params, get_params(state))
    logits, numbers = model[1](params, graph.x, graph.adj), []
    for nodes, labels in (([0, 1], [0, 1]), ([2, 3], [1, 0]), ([4], [1])):  # training, validation, test
        of_nodes = logits[np.array(nodes)]
        numbers.append([-jax.nn.log_softmax(of_nodes)[np.arange(len(nodes)), np.array(labels)].mean(),
                        np.mean(of_nodes.argmax(-1) == np.array(labels))])
    close(evaluate(model[1], params, graph), numbers, 1e-5)
    last = [history[name][-1] for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")]
    close(last, np.ravel(numbers[:2]), 1e-5)


def test_the_penalty_covers_what_the_papers_say():
    # With a huge penalty Adam drives what it covers towards zero, step by step, and nothing else.
    for name, penalise_all in (("GCN", False), ("GAT", True)):
        before, after = (quiet_train(MODELS[name], three_classes(), epochs=epochs, weight_decay=1e6, patience=999,
                                     penalise_all=penalise_all)[0] for epochs in (1, 60))
        shrunk = [float(l2_penalty(b) / l2_penalty(a)) < 0.5 for a, b in zip(before, after)]
        assert shrunk == [True, penalise_all]


def test_early_stopping_waits_for_patience_and_the_kept_params_are_the_rules():
    graph, seen = make_graph(**small()), []

    def rule(history):  # progress in epochs 1 to 4 only, the params of epoch 3 are the ones to keep
        seen.append(history["val_loss"][-1])
        return len(seen) <= 4, len(seen) <= 3

    params, history = quiet_train(TINY, graph, rule=rule, patience=5)
    assert len(seen) == 9 and len(history["val_loss"]) == 9 and history["val_loss"].tolist() == seen
    expected, _ = quiet_train(TINY, graph, epochs=3)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), params, expected)
    assert {name: (array.shape, type(array)) for name, array in history.items()} == {
        name: ((9,), np.ndarray) for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")}


def test_without_progress_patience_counts_from_the_start_and_the_first_params_are_kept():
    graph = make_graph(**small())
    params, history = quiet_train(TINY, graph, rule=lambda history: (False, False), patience=2)
    assert len(history["val_loss"]) == 2
    start = TINY[0](jax.random.split(jax.random.key(0))[0], graph.x.shape)[1]
    jax.tree.map(lambda a, b: close(a, b, 1e-6), params, start)


def test_test_nodes_are_not_needed_for_training():
    _, history = quiet_train(TINY, make_graph(**small(test_mask=np.zeros(6, bool))), epochs=2)
    assert len(history["val_loss"]) == 2


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse x", "dense x"])
@each_model
def test_both_models_learn_from_sparse_and_dense_features(name, sparse):
    graph = three_classes(sparse)
    assert isinstance(graph.x, Sparse) == sparse
    _, history = quiet_train(MODELS[name], graph, epochs=60, step_size=0.05, patience=60, penalise_all=name == "GAT")
    assert history["val_accuracy"][-1] == 1 and history["val_loss"][-1] < history["val_loss"][0]


@each_model
def test_a_seed_gives_the_same_bits_and_training_leaves_its_inputs_untouched(name):
    graph = three_classes()
    before = [np.array(leaf) for leaf in jax.tree.leaves(graph)]
    settings = dict(epochs=5, penalise_all=name == "GAT")
    (first, history1), (second, history2) = (quiet_train(MODELS[name], graph, **settings) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))
    assert all(np.array_equal(history1[key], history2[key]) for key in history1)
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(graph)))
    other, _ = quiet_train(MODELS[name], graph, seed=1, **settings)
    assert not np.allclose(jax.tree.leaves(first)[0], jax.tree.leaves(other)[0])


@pytest.mark.parametrize("settings", [{name: value} for name, values in dict(
    epochs=(0, 1.5), patience=(0, 2.5), step_size=(-1, 1e30, float("inf")), weight_decay=(-0.1, 1e30, float("nan")),
    log_every=(-1,)).items() for value in values], ids=str)
def test_training_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        quiet_train(TINY, make_graph(**small()), **settings)


def test_the_defaults_are_the_gcn_papers_and_the_models_dropout_rates():
    defaults = {name: p.default for f in (train, GCN, GAT) for name, p in inspect.signature(f).parameters.items()
                if p.default is not p.empty and name != "dropout"}
    assert defaults == dict(epochs=200, step_size=0.01, weight_decay=5e-4, penalise_all=False, rule=loss_rule,
                            patience=10, log_every=10)
    assert [inspect.signature(f).parameters["dropout"].default for f in (GCN, GAT)] == [0.5, 0.6]


def test_a_graph_without_validation_nodes_cannot_be_trained_on():
    with pytest.raises(ValueError, match=r"val_mask.sum\(\) is 0"):
        quiet_train(TINY, make_graph(**small(val_mask=np.zeros(6, bool))))


def test_divergence_stops_training_and_says_when(monkeypatch):
    with pytest.raises(FloatingPointError, match="diverged at epoch 1:"):
        quiet_train(TINY, make_graph(**small()), step_size=1e25)
    factors = iter([1, 1, np.nan])
    monkeypatch.setattr(minignn, "evaluate", lambda *arguments: evaluate(*arguments) * next(factors))
    with pytest.raises(FloatingPointError, match="diverged at epoch 3:"):
        quiet_train(TINY, make_graph(**small()), rule=lambda history: (len(history["val_loss"]) == 1, True))


@pytest.mark.parametrize("node, message", [(0, "train loss nan, .* val loss 0"), (2, "train loss 0.* val loss nan")])
def test_a_loss_that_is_not_finite_stops_training_be_it_of_training_or_validation(node, message):
    # The logits are the params, but not a number for one node: 0 is a training node, 2 a validation node.
    init_fun = lambda rng, shape: (None, (jnp.zeros((6, 2)),))
    model = init_fun, lambda params, x, adj, rng=None: params[0].at[node].set(jnp.nan)
    with pytest.raises(FloatingPointError, match=message):
        quiet_train(model, make_graph(**small()))


class Terminal(io.StringIO):
    """A stdout that remembers what it held when it was last flushed."""
    shown = ""

    def flush(self):
        self.shown = self.getvalue()


def test_progress_is_printed_as_it_goes_with_the_median_time_of_an_epoch(monkeypatch):
    clock = iter([0, 10, 10.002, 10.005, 10.009, 10.014, 10.020, 10.027])  # epochs of 10 s, then 2, 3, 4, 5, 6, 7 ms
    monkeypatch.setattr(minignn, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(sys, "stdout", Terminal())

    def rule(history):  # progress in epochs 1 to 3 only
        shown.append(len(sys.stdout.shown.splitlines()))
        return len(shown) <= 3, True

    shown = []
    _, history = quiet_train(TINY, make_graph(**small()), epochs=9, patience=4, log_every=3, rule=rule)
    numbers = zip(*(history[name] for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")))
    lines = ["epoch {:4d} | train loss {:.4f}, accuracy {:.4f} | val loss {:.4f}, accuracy {:.4f}".format(epoch, *row)
             for epoch, row in enumerate(numbers, start=1)]
    assert sys.stdout.getvalue().splitlines() == [
        lines[2] + " | 3.0 ms/epoch", lines[5] + " | 4.5 ms/epoch",
        "stopped after epoch 7 of at most 9: last progress at 3, patience 4"]
    assert shown == [0, 0, 1, 1, 1, 2, 2]


def test_gcn_reaches_the_papers_accuracy_on_cora(cora):
    # 100 seeds gave a mean of 0.815 and a standard deviation of 0.007, the worst of them 0.795; seeds 0 to 4 are fixed.
    model = GCN(16, 7)
    tested = [float(evaluate(model[1], quiet_train(model, cora, seed)[0], cora)[2, 1]) for seed in range(5)]
    assert min(tested) >= 0.80 and np.mean(tested) >= 0.81


# 9. More than one device ----------------------------------------------------------------------------------

def python(source, **environment):
    """Start a fresh Python in another process; `source` sees this folder's modules."""
    return subprocess.Popen([sys.executable, "-W", "error", "-c", source], cwd=HERE, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | dict(JAX_PLATFORMS="cpu") | environment)


def output(process):
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err
    return out


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from minignn import *
x, rng = np.random.default_rng(3).random((50, 9)), np.random.default_rng(1)
x[x < 0.6] = 0                                  # entry counts that 4 does not divide
masks = [np.arange(50) % 3 == i for i in range(3)]
graph = make_graph(x, rng.integers(0, 50, (2, 118)), rng.integers(0, 3, 50), *masks)
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
sharded = shard_graph(graph, mesh)
assert len(graph.adj.rows) % 4 and len(graph.x.rows) % 4 and jax.device_count() == 4
for one, four in ((graph.adj, sharded.adj), (graph.x, sharded.x)):
    assert [shard.data.shape for shard in four.rows.addressable_shards] == [(-(-len(one.rows) // 4),)] * 4
for (init_fun, apply_fun), scales in ((GCN(8, 3), [1]), (GAT([4, 1], [5], 3), [1, 300])):  # 300: scores beyond exp
    def loss(params, graph):
        logits = apply_fun(params, graph.x, graph.adj, jax.random.key(1))
        return cross_entropy(logits, jnp.maximum(graph.y, 0)), logits
    _, params = jax.jit(init_fun, static_argnums=1)(jax.random.key(0), graph.x.shape)
    compiled = [jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, g).compile() for g in (graph, sharded)]
    assert ["all-reduce" in f.as_text() for f in compiled] == [False, True]
    for scale in scales:
        larger = jax.tree.map(lambda leaf: scale * leaf, params)
        one, four = (f(larger, g) for f, g in zip(compiled, (graph, sharded)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5 * scale, atol=1e-5 * scale), one, four)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(four))
print("equal")
"""


def test_four_devices_give_the_logits_and_gradients_of_one():
    assert output(python(SHARDED, XLA_FLAGS="--xla_force_host_platform_device_count=4")) == "equal\n"


TWO_PROCESSES = """
import sys, jax
if len(sys.argv) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from minignn import *
graph = load_graph()
if len(sys.argv) > 1:
    assert jax.process_count() == 2
    graph = shard_graph(graph, jax.sharding.Mesh(np.array(jax.devices()), ("edges",)))
_, history = train(GCN(16, 7, 0), graph, jax.random.key(0), epochs=5, log_every=0)
print(*(f"{loss:.5f}" for loss in history["train_loss"]))
"""


def test_two_processes_train_to_the_loss_of_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = f"import sys; sys.argv = ['', '127.0.0.1:{port}', '%d']\n" + TWO_PROCESSES
    both = [python(source % i) for i in range(2)]
    alone = [float(loss) for loss in output(python(TWO_PROCESSES)).split()]
    for process in both:
        close([float(loss) for loss in output(process).splitlines()[-1].split()], alone, 2e-5)  # after gloo's own lines


# The scripts ----------------------------------------------------------------------------------------------

def script(name, *flags, folder):
    """Run a script as a user does: a new process, from another folder."""
    return subprocess.run([sys.executable, "-W", "error", HERE / name, *map(str, flags)], cwd=folder, text=True,
                          capture_output=True, timeout=170)


def in_process(monkeypatch, capsys, name, *flags):
    """Run a script in this process -> (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
    status = 0
    try:
        runpy.run_path(str(HERE / name), run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_train_gcn_as_a_user_starts_it(tmp_path, monkeypatch, capsys):
    result = script("train_gcn.py", folder=tmp_path)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == "" and not list(tmp_path.iterdir())
    assert lines[0] == ("cora.npz: 2708 nodes, 10556 edges, 1433 features, 7 classes; "
                        "140 training, 500 validation and 1000 test nodes")
    assert lines[1].startswith("epoch   10 |") and lines[-2].startswith("stopped after epoch ")
    assert float(re.fullmatch(r"test accuracy: (0\.\d{4})", lines[-1])[1]) >= 0.80
    # the same seed in another process: the same numbers but for the times
    without_times = lambda out: re.sub(r"\| [\d.]+ ms", "", out)
    assert without_times(in_process(monkeypatch, capsys, "train_gcn.py")[1]) == without_times(result.stdout)


def test_train_gat_reaches_the_papers_accuracy_on_cora(tmp_path):
    # 100 seeds gave a mean of 0.832 and a standard deviation of 0.006, the worst of them 0.818. The paper: 0.830 and
    # 0.007. Seed 14 is one of those that stop soonest.
    result = script("train_gat.py", "--seed", 14, "--log-every", 0, folder=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert float(re.fullmatch(r"test accuracy: (0\.\d{4})", result.stdout.splitlines()[-1])[1]) >= 0.815


def test_train_gat_on_ones_own_graph_over_several_runs(monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "mine.npz", **small())
    flags = "--data", tmp_path / "mine.npz", "--runs", 3, "--epochs", 4, "--heads", 2
    status, out, err = in_process(monkeypatch, capsys, "train_gat.py", *flags)
    lines = out.splitlines()
    assert status == 0 and err == "" and len(lines) == 5
    assert lines[0].startswith("mine.npz: 6 nodes, 4 edges, 3 features, 2 classes; 2 training, 2 validation and 1 test")
    assert [line.split(" | ")[1] for line in lines[1:4]] == ["seed 0", "seed 1", "seed 2"]
    accuracies = [float(re.search(r"test accuracy (\S+)", line)[1]) for line in lines[1:4]]
    assert lines[-1] == f"test accuracy: {np.mean(accuracies):.4f} ± {np.std(accuracies):.4f} over 3 runs"


OTHER_FLAGS = ("--hidden 3 --dropout 0.1 --epochs 5 --lr 0.2 --weight-decay 0.3 --patience 4 --seed 6 --log-every 7 "
               "--no-normalize").split()


@pytest.mark.parametrize("name, flags, devices, expected", [
    ("train_gcn.py", [], 1, dict(
        load_graph=(str(CORA), True), GCN=(16, 7, 0.5), train=(0, 200, 0.01, 5e-4, 10, 10))),
    ("train_gcn.py", OTHER_FLAGS, 2, dict(
        load_graph=(str(CORA), False), GCN=(3, 7, 0.1), shard_graph=("edges",), train=(6, 5, 0.2, 0.3, 4, 7))),
    ("train_gat.py", ["--runs", 2], 1, dict(
        load_graph=(str(CORA), True), GAT=([8, 1], [8], 7, 0.6), train=(0, 100000, 0.005, 5e-4, 100, 0))),
    ("train_gat.py", [*OTHER_FLAGS, "--heads", 2], 2, dict(
        load_graph=(str(CORA), False), GAT=([2, 1], [3], 7, 0.1), shard_graph=("edges",), train=(6, 5, 0.2, 0.3, 4, 7)))])
def test_flags_and_the_papers_defaults_reach_graph_model_and_training(monkeypatch, capsys, name, flags, devices, expected):
    seen = {}

    def record(function, call):
        for module in minignn, train_gcn:
            if hasattr(module, function):
                monkeypatch.setattr(module, function, call)

    def fake_train(model, graph, rng, epochs, step_size, weight_decay, patience, log_every, **recipe):
        seed, = (seed for seed in range(10) if jax.random.key(seed) == rng)
        seen["train"] = seed, epochs, step_size, weight_decay, patience, log_every
        assert recipe == (dict(penalise_all=True, rule=loss_or_accuracy_rule) if name == "train_gat.py" else {})
        raise ValueError("seen enough")

    record("load_graph", lambda path, normalize: seen.update(load_graph=(path, normalize)) or load_graph(path))
    record("GCN", lambda *sizes: seen.update(GCN=sizes))
    record("GAT", lambda *sizes: seen.update(GAT=sizes))
    record("shard_graph", lambda graph, mesh: seen.update(shard_graph=mesh.axis_names) or graph)
    record("train", fake_train)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    status, _, err = in_process(monkeypatch, capsys, name, *flags)
    assert (status, err, seen) == (2, "error: seen enough\n", expected)


BAD_FLAGS = [(flag, value) for flag, values in {
    "--dropout": (1, -0.5, "nan"), "--epochs": (0, -3, "many"), "--hidden": (0, 2 ** 31), "--runs": (0,),
    "--patience": (0,), "--lr": (-1, "inf", 1e39), "--weight-decay": (-1, "nan", 1e300), "--log-every": (-1,),
    "--heads": (0,), "--data": ("nowhere.npz",), "--unknown": (1,), "--epoch": (1,), "--seed": ("x", -1, 2 ** 32),
}.items() for value in values]


@pytest.mark.parametrize("flag, value", BAD_FLAGS)
def test_a_bad_flag_ends_with_status_2_and_one_line(monkeypatch, capsys, flag, value):
    for name in ["train_gat.py"] if flag == "--heads" else ["train_gcn.py", "train_gat.py"]:
        status, _, err = in_process(monkeypatch, capsys, name, "--runs", 1, flag, value)
        assert status == 2 and re.fullmatch(r"error: .*\n", err)
        name = flag[2:].replace("-", "_")
        assert re.match(rf"error: ({name} is {re.escape(str(value))}|argument {flag}: .*'{value}'"
                        rf"|unrecognized arguments: {flag} {value}|.*nowhere)", err)


def test_bad_data_and_divergence_end_with_status_2_and_one_line(monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "bad.npz", **changed("x", (2, 1), np.nan))
    np.savez(tmp_path / "good.npz", **small())
    np.savez(tmp_path / "no\ntest.npz", **small(test_mask=np.zeros(6, bool)))
    np.savez(tmp_path / "no_val.npz", **small(val_mask=np.zeros(6, bool)))
    in_folder = lambda name: ["--data", tmp_path / name]
    for name, flags, message in (
            ("train_gcn.py", in_folder("no\ntest.npz"), f"{tmp_path / 'no test.npz'}: test_mask.sum() is 0: "),
            ("train_gcn.py", in_folder("no_val.npz"), f"{tmp_path / 'no_val.npz'}: val_mask.sum() is 0: "),
            ("train_gcn.py", in_folder("bad.npz"), f"{tmp_path / 'bad.npz'}: x[2, 1] is nan: features must be finite"),
            ("train_gat.py", in_folder(""), f"[Errno 21] Is a directory: '{tmp_path}'"),
            ("train_gcn.py", [*in_folder("good.npz"), "--lr", 1e25], "training diverged at epoch 1: "),
            ("train_gcn.py", ["--runs", 2, "--seed", 2 ** 32 - 1], "seed is 4294967295: ")):
        status, _, err = in_process(monkeypatch, capsys, name, *flags)
        assert status == 2 and err.startswith("error: " + message) and err.count("\n") == 1


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError, OSError])
def test_failures_in_training_end_with_status_2_and_one_line(monkeypatch, capsys, tmp_path, kind):
    def fail(*_, **__):
        raise kind("out of\nmemory")

    np.savez(tmp_path / "good.npz", **small())
    monkeypatch.setattr(minignn, "train", fail)
    status, _, err = in_process(monkeypatch, capsys, "train_gcn.py", "--data", tmp_path / "good.npz")
    assert (status, err) == (2, "error: out of memory\n")


def test_several_runs_are_summed_up_as_mean_and_standard_deviation(monkeypatch, capsys, tmp_path):
    accuracies = iter([0.5, 1.0, 0.0])
    np.savez(tmp_path / "good.npz", **small())
    monkeypatch.setattr(minignn, "train", lambda *_, **__: (None, dict(val_loss=[3, 2, 1])))
    monkeypatch.setattr(minignn, "evaluate", lambda *_: np.full((3, 2), next(accuracies)))
    flags = "--data", tmp_path / "good.npz", "--runs", 3, "--seed", 4
    status, out, _ = in_process(monkeypatch, capsys, "train_gcn.py", *flags)
    assert status == 0 and re.sub(r"\d+\.\d s", "T", out).splitlines()[1:] == [
        "run   1 | seed 4 | 3 epochs, T | test accuracy 0.5000 | so far 0.5000 ± 0.0000",
        "run   2 | seed 5 | 3 epochs, T | test accuracy 1.0000 | so far 0.7500 ± 0.2500",
        "run   3 | seed 6 | 3 epochs, T | test accuracy 0.0000 | so far 0.5000 ± 0.4082",
        "test accuracy: 0.5000 ± 0.4082 over 3 runs"]


def test_a_terminal_that_knows_ascii_only_shows_the_help_all_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert in_process(monkeypatch, capsys, "train_gat.py", "--help")[0] == 0


@pytest.mark.parametrize("name", ["train_gcn.py", "train_gat.py"])
def test_help_names_every_flag_of_the_readme(monkeypatch, capsys, name):
    status, out, _ = in_process(monkeypatch, capsys, name, "--help")
    section = (HERE / "README.md").read_text(encoding="utf-8").split("## Flags")[1].split("##")[0]
    flags = set(re.findall(r"--[a-z-]+", section)) - {"--help"}
    assert status == 0 and len(flags) == 12 and set(re.findall(r"--[a-z-]+", out)) - {"--help"} == flags - (
        {"--heads"} if name == "train_gcn.py" else set())
    assert {"train_gcn.py": "Welling 2017 [200]", "train_gat.py": "code [100000]"}[name] in " ".join(out.split())


# The pages ------------------------------------------------------------------------------------------------

class Console(code.InteractiveConsole):
    """The interactive Python into which a reader pastes a block, line by line; an error ends the test."""
    def showtraceback(self):
        raise

    showsyntaxerror = lambda self, *_, **__: self.showtraceback()


@pytest.mark.parametrize("page", ["README.md", "docs/course.md"])
def test_every_python_block_of_a_page_runs_and_prints_what_the_page_says(page, monkeypatch, tmp_path):
    text = (HERE / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    console = Console()
    for block in re.finditer(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```\n)?", text, re.M | re.S):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for line in [*block[1].splitlines(), ""]:  # the empty line ends an indented block
                waiting = console.push(line)
        assert not waiting
        printed, page_says = ([line.rstrip() for line in t.splitlines()] for t in (out.getvalue(), block[2] or ""))
        assert printed == page_says
    assert console.locals["params"]


def test_minignn_stays_short_and_imports_little():
    source = (HERE / "minignn.py").read_text(encoding="utf-8")
    tree, lines = ast.parse(source), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
                              tokenize.ENDMARKER):
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    last = source[:source.index("# 9. More than one device")].count("\n")  # the 20 lines of part 9 come on top
    assert last <= 500 and len([n for n in lines if n <= last]) <= 260 and len([n for n in lines if n > last]) <= 20
    assert max(map(len, source.splitlines())) <= 120
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    modules = {alias.name.split(".")[0] for node in imports for alias in node.names}
    modules |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= {*sys.stdlib_module_names, "jax", "numpy"}
