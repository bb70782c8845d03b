"""minignn: a GCN and a GAT from scratch, in one file of JAX, to be read in order.

A graph has nodes and edges: papers, say, and which of them cite each other. Node i has
features x_i, the words in paper i, and a label, its subject. A few labels are known;
from these, a model learns to predict the others. Most citations stay within a subject,
so neighbours help: in a layer, each node i takes a weighted sum over its neighbours j,
itself among them:

    out_i = sum over j of  w_ij h_j             h_j = x_j W, with a learned matrix W

The sum is one method here, aggregate; models differ in the weights. In a GCN (graph
convolutional network: Kipf & Welling, ICLR 2017), w_ij follows from how many neighbours
i and j have. In a GAT (graph attention network: Veličković et al., ICLR 2018), a
learned part computes it from h; this w_ij is called alpha_ij. adj, the adjacency, is a
sparse matrix with an entry for each i and its neighbour j; adj.values and alpha hold
the weights, entry by entry.

    GCN     out = adj.aggregate(adj.values, h)
    GAT     out = adj.aggregate(alpha, h)

From the data to predictions:

    graph = load_graph()                            # Cora, 2708 papers on 7 subjects
    model = GCN(nhid=16, nclass=7)                  # 16 hidden units, 7 classes
    rng = jax.random.key(0)                         # random numbers from the seed 0
    params, history = train(model, graph, rng, GCN_RECIPE)
    print(evaluate(model, params, graph)["test_accuracy"])          # 0.81 or so
    classes = predict(model, params, graph).argmax(axis=1)          # of all papers

JAX, for readers who know NumPy (jnp is JAX's NumPy):

    key, rng    the same key gives the same random numbers, so draw with it only once;
                jax.random.split makes several new keys from one, fold_in makes one from
                a key and a number
    pytree      lists, tuples, dicts and classes registered with JAX, nested; the arrays
                and numbers inside are its leaves. jax.tree.map(f, tree) is a new tree,
                of f(leaf) for each leaf; of several trees, f gets a leaf of each
    jax.grad    if f returns one number, grad(f)(params) is its gradient, a pytree like
                params
    jax.jit     jit(f) is f, compiled. The first call runs f on stand-ins for arrays and
                numbers, which have a shape but no value, and records what it does;
                later calls run the record. So f sees no values: what it must know by
                value (a function to call, a string, the size of a new array, what an
                `if` tests) is marked static, be it an argument or a field of a class.
                A new shape, type or static value makes a new record

Shapes stand in brackets: N nodes, E stored entries of a matrix, F features, C classes,
H heads of D units; n, m, k are any numbers. Functions whose names begin with check
raise ValueError for arguments that do not fit. They stand in section 7, data and
checks, which can be skipped. Its last lines say what to copy for a file of your own.

Needs Python 3.11, jax 0.5, numpy 1.26, or later. MIT License, the minignn developers.
"""
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# 1. Graphs ----------------------------------------------------------------------------

# Marks a field as static: register_dataclass, below, reads it.
static = functools.partial(dataclasses.field, metadata={"static": True})


@jax.tree_util.register_dataclass               # a pytree of the fields not static
@dataclasses.dataclass(frozen=True, eq=False)   # a dataclass's == fails on arrays
class Sparse:
    """A matrix of which only E entries are stored; the others are zero.

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

        weights [E], h [m, k] -> [n, k]. Or H such sums at once, the heads of section 3:
        weights [E, H], h [m, H, D] -> [n, H, D]. h may be NumPy's.
        """
        check_aggregate(self, weights, h)
        h_of_entry = jnp.asarray(h)[self.cols]          # [E, k] or [E, H, D]
        messages = weights[..., None] * h_of_entry      # [E, 1] * [E, k], for one sum
        # The same as: for e in range(E): out[rows[e]] += messages[e]
        return jax.ops.segment_sum(messages, self.rows, self.shape[0])

    def __matmul__(self, h):                            # self @ h: [m, k] -> [n, k]
        return self.aggregate(self.values, h)

    def todense(self):
        zeros = jnp.zeros(self.shape, self.values.dtype)
        return zeros.at[self.rows, self.cols].add(self.values)      # a changed copy

    def __array__(self, dtype=None, copy=None):         # np.asarray calls this
        raise ValueError(f"{self} is no array: say .todense() for one")

    def __repr__(self):
        return f"Sparse {list(self.shape)} of {len(self.rows)} entries"


def make_sparse(rows, cols, values, shape):
    """A Sparse from NumPy arrays, in JAX's types."""
    return Sparse(jnp.asarray(rows, jnp.int32), jnp.asarray(cols, jnp.int32),
                  jnp.asarray(values, float), shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    x: jax.Array | Sparse                       # features [N, F]; both have x @ W
    adj: Sparse                                 # [N, N], see normalize_adjacency
    y: jax.Array                                # labels [N], -1 for none
    train: jax.Array                            # [n], indices of nodes to learn from,
    val: jax.Array                              # those that say when to stop,
    test: jax.Array                             # those that the result is measured on
    class_names: tuple = static()               # a string for each class

    def __repr__(self):
        N, F = self.x.shape
        edges = np.sum(self.adj.rows != self.adj.cols)      # both directions count
        return (f"Graph of {N} nodes, {edges} edges, {F} features, "
                f"{len(self.class_names)} classes; {len(self.train)} training, "
                f"{len(self.val)} validation, {len(self.test)} test nodes")


# 2. GCN -------------------------------------------------------------------------------


def normalize_adjacency(edge_index, num_nodes):
    """The GCN's weights, the matrix Â of the paper's section 3.1 -> Sparse [N, N].

    Row i has an entry for each neighbour j of node i, and one for i itself, a
    self-loop, so that a node keeps its own features. With d_i entries in row i, and as
    an example the path 0 - 1 - 2, where d is [2, 3, 2]:

        Â_ij = 1 / sqrt(d_i d_j)            Â = [[.50, .41, 0  ],
                                                 [.41, .33, .41],
                                                 [0  , .41, .50]]

    Weights of 1 / d_i would make the sum a mean. With the roots of both, a neighbour
    that has many neighbours itself counts less.

    edge_index: integers [2, number of edges], sources and targets. An edge from j to i
    is an entry in row i, column j: a node hears from those that point at it. An
    undirected edge is listed in both directions; what is listed twice counts once.
    """
    check_nodes("edge_index", edge_index, [2, "number of edges"], num_nodes)
    edges = np.asarray(edge_index, np.int64)                # N * N can exceed int32
    nodes = np.arange(num_nodes)
    cols, rows = np.hstack([edges, [nodes, nodes]])         # sources, targets
    # Each place has a number: with 3 columns, row 1, column 2 is 5. Keep each once, as
    # by np.unique, which is slower in NumPy 2.4.
    places = np.sort(rows * num_nodes + cols)               # [0, 5, 5], say
    places = places[np.diff(places, prepend=-1) > 0]        # [0, 5]
    rows, cols = np.divmod(places, num_nodes)               # [0, 1], [0, 2]

    degree = np.bincount(rows)                              # [N]
    values = 1 / np.sqrt(degree[rows] * degree[cols])       # [E]
    return make_sparse(rows, cols, values, (num_nodes, num_nodes))


def glorot_uniform(rng, shape, fan_in, fan_out):
    """Random weights between -r and r (Glorot & Bengio 2010, equation 16).

    With weights of variance 1 / fan_in, a sum of fan_in products is as large as its
    inputs. Gradients, sums of fan_out products, need a variance of 1 / fan_out. Here it
    is r^2 / 3 = 2 / (fan_in + fan_out), between the two.
    """
    check(min(*shape, fan_in, fan_out) >= 1,
          f"weights {list(shape)}: each size must be at least 1")
    r = np.sqrt(6 / (fan_in + fan_out))
    return jax.random.uniform(rng, shape, minval=-r, maxval=r)


def dropout(rng, x, rate):
    """Make each number of x 0 with probability rate, and divide the others by 1 - rate.

    It is then harder to learn the few labels by heart; the division keeps the mean
    (Srivastava et al. 2014). Without a key, x stays.
    """
    check_rate(rate)
    if rng is None or rate == 0:
        return x
    if hasattr(x, "values"):            # as a Sparse has; what it does not store is 0
        return dataclasses.replace(x, values=dropout(rng, x.values, rate))
    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def split_or_none(rng, num):
    return [None] * num if rng is None else jax.random.split(rng, num)


# A function in CapWords makes a layer, which is a pair of functions, as a model is:
#
#     init_fun(rng, input_shape) -> (output_shape, params)
#     apply_fun(params, x, adj, rng=None) -> output
#
# They keep sizes and rates, but no params. A key, given in training, turns dropout on.


def GraphConvolution(out_dim, bias=False, dropout_rate=0):
    """A layer of the GCN, Â X W: the paper's equation 2 before its activation.

    All nodes share one W, as all places of an image share a convolution's filter. The
    bias, not in the paper, is for models of your own.

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
        W = params[0]
        x = dropout(rng, x, dropout_rate)
        h = x @ W               # first: the sum then has out_dim columns, and not F
        out = adj.aggregate(adj.values, h)                  # w_ij = Â_ij
        return out + params[1] if bias else out

    return init_fun, apply_fun


def chain(layers, activation):
    """Layers in a row, with an activation between them. params: a list of theirs."""

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

    Through two layers, a node hears from its neighbours' neighbours, too. Without the
    ReLU, W0 W1 would be one matrix: Â Â X (W0 W1). The result is called logits, of
    which a softmax makes probabilities: exp(z) of a class / the sum of exp(z) of all.

    nhid: hidden units. x: [N, F] -> logits [N, nclass].
    """
    layers = [GraphConvolution(nhid, dropout_rate=dropout_rate),
              GraphConvolution(nclass, dropout_rate=dropout_rate)]
    return chain(layers, jax.nn.relu)


# 3. GAT -------------------------------------------------------------------------------
#
# The same sum, with other weights: those of node i come from its features and its
# neighbours'. With a learned vector a, and [u || v] for u and v one after the other,
#
#     score_ij = LeakyReLU(a . [h_i || h_j])                          in equation 3
#     alpha_ij = exp(score_ij) / the sum of exp(score_ik) over k      equation 3
#     out_i    = the sum of alpha_ij h_j over j       equation 4, before its activation
#
# where j and k are neighbours of i: a softmax over these. (The paper's h_j is x_j here,
# its W h_j is h_j.) A high score_ij makes i hear much of j; like W, a is learned from
# the loss. Where a is 0, all alpha_ij are 1 / d_i, and the sum is the mean. A layer has
# H such sums side by side, its heads.


def segment_softmax(scores, rows, num_rows):
    """A softmax over the entries of each row (JAX: a segment): [E, H] -> [E, H]."""
    # With the largest of its row subtracted from each score, exp cannot overflow, and
    # the softmax is the same. So `largest` needs no gradient (PyTorch: detach).
    largest = jax.ops.segment_max(scores, rows, num_rows)   # [N, H]
    largest = jax.lax.stop_gradient(largest)
    exp = jnp.exp(scores - largest[rows])                   # [E, H]
    total = jax.ops.segment_sum(exp, rows, num_rows)        # [N, H]
    return exp / total[rows]                                # [E, H]


def attention(a1, a2, h, adj):
    """The GAT's weights alpha: a1, a2 [H, D], h [N, H, D] -> [E, H].

    With a in two halves, a . [h_i || h_j] = a1 . h_i + a2 . h_j: each node has two
    numbers, and an entry of adj adds the first of i to the second of j.
    """
    own = jnp.einsum("nhd,hd->nh", h, a1)                   # a1 . h_i: [N, H]
    neighbour = jnp.einsum("nhd,hd->nh", h, a2)             # a2 . h_j: [N, H]
    scores = own[adj.rows] + neighbour[adj.cols]            # [E, H]
    # Negative scores times 0.2. (A ReLU would make them and their gradient 0.) Without
    # such a bend, exp(a1 . h_i) would be a factor of all terms of row i, and cancel.
    scores = jax.nn.leaky_relu(scores, 0.2)
    return segment_softmax(scores, adj.rows, adj.shape[0])


def MultiHeadLayer(nheads, nhid, dropout_rate, last_layer=False):
    """nheads heads, each with nhid units and its own W, a1, a2 and bias b.

    Each can prefer other neighbours; the authors found learning more stable with
    several. Their outputs stand side by side; in a last layer, whose nhid is the number
    of classes, they are averaged.

    params: (W [F, H*D], a1 [H, D], a2 [H, D], b [H, D]), H = nheads, D = nhid.
    x: [N, F] -> [N, H*D], in the last layer [N, D].
    """
    check_rate(dropout_rate)

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W_rng, a1_rng, a2_rng = jax.random.split(rng, 3)
        # The fans are one head's: W maps F numbers to nhid, a1 and a2 nhid to 1.
        W = glorot_uniform(W_rng, (num_features, nheads * nhid), num_features, nhid)
        a1 = glorot_uniform(a1_rng, (nheads, nhid), nhid, 1)
        a2 = glorot_uniform(a2_rng, (nheads, nhid), nhid, 1)
        b = jnp.zeros((nheads, nhid))
        out_dim = nhid if last_layer else nheads * nhid
        return (num_nodes, out_dim), (W, a1, a2, b)

    def apply_fun(params, x, adj, rng=None):
        W, a1, a2, b = params
        x_rng, alpha_rng, h_rng = split_or_none(rng, 3)

        x = dropout(x_rng, x, dropout_rate)
        h = (x @ W).reshape(-1, nheads, nhid)               # [N, H, D]
        alpha = attention(a1, a2, h, adj)                   # w_ij = alpha_ij: [E, H]
        # In each step, each head hears a random part of the neighbours.
        alpha = dropout(alpha_rng, alpha, dropout_rate)
        h = dropout(h_rng, h, dropout_rate)     # in the authors' code, not in the paper
        out = adj.aggregate(alpha, h)                       # equation 4: [N, H, D]
        out = out + b                           # from their code, too
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
    layer, which has nclass. x: [N, F] -> logits [N, nclass].
    """
    check(np.ndim(nheads) == np.ndim(nhid) == 1 and len(nheads) == len(nhid) + 1,
          f"nheads is {nheads}, nhid {nhid}: they must be lists, nheads one longer")
    layers = [MultiHeadLayer(heads, units, dropout_rate)
              for heads, units in zip(nheads[:-1], nhid)]
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

    logits: [n, C]. labels: [n], from 0 to C - 1; any other makes the loss nan.
    """
    check_array("labels", labels, "integers", logits.shape[:1])
    num_nodes, num_classes = logits.shape
    # Compiled code cannot raise an error for a value, and would read some class. So a
    # label that is no class is read as 0, times nan, which shows in loss and gradient.
    is_class = (labels >= 0) & (labels < num_classes)
    classes = jnp.where(is_class, labels, 0)
    log_p = log_softmax(logits)[jnp.arange(num_nodes), classes]             # [n]
    return -(log_p * jnp.where(is_class, 1, jnp.nan)).mean()


def accuracy(logits, labels):
    """The fraction of nodes whose largest logit is that of the right class."""
    check_array("labels", labels, "integers", logits.shape[:1])
    return (logits.argmax(axis=1) == labels).mean()


def l2_penalty(params):
    """Half the sum of the squares of all numbers in a pytree: it keeps them small."""
    return sum(jnp.sum(leaf ** 2) for leaf in jax.tree.leaves(params)) / 2


# 5. Adam ------------------------------------------------------------------------------


def adam(step_size, b1=0.9, b2=0.999, eps=1e-8):
    """The optimizer Adam (Kingma & Ba 2015, algorithm 1) -> (init, update).

    m is a running mean of each gradient, v one of its square. A parameter moves by
    about -step_size * m / sqrt(v): by step_size while its gradient stays the same,
    large or small, and mostly by less where its sign changes.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return 0, zeros, zeros                  # the state: the step t, m and v

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
# so far, {"val_loss": [1.94, 1.93, ...], ...}, and answers two questions: is this
# progress (training ends after too long without any), and are these the params to keep?


def loss_rule(history):
    """The GCN paper's, as read here: a new lowest validation loss is progress.

    Its code compares with a mean of ten losses, and keeps the last params, as here.
    """
    *before, loss = history["val_loss"]
    is_progress = loss < min(before, default=np.inf)
    return is_progress, True


def loss_or_accuracy_rule(history):
    """From the GAT's code: progress if loss or accuracy is best, kept if both are."""
    losses, accuracies = history["val_loss"], history["val_accuracy"]
    is_lowest = losses[-1] == min(losses)       # a tie counts, as in that code
    is_highest = accuracies[-1] == max(accuracies)
    return is_lowest or is_highest, is_lowest and is_highest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A pytree: with another step_size, say, train_step is not compiled anew."""

    step_size: float                    # Adam's learning rate
    weight_decay: float                 # the factor of the L2 penalty
    epochs: int                         # the most epochs
    patience: int                       # stop after so many epochs without progress
    penalise_all: bool = static()       # L2 on all layers, or on the first
    rule: Callable = static()           # loss_rule, say


# The papers' settings for Cora. The GAT's 100,000 epochs and its penalty on all layers
# are from its code. The GCN's penalty is on its first layer, the larger by far.
GCN_RECIPE = Recipe(step_size=0.01, weight_decay=5e-4, penalise_all=False,
                    epochs=200, rule=loss_rule, patience=10)
GAT_RECIPE = Recipe(step_size=0.005, weight_decay=5e-4, penalise_all=True,
                    epochs=100_000, rule=loss_or_accuracy_rule, patience=100)


def predict(model, params, graph, rng=None):
    """The model's logits for all nodes: [N, C]."""
    _, apply_fun = model
    logits = apply_fun(params, graph.x, graph.adj, rng)
    check_logits(graph, logits)
    return logits


# @jax.jit with a static argument, the model. Each GCN(16, 7) makes new functions, for
# which jit compiles anew: make one model, and keep it.
@functools.partial(jax.jit, static_argnames="model")
def train_step(model, params, state, graph, rng, recipe):
    """One step of Adam on the training nodes -> (params, state)."""
    num_steps, _, _ = state                 # Adam's t, m and v
    step_rng = jax.random.fold_in(rng, num_steps)       # another for each step

    def penalised_loss(params):
        logits = predict(model, params, graph, step_rng)
        loss = cross_entropy(logits[graph.train], graph.y[graph.train])
        penalised = params if recipe.penalise_all else params[0]    # the first layer's
        return loss + recipe.weight_decay * l2_penalty(penalised)

    grads = jax.grad(penalised_loss)(params)
    _, update = adam(recipe.step_size)      # made anew: what it remembers is in state
    return update(grads, state, params)


@functools.partial(jax.jit, static_argnames="model")
def evaluate(model, params, graph):
    """Each split's loss, without penalty, and accuracy -> {"train_loss": ..., ...}"""
    logits = predict(model, params, graph)
    metrics = {}
    for split in ("train", "val", "test"):
        nodes = getattr(graph, split)           # without any, both metrics are nan
        metrics[f"{split}_loss"] = cross_entropy(logits[nodes], graph.y[nodes])
        metrics[f"{split}_accuracy"] = accuracy(logits[nodes], graph.y[nodes])
    return metrics


def adam_steps(model, graph, rng, recipe):
    """One step an epoch: yield (epoch, params, metrics). train may end it early."""
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
    params: those that the rule kept last.
    history: a dict of lists, a number for each epoch.
    Raises FloatingPointError if the training or validation loss is infinite or nan.
    """
    check_training(graph, rng, recipe)
    history = {                     # not of the test nodes: they must choose nothing
        "train_loss": [], "train_accuracy": [], "val_loss": [], "val_accuracy": []}
    last_progress = 1
    for epoch, params, metrics in steps(model, graph, rng, recipe):
        line = f"epoch {epoch:4d}"
        for name, values in history.items():
            values.append(float(metrics[name]))
            line += f" | {name} {values[-1]:.4f}"
        if not np.isfinite(history["train_loss"][-1] + history["val_loss"][-1]):
            cause = ("is there a nan in x or adj, or a label that is no class?"
                     if epoch == 1 else "try a lower step_size or weight_decay")
            raise FloatingPointError(f"{line}: {cause}")
        if log_every and epoch % log_every == 0:
            print(line, flush=True)

        is_progress, is_kept = recipe.rule(history)
        if is_kept or epoch == 1:               # the first, whatever your rule says
            kept_params = params
        if is_progress:
            last_progress = epoch
        if epoch == 10:                         # by now, all is compiled
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


# 7. Data and checks -------------------------------------------------------------------

# data/ is beside this file, or, in a notebook, which has no __file__, where that runs.
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
    class_names: C strings; without them, "0", "1", ..., and classes must be below N.
    normalize: divide each row of x by its sum: a long paper counts as a short one does.
    Raises ValueError that says what is wrong, and where.
    """
    x, y = np.asarray(x), np.asarray(y)
    masks = {"train": train_mask, "val": val_mask, "test": test_mask}
    check_graph_arrays(x, y, masks, class_names, normalize)
    if class_names is None:
        class_names = range(int(y.max()) + 1)
    x = x.astype(jnp.result_type(float))        # float32, unless JAX is set to float64
    if normalize:
        x = row_normalize(x)
    mostly_zeros = np.count_nonzero(x) < x.size / 2
    splits = {split: jnp.asarray(np.flatnonzero(mask), jnp.int32)
             for split, mask in masks.items()}
    return Graph(
        x=from_dense(x) if mostly_zeros else jnp.asarray(x),
        adj=normalize_adjacency(edge_index, num_nodes=len(x)),
        y=jnp.asarray(y, jnp.int32),
        class_names=tuple(np.asarray(class_names).astype(str).tolist()),
        **splits)


def load_graph(path=CORA, normalize=True):
    """Read a Graph from an .npz file of make_graph's arrays.

    Raises OSError for a missing file, ValueError for whatever is wrong with it.
    """
    names = ["x", "edge_index", "y", "train_mask", "val_mask", "test_mask"]
    arrays, what = {}, path
    with open(path, "rb") as stream:
        try:
            file = np.lib.npyio.NpzFile(stream)     # np.load takes .npy, too
            if "class_names" in file:
                names.append("class_names")
            for name in names:
                what = f"{path}: {name}"
                arrays[name] = file[name]
        except Exception as error:              # a damaged file can fail in any way
            raise ValueError(f"{what}: {error}") from error
    try:
        return make_graph(**arrays, normalize=normalize)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# The checks


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
    is_right = array.ndim == len(shape)
    for expected, length in zip(shape, array.shape):
        is_right &= isinstance(expected, str) or expected == length
    if array.size > 0:              # NumPy makes floats of an empty list
        is_right &= array.dtype.kind in letters[kind]
    found = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 0 and array.dtype.kind in "OU":    # NumPy wraps a scipy matrix so
        found = type(array.item()).__name__
    lengths = ", ".join(str(length) for length in shape)
    check(is_right, f"{name} is {found}: it must be {kind} [{lengths}]")


def check_nodes(name, nodes, shape, num_nodes):
    nodes = np.asarray(nodes)
    check_array(name, nodes, "integers", shape)
    check_each((nodes >= 0) & (nodes < num_nodes), name, nodes,
               f"nodes are 0 to {num_nodes - 1}")


def check_graph_arrays(x, y, masks, class_names, normalize):
    check_array("x", x, "numbers", ["N", "F"])
    check(x.size > 0, f"x is {list(x.shape)}: a graph needs a node and a feature")
    # Below 1e30, a row's sum fits float32. (As float16, 1e30 would be infinite.)
    check_each(np.abs(x) < np.float64(1e30), "x", x, "it must be below 1e30 in size")
    check_each((x >= 0) | (not normalize), "x", x,
               "negative numbers, whose sum can be 0, need normalize=False")

    check_array("y", y, "integers", [len(x)])
    num_classes = len(x)            # a stray number must not make a million names
    if class_names is not None:
        check_array("class_names", np.asarray(class_names), "strings", ["C"])
        num_classes = len(class_names)
    check_each((y >= -1) & (y < num_classes), "y", y, "-1 for none, or 0 to "
               f"{num_classes - 1}; more classes need more class_names")

    is_taken = np.zeros(len(x), bool)
    for split, mask in masks.items():
        name, mask = f"{split}_mask", np.asarray(mask)
        check_array(name, mask, "booleans", [len(x)])
        check_each(~(mask & is_taken), name, mask, "another selects it, too")
        check_each((y >= 0) | ~mask, "y", y, f"{name} needs a class here")
        is_taken = is_taken | mask


def check_aggregate(matrix, weights, h):
    E, (_, m) = len(matrix.rows), matrix.shape
    is_right = (np.ndim(h) in (2, 3) and len(h) == m
                and np.shape(weights) == (E, *np.shape(h)[1:-1]))   # [E] or [E, H]
    check(is_right, f"{matrix} cannot sum weights {list(np.shape(weights))}, h "
          f"{list(np.shape(h))}: they must be [{E}] and [{m}, k], or [{E}, H] and "
          f"[{m}, H, D]")


def check_logits(graph, logits):
    # Of rows that are missing, JAX would read the last one instead, without an error.
    shape = len(graph.y), len(graph.class_names)
    check(logits.shape == shape, f"logits [nodes, classes] are {list(logits.shape)}: "
          f"they must be {list(shape)}")


def check_rate(rate):
    check(0 <= rate < 1, f"the dropout rate is {rate}: it must be from 0 to below 1")


def check_training(graph, rng, recipe):
    check(isinstance(rng, jax.Array),
          f"rng is {rng!r}: it must be a key, as jax.random.key(0)")
    for name in ("epochs", "patience"):
        number = getattr(recipe, name)
        check(number >= 1, f"{name} is {number}: it must be at least 1")
    for split in ("train", "val", "test"):
        check_nodes(split, getattr(graph, split), ["n"], len(graph.y))
    check(len(graph.train) > 0, "train is empty: there is no node to train on")
    check(len(graph.val) > 0, "val is empty: no node decides when to stop; "
          "dataclasses.replace(graph, val=graph.train) takes train's")


# What to copy for a file of your own, beside data/: for a GCN, all but section 3; for a
# GAT, all but GraphConvolution and GCN. Functions that begin with check can be deleted,
# with their calls.
