"""What scale/ claims: the plain form's results, and random bits that are random."""
import dataclasses
import functools
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import minignn
from conftest import KEY, ROOT, close, dense, leaves_close, normal, switch, x64
from minignn import GCN, GCN_RECIPE, GraphConvolution, Sparse, from_dense, make_graph
from scale import faster
from scale.devices import shard_graph, shard_matrix
from scale.faster import faster_bits, group, grouped, receptive_field


def random_graph(sparse=True):
    """As on Cora, a sparse x has enough entries for groups, its adjacency has not."""
    rng = np.random.default_rng(1)
    edges = rng.integers(2, 24, (2, 30))
    x = rng.uniform(0.5, 2, (30, 20))
    if sparse:
        x *= rng.random(x.shape) < 0.45
    nodes = np.arange(30)
    return make_graph(x, edges, nodes % 3, nodes < 5, nodes // 5 == 1, nodes > 20,
                      normalize=False)


def two_layers(rate):
    """Attention, whose sums have heads, and the GCN's layer, whose sums have none."""
    return minignn.chain([minignn.MultiHeadLayer(2, 4, dropout_rate=rate),
                          GraphConvolution(3, dropout_rate=rate)], jax.nn.elu)


# 1. The receptive field ---------------------------------------------------------------


@pytest.mark.parametrize("splits", [("train",), ("val", "test")], ids=" ".join)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse x", "dense x"])
def test_a_receptive_field_is_what_so_many_layers_see(sparse, splits):
    graph = random_graph(sparse)
    array = dense if sparse else np.asarray
    whole = dense(graph.adj)
    needed = np.isin(np.arange(30), np.concatenate([getattr(graph, s) for s in splits]))
    for hops in 1, 2, 3:
        computed = needed                       # by the first of so many layers
        needed = computed @ (whole > 0)         # i, j is true where i gathers from j
        nodes = np.flatnonzero(needed)
        assert computed.sum() < len(nodes) < 30

        part = receptive_field(graph, hops, splits)
        expected = (whole * computed[:, None])[np.ix_(nodes, nodes)]
        assert np.array_equal(dense(part.adj), expected)
        assert len(part.adj.values) == np.count_nonzero(expected)
        assert np.array_equal(array(part.x), array(graph.x)[nodes])
        assert np.array_equal(part.y, graph.y[nodes])
        for split in "train", "val", "test":
            expected = getattr(graph, split) if split in splits else []
            assert np.array_equal(nodes[getattr(part, split)], expected)


def test_a_model_without_layers_has_no_receptive_field():
    with pytest.raises(ValueError, match="hops is 0: it must be at least 1"):
        receptive_field(random_graph(), 0)


def test_its_gradient_in_groups_is_the_plain_one_on_the_whole_graph(tolerance):
    graph = random_graph()
    init_fun, _ = two_layers(0)
    _, params = init_fun(KEY, graph.x.shape)
    part = receptive_field(graph, 2)
    part = dataclasses.replace(part, x=grouped(part.x), adj=grouped(part.adj))
    expected = gradient_and_logits(params, graph, rate=0)
    leaves_close(gradient_and_logits(params, part, rate=0), expected, tolerance)


# 2. Sums in groups of eight -----------------------------------------------------------


def odd_matrix(counts=(0, 1, 7, 8, 9, 16, 17, 0, 40, 0)):
    """So many entries in each row, in any order, some places twice.

    The first and the last column have no entries, column 2 has a third of all.
    """
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cols = rng.integers(1, 13, len(rows))
    cols[::3] = 2
    return Sparse(rows, cols, normal(len(rows)), (len(counts), 14))


def arguments(matrix, units=3):
    """Weights, h, and the gradient by the result, of two heads with so many units."""
    n, m = matrix.shape
    return (normal(len(matrix.rows), 2, seed=1), normal(m, 2, units, seed=2),
            normal(n, 2, units, seed=3))


@jax.jit
def sum_and_gradients(matrix, weights, h, g):
    out, pull_back = jax.vjp(matrix.aggregate, weights, h)
    return out, *pull_back(g)


def loop(matrix, weights, h, g):
    """The same three arrays, entry by entry."""
    out, by_weights, by_h = np.zeros_like(g), np.zeros_like(weights), np.zeros_like(h)
    for e, (i, j) in enumerate(zip(matrix.rows, matrix.cols)):
        out[i] += weights[e][:, None] * h[j]
        by_weights[e] = (g[i] * h[j]).sum(axis=1)
        by_h[j] += weights[e][:, None] * g[i]
    return out, by_weights, by_h


def test_groups_of_the_worked_example():
    # The comment's matrix: ten entries in row 0, one in row 1. Entry e has column 2 e.
    entries, share, other, owner = group(np.array([0] * 10 + [1]), 2 * np.arange(11))
    assert entries.T.tolist() == [[*range(8)], [8, 9, 8, 8, 8, 8, 8, 8], [10] * 8]
    close(share.T, [[1] * 8, [1 / 7, 1] + [1 / 7] * 6, [1 / 8] * 8], 1e-7)
    assert np.array_equal(other, 2 * entries)
    assert owner.tolist() == [0, 0, 1]


def test_sum_product_and_gradients_are_those_of_a_loop(tolerance):
    for plain in odd_matrix(), odd_matrix([0, 0, 0]):
        a, given = grouped(plain), arguments(plain)
        leaves_close(sum_and_gradients(a, *given), loop(plain, *given), tolerance)

        # The form without heads.
        one_head = sum_and_gradients(a, *(array[:, 0] for array in given))
        expected = loop(plain, *(array[:, :1] for array in given))
        leaves_close(one_head, tuple(array[:, 0] for array in expected), tolerance)


def test_a_row_reads_nothing_but_its_entries_and_infinite_numbers_stay_infinite():
    plain = odd_matrix()
    a, (weights, h, g) = grouped(plain), arguments(plain)
    for i in range(10):
        mine = plain.rows == i
        its_weights, its_h = np.full_like(weights, np.nan), np.full_like(h, np.nan)
        its_weights[mine] = 1
        its_h[plain.cols[mine]] = np.inf
        out, _, _ = sum_and_gradients(a, its_weights, its_h, g)
        assert np.all(out[i] == (np.inf if mine.any() else 0))


def test_no_array_has_a_number_for_each_entry_head_and_unit():
    plain = from_dense(np.ones((40, 56)))

    def largest(a):
        jaxpr = jax.make_jaxpr(sum_and_gradients)(a, *arguments(plain, units=32))
        found = re.findall(r"\w\[([\d,]+)\]", str(jaxpr))      # f32[40,2,32]
        return max(np.prod(np.array(shape.split(","), int)) for shape in found)

    assert largest(plain) == 40 * 56 * 2 * 32
    # The sums of the groups are the largest: an eighth of the messages.
    assert largest(grouped(plain)) == 40 * 56 * 2 * 32 / 8


def test_groups_are_made_where_rows_and_columns_have_six_entries_on_average():
    graph = random_graph(sparse=False)
    assert faster.grouped_graph(graph).x is graph.x
    for shape, pays in ((6, 6), True), ((6, 5), False), ((5, 6), False):
        x = from_dense(np.ones(shape))
        changed = faster.grouped_graph(dataclasses.replace(graph, x=x, adj=x))
        kind = faster.Grouped if pays else Sparse
        assert type(changed.x) is type(changed.adj) is kind


def test_what_else_a_sparse_does():
    plain = odd_matrix()
    a, (weights, h, _) = grouped(plain), arguments(plain)
    close(a.todense(), dense(plain), 0)
    halves = weights.astype(jnp.bfloat16), h.astype(jnp.bfloat16)
    assert jax.eval_shape(a.aggregate, *halves).dtype == jnp.bfloat16


def test_misfits_arrays_and_forward_mode_are_refused():
    a = grouped(odd_matrix())                           # [10, 14], 98 entries
    with pytest.raises(ValueError, match=r"cannot sum weights \[98\], h \[10, 2\]"):
        a.aggregate(np.ones(98), np.ones((10, 2)))
    with pytest.raises(ValueError, match="is no array: say .todense"):
        np.asarray(a)
    both = np.ones(98), np.ones((14, 2))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(a.aggregate, both, both)


# 3. Random bits that cost less --------------------------------------------------------

def words(pairs, num, kind="uint32"):
    """The first num numbers of each key, a pair of halves: [number of keys, num]."""
    keys = jax.random.wrap_key_data(np.array(pairs, np.uint32), impl=faster_bits)
    draw = jax.vmap(lambda key: jax.random.bits(key, (num,), kind))
    return np.asarray(jax.jit(draw)(keys))


def triple32(x):
    """The hash as C. Wellons published it, in integers of Python."""
    for shift, factor in (17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB):
        x = (x ^ x >> shift) * factor % 2 ** 32
    return x ^ x >> 14


def test_words_are_the_formula_of_the_comment():
    pairs = [(0, 0), (1, 0), (0, 1), (7, 7), (0x1234ABCD, 0x9876FEDC), (3, 2 ** 31)]
    first = [triple32((i + 0x9E3779B9) % 2 ** 32) for i in range(300)]
    expected = np.array([[triple32(triple32(word ^ a) ^ b) for word in first]
                         for a, b in pairs], np.uint64)
    assert np.array_equal(words(pairs, 300), expected)
    for width in 8, 16:
        numbers = words(pairs, 300, f"uint{width}")
        assert np.array_equal(numbers, expected >> (32 - width))
    with x64():
        numbers = words(pairs, 150, "uint64")
    assert np.array_equal(numbers, expected[:, :150] << 32 | expected[:, 150:])


def coins(words):
    """Their bits as 1 and -1: [n, k] -> [n, 32 k]."""
    return 2 * np.unpackbits(words.view(np.uint8), axis=1).astype(np.float32) - 1


def test_words_look_like_throws_of_coins_in_each_key_and_from_key_to_key():
    n = 2 ** 16
    for a, b in (0, 0), (0x1234ABCD, 0x9876FEDC):
        numbers = words([(a, b)], n).T
        assert len(np.unique(numbers)) == n and 0 not in numbers
        signs = coins(numbers)
        # Each bit is 1 in half of all cases, within five standard deviations.
        assert np.abs(signs.mean(axis=0)).max() < 5 / np.sqrt(n)
        # No bit says anything on another of its word, or of a word near to it, nor do
        # the words of keys that differ in a bit or two.
        near = [np.roll(signs, shift, axis=0) for shift in (0, 1, 2, 3, 8, 64, 512)]
        flipped = [(a ^ 1 << bit, b) for bit in range(32)]
        flipped += [(a, b ^ 1 << bit) for bit in range(32)]
        keys = coins(words([(a, b), *flipped], n // 32))
        for one, other in (signs.T, np.hstack(near)), (keys, keys.T):
            correlation = np.array(jnp.matmul(one, other)) / n
            np.fill_diagonal(correlation, 0)            # with itself
            assert np.abs(correlation).max() < 5.5 / np.sqrt(n)


def test_no_two_keys_give_the_same_words_in_other_places():
    # Of n and n words out of 2^32, chance makes n n / 2^32 equal. Here this is 1, give
    # or take 1. More than 8 come once in 900,000 pairs of keys.
    n, (a, b) = 2 ** 16, (0x1234ABCD, 0x9876FEDC)
    changed = [(b, a)]
    for d in 5, 2 ** 10, 2 ** 31:
        changed += [(a + d, b), (a ^ d, b), (a, b - d), (a, b ^ d)]
    first, *rest = words([(a, b), *changed], n)
    assert max(len(np.intersect1d(first, second)) for second in rest) <= 8


def test_seed_split_and_fold_in_are_those_of_threefry():
    def derive(seed, impl=None):
        key = jax.random.fold_in(jax.random.key(seed, impl=impl), 2 ** 31)
        return jax.random.key_data(jax.random.split(key, (2, 3)))

    for seed in 0, 2 ** 32 - 1:
        assert np.array_equal(derive(seed, faster_bits), derive(seed))


def test_more_words_than_a_key_has_are_refused():
    def draw(width, num):       # without numbers: 2^32 of them would be 16 GB
        key = np.zeros(2, np.uint32)
        jax.eval_shape(lambda: faster.random_bits(key, width, (num,)))

    draw(32, 2 ** 32)
    for width, most in (32, 2 ** 32), (64, 2 ** 31):
        with pytest.raises(ValueError, match="a key has 2\\^32"):
            draw(width, most + 1)


# 4. Ten epochs in one call ------------------------------------------------------------


def quick_train(model, graph, steps=minignn.adam_steps, **settings):
    recipe = dataclasses.replace(GCN_RECIPE, **settings)
    return minignn.train(model, graph, KEY, recipe, log_every=0, steps=steps)


def test_without_dropout_params_and_history_are_those_of_adam_steps(monkeypatch):
    monkeypatch.setattr(faster, "MIN_ENTRIES", 1)       # adj in groups, too
    with x64():
        graph, model = random_graph(), two_layers(0)
        steps = faster.faster(graph, hops=2)
        for settings, stop in (
                (dict(epochs=23, patience=23, weight_decay=0.1), 23),
                (dict(epochs=90, patience=9, step_size=0.1), 13)):      # in a block
            params, history = quick_train(model, graph, steps=steps, **settings)
            expected = quick_train(model, graph, **settings)
            leaves_close((params, history), expected, 1e-9)
            assert len(history["val_loss"]) == stop


def test_steps_see_the_receptive_fields_compile_once_and_take_any_key(monkeypatch):
    # Without jit of its own, this runs again whenever run_block is compiled.
    monkeypatch.setattr(faster, "evaluate", minignn.evaluate.__wrapped__)
    graph, model = random_graph(), GCN(8, 3)
    steps = faster.faster(graph, hops=2)
    traced = []

    def init_fun(rng, input_shape):             # the same for each key
        return model[0](jax.random.key(0), input_shape)

    def apply_fun(params, x, adj, rng=None):
        traced.append((adj.shape[0], type(x), type(adj), rng is not None))
        return model[1](params, x, adj, rng)

    def run(rng, graph=graph, **settings):
        recipe = dataclasses.replace(GCN_RECIPE, epochs=13, **settings)
        return list(steps((init_fun, apply_fun), graph, rng, recipe))

    with switch("jax_debug_key_reuse", True):
        runs = [run(jax.random.key(0)), run(jax.random.PRNGKey(0)),
                run(jax.random.key(1)), run(jax.random.key(0, impl="rbg")),
                run(jax.random.key(0), step_size=0.1, patience=3)]
    by_steps = receptive_field(graph, 2).adj.shape[0]
    by_rule = receptive_field(graph, 2, ("train", "val")).adj.shape[0]
    assert traced == [(by_steps, faster.Grouped, Sparse, True),
                      (by_rule, faster.Grouped, Sparse, False)]

    epochs, params, metrics = zip(*runs[0])
    assert epochs == tuple(range(1, 14))
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
    is_nan = {name for name, number in metrics[0].items() if np.isnan(number)}
    assert is_nan == {"test_loss", "test_accuracy"}
    losses = [float(epochs[0][2]["train_loss"]) for epochs in runs]
    assert losses[0] == losses[1] and len(set(losses)) == 4
    with pytest.raises(ValueError, match="made for another graph"):
        run(KEY, dataclasses.replace(graph))


# 5. More than one device --------------------------------------------------------------
#
# JAX cannot change the number of devices once it runs. So a fresh Python, which makes
# several devices of one CPU, imports this file and calls a function of it.


def start(source, devices=1):
    settings = {
        "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", source], env=os.environ | settings,
        cwd=ROOT / "tests", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process):
    out, err = process.communicate(timeout=170)
    assert process.returncode == 0, err
    return out


@functools.partial(jax.jit, static_argnames="rate")
def gradient_and_logits(params, graph, rate=0.5):
    """The gradient of the loss, and the logits of the training nodes."""
    def loss(params):
        logits = minignn.predict(two_layers(rate), params, graph, KEY)[graph.train]
        return minignn.cross_entropy(logits, graph.y[graph.train]), logits

    return jax.grad(loss, has_aux=True)(params)


def moved(graph, name):
    """The graph with the last node's self-loop moved to row, or to column, 3."""
    places = jnp.where(graph.adj.rows == 29, 3, getattr(graph.adj, name))
    adj = dataclasses.replace(graph.adj, **{name: places})
    return dataclasses.replace(graph, adj=adj)


def check_four_devices():
    graph = random_graph()
    init_fun, _ = two_layers(0.5)
    _, params = init_fun(KEY, graph.x.shape)
    for mesh in (Mesh(jax.devices()[:3], ("a",)), jax.make_mesh((2, 2), ("a", "b"))):
        sharded = shard_graph(graph, mesh)
        for one, many in (graph.adj, sharded.adj), (graph.x, sharded.x):
            num, (n, m) = len(one.rows), one.shape
            for name, fill in ("rows", n), ("cols", m - 1), ("values", 0):
                array = getattr(many, name)
                shard, = array.sharding.shard_shape(array.shape)
                assert shard == -(-num // mesh.size)    # num / mesh.size, rounded up
                assert np.array_equal(array[:num], getattr(one, name))
                assert len(array) > num and np.all(array[num:] == fill)
        for name in "y", "train", "val", "test":
            copied = getattr(sharded, name)
            assert copied.sharding.is_fully_replicated
            assert len(copied.sharding.device_set) == mesh.size
            assert np.array_equal(copied, getattr(graph, name))

    # With params 300 times as large, the scores of attention are beyond exp's range.
    for scale, name in (1, "rows"), (300, "cols"):
        larger = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        four = gradient_and_logits(larger, sharded)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(four))
        leaves_close(four, gradient_and_logits(larger, graph), 1e-5 * scale)
        # What shard_graph refuses would go wrong.
        adj = shard_matrix(moved(graph, name).adj, sharded.adj.rows.sharding)
        refused = dataclasses.replace(sharded, adj=adj)
        (layer, _), _ = gradient_and_logits(larger, refused)
        assert np.isnan(layer[0]).any()


def test_four_devices_give_what_one_gives():
    output(start("import test_scale; test_scale.check_four_devices()", devices=4))


def test_a_last_node_without_a_self_loop_is_refused():
    for name in "rows", "cols":
        with pytest.raises(ValueError, match=r"adj has no entry \[29, 29\]"):
            shard_graph(moved(random_graph(), name), jax.make_mesh((1,), ("a",)))


def five_losses(graph):
    _, history = quick_train(GraphConvolution(3), graph, epochs=5)
    return history["train_loss"]


def test_two_processes_train_to_the_loss_of_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = [start(f"""if True:
        import jax
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize("127.0.0.1:{port}", 2, {number})
        import test_scale as t
        graph = t.shard_graph(t.random_graph(False), jax.make_mesh((2,), ("edges",)))
        print(*t.five_losses(graph))""") for number in range(2)]
    alone = five_losses(random_graph(False))
    for process in both:
        last_line = output(process).splitlines()[-1]    # gloo prints lines before it
        close([float(loss) for loss in last_line.split()], alone, 2e-5)
