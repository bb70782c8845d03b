"""minignn: a GCN and a GAT from scratch, in one file of JAX, to be read in order.

A graph has nodes and edges: papers, say, and which of them cite each other. Node i has
features x_i (which words paper i contains) and a label (its subject). A few labels are
known; from these, both models learn to predict the others. Neighbours help: most papers
cite papers on their own subject. So in a layer, each node i takes a weighted sum over
its neighbours j, itself among them:

    out_i = sum over j of  w_ij h_j             h_j = x_j W, with a learned matrix W

The sum is one function here, aggregate. Layers differ in where the weights w_ij come
from. In a GCN (graph convolutional network: Kipf & Welling, ICLR 2017), they follow
from how many neighbours i and j have. In a GAT (graph attention network: Veličković
et al., ICLR 2018), a learned part computes them, and they are called alpha. adj, the
adjacency, says who is whose neighbour; its values are the GCN's weights.

    GCN     out = adj.aggregate(adj.values, h)
    GAT     out = adj.aggregate(alpha, h)

From the data to predictions:

    graph = load_graph()                            # Cora, 2708 papers on 7 subjects
    model = GCN(nhid=16, nclass=7)                  # 16 hidden units, 7 classes
    rng = jax.random.key(0)                         # 0: the seed
    params, history = train(model, graph, rng, GCN_RECIPE)
    print(evaluate(model, params, graph)["test_accuracy"])          # 0.81 or so
    classes = predict(model, params, graph).argmax(axis=1)          # of all papers

The JAX that it needs, for readers who know NumPy (jnp is JAX's NumPy):

    array       never changes: x.at[i].add(v) is a copy of x with v added at index i
    key, rng    random numbers are a function of a key: the same key, the same numbers.
                So draw with a key only once. jax.random.split makes several new keys
                from one; fold_in makes one from a key and a number, another for another
    pytree      lists, tuples, dicts and registered classes, nested, with arrays or
                numbers inside, the leaves. jax.tree.map(f, tree) makes a tree with
                f(leaf) for each leaf; with several trees of the same form, f gets a
                leaf of each
    jax.grad    if f returns one number, grad(f)(params) is its derivative by params, a
                pytree of the same form
    jax.jit     jit(f) is f, compiled. At the first call, JAX runs f on stand-ins that
                have a shape but no numbers, and records what it does; later calls run
                the record. A new shape or type makes a new record. What Python itself
                needs (a function, a string, a size, what an `if` tests) is marked
                static: f gets its value, and a new value makes a new record. (A test
                for None needs no mark.)

Shapes stand in brackets, [before] -> [after] where a line changes one: N nodes, E
stored entries of a matrix, F features, C classes, H heads of D units; n, m, k are any
numbers. check(condition, message) raises ValueError(message) if the condition is false.
It and the others whose names begin with check stand at the end, and can be skipped.

Needs jax 0.5, numpy 1.26 and Python 3.11, or later ones. MIT License, the minignn
developers.
"""
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# 1. Graphs ----------------------------------------------------------------------------


def static():
    """Mark a field of a dataclass as static for jit."""
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass               # a pytree of the fields not static
@dataclasses.dataclass(frozen=True, eq=False)   # == compares by identity
class Sparse:
    """A matrix of which only E entries are stored; the others are zero.

    The edges of a graph are such a matrix, its adjacency, with an entry in row i for
    each neighbour of i.

        [[0, 2, 0],     is      rows   = [0, 1, 1]
         [5, 0, 7]]             cols   = [1, 0, 2]
                                values = [2, 5, 7]

    Entries come in any order; those in the same place add up.
    """

    rows: jax.Array                             # [E] int32
    cols: jax.Array                             # [E] int32
    values: jax.Array                           # [E]
    shape: tuple = static()                     # (n, m)

    def aggregate(self, weights, h):
        """For each row, the sum of weights[e] * h[cols[e]] over its entries e.

        weights: [E], h: [m, k] -> [n, k]. Or H such sums at once:
        weights: [E, H], h: [m, H, D] -> [n, H, D].
        """
        check_aggregate(self, weights, h)
        h_of_entry = jnp.asarray(h)[self.cols]          # [m, k] -> [E, k]
        messages = weights[..., None] * h_of_entry      # [E, 1] * [E, k]
        # The same as: for e in range(E): out[rows[e]] += messages[e]
        return jax.ops.segment_sum(messages, self.rows, self.shape[0])  # [n, k]

    def __matmul__(self, b):
        """The product with an array, self @ b: [m, k] -> [n, k]."""
        return self.aggregate(self.values, b)

    def todense(self):
        zeros = jnp.zeros(self.shape, self.values.dtype)
        return zeros.at[self.rows, self.cols].add(self.values)

    def __array__(self, dtype=None, copy=None):
        raise ValueError(f"{self} is no array: say .todense() for one")

    def __repr__(self):
        return f"Sparse {list(self.shape)} of {len(self.rows)} entries"


def make_sparse(rows, cols, values, shape):
    """A Sparse of NumPy arrays, in JAX's types."""
    return Sparse(jnp.asarray(rows, jnp.int32), jnp.asarray(cols, jnp.int32),
                  jnp.asarray(values, float), shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph, and its nodes for training, validation and testing."""

    x: jax.Array | Sparse                       # features [N, F]
    adj: Sparse                                 # [N, N], with self-loops
    y: jax.Array                                # labels [N], -1 for none
    train: jax.Array                            # [n], the nodes to learn from,
    val: jax.Array                              # those that say when to stop,
    test: jax.Array                             # those that the result is measured on
    class_names: tuple = static()               # C strings

    def __repr__(self):
        N, F = self.x.shape
        edges = np.sum(self.adj.rows != self.adj.cols)      # both directions count
        return (f"Graph of {N} nodes, {edges} edges, {F} features, "
                f"{len(self.class_names)} classes; {len(self.train)} training, "
                f"{len(self.val)} validation, {len(self.test)} test nodes")


# 2. GCN -------------------------------------------------------------------------------


def normalize_adjacency(edge_index, num_nodes):
    """The GCN's weights, the matrix Â of the paper's section 3.1 -> Sparse [N, N].

    Row i has an entry for each neighbour j of node i, and one for i itself (a
    self-loop), so that a node keeps its own features. With d_i entries in row i,

        Â_ij = 1 / sqrt(d_i d_j)

    For the path 0 - 1 - 2, d is [2, 3, 2] and Â is [[.50, .41, 0  ],
                                                     [.41, .33, .41],
                                                     [0  , .41, .50]].

    Weights of 1 / d_i would make the sum a mean. With both roots, a node j with a large
    d_j also counts less in every sum (who is cited by all says little about each), and
    Â is symmetric if the edges are.

    edge_index: integers [2, number of edges], sources and targets. An edge from j to i
    is an entry in row i, column j: a node hears from those that point at it. An
    undirected edge is listed in both directions; what is listed twice counts once.
    """
    edge_index = np.asarray(edge_index)
    check_array("edge_index", edge_index, "integers", [2, "number of edges"])
    check_each((edge_index >= 0) & (edge_index < num_nodes), "edge_index", edge_index,
               f"nodes are 0 to {num_nodes - 1}")
    sources, targets = edge_index.astype(np.int64)          # up to N * N below
    every_node = np.arange(num_nodes)
    rows = np.concatenate([targets, every_node])
    cols = np.concatenate([sources, every_node])

    # Number the places of the matrix row by row: of 3 columns, row 1, column 2 is 5.
    # Sorted, equal ones stand together; the first of them stays.
    places = np.sort(rows * num_nodes + cols)
    is_first = np.diff(places, prepend=-1) > 0
    rows, cols = np.divmod(places[is_first], num_nodes)

    degree = np.bincount(rows)                              # [N]
    values = 1 / np.sqrt(degree[rows] * degree[cols])       # [E]
    return make_sparse(rows, cols, values, (num_nodes, num_nodes))


def glorot_uniform(rng, shape, fan_in, fan_out):
    """Random weights between -r and r (Glorot & Bengio 2010, equation 16).

    An output is a sum of fan_in products: to be as large as its inputs, it needs
    weights of variance 1 / fan_in. A gradient is a sum of fan_out products, and needs
    1 / fan_out. Uniform weights have the variance r^2 / 3, here 2 / (fan_in + fan_out):
    it lies between the two.
    """
    check(min(*shape, fan_in, fan_out) >= 1,
          f"weights {list(shape)}: each size must be at least 1")
    r = math.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(rng, shape, minval=-r, maxval=r)


def dropout(rng, x, rate):
    """Make each number of x 0 with probability rate, and divide the others by 1 - rate.

    It makes it harder to learn the few labels by heart. The division keeps the mean
    (Srivastava et al. 2014). Without a key, x stays.
    """
    check_rate(rate)
    if rng is None or rate == 0:
        return x
    if hasattr(x, "values"):    # a Sparse, or a class like it: the others are 0
        return dataclasses.replace(x, values=dropout(rng, x.values, rate))
    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def split_or_none(rng, num):
    """num keys, or num times None."""
    return [None] * num if rng is None else jax.random.split(rng, num)


# A layer is a pair of functions, and a model is one, too:
#
#     init_fun(rng, input_shape) -> (output_shape, params)
#     apply_fun(params, x, adj, rng=None) -> output
#
# They remember nothing: the parameters are an argument, and the gradient of a loss is
# an ordinary derivative. With a key (training), apply_fun uses dropout.


def GraphConvolution(out_dim, bias=False, dropout_rate=0):
    """A layer of the GCN, Â X W: the paper's equation 2 before its activation.

    Like a convolution of an image, it shares its parameters: one W serves all nodes.
    The bias, not in the paper, is for models of your own.

    params: (W [F, out_dim],) or (W, b [out_dim]).
    x: [N, F], an array or a Sparse -> [N, out_dim].
    """
    check_rate(dropout_rate)

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W = glorot_uniform(rng, (num_features, out_dim), num_features, out_dim)
        params = (W, jnp.zeros(out_dim)) if bias else (W,)
        return (num_nodes, out_dim), params

    def apply_fun(params, x, adj, rng=None):
        x = dropout(rng, x, dropout_rate)
        # This product comes first: the sum then has out_dim columns, and not F.
        h = x @ params[0]                                   # [N, F] -> [N, out_dim]
        out = adj.aggregate(adj.values, h)                  # w_ij = Â_ij
        if bias:
            out = out + params[1]
        return out

    return init_fun, apply_fun


def chain(layers, activation):
    """Layers in a row, with an activation between them. params: a list of theirs.

    Without an activation, W1 would add nothing: Â (Â X W0) W1 = Â Â X (W0 W1).
    """

    def init_fun(rng, input_shape):
        rngs = jax.random.split(rng, len(layers))
        shape, params = input_shape, []
        for layer_rng, (layer_init, _) in zip(rngs, layers):
            shape, layer_params = layer_init(layer_rng, shape)
            params.append(layer_params)
        return shape, params

    def apply_fun(params, x, adj, rng=None):
        rngs = split_or_none(rng, len(layers))
        for i, (_, layer_apply) in enumerate(layers):
            if i > 0:
                x = activation(x)
            x = layer_apply(params[i], x, adj, rngs[i])
        return x

    return init_fun, apply_fun


def GCN(nhid, nclass, dropout_rate=0.5):
    """The GCN, Â ReLU(Â X W0) W1: the paper's equation 9 without its softmax.

    Through two layers, a node hears from its neighbours' neighbours, too. The result is
    called logits: a number z_c for each class c. A softmax makes probabilities of them:
    exp(z_c) / the sum of exp(z_k) over all classes k.

    nhid: hidden units. x: [N, F] -> logits [N, C], C = nclass.
    """
    layers = [GraphConvolution(nhid, dropout_rate=dropout_rate),
              GraphConvolution(nclass, dropout_rate=dropout_rate)]
    return chain(layers, jax.nn.relu)


# 3. GAT -------------------------------------------------------------------------------
#
# The same sum, with other weights: those of node i come from its features and from its
# neighbours'. With a learned vector a, and [u || v] for u and v one after the other:
#
#     score_ij = LeakyReLU(a . [h_i || h_j])
#     alpha_ij = exp(score_ij) / the sum of exp(score_ik) over k      equation 3
#     out_i    = the sum of alpha_ij h_j over j       equation 4, before its activation
#
# where j and k are neighbours of i, itself among them: a softmax over these. (The
# paper's h_j is x_j here, its W h_j is h_j.) A high score_ij makes i hear much of j;
# like W, a is learned from the loss. Where a is 0, all scores are equal, and alpha_ij
# is 1 / d_i: the sum is the mean. A layer has H such sums side by side, its heads. (On
# Cora, learned weights do no better than the GCN's in their place: 83.2 percent right
# for 83.5, means of 100 seeds. See docs/experiments.md.)


def segment_softmax(scores, rows, num_rows):
    """A softmax over the entries of each row (JAX: a segment): [E, H] -> [E, H]."""
    # A softmax does not change if one number is subtracted from all its scores. With
    # the largest, exp cannot overflow. As the number does not matter, it needs no
    # gradient: stop_gradient makes it a constant (PyTorch: detach).
    largest = jax.ops.segment_max(scores, rows, num_rows)   # [E, H] -> [N, H]
    largest = jax.lax.stop_gradient(largest)
    exp = jnp.exp(scores - largest[rows])                   # [E, H]
    total = jax.ops.segment_sum(exp, rows, num_rows)        # [E, H] -> [N, H]
    return exp / total[rows]                                # [E, H]


def attention(a1, a2, h, adj):
    """The GAT's weights alpha: a1, a2 [H, D], h [N, H, D] -> [E, H].

    With a in two halves, a . [h_i || h_j] = a1 . h_i + a2 . h_j. So each node has two
    numbers, and an entry of adj adds the first of i to the second of j.
    """
    own = jnp.einsum("nhd,hd->nh", h, a1)                   # a1 . h_i, in each head
    neighbour = jnp.einsum("nhd,hd->nh", h, a2)             # a2 . h_j
    scores = own[adj.rows] + neighbour[adj.cols]            # [N, H] -> [E, H]
    # Negative scores times 0.2, as in the paper. (A ReLU would make them and their
    # gradient 0.) Without LeakyReLU, a1 . h_i would be one number in all scores of row
    # i, which changes no softmax.
    scores = jax.nn.leaky_relu(scores, 0.2)
    return segment_softmax(scores, adj.rows, adj.shape[0])


def MultiHeadLayer(nheads, nhid, dropout_rate, last_layer=False):
    """nheads heads, each with nhid units and its own W, a1 and a2.

    Each can prefer other neighbours; the authors found learning more stable with
    several. Their outputs stand side by side; those of a last layer, whose units are
    the classes, are averaged.

    params: (W [F, H*D], a1 [H, D], a2 [H, D], b [H, D]), H = nheads, D = nhid.
    x: [N, F] -> [N, H*D], in the last layer [N, D].
    """
    check_rate(dropout_rate)

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W_rng, a1_rng, a2_rng = jax.random.split(rng, 3)
        W = glorot_uniform(W_rng, (num_features, nheads * nhid), num_features, nhid)
        a1 = glorot_uniform(a1_rng, (nheads, nhid), nhid, 1)    # nhid numbers make one
        a2 = glorot_uniform(a2_rng, (nheads, nhid), nhid, 1)
        b = jnp.zeros((nheads, nhid))
        out_dim = nhid if last_layer else nheads * nhid
        return (num_nodes, out_dim), (W, a1, a2, b)

    def apply_fun(params, x, adj, rng=None):
        W, a1, a2, b = params
        x_rng, alpha_rng, h_rng = split_or_none(rng, 3)

        x = dropout(x_rng, x, dropout_rate)
        h = (x @ W).reshape(-1, nheads, nhid)               # [N, F] -> [N, H, D]
        alpha = attention(a1, a2, h, adj)                   # w_ij = alpha_ij: [E, H]
        # In each step, each head hears a random part of the neighbours.
        alpha = dropout(alpha_rng, alpha, dropout_rate)
        # Not in the paper, but in its authors' code: this dropout, and the bias b.
        h = dropout(h_rng, h, dropout_rate)
        out = adj.aggregate(alpha, h)                       # equation 4: [N, H, D]
        out = out + b
        if last_layer:
            return out.mean(axis=1)                         # equation 6: [N, D]
        return out.reshape(-1, nheads * nhid)               # equation 5: [N, H*D]

    return init_fun, apply_fun


def GraphAttentionLayer(out_dim, dropout_rate):
    """A layer of one head, for models of your own: [N, F] -> [N, out_dim]."""
    return MultiHeadLayer(1, out_dim, dropout_rate)


def GAT(nheads, nhid, nclass, dropout_rate=0.6):
    """The GAT: layers of heads, ELU between them. For Cora, GAT([8, 1], [8], 7).

    nheads: the heads of each layer. nhid: the units of a head, in each but the last
    layer, which has nclass.
    x: [N, F] -> logits [N, C], C = nclass.
    """
    check(np.ndim(nheads) == np.ndim(nhid) == 1 and len(nheads) == len(nhid) + 1,
          f"nheads is {nheads}, nhid {nhid}: they must be lists, nheads one longer")
    layers = []
    for heads, units in zip(nheads[:-1], nhid):
        layers.append(MultiHeadLayer(heads, units, dropout_rate))
    layers.append(MultiHeadLayer(nheads[-1], nclass, dropout_rate, last_layer=True))
    return chain(layers, jax.nn.elu)


# 4. Loss ------------------------------------------------------------------------------


def log_softmax(logits):
    """The logarithm of the softmax: [n, C] -> [n, C]."""
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))     # [n, 1]
    shifted = logits - largest                              # exp cannot overflow
    return shifted - jnp.log(jnp.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels):
    """Minus the log-probability of the right class, the mean over n nodes.

    logits: [n, C]. labels: [n], from 0 to C - 1; any other makes the result nan, and
    so is the gradient in its row of logits.
    """
    check_shape("labels", labels, logits.shape[:1])
    num_nodes, num_classes = logits.shape
    # -1 would be read as the last class, and compiled code cannot simply raise: what is
    # no class is read as class 0, and multiplied by nan.
    is_class = (labels >= 0) & (labels < num_classes)
    classes = jnp.where(is_class, labels, 0)
    log_p = log_softmax(logits)[jnp.arange(num_nodes), classes]             # [n]
    return -(log_p * jnp.where(is_class, 1, jnp.nan)).mean()


def accuracy(logits, labels):
    """The fraction of nodes whose largest logit is that of the right class."""
    check_shape("labels", labels, logits.shape[:1])
    return (logits.argmax(axis=1) == labels).mean()


def l2_penalty(params):
    """Half the sum of the squares of all numbers in a pytree. It keeps them small."""
    return sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)) / 2


# 5. Adam ------------------------------------------------------------------------------


def adam(step_size, b1=0.9, b2=0.999, eps=1e-8):
    """The optimizer Adam (Kingma & Ba 2015, algorithm 1), a pair of functions:

        init(params) -> state
        update(grads, state, params) -> (params, state)

    m is a running mean of each gradient, v a running mean of its square. A parameter
    moves by -step_size * m / sqrt(v): by step_size while its gradient stays the same,
    large or small, and mostly by less where its sign changes.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros                              # the step t, m and v

    def update(grads, state, params):
        t, m, v = state
        t = t + 1
        m = jax.tree.map(lambda mean, grad: b1 * mean + (1 - b1) * grad, m, grads)
        v = jax.tree.map(lambda mean, grad: b2 * mean + (1 - b2) * grad ** 2, v, grads)

        def move(param, mean, mean_square):
            # Both began at 0, and are too small at first: of a gradient that stays g,
            # the mean is (1 - b1^t) g after t steps.
            m_hat = mean / (1 - b1 ** t)
            v_hat = mean_square / (1 - b2 ** t)
            return param - step_size * m_hat / (jnp.sqrt(v_hat) + eps)

        return jax.tree.map(move, params, m, v), (t, m, v)

    return init, update


# 6. Training --------------------------------------------------------------------------
#
# An epoch is one step, on all training nodes. After each, a rule looks at the history
# so far, {"val_loss": [1.94, 1.93, ...], ...}, and answers two questions: was this
# progress (too long without ends the training), and are these the params to return?


def loss_rule(history):
    """The GCN paper's, as read here: a new lowest validation loss is progress.

    (Its authors' code compares with the mean of ten epochs.) The last params are kept.
    """
    *before, loss = history["val_loss"]
    is_progress = loss < min(before, default=math.inf)
    return is_progress, True


def loss_or_accuracy_rule(history):
    """The GAT authors' code's: the best validation loss or accuracy is progress.

    So is a tie. Params are kept if both are at their best.
    """
    losses, accuracies = history["val_loss"], history["val_accuracy"]
    is_lowest = losses[-1] == min(losses)
    is_highest = accuracies[-1] == max(accuracies)
    return is_lowest or is_highest, is_lowest and is_highest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """The settings of a training."""

    step_size: float                    # Adam's learning rate
    weight_decay: float                 # the factor of the L2 penalty
    epochs: int                         # the most epochs
    patience: int                       # stop after so many epochs without progress
    penalise_all: bool = static()       # L2 on all layers, or on the first
    rule: Callable = static()           # loss_rule, say


# The papers' settings for Cora; 100,000 is the GAT's authors' code's. The GCN penalises
# its first layer only, which has 22,928 of the 23,040 parameters.
GCN_RECIPE = Recipe(step_size=0.01, weight_decay=5e-4, penalise_all=False,
                    epochs=200, rule=loss_rule, patience=10)
GAT_RECIPE = Recipe(step_size=0.005, weight_decay=5e-4, penalise_all=True,
                    epochs=100_000, rule=loss_or_accuracy_rule, patience=100)


def predict(model, params, graph, rng=None):
    """The model's logits for all nodes: [N, C]. A key turns dropout on."""
    _, apply_fun = model
    logits = apply_fun(params, graph.x, graph.adj, rng)
    # With too few rows, logits[nodes] would give the last one, without an error.
    check_shape("logits [labels, classes]", logits,
                (len(graph.y), len(graph.class_names)))
    return logits


# @jax.jit, with the model, two functions, as a static argument. Each GCN(16, 7) makes
# new functions, for which jit compiles anew: make one model, and keep it.
@functools.partial(jax.jit, static_argnames="model")
def train_step(model, params, state, graph, rng, recipe):
    """One step of Adam on the training nodes -> (params, state)."""
    num_steps, _, _ = state                 # Adam's t, m and v
    step_rng = jax.random.fold_in(rng, num_steps)

    def loss(params):
        logits = predict(model, params, graph, step_rng)
        data_loss = cross_entropy(logits[graph.train], graph.y[graph.train])
        penalised = params if recipe.penalise_all else params[0]
        return data_loss + recipe.weight_decay * l2_penalty(penalised)

    grads = jax.grad(loss)(params)
    _, update = adam(recipe.step_size)      # made anew: what it remembers is in state
    return update(grads, state, params)


@functools.partial(jax.jit, static_argnames="model")
def evaluate(model, params, graph):
    """Loss (without penalty) and accuracy -> {"train_loss": ..., ...}

    Those of a split without nodes are nan.
    """
    logits = predict(model, params, graph)
    metrics = {}
    for split in ("train", "val", "test"):
        nodes = getattr(graph, split)
        metrics[f"{split}_loss"] = cross_entropy(logits[nodes], graph.y[nodes])
        metrics[f"{split}_accuracy"] = accuracy(logits[nodes], graph.y[nodes])
    return metrics


def adam_steps(model, graph, rng, recipe):
    """The steps of train: yield (epoch, params, metrics) after each."""
    init_fun, _ = model
    init_rng, dropout_rng = jax.random.split(rng)
    _, params = init_fun(init_rng, graph.x.shape)
    init_adam, _ = adam(recipe.step_size)
    state = init_adam(params)
    for epoch in range(1, recipe.epochs + 1):
        params, state = train_step(model, params, state, graph, dropout_rng, recipe)
        yield epoch, params, evaluate(model, params, graph)


def train(model, graph, rng, recipe, log_every=10, steps=adam_steps):
    """Take steps until the recipe says stop -> (params, history).

    log_every: print a line every so many epochs, or at 0 nothing.
    steps: a function like adam_steps; your own can have another optimizer or loss.
    history: a dict of lists, a number for each epoch.
    Raises ValueError for arguments that do not fit, FloatingPointError if the training
    or validation loss is infinite or nan.
    """
    check_training(graph, rng, recipe)
    history = {
        "train_loss": [], "train_accuracy": [], "val_loss": [], "val_accuracy": []}
    for epoch, params, metrics in steps(model, graph, rng, recipe):
        line = f"epoch {epoch:4d}"
        for name, values in history.items():
            values.append(float(metrics[name]))
            line += f" | {name} {values[-1]:.4f}"
        if not math.isfinite(history["train_loss"][-1] + history["val_loss"][-1]):
            cause = ("is there a nan in x or adj, or a label that is no class?"
                     if epoch == 1 else "try a lower step_size or weight_decay")
            raise FloatingPointError(f"{line}: {cause}")
        if log_every and epoch % log_every == 0:
            print(line, flush=True)

        is_progress, is_kept = recipe.rule(history)
        if is_kept or epoch == 1:               # the first, whatever your rule says
            kept_params = params
        if is_progress or epoch == 1:
            last_progress = epoch
        if epoch == 10:                         # the first ones also compiled
            start = time.perf_counter()
        if epoch - last_progress >= recipe.patience:
            break
    if log_every:
        line = f"stopped after epoch {epoch}: last progress at {last_progress}"
        if epoch > 10:
            seconds = time.perf_counter() - start
            line += f", {1000 * seconds / (epoch - 10):.1f} ms an epoch"
        print(line)
    return kept_params, history


# 7. Data ------------------------------------------------------------------------------

# In data/ beside this file, or, in a notebook, which has no __file__, where that runs.
CORA = pathlib.Path(globals().get("__file__", "")).parent / "data" / "cora.npz"


def row_normalize(x):
    """Divide each row by its sum, unless that is 0: [N, F] -> [N, F]."""
    total = x.sum(axis=1, keepdims=True)                    # [N, 1]
    return x / np.where(total == 0, 1, total)


def from_dense(matrix):
    """The Sparse of an array [n, m]: its entries that are not zero."""
    matrix = np.asarray(matrix)
    rows, cols = np.nonzero(matrix)
    return make_sparse(rows, cols, matrix[rows, cols], matrix.shape)


def make_graph(x, edge_index, y, train_mask, val_mask, test_mask, class_names=None,
               normalize=True):
    """Check arrays and make a Graph of them.

    x: features [N, F]; they become a Sparse if more than half of them are 0.
    edge_index: integers [2, number of edges], see normalize_adjacency.
    y: integers [N], the class of each node, from 0; -1 for none.
    train_mask, val_mask, test_mask: booleans [N].
    class_names: C strings; without them, "0", "1", ..., and classes must be below N (a
        stray number must not make millions).
    normalize: divide each row of x by its sum: a long paper counts as a short one does.
    Raises ValueError that says what is wrong, and where.
    """
    x, y = np.asarray(x), np.asarray(y)
    check_array("x", x, "numbers", ["N", "F"])
    check(x.size > 0, f"x is {list(x.shape)}: a graph needs a node and a feature")
    # Below 1e30, so that a row's sum is no more than float32 holds, 3e38. (np.float64,
    # for x may be float16, in which 1e30 is infinite.)
    check_each(np.abs(x) < np.float64(1e30), "x", x, "it must be below 1e30 in size")
    check_each((x >= 0) | (not normalize), "x", x, "negative numbers, whose sum can "
               "be 0, need normalize=False (the scripts: --no-normalize)")
    num_nodes, _ = x.shape

    check_array("y", y, "integers", [num_nodes])
    if class_names is None:
        check_each(y < num_nodes, "y", y, "without class_names, it must be below N")
        class_names = [str(label) for label in range(int(y.max()) + 1)]
    class_names = np.asarray(class_names)
    check_array("class_names", class_names, "strings", ["C"])
    check_each((y >= -1) & (y < len(class_names)), "y", y,
               f"classes are 0 to {len(class_names) - 1}, or -1 for none")

    masks = {"train": train_mask, "val": val_mask, "test": test_mask}
    nodes, is_taken = {}, np.zeros(num_nodes, bool)
    for split, mask in masks.items():
        mask = np.asarray(mask)
        check_array(f"{split}_mask", mask, "booleans", [num_nodes])
        check_each(~(mask & is_taken), f"{split}_mask", mask, "another selects it, too")
        check_each((y >= 0) | ~mask, "y", y, f"{split}_mask needs a class here")
        nodes[split] = jnp.asarray(np.flatnonzero(mask), jnp.int32)
        is_taken = is_taken | mask

    x = x.astype(jnp.result_type(float))        # float32, unless JAX is set to float64
    if normalize:
        x = row_normalize(x)
    mostly_zeros = np.count_nonzero(x) < x.size / 2
    return Graph(
        x=from_dense(x) if mostly_zeros else jnp.asarray(x),
        adj=normalize_adjacency(edge_index, num_nodes),
        y=jnp.asarray(y, jnp.int32),
        class_names=tuple(class_names.astype(str).tolist()),
        **nodes)


def load_graph(path=CORA, normalize=True):
    """Read a Graph from an .npz file of make_graph's arguments.

    Raises OSError for a missing file, ValueError for whatever is wrong with it.
    """
    names = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask",
             "class_names")
    with open(path, "rb") as stream:
        try:
            with np.lib.npyio.NpzFile(stream) as file:      # np.load takes other files
                arrays = {name: file[name] for name in names if name in file}
            return make_graph(**arrays, normalize=normalize)
        except Exception as error:              # a damaged file can fail in any way
            raise ValueError(f"{path}: {error}") from error


# Checks


def check(condition, message):
    if not condition:
        raise ValueError(message)


def check_each(is_good, name, array, requirement):
    """Where is_good is false, name the first element: "x[3, 7] is nan: ..."."""
    if not is_good.all():
        index = np.argwhere(~is_good)[0].tolist()
        raise ValueError(f"{name}{index} is {array[tuple(index)]}: {requirement}")


def check_array(name, array, kind, shape):
    """Check an array's type and shape. A string in the shape is any length."""
    letters = {"booleans": "b", "integers": "iu", "numbers": "biuf", "strings": "US"}
    is_right = len(shape) == array.ndim
    for expected, length in zip(shape, array.shape):
        is_right &= isinstance(expected, str) or expected == length
    if array.size > 0:              # NumPy makes floats of an empty list
        is_right &= array.dtype.kind in letters[kind]
    if not is_right:
        found = f"{array.dtype} {list(array.shape)}"
        if array.ndim == 0:         # NumPy wraps what it does not know: a scipy matrix
            found = type(array.item()).__name__
        lengths = ", ".join(str(length) for length in shape)
        raise ValueError(f"{name} is {found}: it must be {kind} [{lengths}]")


def check_aggregate(matrix, weights, h):
    E, (_, m) = len(matrix.rows), matrix.shape
    is_right = (np.ndim(h) in (2, 3) and len(h) == m
                and np.shape(weights) == (E, *np.shape(h)[1:-1]))   # [E] or [E, H]
    check(is_right, f"{matrix} cannot sum weights {list(np.shape(weights))}, h "
          f"{list(np.shape(h))}: they must be [{E}] and [{m}, k], or [{E}, H] and "
          f"[{m}, H, D]")


def check_shape(name, array, shape):
    check(array.shape == shape,
          f"{name} are {list(array.shape)}: they must be {list(shape)}")


def check_rate(rate):
    check(0 <= rate < 1, f"the dropout rate is {rate}: it must be from 0 to below 1")


def check_training(graph, rng, recipe):
    check(isinstance(rng, jax.Array),
          f"rng is {rng!r}: it must be a key, as jax.random.key(0)")
    for name in ("epochs", "patience"):
        number = getattr(recipe, name)
        check(number >= 1, f"{name} is {number}: it must be at least 1")
    for split in ("train", "val", "test"):
        nodes = np.asarray(getattr(graph, split))
        check_array(split, nodes, "integers", ["n"])
        check_each((nodes >= 0) & (nodes < len(graph.y)), split, nodes,
                   f"nodes are 0 to {len(graph.y) - 1}")
    check(len(graph.train) > 0, "train is empty: there is no node to train on")
    check(len(graph.val) > 0, "val is empty: no node decides when to stop; "
          "dataclasses.replace(graph, val=graph.train) takes train's")


# What to copy for a file of your own: for a GCN, all but section 3; for a GAT, all but
# GraphConvolution and GCN. What begins with check, functions and calls, can be deleted.
