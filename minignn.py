"""minignn: a GCN and a GAT in one file of JAX, made to be read from the first line to the last.

Layers and models are pairs of pure functions, (init_fun, apply_fun):

    init_fun(rng, input_shape) -> (output_shape, params)    draws the parameters
    apply_fun(params, x, adj, rng=None) -> output           rng given: training, dropout is on

params is a pytree (nested lists and tuples of arrays), rng a key of jax.random; nothing else is remembered,
and the same arguments give the same result. Shapes stand at the end of a line, [before] -> [after]:

    N nodes, E' edges, E stored entries of the adjacency (self-loops included), F input features, C classes,
    H heads, D hidden units of a head, n any number of nodes; nnz entries of a Sparse [n, m], G groups of up to eight

    GCN: Kipf & Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017
    GAT: Veličković et al., Graph Attention Networks, ICLR 2018; "released code" is that of each paper's authors
"""
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

CORA = pathlib.Path(__file__).with_name("data") / "cora.npz"


def require(good, name, value, rule):
    """Raise ValueError unless `good` is true everywhere: name the first element of `value` where it is not."""
    for index in np.argwhere(np.logical_not(good)):
        at, value = (index.tolist(), value[tuple(index)]) if len(index) else ("", value)
        raise ValueError(f"{name}{at} is {value}: {rule}")


RANGES = dict(dropout=(0, 1), step_size=(0, 1e30), weight_decay=(0, 1e30), log_every=(0, 2 ** 31))


def check(**arguments):
    """Raise ValueError for an argument outside its range in RANGES; the others are counts from 1 to 2^31 - 1."""
    for name, value in arguments.items():
        low, high = RANGES.get(name, (1, 2 ** 31))
        require(low <= value < high, name, value, f"it must be in [{low}, {high})")
        require(name in RANGES or value % 1 == 0, name, value, "it must be a whole number")


# 1. Sparse matrices ---------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Sparse:
    """A matrix that stores its nonzero entries only: entry e is values[e], at row rows[e] and column cols[e].

    rows, cols: [nnz] int32. values: [nnz] floats. shape: (n, m). The entries are sorted by row.
    groups: None, or the entries grouped by row and by column (see eights), which makes products faster.
    """
    rows: jax.Array
    cols: jax.Array
    values: jax.Array
    shape: tuple
    groups: tuple = None

jax.tree_util.register_dataclass(Sparse, ["rows", "cols", "values", "groups"], ["shape"])  # a pytree, shape static


def eights(owner, other):
    """Group the entries of each owner (each row, say) by eight: ten are a group of 8, and one of 2 and 6 paddings.

    owner, other: [nnz] ints, an entry's row and column or the reverse. Returns int32 arrays: which [8, G]
    entries are in each group, nnz where it is padded; their `other` [8, G]; and the owner [G] of each group.
    """
    order = np.argsort(owner, kind="stable")
    ordered = owner[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)   # 0, 1, 2, ... within each owner
    group = np.cumsum(place % 8 == 0) - 1
    entries = np.full((8, np.sum(place % 8 == 0)), len(order))
    entries[place % 8, group] = order
    others = other[np.where(entries < len(order), entries, entries[0])]     # its own when padded: 0 * NaN is NaN
    return tuple(jnp.asarray(a, jnp.int32) for a in (entries, others, owner[entries[0]]))


def make_sparse(rows, cols, values, shape):
    """A Sparse of NumPy arrays that are sorted by row."""
    return Sparse(jnp.asarray(rows, jnp.int32), jnp.asarray(cols, jnp.int32), jnp.asarray(values, float), shape,
                  (eights(rows, cols), eights(cols, rows)))


def from_dense(matrix):
    """The Sparse (n, m) of an array [n, m]."""
    matrix = np.asarray(matrix)
    rows, cols = np.nonzero(matrix)                                         # sorted by row
    return make_sparse(rows, cols, matrix[rows, cols], matrix.shape)


def sum_groups(weights, h, groups, n):
    """For each owner, the sum of weights[e] h[other] over its entries: [nnz, H], [m, H, D] -> [n, H, D]."""
    entries, other, owner = groups
    weights = weights.at[entries].get(mode="fill", fill_value=0)            # [nnz, H] -> [8, G, H]
    sums = sum(w[:, :, None] * h[j] for w, j in zip(weights, other))        # [G, H, D], in one pass
    return jax.ops.segment_sum(sums, owner, n)                              # [G, H, D] -> [n, H, D]


# Why groups, and why a gradient by hand? Adding rows to their segments one at a time is the slow part on a CPU. A
# group adds eight in one pass and leaves one addition to the segment sum: on Cora's features 2 to 4 times as fast,
# with nothing of size [nnz, H, D] in memory. The gradient (reverse mode only: JAX has no jvp of it) is the same sum
# with rows and columns exchanged; the one that JAX would derive goes entry by entry.
@jax.custom_vjp
def aggregate_groups(a, weights, h):
    return sum_groups(weights, h, a.groups[0], a.shape[0])


def aggregate_backward(inputs, g):                                           # g: [n, H, D]
    a, weights, h = inputs
    units = g.transpose(2, 0, 1), h.transpose(2, 0, 1)                      # [., H, D] -> [D, ., H]
    add = lambda total, unit: (total + unit[0][a.rows] * unit[1][a.cols], None)                 # [nnz, H]
    by_weight, _ = jax.lax.scan(add, jnp.zeros_like(weights), units)                            # g_i . h_j
    return None, by_weight, sum_groups(weights, g, a.groups[1], len(h))     # None: a is not differentiated

aggregate_groups.defvjp(lambda *inputs: (aggregate_groups(*inputs), inputs), aggregate_backward)


def aggregate(a, weights, h):
    """out_i = sum over the entries e in row i of a: weights_e h_cols[e].  [nnz, H], [m, H, D] -> [n, H, D]

    The one operation of message passing. a: a Sparse, of which only the places of the entries are used.
    """
    if a.groups is not None:
        return jax.jit(aggregate_groups)(a, weights, h)                     # jit: else each operation compiles alone
    messages = weights[:, :, None] * h[a.cols]                              # [m, H, D] -> [nnz, H, D]
    return jax.ops.segment_sum(messages, a.rows, a.shape[0])                # [nnz, H, D] -> [n, H, D]


def matmul(a, b):
    """The product of a, a Sparse or an array [n, m], and an array b [m, k] -> [n, k]."""
    if not isinstance(a, Sparse):
        return a @ b
    return aggregate(a, a.values[:, None], b[:, None, :])[:, 0]             # one head: [m, 1, k] -> [n, k]


# 2. Graphs ------------------------------------------------------------------------------------------------

def normalize_adjacency(edge_index, num_nodes):
    """Â = D^-1/2 (A + I) D^-1/2 of the GCN paper (equation 2) -> Sparse [N, N].

    edge_index: [2, E'] ints, row 0 the source and row 1 the target of each edge. Row i of the result gathers
    from the nodes that point at i, and from i itself; D_ii counts them. Duplicates count once, an existing
    self-loop is not doubled. Raises ValueError for an edge to a node that does not exist.
    """
    edge_index = np.asarray(edge_index)
    require(edge_index.dtype.kind in "iu" or edge_index.size == 0, "edge_index.dtype", edge_index.dtype, "not integers")
    require((0 <= edge_index) & (edge_index < num_nodes), "edge_index", edge_index, f"nodes are 0 to {num_nodes - 1}")
    cols, rows = np.hstack([edge_index.astype(np.int64), np.tile(np.arange(num_nodes), (2, 1))])    # A + I
    rows, cols = np.divmod(np.unique(rows * num_nodes + cols), num_nodes)   # each entry once, sorted by row
    degree = np.bincount(rows, minlength=num_nodes)                         # the diagonal of D, [N]
    return make_sparse(rows, cols, 1 / np.sqrt(degree[rows] * degree[cols]), (num_nodes, num_nodes))


def row_normalize(x):
    """Divide each row of an array [N, F] by its sum; a row that sums to zero stays as it is -> [N, F]."""
    total = x.sum(axis=1, keepdims=True)                                    # [N, F] -> [N, 1]
    return x / np.where(total == 0, 1, total)


@dataclasses.dataclass(frozen=True)
class Graph:
    """x: features [N, F], a Sparse when mostly zeros, else an array of floats. adj: Sparse [N, N].
    y: labels [N] int32, -1 for none. train, val, test: node indices [n] int32. class_names: C strings."""
    x: jax.Array
    adj: Sparse
    y: jax.Array
    train: jax.Array
    val: jax.Array
    test: jax.Array
    class_names: tuple

jax.tree_util.register_dataclass(Graph, ["x", "adj", "y", "train", "val", "test"], ["class_names"])


ARRAYS = dict(x=(2, "biuf", "numbers"), edge_index=(2, "iu", "integers"), y=(1, "iu", "integers"),
              **{f"{split}_mask": (1, "b", "booleans") for split in ("train", "val", "test")})


def make_graph(x, edge_index, y, train_mask, val_mask, test_mask, class_names=None, normalize=True):
    """Check a graph's arrays, every one before JAX sees any, and make a Graph of them.

    x: features [N, F]. edge_index: [2, E'], as in normalize_adjacency. y: labels [N], -1 for none.
    train_mask, val_mask, test_mask: [N] bool, disjoint. class_names: C strings, by default "0", "1", ...
    normalize: divide each row of x by its sum. Raises ValueError that names the array, index and value.
    """
    arrays = [np.asarray(a) for a in (x, edge_index, y, train_mask, val_mask, test_mask)]
    for a, (name, (ndim, kinds, what)) in zip(arrays, ARRAYS.items()):
        require(a.ndim == ndim, f"{name}.ndim", a.ndim, f"it must be {ndim}")
        require(a.dtype.kind in kinds or name == "edge_index" and a.size == 0, f"{name}.dtype", a.dtype, f"not {what}")
        require(len(a) == (2 if name == "edge_index" else len(arrays[0])), f"{name}.shape", a.shape,
                "it must be (2, E')" if name == "edge_index" else f"x has {len(arrays[0])} rows")
    x, edge_index, y, *masks = arrays
    require(np.abs(x) < np.float64(1e30), "x", x, "features must be finite, and below 1e30 in size")   # NaN: false
    selected = np.sum(masks, axis=0)
    for name, mask in zip(list(ARRAYS)[3:], masks):
        require(~mask | (selected == 1), name, mask, "another mask selects this node, too: splits are disjoint")
    require(masks[0].any(), "train_mask.sum()", 0, "training needs at least one node")
    # By default not beyond 2^16: one wrong label must not make a billion names.
    class_names = range(min(int(y.max()) + 1, 2 ** 16)) if class_names is None else class_names
    require(np.ndim(class_names) == 1, "class_names.ndim", np.ndim(class_names), "it must be 1")
    adj, C = normalize_adjacency(edge_index, len(x)), len(class_names)
    require((-1 <= y) & (y < C), "y", y, f"labels run from 0 to {C - 1}, and -1 is none")
    require((y >= 0) | (selected == 0), "y", y, "a node that a mask selects needs a label")

    x = x.astype(jnp.result_type(float))                                    # float32, unless JAX runs in x64
    x = row_normalize(x) if normalize else x
    x = from_dense(x) if np.count_nonzero(x) < x.size / 2 else jnp.asarray(x)
    y, *splits = (jnp.asarray(a, jnp.int32) for a in (y, *map(np.flatnonzero, masks)))
    return Graph(x, adj, y, *splits, tuple(np.asarray(class_names).astype(str).tolist()))


def load_graph(path=CORA, normalize=True):
    """Read an .npz of make_graph's arrays (class_names may be missing) -> Graph; the bundled Cora by default.

    Raises FileNotFoundError (OSError if the file cannot be opened), or ValueError that names the file and the array.
    """
    reading, arrays = "cannot read the archive: ", {}
    with open(path, "rb") as stream:
        try:
            file = np.lib.npyio.NpzFile(stream)  # never unpickles
            for name in [*ARRAYS, *{"class_names"}.intersection(file)]:
                reading = f"cannot read {name}: "
                arrays[name] = file[name]
            reading = ""
            return make_graph(**arrays, normalize=normalize)
        except Exception as error:  # a damaged archive can fail in any way
            raise ValueError(f"{path}: {reading}{error}") from None


# 3. Building blocks ---------------------------------------------------------------------------------------

def glorot_uniform(rng, shape, fan_in=None, fan_out=None):
    """Uniform on [-r, r], r = sqrt(6 / (fan_in + fan_out)): Glorot & Bengio 2010, equation 16. The fans are the
    last two numbers of shape unless they are given."""
    r = (6 / ((fan_in or shape[-2]) + (fan_out or shape[-1]))) ** 0.5
    return jax.random.uniform(rng, shape, minval=-r, maxval=r)


def split_or_none(rng, n):
    """n keys, or n times None when there is no key: evaluation."""
    return [None] * n if rng is None else jax.random.split(rng, n)


def dropout(rng, x, rate):
    """Zero each element of x with probability rate, divide the rest by 1 - rate: Srivastava et al. 2014.

    x: an array, or a Sparse, whose stored values are dropped. rng None: x itself. rate: in [0, 1), else ValueError.
    """
    check(dropout=rate)
    if rng is None or rate == 0:
        return x
    if isinstance(x, Sparse):
        return dataclasses.replace(x, values=dropout(rng, x.values, rate))
    # Word i is a hash of i under a key: jax.random's idea (Salmon et al. 2011), but its hash would take a quarter
    # of an epoch. This is lowbias32 of C. Wellons (2018), once for each half of the key, without its last step, which
    # changes low bits only. A scan, because XLA stores its result; else each use of the mask would hash again.
    def mix(word, half):
        word = word ^ half
        word = (word ^ word >> 16) * np.uint32(0x7FEB352D)
        return (word ^ word >> 15) * np.uint32(0x846CA68B), None

    word, _ = jax.lax.scan(mix, jax.lax.iota(jnp.uint32, x.size), jax.random.key_data(rng)[:2])
    return jnp.where(word.reshape(x.shape) >= np.uint32(rate * 2 ** 32), x / (1 - rate), 0)


drop = dropout  # the same function, for layers and models, where dropout is the name of the rate


def segment_softmax(scores, rows, num_rows):
    """Softmax over the entries of each row: exp(s_e) / sum of exp(s_k) over the k with rows[k] = rows[e].

    scores: [E, ...], of any size. rows: [E] ints -> [E, ...]. Each row's maximum cancels out and is subtracted first.
    """
    highest = jax.lax.stop_gradient(jax.ops.segment_max(scores, rows, num_rows))                # [num_rows, ...]
    weights = jnp.exp(scores - highest[rows])                                                   # [E, ...]
    return weights / jax.ops.segment_sum(weights, rows, num_rows)[rows]                         # [E, ...]


# 4. Layers ------------------------------------------------------------------------------------------------

def GraphConvolution(out_dim, bias=False):
    """Â X W (+ b), the GCN paper's layer (equation 2) without σ, which chain adds. Â: see normalize_adjacency.

    params: (W [F, out_dim],) or (W, b [out_dim]). x: [N, F], array or Sparse -> [N, out_dim].
    """
    check(out_dim=out_dim)

    def init_fun(rng, input_shape):
        W = glorot_uniform(rng, (input_shape[-1], out_dim))
        return (*input_shape[:-1], out_dim), (W, jnp.zeros(out_dim)) if bias else (W,)

    def apply_fun(params, x, adj, rng=None):
        out = matmul(adj, matmul(x, params[0]))                             # [N, F] -> [N, out] -> [N, out]
        return out + params[1] if bias else out

    return init_fun, apply_fun


def MultiHeadLayer(nheads, nhid, dropout, last_layer=False):
    """nheads attention heads of nhid units each: the GAT paper's layer (equations 1 to 6) without σ, which chain adds.

    params: (W [F, H, D], a1 [H, D], a2 [H, D], b [H, D]); a1 and a2 are the two halves of the paper's vector a.
    x: [N, F], array or Sparse -> [N, H*D], the heads concatenated, or their mean [N, D] in the last layer.
    dropout: the rate on the input, the attention coefficients and, as in the released code, the projected features.
    """
    check(nheads=nheads, nhid=nhid, dropout=dropout)

    def init_fun(rng, input_shape):
        rngs = jax.random.split(rng, 3)
        W = glorot_uniform(rngs[0], (input_shape[-1], nheads, nhid), input_shape[-1], nhid)
        a1, a2 = (glorot_uniform(key, (nheads, nhid), nhid, 1) for key in rngs[1:])
        return (*input_shape[:-1], nhid if last_layer else nheads * nhid), (W, a1, a2, jnp.zeros((nheads, nhid)))

    def apply_fun(params, x, adj, rng=None):
        W, a1, a2, b = params
        rngs = split_or_none(rng, 3)
        h = matmul(drop(rngs[0], x, dropout), W.reshape(len(W), -1)).reshape(-1, nheads, nhid)  # Wh: [N, H, D]
        # inside equation 3: e_ij = LeakyReLU(a^T [Wh_i || Wh_j]), and a^T [Wh_i || Wh_j] = a1 Wh_i + a2 Wh_j
        own, neighbour = (jnp.einsum("nhd,hd->nh", h, a) for a in (a1, a2))                     # [N, H]
        e = jax.nn.leaky_relu(own[adj.rows] + neighbour[adj.cols], 0.2)     # [N, H] -> [E, H]
        alpha = segment_softmax(e, adj.rows, adj.shape[0])                  # equation 2: [E, H] -> [E, H]
        out = aggregate(adj, drop(rngs[1], alpha, dropout), drop(rngs[2], h, dropout)) + b    # equation 4: [N, H, D]
        return out.mean(1) if last_layer else out.reshape(len(out), -1)     # equation 6 or 5: [N, D] or [N, H*D]

    return init_fun, apply_fun


def GraphAttentionLayer(out_dim, dropout):
    """One attention head: a MultiHeadLayer with params of H = 1. x: [N, F] -> [N, out_dim]."""
    return MultiHeadLayer(1, out_dim, dropout)


# 5. Models ------------------------------------------------------------------------------------------------

def chain(layers, activation, dropout=0):
    """Layers in a row, the activation between them, dropout on the input of each. params: the list of theirs.
    A layer with dropout of its own needs none here: both would use the same key."""
    def init_fun(rng, input_shape):
        params = []
        for (layer_init, _), key in zip(layers, jax.random.split(rng, len(layers))):
            input_shape, layer_params = layer_init(key, input_shape)
            params.append(layer_params)
        return input_shape, params

    def apply_fun(params, x, adj, rng=None):
        for i, ((_, layer), key) in enumerate(zip(layers, split_or_none(rng, len(layers)))):
            x = layer(params[i], drop(key, activation(x) if i > 0 else x, dropout), adj, key)   # [N, in] -> [N, out]
        return x

    return init_fun, apply_fun


def GCN(nhid, nclass, dropout=0.5):
    """Logits Â ReLU(Â X W0) W1, the GCN paper's model (equation 9), with dropout on both layers' inputs.

    params: [(W0 [F, nhid],), (W1 [nhid, C],)]. x: [N, F], array or Sparse -> [N, C], C = nclass.
    Raises ValueError for sizes below 1 and a dropout rate outside [0, 1).
    """
    check(nhid=nhid, nclass=nclass, dropout=dropout)
    return chain([GraphConvolution(nhid), GraphConvolution(nclass)], jax.nn.relu, dropout)


def GAT(nheads, nhid, nclass, dropout=0.6):
    """Attention layers with ELU between them -> logits. The GAT paper's model is GAT([8, 1], [8], C).

    nheads: the heads of each layer. nhid: the units per head of each layer but the last, which has nclass.
    params: one (W, a1, a2, b) per layer, see MultiHeadLayer. x: [N, F], array or Sparse -> [N, C], C = nclass.
    Raises ValueError for sizes below 1, lists that do not fit, and a dropout rate outside [0, 1).
    """
    require(len(nheads) == len(nhid) + 1, "len(nheads)", len(nheads), f"len(nhid) + 1 is {len(nhid) + 1}")
    layers = [MultiHeadLayer(heads, units, dropout) for heads, units in zip(nheads, nhid)]
    return chain([*layers, MultiHeadLayer(nheads[-1], nclass, dropout, last_layer=True)], jax.nn.elu)


# 6. Loss --------------------------------------------------------------------------------------------------

def log_softmax(logits):
    """log(exp(z_c) / sum_k exp(z_k)): [..., C] -> [..., C]. Subtracting the maximum, which cancels, avoids overflow."""
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))


def cross_entropy(logits, labels):
    """Minus the log-probability of the right class, the mean over nodes: [n, C], [n] -> scalar. The GCN paper
    (equation 10) writes the sum; its released code, like the GAT's, takes the mean."""
    return -jnp.take_along_axis(log_softmax(logits), labels[:, None], axis=1).mean()


def l2_penalty(params):
    """Half the sum of the squares of every number in the pytree params -> scalar."""
    return sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)) / 2


def accuracy(logits, labels):
    """The fraction of nodes whose largest logit is that of the right class: [n, C], [n] -> scalar."""
    return (logits.argmax(-1) == labels).mean()


# 7. Optimiser ---------------------------------------------------------------------------------------------

def adam(step_size, b1=0.9, b2=0.999, eps=1e-8):
    """Adam (Kingma & Ba 2015, algorithm 1), a pair of pure functions over any pytree: init(params) -> state,
    update(grads, state, params) -> (params, state)."""
    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 1, zeros, zeros                                              # t, the coming step, m and v

    def update(grads, state, params):
        t, m, v = state
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
        v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g ** 2, v, grads)
        # m and v start at 0, so both are too small by these factors: the paper's bias correction
        c1, c2 = 1 - b1 ** t, 1 - b2 ** t
        params = jax.tree.map(lambda p, m, v: p - step_size * (m / c1) / (jnp.sqrt(v / c2) + eps), params, m, v)
        return params, (t + 1, m, v)

    return init, update


# 8. Training ----------------------------------------------------------------------------------------------

# A stopping rule looks at the history after an epoch and says (progress, keep): whether patience starts anew,
# and whether this epoch's params are the ones to return.

def loss_rule(history):
    """GCN paper, section 5.2: progress is a validation loss below all before. Released code: return the last params."""
    return history["val_loss"][-1] < min(history["val_loss"][:-1], default=np.inf), True


def loss_or_accuracy_rule(history):
    """GAT paper, section 3.3: progress is the lowest validation loss or the highest validation accuracy so far.
    Released code: a tie counts, and the params returned are the last that were best in both."""
    lowest = history["val_loss"][-1] <= min(history["val_loss"])
    highest = history["val_accuracy"][-1] >= max(history["val_accuracy"])
    return lowest or highest, lowest and highest


def update(apply_fun, penalise_all, params, state, graph, rng, epoch, step_size, weight_decay):
    """One step of Adam on the training loss -> (params, state). The graph is an argument and not a global
    that the function closes over: XLA would treat it as a constant and try to precompute with it."""
    def loss(params):
        logits = apply_fun(params, graph.x, graph.adj, jax.random.fold_in(rng, epoch))          # [N, C]
        data_loss = cross_entropy(logits[graph.train], graph.y[graph.train])
        return data_loss + weight_decay * l2_penalty(params if penalise_all else params[0])

    return adam(step_size)[1](jax.grad(loss)(params), state, params)

update = jax.jit(update, static_argnums=(0, 1))  # a new model means a new compilation


def evaluate(apply_fun, params, graph):
    """Without dropout: [[loss, accuracy] of train, of val, of test] -> [3, 2]. Loss: cross_entropy alone."""
    logits = apply_fun(params, graph.x, graph.adj)                          # [N, C]
    return jnp.array([[f(logits[nodes], graph.y[nodes]) for f in (cross_entropy, accuracy)]
                      for nodes in (graph.train, graph.val, graph.test)])

evaluate = jax.jit(evaluate, static_argnums=0)


def train(model, graph, rng, epochs=200, step_size=0.01, weight_decay=5e-4, penalise_all=False, rule=loss_rule,
          patience=10, log_every=10):
    """Train a model on a graph; the defaults are the GCN paper's -> (params, history).

    model: (init_fun, apply_fun). rng: a key. weight_decay: the factor of the l2_penalty on all params, or on
    params[0], the first layer's. rule: see above. patience: the epochs without progress after which to stop.
    log_every: epochs from one printed line to the next, 0 for silence. history: a dict of arrays [epochs run],
    train_loss, train_accuracy, val_loss and val_accuracy after each epoch, without dropout and penalty.
    Raises ValueError for an argument out of range, FloatingPointError when a loss is not finite any more.
    """
    check(epochs=epochs, patience=patience, log_every=log_every, step_size=step_size, weight_decay=weight_decay)
    require(len(graph.val) > 0, "val_mask.sum()", 0, "the stopping rule needs at least one node")
    init_rng, drop_rng = jax.random.split(rng)
    once = {"xla_backend_optimization_level": 0}  # compile in half the time what runs a single time
    _, params = jax.jit(model[0], static_argnums=1, compiler_options=once)(init_rng, graph.x.shape)
    state = adam(step_size)[0](params)
    history = {"train_loss": [], "train_accuracy": [], "val_loss": [], "val_accuracy": []}
    clock, best, last_progress = [time.perf_counter()], params, 0
    for epoch in range(1, epochs + 1):
        params, state = update(model[1], penalise_all, params, state, graph, drop_rng, epoch, step_size, weight_decay)
        numbers = np.asarray(evaluate(model[1], params, graph))[:2].ravel()                    # train, val
        for values, number in zip(history.values(), numbers):
            values.append(number)
        clock.append(time.perf_counter())
        line = "train loss {:.4f}, accuracy {:.4f} | val loss {:.4f}, accuracy {:.4f}".format(*numbers)
        if not np.isfinite(numbers).all():
            raise FloatingPointError(f"training diverged at epoch {epoch}: {line}; lower step_size or weight_decay")
        if log_every and epoch % log_every == 0:
            print(f"epoch {epoch:4d} | {line} | {1e3 * np.median(np.diff(clock)):.1f} ms/epoch", flush=True)
        progress, keep = rule(history)
        best = params if keep else best
        last_progress = epoch if progress else last_progress
        if epoch - last_progress >= patience:
            break
    if log_every:
        print(f"stopped after epoch {epoch} of at most {epochs}: last progress at {last_progress}, patience {patience}")
    return best, {name: np.array(values) for name, values in history.items()}


# 9. More than one device ----------------------------------------------------------------------------------

def shard_graph(graph, mesh):
    """Spread the entries of adj, and of a Sparse x, evenly over the devices of a jax.sharding.Mesh -> Graph.

    The rest is copied to each device. JAX's partitioner does what remains: every device sums over its own
    entries and an all-reduce adds the sums. Where a count does not divide, it is padded with entries past the last
    row, which sums and maxima drop. Where JAX reads by their indices, it reads the last row and column: in adj the last
    node's self-loop, so that no exp overflows.
    """
    from jax.sharding import NamedSharding, PartitionSpec
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (mesh.axis_names,)))
    put = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])

    def spread(a):
        padded = lambda array, fill: put(np.pad(array, (0, -len(array) % mesh.size), constant_values=fill), split)
        return Sparse(padded(a.rows, a.shape[0]), padded(a.cols, a.shape[1] - 1), padded(a.values, 0), a.shape)

    copy = lambda a: spread(a) if isinstance(a, Sparse) else put(np.asarray(a), everywhere)
    return jax.tree.map(copy, graph, is_leaf=lambda a: isinstance(a, Sparse))
