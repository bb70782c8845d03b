"""minignn: a GCN and a GAT in one file of JAX, made to be read from its first line on.

A graph is a set of nodes, some of them joined by edges: papers, say, joined where one
cites the other. Each node has features (which words the paper contains), and some nodes
have a label (the paper's subject). A graph neural network predicts the labels of the
other nodes, from the features and from the edges. This file builds two and trains them:

    GCN: Kipf & Welling, Semi-Supervised Classification with Graph Convolutional
         Networks, ICLR 2017
    GAT: Veličković et al., Graph Attention Networks, ICLR 2018

    1. Sparse matrices    a product with one is a sum over neighbours
    2. GCN                every neighbour has a fixed weight
    3. GAT                every neighbour has a weight that depends on its features
    4. Loss
    5. Adam
    6. Training
    7. Data               from files and arrays to a graph, and checks of what comes in

Comments give the shape of an array in brackets, and [before] -> [after] where a line
changes it. In a shape, a letter always means the same:

    N nodes    E stored entries of a sparse matrix    F features of a node    C classes
    H attention heads    D hidden units of one head    n, m, k any number

JAX is NumPy whose functions can be differentiated and compiled; jnp is its numpy. Its
arrays never change: every operation makes a new one. Anything else in JAX is explained
at its first use, unless its name says it.

To copy a part, see the last lines of the file.
"""
import dataclasses
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

# 1. Sparse matrices -------------------------------------------------------------------
#
# The edges of a graph are the entries of a matrix, the adjacency: row i has an entry in
# column j where node j is a neighbour of node i. All else is zero (99.9 % of the matrix
# for Cora, 2708 articles on which both papers test), and is not stored. A matrix of two
# rows and three columns:
#
#     [[0, 2, 0],    is stored as    rows   = [0, 1, 1]
#      [5, 0, 7]]                    cols   = [1, 0, 2]
#                                    values = [2, 5, 7]


# @dataclass writes the constructor from the list of fields. frozen: no field can be set
# later; dataclasses.replace(a, values=...) makes a changed copy. eq=False: a == b asks
# whether both are the same object, because comparing arrays gives no single yes or no.
#
# A pytree is JAX's word for a nest of lists, tuples and dicts with arrays inside. The
# functions that JAX compiles and differentiates take pytrees as they take arrays;
# register_dataclass lets them take a Sparse, too. The shape is static: not an array,
# but two Python numbers. The first says how many rows a product has, and JAX must know
# that when it compiles a function, before there are any values (section 6).
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sparse:
    """An n by m matrix of which only some entries are stored; the others are zero.

    Entry number e is values[e]; it stands in row rows[e] and column cols[e]. The
    entries come in any order, and those in the same place add up.
    """

    rows: jax.Array                 # [E] int32, from 0 to n - 1
    cols: jax.Array                 # [E] int32, from 0 to m - 1
    values: jax.Array               # [E] floats
    shape: tuple = dataclasses.field(metadata={"static": True})         # (n, m)

    def __matmul__(self, b):
        """self @ b, the matrix product with an array b: [m, k] -> [n, k].

        Row i of it is the sum of values[e] * b[cols[e]] over all entries e in row i.
        Raises ValueError if b is not a matrix with m rows.
        """
        b = jnp.asarray(b)
        # For an index past the end of b, JAX would silently use its last row.
        if b.ndim != 2 or len(b) != self.shape[1]:
            raise ValueError(f"cannot multiply {self.shape} by {b.shape}")

        # What entry e adds to its row is called its message.
        messages = self.values[:, None] * b[self.cols]                      # -> [E, k]
        # segment_sum([5, 6, 7], [0, 0, 2], 3) is [11, 0, 7]: 5 and 6 are added to row
        # 0, 7 to row 2. It is the loop: for e in range(E): out[rows[e]] += messages[e]
        return jax.ops.segment_sum(messages, self.rows, self.shape[0])      # -> [n, k]

    def aggregate(self, weights, h):
        """The same sum with weights other than the values. For section 3; skip it here.

        There, the weights depend on the input, and each of H heads has weights of its
        own. Row i of the result is, in each head, the sum of weights[e] * h[cols[e]]
        over all entries e in row i. (It is a method, so that another class can do it in
        another way, faster, say.)

        weights: [E, H], a number per entry and head. h: [m, H, D] -> [n, H, D].
        Raises ValueError if there are not E weights, or h does not have m rows.
        """
        if len(weights) != len(self.rows):
            raise ValueError(f"{len(weights)} weights for {len(self.rows)} entries")
        if len(h) != self.shape[1]:
            raise ValueError(f"h has {len(h)} rows: it must have {self.shape[1]}")

        messages = weights[:, :, None] * h[self.cols]                     # -> [E, H, D]
        return jax.ops.segment_sum(messages, self.rows, self.shape[0])    # -> [n, H, D]


# 2. GCN -------------------------------------------------------------------------------
#
# A layer of the GCN computes new features of each node: a weighted sum of the
# neighbours' features and the node's own, times a matrix W that is learned (the paper's
# equation 2):
#
#     out = Â X W          X: [N, F]    W: [F, out_dim]    out: [N, out_dim]
#
# Â (A with a hat) is the adjacency matrix with the weights as its entries.


def normalize_adjacency(edge_index, num_nodes):
    """The matrix Â of the GCN paper (equation 2, section 3.1) -> Sparse [N, N].

    First every node becomes a neighbour of itself (a self-loop), so that it keeps its
    own features. Then the entry of node i and its neighbour j gets the value

        Â_ij = 1 / sqrt(d_i d_j)          d_i: the number of entries in row i

    d_i is called the degree of i: how many neighbours it has, itself included. Where
    all nodes have the same degree d, each weight is 1 / d, and the sum over neighbours
    is their mean. (In general, a mean has the weights 1 / d_i.) The paper chose to
    divide by the roots of both degrees, which keeps Â symmetric, as the adjacency of an
    undirected graph is: what i tells j weighs as much as what j tells i. It writes Â as
    D̃^-1/2 Ã D̃^-1/2, with Ã the adjacency with self-loops and D̃ the diagonal matrix
    of the d_i.

    edge_index: integers [2, number of edges]; edge_index[0] are the sources and
    edge_index[1] the targets. A node gathers from the nodes that point at it, so an
    undirected edge, as in both papers, is listed in both directions. (On a directed
    graph, d_j counts the nodes that j gathers from.) An edge listed twice counts once,
    and so does a self-loop that is there already.
    Raises ValueError for an edge to a node that does not exist.
    """
    # This runs once, before training; so it is in NumPy.
    edge_index = np.asarray(edge_index)
    check_edges(edge_index, num_nodes)

    sources, targets = edge_index.astype(np.int64)
    self_loops = np.arange(num_nodes)
    cols = np.concatenate([sources, self_loops])        # what a node gathers from
    rows = np.concatenate([targets, self_loops])        # the node that gathers

    # Write each place in the matrix as one number (an int64: it can be large). Once
    # these are sorted, equal ones are next to each other, and the first of them stays.
    # With -1 in front of all (prepend), the very first differs from the one before it,
    # too. (np.unique gives the same, but took ten times as long for ten million edges.)
    places = np.sort(rows * num_nodes + cols)
    is_first = np.diff(places, prepend=-1) > 0
    rows, cols = np.divmod(places[is_first], num_nodes)

    degree = np.bincount(rows, minlength=num_nodes)     # how often each row occurs: [N]
    values = 1 / np.sqrt(degree[rows] * degree[cols])
    return to_sparse(rows, cols, values, (num_nodes, num_nodes))


def to_sparse(rows, cols, values, shape):
    """A Sparse of three NumPy arrays [E], in JAX's types for integers and floats."""
    return Sparse(
        jnp.asarray(rows, jnp.int32),
        jnp.asarray(cols, jnp.int32),
        jnp.asarray(values, float),         # float32, unless JAX is set to float64
        shape)


def glorot_uniform(rng, shape, fan_in=None, fan_out=None):
    """An array of weights, random between -r and r, r = sqrt(6 / (fan_in + fan_out)).

    The more numbers a layer sums up, the smaller each weight has to be, so that neither
    outputs nor gradients grow or shrink from layer to layer. A sum of fan_in products
    keeps the size of its inputs if the variance of the weights is 1 / fan_in;
    gradients, which are sums of fan_out products, ask for 1 / fan_out. The variance of
    these weights, r^2 / 3 = 2 / (fan_in + fan_out), lies between the two (Glorot &
    Bengio 2010, equation 16).

    rng: a key. JAX has no hidden random state: random numbers are a function of a key,
        and the same key gives the same numbers. jax.random.key(seed) makes one.
    fan_in, fan_out: how many numbers the weights take in and give out; shape[-2] and
        shape[-1] if they are not given. (The GAT gives them, for its W [F, H, D].)
    """
    if fan_in is None:
        fan_in = shape[-2]
    if fan_out is None:
        fan_out = shape[-1]
    r = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(rng, shape, minval=-r, maxval=r)


# A layer is a pair of functions. GraphConvolution(16) makes one. (Its name has capitals
# like that of a class, but it is a function.) It returns the pair
#
#     init_fun(rng, input_shape) -> (output_shape, params)    draws the parameters
#     apply_fun(params, x, adj, rng=None) -> output           computes the output
#
# Nothing is remembered between calls. init_fun returns the parameters, apply_fun is
# given them; so the gradient of a loss is an ordinary derivative, that of a function of
# params. The output_shape is the input_shape of the next layer. rng is for dropout,
# below; a layer that has none ignores it.


def GraphConvolution(out_dim, bias=False):
    """The layer Â X W, plus a bias if asked for: the GCN paper, equation 2.

    The paper's activation function is left to the model, see chain. The paper's model
    has no bias; it is there for models of your own.

    params: (W,) or (W, b). W: [F, out_dim]. b: [out_dim].
    x: [N, F], an array, or a Sparse if it is mostly zeros, as Cora's words are.
    adj: [N, N], as normalize_adjacency makes it. The output is [N, out_dim].
    Raises ValueError for an out_dim below 1.
    """
    check_whole(1, out_dim=out_dim)         # a whole number, at least 1; see section 7

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W = glorot_uniform(rng, (num_features, out_dim))
        output_shape = (num_nodes, out_dim)
        if bias:
            return output_shape, (W, jnp.zeros(out_dim))
        return output_shape, (W,)

    def apply_fun(params, x, adj, rng=None):
        W = params[0]
        # For an array x, (adj @ x) @ W is the same, but x @ W has fewer columns to sum
        # over neighbours, as long as out_dim is smaller than F.
        out = adj @ (x @ W)                             # [N, F] -> [N, out_dim]
        if bias:
            out = out + params[1]
        return out

    return init_fun, apply_fun


def dropout(rng, x, rate):
    """Each number in x becomes 0 with probability rate, or is divided by 1 - rate.

    So on average x stays as large as it was (Srivastava et al. 2014; in this form known
    as inverted dropout).

    rng: a key, or None: x is returned as it is. That is how a model is evaluated.
    x: an array, or a Sparse, of which only the stored values can be dropped.
    Raises ValueError if rate is not in [0, 1).
    """
    check_dropout_rate(rate)
    if rng is None or rate == 0:
        return x

    # A Sparse, or a dataclass of your own in its place (one that multiplies faster,
    # say): all that counts is its field `values`.
    if hasattr(x, "values"):
        return dataclasses.replace(x, values=dropout(rng, x.values, rate))

    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)     # True in 1 - rate of cases
    return jnp.where(keep, x / (1 - rate), 0)


def split_or_none(rng, num):
    """num new keys, made from one. If rng is None, a list of num None: no dropout.

    A key is used once, since a second use would give the same numbers again. Whoever
    needs several keys splits the one and uses the new ones.
    """
    if rng is None:
        return [None] * num
    return jax.random.split(rng, num)


def chain(layers, activation, dropout_rate=0):
    """Layers one after the other: the activation between them, dropout before each.

    Returns a pair (init_fun, apply_fun), like each of its layers. Nothing comes after
    the last layer.

    params: a list, the params of each layer. activation: a function of an array.
    Raises ValueError if dropout_rate is not in [0, 1).
    """
    check_dropout_rate(dropout_rate)

    def init_fun(rng, input_shape):
        shape = input_shape
        rngs = jax.random.split(rng, len(layers))
        params = []
        for layer_rng, (layer_init, _) in zip(rngs, layers):
            shape, layer_params = layer_init(layer_rng, shape)
            params.append(layer_params)
        return shape, params

    def apply_fun(params, x, adj, rng=None):
        # Two keys for each layer: one for dropout here, one for dropout in the layer.
        rngs = split_or_none(rng, 2 * len(layers))
        for i, (_, layer_apply) in enumerate(layers):
            if i > 0:
                x = activation(x)
            x = dropout(rngs[2 * i], x, dropout_rate)
            x = layer_apply(params[i], x, adj, rngs[2 * i + 1])
        return x

    return init_fun, apply_fun


def GCN(nhid, nclass, dropout_rate=0.5):
    """The GCN paper's model (equation 9): Â ReLU(Â X W0) W1, with dropout in training.

    Its outputs are logits: numbers, one for each class, which a softmax turns into
    probabilities. The paper has the softmax in the model; here it is in the loss.

    nhid: hidden units, the columns of W0. nclass: C.
    params: [(W0,), (W1,)]. W0: [F, nhid]. W1: [nhid, C].
    x: [N, F], an array or a Sparse -> logits [N, C].
    Raises ValueError for a size below 1, or a dropout_rate that is not in [0, 1).
    """
    check_whole(1, nhid=nhid, nclass=nclass)
    layers = [GraphConvolution(nhid), GraphConvolution(nclass)]
    return chain(layers, jax.nn.relu, dropout_rate)


# 3. GAT -------------------------------------------------------------------------------
#
# In the GCN, the weight of a neighbour follows from the degrees. The GAT computes it
# from the features of both nodes, with parameters that are learned. It does so several
# times side by side, each time with other parameters: these are its heads.


def segment_softmax(scores, rows, num_rows):
    """A softmax over the entries of each row.

    Entry e of a row becomes exp(score of e) / (the sum of exp(score) over that row).

    scores: [E, ...], numbers of any size. rows: integers [E], the row of each entry,
    from 0 to num_rows - 1. The result is [E, ...].
    """
    # Softmax stays the same if one number is subtracted from all scores of a row. With
    # the largest one, exp cannot overflow. As it cancels out, the gradient need not see
    # it: stop_gradient makes it a constant (PyTorch: detach).
    largest = jax.ops.segment_max(scores, rows, num_rows)       # -> [num_rows, ...]
    largest = jax.lax.stop_gradient(largest)
    exp = jnp.exp(scores - largest[rows])                       # -> [E, ...]
    total = jax.ops.segment_sum(exp, rows, num_rows)            # -> [num_rows, ...]
    return exp / total[rows]                                    # -> [E, ...]


def attention(a1, a2, h, adj):
    """The weight that each node gives to each neighbour: the GAT paper, equation 3.

    Each pair of a node i and its neighbour j gets a score (equation 1). Here, h_i are
    node i's features after the layer has multiplied them by its matrix W; the paper
    writes W h_i for that. It puts h_i and h_j one after the other, [h_i || h_j], and
    takes the product with a vector a. If a1 is the first half of a and a2 the second,
    that is a sum:

        score_ij = LeakyReLU(a . [h_i || h_j]) = LeakyReLU(a1 . h_i + a2 . h_j)

    A softmax over all neighbours j of i makes weights of the scores (equation 2).
    (Without LeakyReLU, a1 . h_i would be the same number in all scores of node i, and
    cancel out.)

    All this happens in each head by itself.

    a1, a2: [H, D]. h: [N, H, D].
    adj: a Sparse [N, N], as normalize_adjacency makes it: an entry for each neighbour,
    and one for the node itself. Its values are not used. Two entries in the same place
    would count as two neighbours.
    The result is the weights alpha, [E, H].
    """
    # What each node adds to a score as the one that gathers, and as a neighbour.
    # einsum, as in NumPy: for each node and each head, the sum of the products over d.
    own = jnp.einsum("nhd,hd->nh", h, a1)               # a1 . h_i: [N, H, D] -> [N, H]
    neighbour = jnp.einsum("nhd,hd->nh", h, a2)         # a2 . h_j: [N, H, D] -> [N, H]
    scores = own[adj.rows] + neighbour[adj.cols]        # [N, H] -> [E, H]
    scores = jax.nn.leaky_relu(scores, 0.2)             # negative scores times 0.2
    return segment_softmax(scores, adj.rows, adj.shape[0])


def MultiHeadLayer(nheads, nhid, dropout_rate, last_layer=False):
    """nheads attention heads of nhid units each: the GAT paper, equations 1 to 6.

    As in the GCN, the activation function is left to chain.

    params: (W, a1, a2, b). W: [F, H, D]. a1, a2, b: [H, D].
    x: [N, F], an array or a Sparse. adj: [N, N], see attention.
    The output is [N, H*D], the heads side by side; in the last layer, which has one
    unit for each class, their mean [N, D].
    Raises ValueError for a size below 1, or a dropout_rate that is not in [0, 1).
    """
    check_whole(1, nheads=nheads, nhid=nhid)
    check_dropout_rate(dropout_rate)

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W_rng, a1_rng, a2_rng = jax.random.split(rng, 3)
        # fan_in and fan_out are those of one head. W turns num_features numbers into
        # nhid; a1 and a2 each turn nhid numbers into 1, a part of the score.
        W = glorot_uniform(W_rng, (num_features, nheads, nhid), num_features, nhid)
        a1 = glorot_uniform(a1_rng, (nheads, nhid), nhid, 1)
        a2 = glorot_uniform(a2_rng, (nheads, nhid), nhid, 1)
        b = jnp.zeros((nheads, nhid))
        out_dim = nhid if last_layer else nheads * nhid
        return (num_nodes, out_dim), (W, a1, a2, b)

    def apply_fun(params, x, adj, rng=None):
        W, a1, a2, b = params
        x_rng, alpha_rng, h_rng = split_or_none(rng, 3)

        # Three dropouts: of x, alpha and h. (chain could only do the first of them.)
        x = dropout(x_rng, x, dropout_rate)
        # A Sparse x needs a matrix to its right: the W of all heads, side by side.
        h = x @ W.reshape(len(W), nheads * nhid)        # [N, F] -> [N, H*D]
        h = h.reshape(-1, nheads, nhid)                 # -> [N, H, D]

        alpha = attention(a1, a2, h, adj)               # equations 1 to 3: [E, H]
        alpha = dropout(alpha_rng, alpha, dropout_rate)
        # The dropout of h, after the scores, and the bias b are in the authors' code,
        # not in their paper.
        h = dropout(h_rng, h, dropout_rate)
        # Row i: the sum of alpha[e] * h[cols[e]] over the entries e in row i.
        out = adj.aggregate(alpha, h) + b               # equation 4: [N, H, D]

        if last_layer:
            return out.mean(axis=1)                     # equation 6: -> [N, D]
        return out.reshape(-1, nheads * nhid)           # equation 5: -> [N, H*D]

    return init_fun, apply_fun


def GraphAttentionLayer(out_dim, dropout_rate):
    """A layer of one head: the GAT paper, equations 1 to 4, for models of your own.

    params: as in MultiHeadLayer, with H = 1. x: [N, F], an array or a Sparse
    -> [N, out_dim]. Raises ValueError as MultiHeadLayer does.
    """
    return MultiHeadLayer(1, out_dim, dropout_rate)


def GAT(nheads, nhid, nclass, dropout_rate=0.6):
    """Attention layers, ELU between them. For Cora, the paper has GAT([8, 1], [8], 7).

    nheads: a list, the number of heads of each layer.
    nhid: a list, the units per head of each layer but the last, which has nclass.
    params: a list, (W, a1, a2, b) of each layer.
    x: [N, F], an array or a Sparse -> logits [N, C], C = nclass.
    Raises ValueError for a size below 1, lists that do not fit each other, or a
    dropout_rate that is not in [0, 1).
    """
    if len(nheads) != len(nhid) + 1:
        raise ValueError(f"len(nheads) is {len(nheads)}: it must be len(nhid) + 1, "
                         f"{len(nhid) + 1}")

    layers = []
    for heads, units in zip(nheads[:-1], nhid):
        layers.append(MultiHeadLayer(heads, units, dropout_rate))
    layers.append(MultiHeadLayer(nheads[-1], nclass, dropout_rate, last_layer=True))
    return chain(layers, jax.nn.elu)        # no dropout: the layers have their own


# 4. Loss ------------------------------------------------------------------------------


def log_softmax(logits):
    """The logarithm of the softmax, for logits of any size: [n, C] -> [n, C]."""
    # Written out to be read; jax.nn.log_softmax does the same. Subtracting the largest
    # logit does not change the softmax, and exp cannot overflow. As it cancels out,
    # stop_gradient makes it a constant (PyTorch: detach).
    largest = logits.max(axis=-1, keepdims=True)                            # [n, 1]
    largest = jax.lax.stop_gradient(largest)
    shifted = logits - largest
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    """Minus the log-probability of the right class, the mean over n nodes -> a number.

    The GCN paper's equation 10 is the sum; the mean is in both papers' code.

    logits: [n, C]. labels: integers [n], from 0 to C - 1. If a label is anything else
    (-1, say, of a node without one), the result is nan.
    Raises ValueError if labels is not [n].
    """
    num_nodes, num_classes = logits.shape
    if labels.shape != (num_nodes,):
        raise ValueError(f"labels.shape is {labels.shape}: it must be {(num_nodes,)}")

    # For a label of -1, JAX would read the last class, and for one past the end, too,
    # with a gradient of 0. So a label that is no class is read as class 0, and what is
    # read there multiplied by nan. That makes the result nan, and its gradient, too:
    # training on it cannot go unnoticed. (An error cannot depend on a label: while a
    # function is compiled, labels have a shape, but no values; section 6.)
    is_class = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(is_class, labels, 0)
    log_probability = log_softmax(logits)                                   # [n, C]
    of_label = log_probability[jnp.arange(num_nodes), labels]               # [n]
    one_or_nan = jnp.where(is_class, 1, jnp.nan)
    return -(of_label * one_or_nan).mean()


def l2_penalty(params):
    """Half the sum of the squares of all numbers in params, any pytree -> a number."""
    # The leaves of a pytree are the arrays in it.
    squares = [jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)]
    return sum(squares) / 2


def accuracy(logits, labels):
    """The fraction of nodes whose largest logit is the right class's -> a number.

    logits: [n, C]. labels: integers [n]; a node with the label -1 counts as wrong.
    Raises ValueError if labels is not [n].
    """
    num_nodes, _ = logits.shape
    if labels.shape != (num_nodes,):
        raise ValueError(f"labels.shape is {labels.shape}: it must be {(num_nodes,)}")
    return (logits.argmax(axis=-1) == labels).mean()


# 5. Adam ------------------------------------------------------------------------------


def adam(step_size, b1=0.9, b2=0.999, eps=1e-8):
    """The optimizer Adam (Kingma & Ba 2015, algorithm 1), a pair of functions:

        init(params) -> state
        update(grads, state, params) -> (params, state)

    params: any pytree of arrays. grads: their gradients, a pytree of the same form.
    b1, b2: the part of a running mean that is kept at each step. eps: against division
    by zero. state: (the number of steps, the running means of the gradients and of
    their squares).

    A parameter moves against the mean of its gradient, divided by the root of the mean
    square: so it moves by about step_size or less, whatever the gradient's size.
    """

    def init(params):
        # tree.map(f, tree) puts f(leaf) in place of each leaf of a pytree, that is, of
        # each array in it. With several trees, f gets a leaf of each.
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros

    def update(grads, state, params):
        t, means, squares = state
        t = t + 1

        def new_mean(mean, grad):       # a running mean of the gradient (the paper's m)
            return b1 * mean + (1 - b1) * grad

        def new_square(square, grad):   # and one of its square (the paper's v)
            return b2 * square + (1 - b2) * grad ** 2

        def new_param(param, mean, square):
            # Both means began at 0, and are too small at first. If the gradient were
            # always the same, mean would be (1 - b1^t) * grad after t steps.
            mean = mean / (1 - b1 ** t)
            square = square / (1 - b2 ** t)
            return param - step_size * mean / (jnp.sqrt(square) + eps)

        means = jax.tree.map(new_mean, means, grads)
        squares = jax.tree.map(new_square, squares, grads)
        params = jax.tree.map(new_param, params, means, squares)
        return params, (t, means, squares)

    return init, update


# 6. Training --------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph whose nodes are to be classified; load_graph (section 7) reads one.

    train lists the nodes whose loss is minimised, val (validation) those that decide
    when to stop, test those on which the result is reported. They share no node.
    """

    x: jax.Array | Sparse           # features [N, F]
    adj: Sparse                     # the adjacency [N, N], see normalize_adjacency
    y: jax.Array                    # labels [N] int32, -1 for none
    train: jax.Array                # nodes [n] int32
    val: jax.Array                  # nodes [n] int32
    test: jax.Array                 # nodes [n] int32
    # The names of the C classes; static, because a string is not an array.
    class_names: tuple = dataclasses.field(metadata={"static": True})


# An epoch is one step of training, on all training nodes. After each, a stopping rule
# looks at the history, a dict whose "val_loss" and "val_accuracy" are lists with one
# number per epoch so far. It returns two booleans:
#
#     progress    training stops when `patience` epochs in a row bring no progress
#     keep        the parameters of this epoch are kept, in place of those kept before;
#                 what was kept last is the result of the training


def loss_rule(history):
    """The GCN paper's rule (section 5.2): progress is a new lowest validation loss.

    The parameters are always kept: the last are the result, as in the authors' code,
    since the paper does not say which are tested. (That code stops by another rule:
    when the loss exceeds the mean of the ten before.)
    """
    before = history["val_loss"][:-1]
    progress = history["val_loss"][-1] < min(before, default=math.inf)
    return progress, True


def loss_or_accuracy_rule(history):
    """The GAT paper's rule (section 3.3): progress in validation loss or accuracy.

    As in the authors' code, a value equal to the best is progress, too, and parameters
    are kept if they are the best in both.
    """
    # Both lists include this epoch, so <= says that it is the best, or equal to it.
    loss_is_lowest = history["val_loss"][-1] <= min(history["val_loss"])
    accuracy_is_highest = history["val_accuracy"][-1] >= max(history["val_accuracy"])
    progress = loss_is_lowest or accuracy_is_highest
    keep = loss_is_lowest and accuracy_is_highest
    return progress, keep


def train_step(apply_fun, penalise_all, params, state, graph, rng, epoch, step_size,
               weight_decay):
    """One step of Adam on the loss of the training nodes -> (params, state).

    The loss is the cross-entropy plus weight_decay times the L2 penalty on all params
    (penalise_all) or on the first layer's.

    state: Adam's. rng: a key, from which each epoch makes its own for dropout.
    """
    # fold_in makes a new key from a key and a number, a different one for each number.
    rng = jax.random.fold_in(rng, epoch)

    def loss(params):
        logits = apply_fun(params, graph.x, graph.adj, rng)                 # [N, C]
        data_loss = cross_entropy(logits[graph.train], graph.y[graph.train])
        penalised = params if penalise_all else params[0]
        return data_loss + weight_decay * l2_penalty(penalised)

    # grad(f) is the function that computes f's gradient with respect to its first
    # argument: here a pytree like params.
    grads = jax.grad(loss)(params)
    # Made anew at each step, which does no harm: adam remembers nothing between calls.
    _, update = adam(step_size)
    return update(grads, state, params)


# jax.jit compiles a function at its first call: it runs the function once, with arrays
# that have a shape and a type but no values yet, and records what is computed. Later
# calls with arrays of the same shapes and types, on the same devices, run the compiled
# record. A number, like epoch, counts as an array of shape [].
#
# A Python `if` on an argument needs its value while recording, and an argument that is
# a function must be known to be called. Such arguments are static: for each value,
# there is a record of its own. (`if rng is None` needs no value: that rng is a key, and
# not None, is known while recording.)
# Each call of GCN(16, 7) makes another apply_fun, and compiling starts again: call it
# once, and keep the pair.
#
# Usually, @jax.jit stands above a function. Here it comes after, so that you can read
# the function first.
train_step = jax.jit(train_step, static_argnames=("apply_fun", "penalise_all"))


def evaluate(apply_fun, params, graph):
    """Loss (without penalty) and accuracy on each split, without dropout -> a dict.

    Its keys: train_loss, train_accuracy, val_loss, val_accuracy, test_loss,
    test_accuracy. The numbers of a split without nodes are nan.
    """
    logits = apply_fun(params, graph.x, graph.adj)      # no rng, no dropout: [N, C]
    metrics = {}
    for split in ("train", "val", "test"):
        nodes = getattr(graph, split)
        metrics[f"{split}_loss"] = cross_entropy(logits[nodes], graph.y[nodes])
        metrics[f"{split}_accuracy"] = accuracy(logits[nodes], graph.y[nodes])
    return metrics


evaluate = jax.jit(evaluate, static_argnames="apply_fun")


def train(model, graph, rng, epochs=200, step_size=0.01, weight_decay=5e-4,
          penalise_all=False, rule=loss_rule, patience=10, log_every=10,
          train_graph=None):
    """Train a model on a graph -> (params, history). The defaults are the GCN paper's.

    model: a pair (init_fun, apply_fun). rng: a key.
    epochs: the most steps to take, each on all training nodes.
    weight_decay: what the l2_penalty is multiplied by.
    penalise_all: the penalty is on all params, as in the GAT's code; else on params[0],
        as in the GCN paper: the first layer has nearly all of the model's parameters.
    rule, patience: when to stop, see above.
    log_every: the number of epochs from one printed line to the next, 0 for silence.
    train_graph: the graph that the steps see, if it is not the whole one. There are two
        reasons for it: to keep the test nodes unseen in training (the inductive
        setting), or to make a step faster, on that part of the graph which the loss
        depends on (see receptive_field below).
    history: a dict of arrays [epochs run], train_loss, train_accuracy, val_loss and
        val_accuracy after each epoch, as evaluate computes them.

    Raises ValueError for a setting out of range or a graph without training or
    validation nodes, FloatingPointError when a loss is infinite or nan.
    """
    if train_graph is None:
        train_graph = graph
    check_whole(1, epochs=epochs, patience=patience)
    check_whole(0, log_every=log_every)
    check_not_negative(step_size=step_size, weight_decay=weight_decay)
    check_splits(train_graph, graph)

    init_fun, apply_fun = model
    init_rng, dropout_rng = jax.random.split(rng)
    _, params = init_fun(init_rng, graph.x.shape)
    init_adam, _ = adam(step_size)
    state = init_adam(params)
    # Move both to the device that the graph is on; y, always an array, stands for the
    # graph. (PyTorch: .to(device).)
    params, state = put_where(graph.y, (params, state))

    history = {
        "train_loss": [], "train_accuracy": [], "val_loss": [], "val_accuracy": []}
    seconds = []
    kept_params = params
    last_progress = 0
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        params, state = train_step(apply_fun, penalise_all, params, state, train_graph,
                                   dropout_rng, epoch, step_size, weight_decay)
        metrics = evaluate(apply_fun, params, graph)
        # float makes a Python number, and waits for the result: JAX computes in the
        # background.
        metrics = {name: float(value) for name, value in metrics.items()}
        # evaluate also gives the numbers of the test nodes, for which history has no
        # place: nothing in the training may look at them.
        for name, values in history.items():
            values.append(metrics[name])
        seconds.append(time.perf_counter() - start)
        report(epoch, metrics, seconds, log_every)

        progress, keep = rule(history)
        if keep:
            kept_params = params
        if progress:
            last_progress = epoch
        if epoch - last_progress >= patience:
            break

    if log_every:
        print(f"stopped after epoch {epoch} of at most {epochs}: "
              f"last progress at {last_progress}, patience {patience}")
    return kept_params, {name: np.array(values) for name, values in history.items()}


def report(epoch, metrics, seconds, log_every):
    """Print every log_every-th epoch's metrics; stop the training if it diverged.

    seconds: a list, how long each epoch so far has taken; the median is printed.
    Raises FloatingPointError if a loss is infinite or nan.
    """
    line = ("train loss {train_loss:.4f}, accuracy {train_accuracy:.4f} | "
            "val loss {val_loss:.4f}, accuracy {val_accuracy:.4f}").format(**metrics)
    if not math.isfinite(metrics["train_loss"] + metrics["val_loss"]):
        raise FloatingPointError(f"training diverged at epoch {epoch}: {line}; "
                                 "lower step_size or weight_decay")
    if log_every and epoch % log_every == 0:
        milliseconds = 1000 * np.median(seconds)        # the first epoch also compiles
        print(f"epoch {epoch:4d} | {line} | {milliseconds:.1f} ms/epoch", flush=True)


def put_where(array, tree):
    """Move a pytree of arrays to the device where `array` is -> the same pytree.

    JAX makes new arrays, like those of init_fun, on the first device that it finds. If
    the graph is on another one, the first step would move params there, and the second
    step would be compiled anew for the new place.

    array: on one device; or, in training on several, with a copy of it on each. Then
        the pytree, too, is copied to each of them.
    """
    place = jnp.asarray(array).sharding         # JAX's word for where an array is
    # Some of the devices may be in other machines, where this process cannot move
    # anything. Then nothing is moved here, and the step is compiled twice.
    if not place.is_fully_addressable:
        return tree
    return jax.device_put(tree, place)


# Each paper's settings for Cora, to be passed on:
#     train(model, graph, rng, **GAT_RECIPE)
# Those of the GCN are the defaults of train, too; here they stand beside the GAT's.

GCN_RECIPE = dict(epochs=200, step_size=0.01, weight_decay=5e-4, penalise_all=False,
                  rule=loss_rule, patience=10)

GAT_RECIPE = dict(epochs=100_000, step_size=0.005, weight_decay=5e-4, penalise_all=True,
                  rule=loss_or_accuracy_rule, patience=100)


def receptive_field(graph, hops):
    """The part of a graph that the training loss depends on -> Graph, for train_graph.

    A layer brings features from neighbours, one hop; so the output at a node depends on
    nodes up to as many hops away as the model has layers. On the path 0 - 1 - 2 - 3
    with the training node 0 and 2 hops:

        layer 2 computes node 0, from 0 and 1
        layer 1 computes nodes 0 and 1, from 0, 1 and 2

    What is left is nodes 0, 1 and 2 and rows 0 and 1 of the adjacency, with the values
    that they have in the whole graph. The training loss and its gradient are those of
    the whole graph, dropout's masks aside. (Each layer still runs on all three nodes.
    What it computes of the others is wrong, and is not used.) The result has no
    validation and no test nodes, and its nodes are numbered anew.

    hops: the number of the model's layers. With fewer, the gradient is wrong, and
    nothing says so. Raises ValueError below 1.
    """
    check_whole(1, hops=hops)
    rows = np.asarray(graph.adj.rows)
    cols = np.asarray(graph.adj.cols)

    # Find, from the last layer to the first, which nodes a layer has to compute, and
    # which it needs for that. On the path: computed {0}, needed {0, 1}; computed
    # {0, 1}, needed {0, 1, 2}.
    needed = np.zeros(graph.adj.shape[0], bool)
    needed[np.asarray(graph.train)] = True              # by the loss
    for _ in range(hops):                               # layer 1 in the last round
        computed = needed.copy()
        entry_is_used = computed[rows]
        needed[cols[entry_is_used]] = True

    # New numbers: the nodes that layer 1 computes (computed, of the last round) come
    # after those that it only reads. (Here, any order would do. But code that fills a
    # matrix up with dummy entries, as scale/devices.py does, lets them point at the
    # last node, and that one should have entries of its own.)
    only_read = needed & ~computed
    nodes = np.concatenate([np.flatnonzero(only_read), np.flatnonzero(computed)])
    new_number = np.full(len(needed), -1)
    new_number[nodes] = np.arange(len(nodes))

    used_rows, used_cols = rows[entry_is_used], cols[entry_is_used]
    used_values = np.asarray(graph.adj.values)[entry_is_used]
    adj = to_sparse(new_number[used_rows], new_number[used_cols], used_values,
                    (len(nodes), len(nodes)))
    x = graph.x
    if hasattr(x, "values"):                    # a Sparse, see dropout
        x_rows, x_cols = np.asarray(x.rows), np.asarray(x.cols)
        is_used = needed[x_rows]
        x = to_sparse(new_number[x_rows[is_used]], x_cols[is_used],
                      np.asarray(x.values)[is_used], (len(nodes), x.shape[1]))
    else:
        x = x[nodes]
    train = jnp.asarray(new_number[np.asarray(graph.train)], jnp.int32)
    none = jnp.zeros(0, jnp.int32)
    return Graph(x=x, adj=adj, y=graph.y[nodes], train=train, val=none, test=none,
                 class_names=graph.class_names)


# 7. Data ------------------------------------------------------------------------------
#
# A graph is read from an .npz file of arrays, named like the arguments of make_graph,
# below. Cora is in data/ beside this file. A notebook has no __file__; there, data/ has
# to be in the current folder.
HERE = pathlib.Path(__file__).parent if "__file__" in globals() else pathlib.Path()
CORA = HERE / "data" / "cora.npz"


def row_normalize(x):
    """Divide each row by its sum, unless that is 0: [N, F] -> [N, F]."""
    total = x.sum(axis=1, keepdims=True)                # [N, F] -> [N, 1]
    return x / np.where(total == 0, 1, total)


def from_dense(matrix):
    """The Sparse of an array [n, m]: its entries that are not zero, row after row."""
    matrix = np.asarray(matrix)
    rows, cols = np.nonzero(matrix)
    return to_sparse(rows, cols, matrix[rows, cols], matrix.shape)


def make_graph(x, edge_index, y, train_mask, val_mask, test_mask, class_names=None,
               normalize=True):
    """Check the arrays of a graph and make a Graph of them -> Graph.

    x: features [N, F]. They become a Sparse if more than half of them are zeros.
    edge_index: integers [2, number of edges], sources and targets; an undirected edge
        is listed in both directions, see normalize_adjacency.
    y: labels, integers [N], -1 for none.
    train_mask, val_mask, test_mask: booleans [N]; no node is in two of them.
    class_names: C strings, by default "0", "1", ... up to the largest label. (Without
        names, a label of 65536 or more is refused: a single wrong label must not make a
        billion names.)
    normalize: divide each row of x by its sum, as the GCN paper does (section 5.2).

    Raises ValueError that names the array and what is wrong with it; if that is one of
    its elements, where it stands and its value.
    """
    x, edge_index, y = np.asarray(x), np.asarray(edge_index), np.asarray(y)
    masks = {
        "train_mask": np.asarray(train_mask),
        "val_mask": np.asarray(val_mask),
        "test_mask": np.asarray(test_mask),
    }
    check_features(x, normalize)
    check_edges(edge_index, len(x))
    check_masks(masks, len(x))
    check_array("y", y, (len(x),), "iu", "integers")    # i, u: NumPy's integer types
    if class_names is None:
        # refuse, below, raises an error if its first argument is true anywhere.
        refuse(y >= 2 ** 16, "y", y, "labels from 65536 on need class_names")
        class_names = range(int(y.max()) + 1)
    check_labels(y, masks, class_names)
    class_names = np.asarray(class_names).astype(str)

    x = x.astype(jnp.result_type(float))    # the type of JAX's floats, see to_sparse
    if normalize:
        x = row_normalize(x)
    mostly_zeros = np.count_nonzero(x) < x.size / 2

    return Graph(
        x=from_dense(x) if mostly_zeros else jnp.asarray(x),
        adj=normalize_adjacency(edge_index, len(x)),
        y=jnp.asarray(y, jnp.int32),
        train=jnp.asarray(np.flatnonzero(masks["train_mask"]), jnp.int32),
        val=jnp.asarray(np.flatnonzero(masks["val_mask"]), jnp.int32),
        test=jnp.asarray(np.flatnonzero(masks["test_mask"]), jnp.int32),
        class_names=tuple(class_names.tolist()))


def load_graph(path=CORA, normalize=True):
    """Read an .npz file that holds make_graph's arrays -> Graph; by default Cora.

    class_names may be missing from it. Raises OSError if the file cannot be opened,
    ValueError that names the file and the array if one cannot be read or is invalid.
    """
    names = ["x", "edge_index", "y", "train_mask", "val_mask", "test_mask"]
    arrays = {}
    with open(path, "rb") as stream:
        part = "the archive"                    # what is being read; for the error
        try:
            # Not np.load: it also accepts other files, such as a single .npy.
            archive = np.lib.npyio.NpzFile(stream)
            if "class_names" in archive:
                names.append("class_names")
            for part in names:
                arrays[part] = archive[part]
        except Exception as error:              # a damaged file can fail in any way
            raise ValueError(f"{path}: cannot read {part}: {error}") from None
    try:
        return make_graph(**arrays, normalize=normalize)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# The checks of what comes in. Each raises ValueError with one sentence: what it is
# about, the value, and the rule that it breaks.


def refuse(bad, name, array, why):
    """Raise ValueError that names the first element where the array `bad` is true."""
    if np.any(bad):
        index = np.argwhere(bad)[0].tolist()    # [3, 7]: the message begins "x[3, 7]"
        raise ValueError(f"{name}{index} is {array[tuple(index)]}: {why}")


def check_array(name, array, shape, kinds, meaning):
    """Check the shape of an array and the type of its elements.

    shape: None in it is any length. kinds: NumPy's letters, b for booleans, i and u for
    integers, f for floats.
    """
    if array.ndim != len(shape):
        raise ValueError(f"{name}.ndim is {array.ndim}: it must be {len(shape)}")
    for length, expected in zip(array.shape, shape):
        if expected is not None and length != expected:
            raise ValueError(f"{name}.shape is {array.shape}: {expected} "
                             f"expected, not {length}")
    # NumPy makes floats of an empty list, so the type of an empty array is not checked.
    if array.dtype.kind not in kinds and array.size > 0:
        raise ValueError(f"{name}.dtype is {array.dtype}: it must be {meaning}")


def check_features(x, normalize):
    check_array("x", x, (None, None), "biuf", "numbers")
    if x.shape[1] == 0:
        raise ValueError(f"x.shape is {x.shape}: a node needs at least one feature")
    # float32 ends at 3e38, and features are still to be summed and multiplied. For nan,
    # `fits` is false, too. (If x were float16, NumPy would make a plain 1e30 a float16,
    # too, and warn that it does not fit.)
    fits = np.abs(x) < np.float64(1e30)
    refuse(~fits, "x", x, "it must be finite, and below 1e30 in size")
    if normalize:
        # Numbers of both signs can have a sum near zero; divided by it they are huge.
        refuse(x < 0, "x", x, "a row with negative numbers cannot be divided by its "
               "sum; say normalize=False (--no-normalize in the scripts)")


def check_edges(edge_index, num_nodes):
    check_array("edge_index", edge_index, (2, None), "iu", "integers")
    # normalize_adjacency numbers the places row * num_nodes + column: it would take
    # column -1 for the last column of the row before.
    refuse((edge_index < 0) | (edge_index >= num_nodes), "edge_index", edge_index,
           f"nodes are 0 to {num_nodes - 1}")


def check_masks(masks, num_nodes):
    for name, mask in masks.items():
        check_array(name, mask, (num_nodes,), "b", "booleans")
    # With a node in two splits, the model would be tested on what it has seen.
    count = sum(mask.astype(int) for mask in masks.values())
    for name, mask in masks.items():
        refuse(mask & (count > 1), name, mask, "another mask selects this node, too")
    if not masks["train_mask"].any():
        raise ValueError("train_mask.sum() is 0: training needs at least one node")


def check_labels(y, masks, class_names):
    if np.ndim(class_names) != 1:
        raise ValueError(f"class_names.ndim is {np.ndim(class_names)}: it must be 1")
    num_classes = len(class_names)
    refuse((y < -1) | (y >= num_classes), "y", y,
           f"labels are 0 to {num_classes - 1}, or -1 for none")
    for name, mask in masks.items():
        refuse(mask & (y == -1), "y", y, f"a node that {name} selects needs a label")


def check_splits(train_graph, graph):
    if len(train_graph.train) == 0:
        raise ValueError("train is empty: there is no node to train on")
    if len(graph.val) == 0:
        raise ValueError("val is empty: there is no node to decide when to stop")


def check_dropout_rate(rate):
    if not 0 <= rate < 1:       # 1 would divide by zero
        raise ValueError(f"dropout_rate is {rate}: it must be at least 0 and below 1")


def check_whole(least, **numbers):
    for name, number in numbers.items():
        is_whole = isinstance(number, (int, np.integer))
        fits = is_whole and least <= number < 2 ** 31               # int32 ends there
        if not fits:
            raise ValueError(f"{name} is {number}: it must be a whole number, at least "
                             f"{least} and below 2^31")


def check_not_negative(**numbers):
    for name, number in numbers.items():
        if not 0 <= number < 1e30:          # float32 ends at 3e38, see check_features
            raise ValueError(f"{name} is {number}: it must be at least 0, below 1e30")


# To copy a part, take the imports and these, with the checks that they call:
#
#     Adam                        section 5
#     the loss                    section 4
#     the GAT layer               section 3 without the function GAT, and from sections
#                                 1 and 2 Sparse, glorot_uniform, dropout,
#                                 split_or_none, and for its adj normalize_adjacency
#                                 and to_sparse
#     the GCN and its training    sections 1, 2, 4, 5 and 6
#
# All of it together, in six lines (train_gcn.py and train_gat.py are the long form):
#
#     graph = load_graph()
#     model = GCN(nhid=16, nclass=len(graph.class_names))
#     params, history = train(model, graph, jax.random.key(0))
#     _, apply_fun = model
#     metrics = evaluate(apply_fun, params, graph)
#     print("test accuracy:", metrics["test_accuracy"])
