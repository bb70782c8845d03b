"""The training of minignn.py, sooner.

    import jax
    from minignn import GCN, GCN_RECIPE, load_graph, train
    from scale.faster import faster

    graph = load_graph()
    model = GCN(16, 7)
    train(model, graph, jax.random.key(0), GCN_RECIPE, steps=faster(graph, hops=2))

faster returns steps that do what minignn.adam_steps does, with four differences, made
for a CPU: they compute only what the losses depend on (section 1), sum the entries of a
matrix in groups (2), draw random numbers that cost less (3), and take ten epochs in one
call (4). The masks of dropout are other ones, of the same distribution, and the metrics
of the test nodes, which train does not read, are nan; else no number changes beyond
rounding.
"""
import dataclasses
import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

from minignn import Sparse, adam, check_aggregate, evaluate, make_sparse, train_step

# 1. The receptive field ---------------------------------------------------------------


def receptive_field(graph, hops, splits=("train",)):
    """The part of a graph that the losses of some splits depend on -> Graph.

    A layer brings features from neighbours, one hop; so the output at a node depends on
    nodes up to as many hops away as the model has layers. On the path 0 - 1 - 2 - 3
    with the training node 0 and 2 hops:

        layer 2 computes node 0, from 0 and 1
        layer 1 computes nodes 0 and 1, from 0, 1 and 2

    What is left is nodes 0, 1 and 2, numbered anew, and rows 0 and 1 of the adjacency,
    with the values that they have in the whole graph. Loss and gradient are those of
    the whole graph, dropout's masks aside. (Each layer still runs on all three nodes.
    What layer 1 computes of 2, and layer 2 of 1 and 2, is wrong, and is not used.)

    hops: the number of the model's layers, at least 1. With fewer, the gradient is
        wrong, and nothing says so; with more, it is right, but takes longer.
    splits: those that the result keeps; its others are empty.
    """
    if hops < 1:
        raise ValueError(f"hops is {hops}: it must be at least 1")
    rows, cols, values = map(np.asarray, (graph.adj.rows, graph.adj.cols,
                                          graph.adj.values))

    # From the last layer to the first, add the nodes that each layer reads; the layer
    # before must compute them. On the path: {0, 1}, then {0, 1, 2}.
    needed = np.zeros(graph.adj.shape[0], bool)
    for split in splits:
        needed[np.asarray(getattr(graph, split))] = True
    for _ in range(hops):
        is_used = needed[rows]              # the entries of what this layer computes
        needed[cols[is_used]] = True

    # is_used: now the entries that the first layer uses, those of the later ones among
    # them. needed: now the nodes that it reads.
    nodes = np.flatnonzero(needed)
    new_number = np.cumsum(needed) - 1                  # of a node that is needed
    adj = make_sparse(new_number[rows[is_used]], new_number[cols[is_used]],
                      values[is_used], (len(nodes), len(nodes)))
    x = graph.x
    if hasattr(x, "values"):                            # a Sparse
        x_rows, x_cols, x_values = map(np.asarray, (x.rows, x.cols, x.values))
        is_kept = needed[x_rows]
        x = make_sparse(new_number[x_rows[is_kept]], x_cols[is_kept], x_values[is_kept],
                        (len(nodes), x.shape[1]))
    else:
        x = x[nodes]
    renumbered = dict.fromkeys(("train", "val", "test"), jnp.zeros(0, jnp.int32))
    for split in splits:
        kept = new_number[np.asarray(getattr(graph, split))]
        renumbered[split] = jnp.asarray(kept, jnp.int32)
    return dataclasses.replace(graph, x=x, adj=adj, y=graph.y[nodes], **renumbered)


# 2. Sums in groups of eight -----------------------------------------------------------
#
# The plain form computes a message for each entry, stores it, and adds the messages to
# their rows one at a time. Take a matrix whose row 0 has ten entries, and row 1 one:
#
#     entry    0  1  2  3  4  5  6  7  8  9  10
#     row      0  0  0  0  0  0  0  0  0  0  1
#
# Cut the entries of each row into groups of eight. Where entries are missing, the first
# of the group is repeated, and all its places share its weight. (A weight of 0 for the
# repeats would not do: where h is infinite, 0 * h is nan.)
#
#     group 0, row 0:   0  1  2  3  4  5  6  7
#     group 1, row 0:   8  9  8  8  8  8  8  8       each 8 with 1/7 of its weight
#     group 2, row 1:  10 10 10 10 10 10 10 10       with 1/8
#
# The sum of a group is eight products in one expression, which XLA compiles to one loop
# that stores no message. Only the sums of the groups are added to their rows. (The
# gradient by h does the same with columns in place of rows.)
#
# On a CPU, that pays where there are few repeats. Cora's features have 18 entries a
# row, and gain; its adjacency has 5, and can lose.

GROUP = 8           # of 4, 8 and 16, the quickest on Cora
MIN_ENTRIES = 6     # groups pay if rows and columns have so many on average


def group(owner, other):
    """Cut the entries of each owner (each row, say) into groups of eight.

    owner, other: NumPy [E], the row and the column of each entry, or the reverse.
    Returns four arrays: the entries in each group [8, G]; the share of its weight that
    each place has [8, G]; the `other` of each [8, G]; the owner of each group [G].
    """
    order = np.argsort(owner, kind="stable")            # the entries, by owner
    count = np.bincount(owner)                          # entries of each owner
    start = np.cumsum(count) - count                    # the first of them, in `order`
    # Of each entry in `order`:
    rank = np.arange(len(owner)) - np.repeat(start, count)      # 0, 1, ... in its owner
    place = rank % GROUP                                        # 0 to 7, in its group
    group_number = np.cumsum(place == 0) - 1                    # 0 to G - 1

    first = order[place == 0]                           # of each group: [G]
    entries = np.tile(first, (GROUP, 1))
    entries[place, group_number] = order
    is_first = entries == first
    num_places = is_first.sum(axis=0)                   # of each group's first: [G]
    share = np.where(is_first, 1 / num_places, 1)
    return (
        jnp.asarray(entries, jnp.int32),
        jnp.asarray(share, float),
        jnp.asarray(other[entries], jnp.int32),
        jnp.asarray(owner[first], jnp.int32))


def stored(h):
    """h itself, but computed once and stored.

    XLA would fuse the computation of h into the loop that reads it, and compute row j
    anew for each entry that reads it. It does not fuse a scatter; this one sets row j
    to row j. (On a CPU, a jax.lax.optimization_barrier is gone before anything is
    fused.)
    """
    rows = jnp.arange(len(h))
    return jnp.zeros_like(h).at[rows].set(h, unique_indices=True)


def sum_groups(weights, h, groups, num_owners):
    """Sums of weights[e] * h[other] by owner: [E, H], [m, H, D] -> [n, H, D]."""
    entries, share, other, owner = groups
    share = share.astype(weights.dtype)[:, :, None]     # bfloat16 stays bfloat16
    weights = share * weights[entries]                  # [E, H] -> [8, G, H]
    h = stored(h)
    total = 0
    for k in range(GROUP):              # [G, H, D]; of the eight, XLA makes one loop
        total = total + weights[k][:, :, None] * h[other[k]]
    return jax.ops.segment_sum(total, owner, num_owners)            # -> [n, H, D]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """Used as a minignn.Sparse is. grouped(sparse) makes one."""

    # (rows, cols, groups by row, groups by column): one field, as they belong together
    index: tuple
    values: jax.Array               # [E] floats
    shape: tuple = dataclasses.field(metadata={"static": True})         # (n, m)

    rows = property(lambda self: self.index[0])        # [E] int32
    cols = property(lambda self: self.index[1])        # [E] int32

    def aggregate(self, weights, h):
        """As Sparse: [E], [m, k] -> [n, k], or [E, H], [m, H, D] -> [n, H, D]."""
        check_aggregate(self, weights, h)
        h = jnp.asarray(h)
        has_heads = h.ndim == 3
        if not has_heads:
            weights, h = weights[:, None], h[:, None, :]        # one head: H = 1
        # sum_entries, below, is sum_groups by row, with a gradient of its own. (jit, as
        # each of the eight products would be stored otherwise; it compiles once.)
        out = jax.jit(sum_entries)(self, weights, h)
        return out if has_heads else out[:, 0, :]

    __matmul__ = Sparse.__matmul__
    todense = Sparse.todense
    __array__ = Sparse.__array__
    __repr__ = Sparse.__repr__


def grouped(sparse):
    """A Sparse as a Grouped."""
    rows, cols = np.asarray(sparse.rows), np.asarray(sparse.cols)
    index = sparse.rows, sparse.cols, group(rows, cols), group(cols, rows)
    return Grouped(index, sparse.values, sparse.shape)


def grouped_graph(graph):
    """The same Graph, its matrices as Grouped where groups pay."""
    def where_it_pays(matrix):
        if not hasattr(matrix, "values"):                   # an array
            return matrix
        entries = len(matrix.values) / max(matrix.shape)    # of a row, or of a column
        return grouped(matrix) if entries >= MIN_ENTRIES else matrix

    return dataclasses.replace(
        graph, x=where_it_pays(graph.x), adj=where_it_pays(graph.adj))


# The gradient that JAX would derive goes entry by entry again, so it is written here.
# With g the gradient by out, and entry e in row i and column j:
#
#     by h_j:  the sum over the entries e of column j of w_e g_i, a sum by columns
#     by w_e:  g_i . h_j, in each head
#
# Reverse mode only: JAX cannot push forward through a custom_vjp (jvp, jax.hessian).


@jax.custom_vjp
def sum_entries(matrix, weights, h):
    _, _, by_row, _ = matrix.index
    return sum_groups(weights, h, by_row, matrix.shape[0])


def forward(matrix, weights, h):
    return sum_entries(matrix, weights, h), (matrix, weights, h)


def backward(saved, g):
    matrix, weights, h = saved
    rows, cols, _, by_col = matrix.index

    # g_i . h_j, one unit d after the other, so that nothing has the size [E, H, D].
    def add_unit(total, unit):
        g_d, h_d = unit                                 # [n, H], [m, H]
        return total + g_d[rows] * h_d[cols], None      # [E, H]

    units = g.transpose(2, 0, 1), h.transpose(2, 0, 1)  # [., H, D] -> [D, ., H]
    grad_weights, _ = jax.lax.scan(add_unit, jnp.zeros_like(weights), units)
    grad_h = sum_groups(weights, g, by_col, len(h))
    return None, grad_weights, grad_h   # None: matrix.values come as weights, if at all


sum_entries.defvjp(forward, backward)


# 3. Random bits that cost less --------------------------------------------------------
#
# JAX makes random number i of a key by a hash of (key, i) that comes from a cipher. For
# dropout's masks, that takes a fifth of a plain step. The hash here is shorter:
#
#     word = mix(i + c)        so that i and i + 1 are unlike; c = 0x9E3779B9
#     word = mix(word ^ a)     a and b: the two halves of the key
#     word = mix(word ^ b)
#
# mix (triple32, C. Wellons 2018) maps the 2^32 words one to one onto themselves, and
# each bit of its input changes each bit of its output in about half of all cases.
#
# The counter is hashed before the key enters. Otherwise, the words would be
# mix(mix(i ^ a) ^ b), and the key (a ^ d, b) would give those of (a, b) in another
# order: word i ^ d for word i. The constant c is there because mix(0) is 0: without it,
# word 0 of the key (0, 0) would be 0.


def mix(word):
    word = (word ^ (word >> 17)) * np.uint32(0xED5AD4BB)
    word = (word ^ (word >> 11)) * np.uint32(0xAC4C1B51)
    word = (word ^ (word >> 15)) * np.uint32(0x31848BAB)
    return word ^ (word >> 14)


def random_bits(key, bit_width, shape):
    """Unsigned integers of 8, 16, 32 or 64 random bits each. key: [2] uint32."""
    size = math.prod(shape) * (2 if bit_width == 64 else 1)
    if size > 2 ** 32:
        raise ValueError(f"{shape} needs {size} words: a key has 2^32")
    first = mix(jax.lax.iota(jnp.uint32, size) + np.uint32(0x9E3779B9))

    # A scan instead of two lines, because XLA stores its result. Otherwise it would
    # hash again wherever a mask is used, forwards and backwards. (stored is slower.)
    def mix_in(word, half):
        return mix(word ^ half), None

    words, _ = jax.lax.scan(mix_in, first, key)
    if bit_width == 64:
        high, low = words.reshape(2, -1).astype(jnp.uint64)
        return (high << 32 | low).reshape(shape)
    dtype = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width]
    return (words >> (32 - bit_width)).astype(dtype).reshape(shape)


# A kind of key, like JAX's own but for the bits. (split and fold_in need few.)
faster_bits = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    fold_in=threefry_prng_impl.fold_in,
    random_bits=random_bits,
    name="faster_bits",
    tag="fast")

# 4. Ten epochs in one call ------------------------------------------------------------
#
# Each call of a compiled function costs time of its own: its arguments are looked
# through, a thread of XLA's takes over, and Python waits for it. On one core, that is a
# quarter or a third of a GCN's epoch on Cora.
#
#     adam_steps      step 1, evaluate 1, step 2, evaluate 2, step 3, ...
#     here            (step 1, evaluate 1, ... step 10, evaluate 10), (step 11, ...
#
# If the training ends within the ten, the rest, nine at most, was computed for nothing.

BLOCK = 10


@functools.partial(jax.jit, static_argnames="model")
def run_block(model, params, state, step_graph, eval_graph, rng, recipe):
    """Ten epochs -> (params, state) after them, (params, metrics) of all: [10, ...]."""
    def run_epoch(carry, _):
        params, state = train_step(model, *carry, step_graph, rng, recipe)
        return (params, state), (params, evaluate(model, params, eval_graph))

    return jax.lax.scan(run_epoch, (params, state), length=BLOCK)


def faster(graph, hops):
    """Steps for train(model, graph, ..., steps=faster(graph, hops)), on this graph.

    hops: the number of the model's layers; see receptive_field.
    The steps yield what minignn.adam_steps yields, as NumPy arrays. They raise
    ValueError for any other object than this graph.
    """
    step_graph = grouped_graph(receptive_field(graph, hops))
    eval_graph = grouped_graph(receptive_field(graph, hops, ("train", "val")))

    def steps(model, given_graph, rng, recipe):
        if given_graph is not graph:
            raise ValueError("these steps are made for another graph: use "
                             "steps=faster(graph, hops) with the graph you train on")
        init_fun, _ = model
        init_rng, dropout_rng = jax.random.split(rng)
        _, params = init_fun(init_rng, graph.x.shape)
        init_adam, _ = adam(recipe.step_size)
        state = init_adam(params)
        key_data = jax.random.bits(dropout_rng, (2,), "uint32")   # from any kind of key
        fast_rng = jax.random.wrap_key_data(key_data, impl=faster_bits)
        for done in range(0, recipe.epochs, BLOCK):
            (params, state), block = run_block(
                model, params, state, step_graph, eval_graph, fast_rng, recipe)
            block = jax.device_get(block)
            for i in range(min(BLOCK, recipe.epochs - done)):
                params_i, metrics_i = jax.tree.map(operator.itemgetter(i), block)
                yield done + i + 1, params_i, metrics_i

    return steps
