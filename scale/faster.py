"""The training of minignn.py, sooner.

    from scale.faster import faster, faster_bits, faster_train

    graph = faster(load_graph())                    its matrices sum quicker
    rng = jax.random.key(0, impl=faster_bits)       a key whose random numbers cost less
    faster_train(model, graph, rng)                 train, with fewer calls

faster and faster_train change no number beyond rounding. faster_bits draws other random
numbers than JAX's own generator, of the same distribution. Nothing in minignn.py knows
of this file.
"""
import dataclasses
import functools
import math
import operator
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

from minignn import (
    Sparse,
    adam,
    check_not_negative,
    check_splits,
    check_whole,
    evaluate,
    loss_rule,
    put_where,
    report,
    train_step,
)

# 1. Sums in groups of eight -----------------------------------------------------------
#
# The plain form computes a message for each entry, stores it, and adds the messages to
# their rows one at a time. On a CPU the last part is the slow one. Take a matrix whose
# row 0 has ten entries and whose row 1 has one:
#
#     entry    0  1  2  3  4  5  6  7  8  9  10
#     row      0  0  0  0  0  0  0  0  0  0  1
#
# Cut the entries of each row into groups of eight. Where entries are missing, the first
# of the group is repeated, and all its places share its weight:
#
#     group 0, row 0:   0  1  2  3  4  5  6  7
#     group 1, row 0:   8  9  8  8  8  8  8  8       each 8 with 1/7 of its weight
#     group 2, row 1:  10 10 10 10 10 10 10 10       with 1/8
#
# (The places that repeat could have the weight 0 instead, but 0 * inf is nan.)
#
# The sum of a group is eight products in one expression, which XLA compiles to one loop
# that stores no message. Only the sums of the groups are added to their rows:
#
#     out_i = the sum over the groups of row i, and over the eight places of each, of
#             share * w_e h_e          e: the entry in that place; h_e: h[cols[e]]
#
# On a CPU, that pays where most places have an entry of their own. Cora's features have
# 18 entries a row; its adjacency has 5, and is faster in the plain form.

GROUP = 8
LEAST = 6       # entries a row, on average, from which on there are groups


def group(owner, other):
    """Cut the entries of each owner (each row, say) into groups of eight.

    owner, other: NumPy [E], the row and the column of each entry, or the reverse.
    Returns four arrays: the entries in each group [8, G]; the share of its weight that
    each place has [8, G]; the `other` of each [8, G]; the owner of each group [G].
    """
    num = len(owner)
    # The entries by owner. Sorting owner * E + entry is a stable argsort, only quicker.
    order = np.sort(owner.astype(np.int64) * num + np.arange(num)) % num
    count = np.bincount(owner)                          # entries of each owner
    start = np.cumsum(count) - count                    # the first of them, in `order`
    place = np.arange(num) - np.repeat(start, count)    # 0, 1, 2, ... within each owner
    place = place % GROUP                               # 0 to 7, within each group
    number = np.cumsum(place == 0) - 1                  # of the group: 0 to G - 1

    first = order[place == 0]                           # of each group: [G]
    entries = np.tile(first, (GROUP, 1))
    entries[place, number] = order
    is_first = entries == first
    share = np.where(is_first, 1 / is_first.sum(axis=0), 1)
    return (
        jnp.asarray(entries, jnp.int32),
        jnp.asarray(share, float),
        jnp.asarray(other[entries], jnp.int32),
        jnp.asarray(owner[first], jnp.int32))


def stored(h):
    """h itself, but computed once and stored.

    XLA would fuse what h is computed from into what reads it. Row j of h would then be
    computed anew for each entry that reads it. It does not fuse a scatter, such as this
    one, which sets row j to row j. (On a CPU, a jax.lax.optimization_barrier is gone
    before anything is fused.)
    """
    rows = jnp.arange(len(h))
    return jnp.zeros_like(h).at[rows].set(h, unique_indices=True)


def sum_groups(weights, h, groups, num_owners):
    """Sums of weights[e] * h[other] by owner: [E, H], [m, H, D] -> [n, H, D]."""
    entries, share, other, owner = groups
    share = share.astype(weights.dtype)[:, :, None]
    weights = share * weights[entries]                  # [E, H] -> [8, G, H]
    h = stored(h)
    total = 0
    for k in range(GROUP):                              # -> [G, H, D], in one loop
        total = total + weights[k][:, :, None] * h[other[k]]
    return jax.ops.segment_sum(total, owner, num_owners)            # -> [n, H, D]


# The gradient that JAX would derive goes entry by entry again, so it is written here.
# With g the gradient by out, and entry e in row i and column j:
#
#     by h_j:  the sum over the entries e of column j of w_e g_i, a sum by columns
#     by w_e:  g_i . h_j, in each head
#
# Reverse mode only: JAX cannot push forward through a custom_vjp (jvp, jax.hessian).


# In these, matrix is a Grouped, below, whose places are (rows, cols, groups by row,
# groups by column).


@jax.custom_vjp
def sum_entries(matrix, weights, h):
    _, _, by_row, _ = matrix.places
    return sum_groups(weights, h, by_row, matrix.shape[0])


def forward(matrix, weights, h):
    return sum_entries(matrix, weights, h), (matrix, weights, h)


def backward(saved, g):
    matrix, weights, h = saved
    rows, cols, _, by_col = matrix.places

    def add_unit(total, unit):                          # one d after the other, so that
        g_d, h_d = unit                                 # nothing has the size [E, H, D]
        return total + g_d[rows] * h_d[cols], None      # [n, H], [m, H] -> [E, H]

    units = g.transpose(2, 0, 1), h.transpose(2, 0, 1)  # [., H, D] -> [D, ., H]
    by_weight, _ = jax.lax.scan(add_unit, jnp.zeros_like(weights), units)
    by_h = sum_groups(weights, g, by_col, len(h))
    return None, by_weight, by_h    # None: of the matrix, only its places were used


sum_entries.defvjp(forward, backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
    """What minignn.Sparse is, with groups where they pay. grouped(sparse) makes one.

    Rows and columns are no fields: dataclasses.replace cannot change them and leave the
    groups as they were.
    """

    # (rows, cols, groups by row, groups by column), or (rows, cols) without groups
    places: tuple
    values: jax.Array               # [E] floats
    shape: tuple = dataclasses.field(metadata={"static": True})         # (n, m)

    @property
    def rows(self):
        """[E] int32."""
        return self.places[0]

    @property
    def cols(self):
        """[E] int32."""
        return self.places[1]

    def __matmul__(self, b):
        """As Sparse: [m, k] -> [n, k]."""
        b = jnp.asarray(b)
        if b.ndim != 2:
            raise ValueError(f"cannot multiply {self.shape} by {b.shape}")
        out = self.aggregate(self.values[:, None], b[:, None, :])   # one head: H = 1
        return out[:, 0, :]                                         # -> [n, k]

    def aggregate(self, weights, h):
        """As Sparse: [E, H], [m, H, D] -> [n, H, D]."""
        if len(self.places) == 2:
            plain = Sparse(self.rows, self.cols, self.values, self.shape)
            return plain.aggregate(weights, h)
        if len(h) != self.shape[1]:
            raise ValueError(f"h has {len(h)} rows: it must have {self.shape[1]}")
        # For weights that are too few, JAX would silently repeat the last.
        if len(weights) != len(self.rows):
            raise ValueError(f"{len(weights)} weights for {len(self.rows)} entries")
        # Not compiled, it would store each of the eight products.
        return jax.jit(sum_entries)(self, weights, h)


def grouped(sparse, least=LEAST):
    """A Sparse, or a Grouped, as a Grouped.

    It has groups if there are, on average, `least` entries to a row and to a column.
    """
    rows, cols = np.asarray(sparse.rows), np.asarray(sparse.cols)
    places = jnp.asarray(rows), jnp.asarray(cols)
    if len(rows) >= least * max(sparse.shape):
        places = *places, group(rows, cols), group(cols, rows)
    return Grouped(places, jnp.asarray(sparse.values), sparse.shape)


def faster(graph):
    """The same Graph with its matrices as Grouped; an x that is an array stays."""
    x = grouped(graph.x) if hasattr(graph.x, "values") else graph.x
    return dataclasses.replace(graph, x=x, adj=grouped(graph.adj))


# 2. Random bits that cost less --------------------------------------------------------
#
# JAX makes random number i of a key by a hash of (key, i) that comes from a cipher, and
# takes a large part of an epoch for dropout's masks. The hash here is shorter:
#
#     word = mix(i + c)        so that neighbours are unlike; c: a constant
#     word = mix(word ^ a)     a and b: the two halves of the key
#     word = mix(word ^ b)
#
# mix (triple32, C. Wellons 2018) maps the 2^32 words one to one onto themselves, and
# each bit of its input changes each bit of its output in about half of all cases:
#
#     mix(1) = 0x042741D6    mix(2) = 0xF1DFE8E9    mix(3) = 0xC0F0B547
#
# The counter is hashed before the key enters. Otherwise, the words of the keys (a, b)
# and (a ^ d, b) would be the same words in other places: i and i ^ d. The constant c is
# there because mix(0) is 0: without it, word 0 of the key (0, 0) would be 0. (Since mix
# is one to one, no word comes twice within one key, as one in 2^32 pairs would.)


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
    # hash again wherever a mask is used, forwards and backwards. (A scatter, as in
    # `stored`, would do, too. This costs no copy.)
    def enter(word, half):
        return mix(word ^ half), None

    words, _ = jax.lax.scan(enter, first, key)
    if bit_width == 64:
        high, low = words.reshape(2, -1).astype(jnp.uint64)
        return (high << 32 | low).reshape(shape)
    dtype = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[bit_width]
    return (words >> (32 - bit_width)).astype(dtype).reshape(shape)


faster_bits = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    fold_in=threefry_prng_impl.fold_in,
    random_bits=random_bits,
    name="faster_bits",
    tag="fast")

# 3. Ten epochs in one call ------------------------------------------------------------
#
# Each call of a compiled function costs time of its own: its arguments are looked
# through, another thread takes over, and Python waits for it. On one core that is half
# a millisecond per epoch of minignn.train, as long as a third of a GCN's epoch on Cora.
#
#     minignn.train    step 1, evaluate 1, step 2, evaluate 2, step 3, ...
#     here             (step 1, evaluate 1, ... step 10, evaluate 10), (step 11, ...
#
# Within one call, XLA also computes only once what is the same in all ten epochs. The
# stopping rule then looks at the ten results, one after the other. The epochs after the
# one at which it stops, nine at most, were computed for nothing.

BLOCK = 10


@functools.partial(jax.jit, static_argnames=("apply_fun", "penalise_all"))
def run_block(apply_fun, penalise_all, params, state, train_graph, graph, rng, first,
              step_size, weight_decay):
    """Ten epochs, first to first + 9 -> (params, state) after the last of them, and
    (params, metrics) after each, stacked: every leaf is [10, ...].
    """
    def run_epoch(carry, epoch):
        params, state = carry
        params, state = train_step(apply_fun, penalise_all, params, state, train_graph,
                                   rng, epoch, step_size, weight_decay)
        return (params, state), (params, evaluate(apply_fun, params, graph))

    return jax.lax.scan(run_epoch, (params, state), first + jnp.arange(BLOCK))


def faster_train(model, graph, rng, epochs=200, step_size=0.01, weight_decay=5e-4,
                 penalise_all=False, rule=loss_rule, patience=10, log_every=10,
                 train_graph=None):
    """minignn.train, its arguments, its results and its errors, with fewer calls."""
    if train_graph is None:
        train_graph = graph
    check_whole(1, epochs=epochs, patience=patience)
    check_whole(0, log_every=log_every)
    check_not_negative(step_size=step_size, weight_decay=weight_decay)
    check_splits(train_graph, graph)

    init_fun, apply_fun = model
    init_rng, dropout_rng = jax.random.split(rng)
    _, params = init_fun(init_rng, graph.x.shape)
    state = adam(step_size)[0](params)
    params, state = put_where(graph.y, (params, state))

    history = {
        "train_loss": [], "train_accuracy": [], "val_loss": [], "val_accuracy": []}
    seconds = []
    kept_params = params
    last_progress = 0
    for epoch in range(1, epochs + 1):
        number = (epoch - 1) % BLOCK                # of this epoch in its block: 0 to 9
        if number == 0:
            start = time.perf_counter()
            (params, state), block = run_block(
                apply_fun, penalise_all, params, state, train_graph, graph, dropout_rng,
                epoch, step_size, weight_decay)
            block = jax.device_get(block)
            seconds.append((time.perf_counter() - start) / BLOCK)
        epoch_params, metrics = jax.tree.map(operator.itemgetter(number), block)

        for name, values in history.items():
            values.append(float(metrics[name]))
        # The first block also compiles: it counts as long as there is no other.
        counted = seconds[1:] if len(seconds) > 1 else seconds
        report(epoch, metrics, counted, log_every)

        progress, keep = rule(history)
        if keep:
            kept_params = epoch_params
        if progress:
            last_progress = epoch
        if epoch - last_progress >= patience:
            break

    if log_every:
        print(f"stopped after epoch {epoch} of at most {epochs}: "
              f"last progress at {last_progress}, patience {patience}")
    kept_params = put_where(graph.y, jax.tree.map(jnp.asarray, kept_params))
    return kept_params, {name: np.array(values) for name, values in history.items()}
