"""The experiments of docs/experiments.md that need more than a flag of a script.

    python docs/experiments.py NAME [NUMBER]
    python docs/experiments.py fair [METHOD]

    default             the GCN of the paper, to compare with
    no-graph            each node hears only itself: the adjacency is the identity
    no-words            the identity as features: the model knows the graph and nothing
                        else
    no-self-loops       D^-1/2 A D^-1/2, without the node itself
    row-normalized      D^-1 (A + I): the plain mean instead of the symmetric weights
    labels NUMBER       NUMBER training nodes per class, drawn at random from the public
                        split's twenty
    random-split        20 training nodes per class, 500 validation and 1000 test nodes,
                        all drawn at random
    first-nodes         the split of several tutorials: nodes 0 to 139 train, 200 to 499
                        validate, 500 to 1499 test
    code-rule           the stopping rule of the authors' code, not the GCN paper's
    depth NUMBER        a GCN of NUMBER layers that always trains for 200 epochs, and
                        the mean cosine of two papers in its last hidden layer
    homophily NUMBER    a GCN and a network without a graph on random graphs in which
                        NUMBER percent of the edges are within a class
    gat-no-ties         the GAT, where an equal validation loss or accuracy is no
                        progress
    gat-head-masks      the GAT, where each head has a dropout mask of the input for
                        itself, as in its authors' code
    gat-no-attention    the GAT, where a node gives all its neighbours the same weight
    gcn-as-gat          a GCN with all else as in the GAT: 64 hidden units, biases, ELU,
                        dropout 0.6, the GAT's recipe
    gatv2               the GATv2: the GAT with the score of Brody, Alon & Yahav 2022
    fair METHOD         a row of the fair table: label-propagation, no-graph, sgc, gcn,
                        gat or gatv2, each with four settings to choose from; without
                        METHOD the whole table (half an hour)

Random choices use the seed of the run; the model is trained with the same seed.
"""
import argparse
import dataclasses
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from minignn import (
    GAT,
    GAT_RECIPE,
    GCN,
    GCN_RECIPE,
    GraphConvolution,
    MultiHeadLayer,
    Sparse,
    accuracy,
    chain,
    check_dropout_rate,
    check_whole,
    dropout,
    evaluate,
    glorot_uniform,
    load_graph,
    make_graph,
    receptive_field,
    segment_softmax,
    split_or_none,
    train,
)

# Graphs: each function makes a graph of Cora, the seed and NUMBER ---------------------


def default(graph, seed, number):
    return graph


def identity(n):
    return Sparse(np.arange(n), np.arange(n), np.ones(n, np.float32), (n, n))


def no_graph(graph, seed, number):
    return dataclasses.replace(graph, adj=identity(len(graph.y)))


def no_words(graph, seed, number):
    return dataclasses.replace(graph, x=identity(len(graph.y)))


def no_self_loops(graph, seed, number):
    rows = np.asarray(graph.adj.rows)
    cols = np.asarray(graph.adj.cols)
    is_edge = rows != cols
    rows = rows[is_edge]
    cols = cols[is_edge]

    degree = np.bincount(rows, minlength=len(graph.y))
    values = 1 / np.sqrt(degree[rows] * degree[cols])
    adj = Sparse(rows, cols, values.astype(np.float32), graph.adj.shape)
    return dataclasses.replace(graph, adj=adj)


def row_normalized(graph, seed, number):
    rows = np.asarray(graph.adj.rows)
    degree = np.bincount(rows)
    values = (1 / degree[rows]).astype(np.float32)
    adj = dataclasses.replace(graph.adj, values=values)
    return dataclasses.replace(graph, adj=adj)


def choose(rng, nodes, labels, number):
    """`number` of the nodes of each class, drawn at random."""
    chosen = []
    for c in np.unique(labels):
        chosen.append(rng.choice(nodes[labels == c], number, replace=False))
    return np.concatenate(chosen)


def labels(graph, seed, number):
    rng = np.random.default_rng(seed)
    nodes = np.asarray(graph.train)
    train = choose(rng, nodes, np.asarray(graph.y)[nodes], number)
    return dataclasses.replace(graph, train=train)


def random_split(graph, seed, number):
    rng = np.random.default_rng(seed)
    nodes = np.arange(len(graph.y))
    train = choose(rng, nodes, np.asarray(graph.y), 20)
    rest = rng.permutation(np.setdiff1d(nodes, train))
    return dataclasses.replace(graph, train=train, val=rest[:500], test=rest[500:1500])


def first_nodes(graph, seed, number):
    return dataclasses.replace(
        graph, train=np.arange(140), val=np.arange(200, 500), test=np.arange(500, 1500))


def homophily(seed, percent, num_classes=5, num_nodes=1000, num_edges=2000):
    """A random graph in which `percent` of the edges join two nodes of a class.

    The other edges join nodes of different classes, all pairs of classes alike. The
    features of a node are a random vector of its class plus as much noise that a
    network without a graph is right in about two of three cases. 20 nodes per class
    train, 200 validate, and the others test.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(num_nodes) % num_classes)
    centres = rng.normal(size=(num_classes, 16))
    x = centres[y] + 2 * rng.normal(size=(num_nodes, 16))

    # All pairs of nodes i < j in random order: of each kind, as many as are wanted.
    # All graphs have the same number of edges, so JAX compiles once.
    i, j = np.triu_indices(num_nodes, k=1)
    order = rng.permutation(len(i))
    i, j = i[order], j[order]
    same = y[i] == y[j]
    num_same = num_edges * percent // 100
    chosen = np.concatenate([np.flatnonzero(same)[:num_same],
                             np.flatnonzero(~same)[:num_edges - num_same]])
    edges = np.stack([i[chosen], j[chosen]])

    train = choose(rng, np.arange(num_nodes), y, 20)
    rest = rng.permutation(np.setdiff1d(np.arange(num_nodes), train))
    masks = []
    for nodes in (train, rest[:200], rest[200:]):
        masks.append(np.isin(np.arange(num_nodes), nodes))
    edge_index = np.hstack([edges, edges[::-1]])            # both directions
    return make_graph(x, edge_index, y, *masks, normalize=False)


GRAPHS = {
    "default": default,
    "no-graph": no_graph,
    "no-words": no_words,
    "no-self-loops": no_self_loops,
    "row-normalized": row_normalized,
    "labels": labels,
    "random-split": random_split,
    "first-nodes": first_nodes,
    "code-rule": default,
    "depth": default,
    "gat-no-ties": default,
    "gat-head-masks": default,
    "gat-no-attention": default,
    "gcn-as-gat": default,
    "gatv2": default,
}

# Models and stopping rules ------------------------------------------------------------


def code_rule(history):
    """From the twelfth epoch, stop when the loss exceeds the mean of the ten before."""
    loss = history["val_loss"]
    stop = len(loss) > 11 and loss[-1] > np.mean(loss[-11:-1])
    return not stop, True


def no_ties(history):
    """The GAT's rule, but an equal loss or accuracy is no progress."""
    losses_before = history["val_loss"][:-1]
    accuracies_before = history["val_accuracy"][:-1]
    lowest = history["val_loss"][-1] < min(losses_before, default=np.inf)
    highest = history["val_accuracy"][-1] > max(accuracies_before, default=-1)
    return lowest or highest, lowest and highest


def head_masks(nheads, nhid, dropout_rate):
    """A MultiHeadLayer in which each head drops its input anew, as the authors' code.

    It is made of layers of one head, side by side.
    """
    init_fun, _ = MultiHeadLayer(nheads, nhid, dropout_rate)
    _, one_head = MultiHeadLayer(1, nhid, dropout_rate)

    def apply_fun(params, x, adj, rng=None):
        outs = []
        for k, head_rng in enumerate(split_or_none(rng, nheads)):
            of_head = [p[..., k:k + 1, :] for p in params]  # the params of head k
            outs.append(one_head(of_head, x, adj, head_rng))                # [N, D]
        return jnp.hstack(outs)                                             # [N, H*D]

    return init_fun, apply_fun


def equal_weights(nheads, nhid, dropout_rate, last_layer=False):
    """A MultiHeadLayer whose scores are all 0, so that each weight is 1 / d_i.

    Its a1 and a2 are there, and do nothing.
    """
    init_fun, with_attention = MultiHeadLayer(nheads, nhid, dropout_rate, last_layer)

    def apply_fun(params, x, adj, rng=None):
        W, a1, a2, b = params
        return with_attention((W, 0 * a1, 0 * a2, b), x, adj, rng)

    return init_fun, apply_fun


def GATv2Layer(nheads, nhid, dropout_rate, last_layer=False):
    """minignn's MultiHeadLayer with the score of Brody, Alon & Yahav (ICLR 2022).

        score_ij = a . LeakyReLU(W1 x_i + W2 x_j)

    In the GAT, a stands inside the LeakyReLU: there, all nodes put the neighbours that
    they share in the same order.

    params: (W1, W2, a, b). W1, W2: [F, H, D]. a, b: [H, D].
    x: [N, F], an array or a Sparse -> [N, H*D], in the last layer [N, D].
    """

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W1_rng, W2_rng, a_rng = jax.random.split(rng, 3)
        shape = (num_features, nheads, nhid)
        W1 = glorot_uniform(W1_rng, shape, num_features, nhid)
        W2 = glorot_uniform(W2_rng, shape, num_features, nhid)
        a = glorot_uniform(a_rng, (nheads, nhid), nhid, 1)
        b = jnp.zeros((nheads, nhid))
        out_dim = nhid if last_layer else nheads * nhid
        return (num_nodes, out_dim), (W1, W2, a, b)

    def apply_fun(params, x, adj, rng=None):
        W1, W2, a, b = params
        x_rng, alpha_rng, h_rng = split_or_none(rng, 3)

        x = dropout(x_rng, x, dropout_rate)
        own = x @ W1.reshape(len(W1), nheads * nhid)        # [N, F] -> [N, H*D]
        own = own.reshape(-1, nheads, nhid)                 # -> [N, H, D]
        h = x @ W2.reshape(len(W2), nheads * nhid)          # [N, F] -> [N, H*D]
        h = h.reshape(-1, nheads, nhid)                     # -> [N, H, D]

        pairs = own[adj.rows] + h[adj.cols]                 # -> [E, H, D]
        pairs = jax.nn.leaky_relu(pairs, 0.2)
        scores = jnp.einsum("ehd,hd->eh", pairs, a)         # -> [E, H]
        alpha = segment_softmax(scores, adj.rows, adj.shape[0])
        alpha = dropout(alpha_rng, alpha, dropout_rate)
        h = dropout(h_rng, h, dropout_rate)
        out = adj.aggregate(alpha, h) + b                   # [N, H, D]

        if last_layer:
            return out.mean(axis=1)                         # -> [N, D]
        return out.reshape(-1, nheads * nhid)               # -> [N, H*D]

    return init_fun, apply_fun


def GATv2(nheads, nhid, nclass, dropout_rate=0.6):
    """Two GATv2 layers: nheads heads of nhid units, then one head."""
    first = GATv2Layer(nheads, nhid, dropout_rate)
    last = GATv2Layer(1, nclass, dropout_rate, last_layer=True)
    return chain([first, last], jax.nn.elu)


def SGC(hops, nclass):
    """The model of Wu et al. (ICML 2019): a GCN without hidden layers, Â ... Â X W.

    hops: how often Â is multiplied. params: [W]. W: [F, C].
    """

    def init_fun(rng, input_shape):
        num_nodes, num_features = input_shape
        W = glorot_uniform(rng, (num_features, nclass))
        return (num_nodes, nclass), [W]

    def apply_fun(params, x, adj, rng=None):
        h = x @ params[0]                                   # [N, F] -> [N, C]
        for _ in range(hops):
            h = adj @ h
        return h

    return init_fun, apply_fun


@jax.jit
def label_propagation(graph, keep):
    """Scores of the classes from the training labels and the graph alone: [N, C].

    Each node passes the share `keep` of its scores on to its neighbours, again and
    again, and each training node puts in its label anew (Zhou et al. 2004):

        F = keep Â F + (1 - keep) Y         Y: 1 for a training node's class, else 0
    """
    num_nodes, num_classes = graph.adj.shape[0], len(graph.class_names)
    labels = jnp.zeros((num_nodes, num_classes))
    labels = labels.at[graph.train, graph.y[graph.train]].set(1)

    def step(_, scores):
        return keep * (graph.adj @ scores) + (1 - keep) * labels

    return jax.lax.fori_loop(0, 1000, step, labels)         # 0.99 ** 1000 is 0.00004


def deep_layers(number, nclass):
    return [GraphConvolution(16)] * (number - 1) + [GraphConvolution(nclass)]


def make_model(name, number, dropout_rate, nclass):
    if name == "depth":
        return chain(deep_layers(number, nclass), jax.nn.relu, dropout_rate)
    if name == "gat-no-ties":
        return GAT([8, 1], [8], nclass)
    if name == "gat-head-masks":
        first = head_masks(8, 8, 0.6)
        last = MultiHeadLayer(1, nclass, 0.6, last_layer=True)
        return chain([first, last], jax.nn.elu)
    if name == "gat-no-attention":
        first = equal_weights(8, 8, 0.6)
        last = equal_weights(1, nclass, 0.6, last_layer=True)
        return chain([first, last], jax.nn.elu)
    if name == "gcn-as-gat":
        layers = [GraphConvolution(64, bias=True), GraphConvolution(nclass, bias=True)]
        return chain(layers, jax.nn.elu, 0.6)
    if name == "gatv2":
        return GATv2(8, 8, nclass)
    return GCN(16, nclass, dropout_rate)


RECIPES = {
    # A deep GCN starts on a plateau: with a patience of 10 it would stop before it has
    # learned anything.
    "depth": GCN_RECIPE | dict(patience=200),
    "code-rule": GCN_RECIPE | dict(patience=1, rule=code_rule),
    "homophily": GCN_RECIPE | dict(patience=200),
    "gat-no-ties": GAT_RECIPE | dict(rule=no_ties),
    "gat-head-masks": GAT_RECIPE,
    "gat-no-attention": GAT_RECIPE,
    "gcn-as-gat": GAT_RECIPE,
    "gatv2": GAT_RECIPE,
}

TAKES_NUMBER = ("labels", "depth", "homophily")

# How alike the nodes are --------------------------------------------------------------


@jax.jit
def mean_cosines(h, y):
    """The mean cosine of h_i and h_j, over the pairs of a class and all other pairs.

    h: [N, k]. A row of zeros has the cosine 0 with every other. y: labels [N].
    """
    h = h / jnp.linalg.norm(h, axis=1, keepdims=True).clip(1e-9)
    cosines = h @ h.T                                       # [N, N]
    same = y[:, None] == y[None, :]
    not_itself = ~jnp.eye(len(h), dtype=bool)
    return cosines.mean(where=same & not_itself), cosines.mean(where=~same)


def last_hidden(params, graph, nclass):
    """What the last layer of a deep GCN is given: [N, 16], or x if it is the first."""
    layers = deep_layers(len(params), nclass)[:-1]
    if not layers:
        return graph.x @ jnp.eye(graph.x.shape[1])          # as an array
    _, apply_fun = chain(layers, jax.nn.relu)
    return jax.nn.relu(apply_fun(params[:-1], graph.x, graph.adj))


# The fair table -----------------------------------------------------------------------
#
# Each method has four settings. The one to use is chosen on the validation nodes of the
# public split. No label of its training and validation nodes is ever tested: the random
# splits are drawn from the other nodes.

def grid(**values):
    """All combinations, each a dict: grid(a=[1, 2], b=[3, 4]) has four."""
    combinations = itertools.product(*values.values())
    return [dict(zip(values, combination)) for combination in combinations]


SETTINGS = {
    "label-propagation": grid(keep=[0.8, 0.9, 0.95, 0.99]),
    "no-graph": grid(dropout_rate=[0.5, 0.8], weight_decay=[5e-4, 2e-3]),
    "sgc": grid(hops=[2, 4], weight_decay=[1e-5, 1e-4]),
    "gcn": grid(dropout_rate=[0.5, 0.8], weight_decay=[5e-4, 2e-3]),
    "gat": grid(dropout_rate=[0.6, 0.4], weight_decay=[5e-4, 2e-3]),
    "gatv2": grid(dropout_rate=[0.6, 0.4], weight_decay=[5e-4, 2e-3]),
}
TUNING_SEEDS = 3


def fair_model(method, setting, nclass):
    """A setting of a method -> (model, recipe)."""
    if method == "sgc":
        recipe = GCN_RECIPE | dict(step_size=0.2, epochs=400, patience=400)
        model = SGC(setting["hops"], nclass)
    elif method in ("no-graph", "gcn"):
        recipe = GCN_RECIPE
        model = GCN(16, nclass, setting["dropout_rate"])
    elif method == "gat":
        recipe = GAT_RECIPE
        model = GAT([8, 1], [8], nclass, setting["dropout_rate"])
    else:
        recipe = GAT_RECIPE
        model = GATv2(8, 8, nclass, setting["dropout_rate"])
    return model, recipe | dict(weight_decay=setting["weight_decay"])


def fair_scorer(method, setting, cora, narrow):
    """A function of a seed and a split -> (validation accuracy, test accuracy).

    narrow: whether the steps of training see only the receptive field of the public
    split's training nodes, which is right for this split alone.
    """
    if method == "label-propagation":
        def score(seed, split):
            graph = dataclasses.replace(cora, **split)
            scores = label_propagation(graph, setting["keep"])
            accuracies = []
            for nodes in (split["val"], split["test"]):
                accuracies.append(float(accuracy(scores[nodes], graph.y[nodes])))
            return accuracies
        return score

    from scale.faster import faster, faster_bits, faster_train

    if method == "no-graph":
        cora = no_graph(cora, 0, None)
    field = None
    if narrow:
        field = faster(receptive_field(cora, setting.get("hops", 2)))
    whole = faster(cora)
    model, recipe = fair_model(method, setting, len(cora.class_names))
    _, apply_fun = model

    def score(seed, split):
        graph = dataclasses.replace(whole, **split)
        rng = jax.random.key(seed, impl=faster_bits)
        params, _ = faster_train(
            model, graph, rng, log_every=0, train_graph=field, **recipe)
        metrics = evaluate(apply_fun, params, graph)
        return float(metrics["val_accuracy"]), float(metrics["test_accuracy"])

    return score


def public_split(graph):
    return dict(train=graph.train, val=graph.val, test=graph.test)


def other_split(graph, seed):
    """20 training nodes per class, 500 validation and 1000 test nodes, at random.

    They are drawn from the nodes outside the public split's training and validation
    nodes, on which the settings were chosen.
    """
    rng = np.random.default_rng(seed)
    y = np.asarray(graph.y)
    used = np.concatenate([graph.train, graph.val])
    nodes = np.setdiff1d(np.arange(len(y)), used)
    train = choose(rng, nodes, y[nodes], 20)
    rest = rng.permutation(np.setdiff1d(nodes, train))
    return dict(train=train, val=rest[:500], test=rest[500:1500])


def choose_setting(cora, method):
    """The setting with the best mean validation accuracy on the public split."""
    split = public_split(cora)
    means = []
    for setting in SETTINGS[method]:
        score = fair_scorer(method, setting, cora, narrow=True)
        accuracies = []
        for seed in range(TUNING_SEEDS):
            val_accuracy, _ = score(seed, split)
            accuracies.append(val_accuracy)
        means.append(np.mean(accuracies))
        print(f"{method} | {setting} | validation accuracy {means[-1]:.4f} "
              f"over {TUNING_SEEDS} seeds", flush=True)
    return SETTINGS[method][int(np.argmax(means))]          # the first, if several are


def fair(cora, method, runs):
    """Choose a setting, use it on the public split and on random ones, and print."""
    setting = choose_setting(cora, method)
    print(f"{method} | chosen: {setting}", flush=True)
    for name in ("public split", "random splits"):
        score = fair_scorer(method, setting, cora, narrow=name == "public split")
        accuracies = []
        for seed in range(runs):
            split = public_split(cora)
            if name == "random splits":
                split = other_split(cora, seed)
            _, test_accuracy = score(seed, split)
            accuracies.append(test_accuracy)
        print(f"{method} | {name} | {summary(accuracies)}", flush=True)


# The command line ---------------------------------------------------------------------


def read_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=[*GRAPHS, "homophily", "fair"], metavar="NAME",
        help="one of those above")
    add("argument", nargs="?", metavar="NUMBER or METHOD",
        help="NUMBER for labels, depth and homophily, METHOD for fair")
    add("--runs", type=int, default=20,
        help="train with the seeds SEED to SEED + RUNS - 1 [%(default)s]")
    add("--seed", type=int, default=0, help="the first seed [%(default)s]")
    add("--dropout", type=float, default=0.5,
        help="the GCN's rate; the GAT's is 0.6 [%(default)s]")
    add("--classes", type=int, default=5,
        help="of the graphs of homophily [%(default)s]")
    add("--fast", action="store_true",
        help="less work per epoch, as the scripts' flag; draws other random numbers")
    args = parser.parse_args()

    args.number = None
    if args.name == "fair":
        if args.argument not in (None, *SETTINGS):
            parser.error(f"METHOD is {args.argument}: it must be one of "
                         f"{', '.join(SETTINGS)}")
        if args.seed != 0 or args.fast:
            parser.error("fair takes no --seed and no --fast")
    elif (args.name in TAKES_NUMBER) != (args.argument is not None):
        parser.error("labels, depth and homophily take a NUMBER, the others take none")
    elif args.argument is not None:
        if not args.argument.isdecimal():
            parser.error(f"NUMBER is {args.argument}: it must be a whole number")
        args.number = int(args.argument)
    try:
        check_whole(1, runs=args.runs)
        check_whole(0, seed=args.seed)
        check_whole(2, classes=args.classes)
        if args.name in ("labels", "depth"):
            check_whole(1, NUMBER=args.number)
        check_dropout_rate(args.dropout)
    except ValueError as error:
        parser.error(str(error))
    if args.name == "labels" and args.number > 20:
        parser.error(f"NUMBER is {args.number}: there are 20 labels per class")
    if args.name == "homophily" and args.number > 100:
        parser.error(f"NUMBER is {args.number}: it is a percentage")
    return args


def summary(accuracies):
    """Mean, standard deviation and the standard error of the mean, in words."""
    text = f"test accuracy: {np.mean(accuracies):.4f} ± {np.std(accuracies):.4f} "
    text += f"over {len(accuracies)} runs"
    if len(accuracies) > 1:
        error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
        text += f", standard error of the mean {error:.4f}"
    return text


def main():
    args = read_flags()
    cora = load_graph()
    if args.name == "fair":
        for method in [args.argument] if args.argument else SETTINGS:
            fair(cora, method, args.runs)
        return

    key_impl = None                                         # JAX's own random bits
    train_model = train
    if args.fast:
        from scale.faster import faster, faster_bits, faster_train
        key_impl = faster_bits
        train_model = faster_train

    num_classes = len(cora.class_names)
    if args.name == "homophily":
        num_classes = args.classes
    model = make_model(args.name, args.number, args.dropout, num_classes)
    _, apply_fun = model
    recipe = RECIPES.get(args.name, GCN_RECIPE)

    accuracies, without_graph, cosines = [], [], []
    for seed in range(args.seed, args.seed + args.runs):
        if args.name == "homophily":
            graph = homophily(seed, args.number, num_classes)
        else:
            graph = GRAPHS[args.name](cora, seed, args.number)
        plain = graph
        train_graph = None
        if args.fast:
            hops = args.number if args.name == "depth" else 2
            train_graph = faster(receptive_field(graph, hops))
            graph = faster(graph)
        rng = jax.random.key(seed, impl=key_impl)
        params, history = train_model(
            model, graph, rng, log_every=0, train_graph=train_graph, **recipe)
        metrics = evaluate(apply_fun, params, graph)
        accuracies.append(float(metrics["test_accuracy"]))
        line = (f"run {len(accuracies):3d} | seed {seed} | "
                f"{len(history['val_loss'])} epochs | "
                f"train accuracy {history['train_accuracy'][-1]:.4f} | "
                f"test accuracy {accuracies[-1]:.4f}")

        if args.name == "depth":
            h = last_hidden(params, plain, num_classes)
            cosines.append(mean_cosines(h, plain.y))
            line += " | cosine {:.2f}, {:.2f}".format(*cosines[-1])
        if args.name == "homophily":
            graph = no_graph(plain, seed, None)
            params, _ = train(model, graph, rng, log_every=0, **recipe)
            metrics = evaluate(apply_fun, params, graph)
            without_graph.append(float(metrics["test_accuracy"]))
            line += f" | without the graph {without_graph[-1]:.4f}"
        print(line, flush=True)

    print(summary(accuracies))
    if without_graph:
        print(f"without the graph, {summary(without_graph)}")
    if cosines:
        print("mean cosine of the last hidden layer: same class {:.2f}, different "
              "classes {:.2f}".format(*np.mean(cosines, axis=0)))


if __name__ == "__main__":
    main()
