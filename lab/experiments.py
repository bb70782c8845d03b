"""The experiments of docs/experiments.md that need more than a flag of a script.

    python lab/experiments.py NAME [NUMBER or METHOD]

The page's sections say what each NAME changes:

    1   compare: means and paired differences of all that is in --results
    2   fair METHOD: label-propagation, no-graph, sgc, gcn, gat or gatv2
    3   gcn, no-graph, no-words, no-self-loops, row-normalized, code-rule, random-split,
        labels NUMBER
    4   depth NUMBER, residual NUMBER
    5   gat, gat-no-attention, gat-gcn-weights, gcn-as-gat, noisy NUMBER, lookup NUMBER
    6   homophily NUMBER
"""
import argparse
import collections
import dataclasses
import functools
import itertools
import json
import pathlib
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import minignn
from scale.faster import faster

# Changes to a graph, by the seed and NUMBER -------------------------------------------


def identity(n):
    return minignn.make_sparse(np.arange(n), np.arange(n), np.ones(n), (n, n))


def no_graph(graph, seed=None, number=None):
    return dataclasses.replace(graph, adj=identity(len(graph.y)))


def no_words(graph, seed, number):
    return dataclasses.replace(graph, x=identity(len(graph.y)))


def no_self_loops(graph, seed, number):
    rows, cols = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols)
    is_edge = rows != cols
    rows, cols = rows[is_edge], cols[is_edge]
    degree = np.bincount(rows, minlength=len(graph.y))
    values = 1 / np.sqrt(degree[rows] * degree[cols])
    adj = minignn.make_sparse(rows, cols, values, graph.adj.shape)
    return dataclasses.replace(graph, adj=adj)


def row_normalized(graph, seed, number):
    rows = graph.adj.rows
    adj = dataclasses.replace(graph.adj, values=1.0 / jnp.bincount(rows)[rows])
    return dataclasses.replace(graph, adj=adj)


def choose(rng, nodes, y, number):
    """`number` of the nodes of each class, drawn at random."""
    of_class = [nodes[y[nodes] == c] for c in np.unique(y[nodes])]
    return np.hstack([rng.choice(these, number, replace=False) for these in of_class])


def labels(graph, seed, number):
    rng = np.random.default_rng(seed)
    nodes = choose(rng, np.asarray(graph.train), np.asarray(graph.y), number)
    return dataclasses.replace(graph, train=nodes)


def random_split(graph, seed, number=None, used=()):
    """20 training nodes per class, 500 for validation, 1000 for tests, none `used`."""
    rng = np.random.default_rng(seed)
    y = np.asarray(graph.y)
    nodes = np.setdiff1d(np.flatnonzero(y >= 0), used)
    train = choose(rng, nodes, y, 20)
    rest = rng.permutation(np.setdiff1d(nodes, train))
    return dataclasses.replace(graph, train=train, val=rest[:500], test=rest[500:1500])


CHANGES = {change.__name__.replace("_", "-"): change for change in (
    no_graph, no_words, no_self_loops, row_normalized, labels, random_split)}

# Random graphs ------------------------------------------------------------------------


def random_graph(seed, percent, num_classes, misleading=0):
    """1000 nodes and 2000 edges, `percent` of them between two nodes of a class.

    `misleading` percent of the nodes have the features of a random class, and a last
    one, 1 for them and 0 for the others, says so. No split has these nodes.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(1000) % num_classes)
    misleads = rng.permutation(1000) < 10 * misleading
    shown = np.where(misleads, rng.integers(num_classes, size=1000), y)
    x = rng.normal(size=(num_classes, 16))[shown] + 2 * rng.normal(size=(1000, 16))
    if misleading:
        x = np.hstack([x, misleads[:, None]])

    # All pairs of nodes i < j in random order: of each kind, as many as are wanted.
    i, j = rng.permutation(np.transpose(np.triu_indices(1000, k=1))).T
    same = y[i] == y[j]
    num_same = 2000 * percent // 100
    chosen = np.concatenate([np.flatnonzero(same)[:num_same],
                             np.flatnonzero(~same)[:2000 - num_same]])
    edges = np.stack([i[chosen], j[chosen]])

    nodes = np.flatnonzero(~misleads)
    train = choose(rng, nodes, y, 20)
    rest = rng.permutation(np.setdiff1d(nodes, train))
    masks = [np.isin(np.arange(1000), part) for part in (train, rest[:200], rest[200:])]
    edge_index = np.hstack([edges, edges[::-1]])            # both directions
    return minignn.make_graph(x, edge_index, y, *masks, normalize=False)


def lookup(seed, size):
    """The look-up of Brody, Alon & Yahav (2022), in 100 dictionaries of `size` keys.

    Features: the key, and the value of an entry, one-hot. The label of a node that asks
    is the value. Three fifths of the dictionaries train, a fifth validate.
    """
    rng = np.random.default_rng(seed)
    values = np.stack([rng.permutation(size) for _ in range(100)])      # of each key
    # Axes: dictionary, entries or nodes that ask, key; of x, two more: key or value.
    x = np.zeros((100, 2, size, 2, size))
    x[:, :, :, 0] = np.eye(size)
    x[:, 0, :, 1] = np.eye(size)[values]
    y = np.stack([np.full_like(values, -1), values], axis=1)

    nodes = np.arange(y.size).reshape(y.shape)
    pairs = np.broadcast_arrays(nodes[:, 0, :, None], nodes[:, 1, None, :])
    fifth = np.arange(100)[:, None, None] // 20
    masks = [((y >= 0) & part).ravel() for part in (fifth < 3, fifth == 3, fifth == 4)]
    x, edge_index = x.reshape(y.size, 2 * size), np.stack(pairs).reshape(2, -1)
    return minignn.make_graph(x, edge_index, y.ravel(), *masks, normalize=False)


# Models -------------------------------------------------------------------------------


def residual(layer):
    """The layer's output plus its input, of which nothing is dropped."""
    init_fun, layer_apply = layer

    def apply_fun(params, x, adj, rng=None):
        return x + layer_apply(params, x, adj, rng)

    return init_fun, apply_fun


def deep_layers(name, number, nclass, rate=0):
    """A GCN's layers, 16 hidden units each."""
    units = [16] * (number - 1) + [nclass]
    layers = [minignn.GraphConvolution(n, dropout_rate=rate) for n in units]
    if name == "residual":
        layers[1:-1] = map(residual, layers[1:-1])
    return layers


def OwnApart(out_dim, dropout_rate):
    """A GCN's layer in which a node's own features have a matrix of their own.

        out_i = x_i V + sum over the other neighbours j of Â_ij x_j W

    One of the designs of Zhu et al. (2020). params: (V, W), each [F, out_dim].
    """
    init_W, _ = minignn.GraphConvolution(out_dim)

    def init_fun(rng, input_shape):
        both = [init_W(one, input_shape) for one in jax.random.split(rng)]
        return both[0][0], tuple(W for _, (W,) in both)

    def apply_fun(params, x, adj, rng=None):
        V, W = params
        x = minignn.dropout(rng, x, dropout_rate)
        weights = jnp.where(adj.rows == adj.cols, 0, adj.values)
        return x @ V + adj.aggregate(weights, x @ W)

    return init_fun, apply_fun


def mean_weights(a1, a2, h, adj):
    """All scores are 0, so that each weight is 1 / d_i."""
    scores = jnp.zeros((len(adj.rows), h.shape[1]))                     # [E, H]
    return minignn.segment_softmax(scores, adj.rows, adj.shape[0])


def gcn_weights(a1, a2, h, adj):
    """Those of Â, in each head."""
    return jnp.tile(adj.values[:, None], h.shape[1])                    # [E, H]


def by_kind(model):
    """A model whose params are the W of all layers, then all a1, ...: so a Recipe
    without penalise_all penalises the W.
    """
    init_fun, apply_fun = model

    def init_by_kind(rng, input_shape):
        shape, params = init_fun(rng, input_shape)
        return shape, list(zip(*params))

    def apply_by_kind(params, x, adj, rng=None):
        return apply_fun(list(zip(*params)), x, adj, rng)

    return init_by_kind, apply_by_kind


def GATv2Layer(nheads, nhid, dropout_rate, last_layer=False):
    """minignn's MultiHeadLayer with the score of Brody, Alon & Yahav (ICLR 2022).

        score_ij = a . LeakyReLU(x_i W1 + x_j W2)

    params: (W1 [F, H*D], W2 [F, H*D], a [H, D], b [H, D]).
    """
    init_gat, _ = minignn.MultiHeadLayer(nheads, nhid, dropout_rate, last_layer)

    def init_fun(rng, input_shape):
        shape, (W1, _, a, b) = init_gat(rng, input_shape)
        _, W2_rng, _ = jax.random.split(rng, 3)         # in the place of a GAT's a1
        W2 = minignn.glorot_uniform(W2_rng, W1.shape, len(W1), nhid)
        return shape, (W1, W2, a, b)

    def apply_fun(params, x, adj, rng=None):
        W1, W2, a, b = params
        x_rng, alpha_rng, h_rng = minignn.split_or_none(rng, 3)

        x = minignn.dropout(x_rng, x, dropout_rate)
        own = (x @ W1).reshape(-1, nheads, nhid)            # [N, F] -> [N, H, D]
        h = (x @ W2).reshape(-1, nheads, nhid)              # [N, F] -> [N, H, D]
        pairs = jax.nn.leaky_relu(own[adj.rows] + h[adj.cols], 0.2)     # [E, H, D]
        scores = jnp.einsum("ehd,hd->eh", pairs, a)         # -> [E, H]
        alpha = minignn.segment_softmax(scores, adj.rows, adj.shape[0])
        alpha = minignn.dropout(alpha_rng, alpha, dropout_rate)
        h = minignn.dropout(h_rng, h, dropout_rate)
        out = adj.aggregate(alpha, h) + b                   # [N, H, D]
        if last_layer:
            return out.mean(axis=1)                         # -> [N, D]
        return out.reshape(-1, nheads * nhid)               # -> [N, H*D]

    return init_fun, apply_fun


def SGC(hops, nclass):
    """The model of Wu et al. (ICML 2019), Â ... Â X W, with Â `hops` times."""
    init_fun, _ = minignn.GraphConvolution(nclass)

    def apply_fun(params, x, adj, rng=None):
        h = x @ params[0]                                   # [N, F] -> [N, C]
        for _ in range(hops):
            h = adj @ h
        return h

    return init_fun, apply_fun


@jax.jit
def label_propagation(graph, keep):
    """Scores of the classes from the training labels and the graph alone: [N, C].

        F = keep Â F + (1 - keep) Y         Y: 1 for a training node's class, else 0
    """
    known = jnp.zeros((len(graph.y), len(graph.class_names)))
    known = known.at[graph.train, graph.y[graph.train]].set(1)

    def step(_, scores):
        return keep * (graph.adj @ scores) + (1 - keep) * known

    return jax.lax.fori_loop(0, 1000, step, known)          # 0.99 ** 1000 is 0.00004


@functools.cache            # one model, and so one compilation, for all seeds
def make_model(name, nclass, hidden, rate, number=None):
    """number: the layers of depth, the hops of sgc, the heads of a look-up."""
    if name == "sgc":
        return SGC(number, nclass)
    if name.startswith("lookup"):                   # one layer, and what reads it out
        layer = GATv2Layer if name == "lookup-gatv2" else minignn.MultiHeadLayer
        layers = [layer(number, hidden // number, rate), SGC(0, nclass)]
        return minignn.chain(layers, jax.nn.elu)
    if name in ("depth", "residual"):
        return minignn.chain(deep_layers(name, number, nclass, rate), jax.nn.relu)
    if name == "own-apart":
        layers = [OwnApart(hidden, rate), OwnApart(nclass, rate)]
        return minignn.chain(layers, jax.nn.relu)
    if name == "gcn-as-gat":
        layers = [minignn.GraphConvolution(n, True, rate) for n in (hidden, nclass)]
        return minignn.chain(layers, jax.nn.elu)
    if name == "gatv2":
        last = GATv2Layer(1, nclass, rate, last_layer=True)
        return minignn.chain([GATv2Layer(8, hidden // 8, rate), last], jax.nn.elu)
    gat = minignn.GAT([8, 1], [hidden // 8], nclass, rate)
    if name in ("gat-no-attention", "gat-gcn-weights"):     # in attention's place
        weights = mean_weights if name == "gat-no-attention" else gcn_weights
        init_fun, apply_fun = gat
        return init_fun, mock.patch.object(minignn, "attention", weights)(apply_fun)
    return gat if name == "gat" else minignn.GCN(hidden, nclass, rate)


def roughness(h, adj):
    """The Dirichlet energy of h [N, k] over the sum of its squares."""
    return 1 - (h * (adj @ h)).sum() / jnp.maximum((h ** 2).sum(), 1e-30)


def last_hidden(name, params, graph, nclass):
    """What the last layer of a deep GCN is given: [N, 16], or x if it is the first."""
    layers = deep_layers(name, len(params), nclass)[:-1]
    if not layers:
        return graph.x @ jnp.eye(graph.x.shape[1])          # as an array
    _, apply_fun = minignn.chain(layers, jax.nn.relu)
    return jax.nn.relu(apply_fun(params[:-1], graph.x, graph.adj))


# Recipes ------------------------------------------------------------------------------


def code_rule(history):
    """From the twelfth epoch, stop when the loss exceeds the mean of the ten before."""
    loss = history["val_loss"]
    return len(loss) < 12 or loss[-1] <= np.mean(loss[-11:-1]), True


def lowest_loss(history):
    """A new lowest validation loss is progress, and its params are kept."""
    is_lowest, _ = minignn.loss_rule(history)
    return is_lowest, is_lowest


def whole(epochs):
    # A deep GCN starts on a plateau, where a patience of 10 would end its training.
    return dataclasses.replace(minignn.GCN_RECIPE, epochs=epochs, patience=epochs)


FAIR_RECIPE = minignn.Recipe(step_size=0.01, weight_decay=5e-4, penalise_all=True,
                             epochs=1000, rule=lowest_loss, patience=100)
RECIPES = {
    "homophily": whole(200),
    "noisy": FAIR_RECIPE,
    "lookup": dataclasses.replace(FAIR_RECIPE, weight_decay=0.0, epochs=500),
    "code-rule": dataclasses.replace(minignn.GCN_RECIPE, patience=1, rule=code_rule),
}

# Rows of a table ----------------------------------------------------------------------


class Results:
    """What runs gave, in a file or only here. What is there is not run again."""

    def __init__(self, path):
        self.path = path
        self.groups = collections.defaultdict(lambda: collections.defaultdict(dict))
        lines = path.read_text().splitlines() if path and path.exists() else []
        for group, name, seed, _, numbers in map(json.loads, lines):
            self.groups[group][name][seed] = numbers

    def get(self, group, name, run, seed):
        """The numbers of run(seed). Rows of a group are compared with each other."""
        runs = self.groups[group][name]
        if seed not in runs:
            runs[seed] = run(seed)
            if self.path:
                line = group, name, seed, time.strftime("%Y-%m-%d"), runs[seed]
                with open(self.path, "a") as file:
                    print(json.dumps(line), file=file)
        numbers = [f"{key} {number:.4f}".removesuffix(".0000")
                   for key, number in runs[seed].items()]
        print(group, name, f"seed {seed}", *numbers, sep=" | ", flush=True)
        return runs[seed]


def compare(group, rows):
    """Print means, and mean differences between runs with the same seed."""
    for name, runs in rows.items():
        print_means(group, name, list(runs.values()))
    pairs = list(itertools.combinations(rows.items(), 2))
    for (one, ones), (other, others) in pairs:
        differences = [others[seed]["test_accuracy"] - ones[seed]["test_accuracy"]
                       for seed in ones if seed in others]
        if differences:
            print(f"{group} | {other} minus {one}: {summary(differences)}")
    print(f"{group} | {len(pairs)} comparisons")


def print_means(group, name, runs):
    keys = list(runs[0])
    for key in keys[keys.index("test_accuracy"):]:
        print(f"{group} | {name} | {key}: {summary([run[key] for run in runs])}")


def summary(values):
    text = f"{np.mean(values):.4f} ± {np.std(values):.4f} over {len(values)} runs"
    if len(values) > 1:
        text += f", standard error {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"
    return text


@functools.lru_cache(maxsize=1)         # often for the same graph again
def quick_steps(graph, hops):
    jax.clear_caches()                  # JAX keeps what it compiled for another graph
    return faster(graph, hops)


def run_once(model, recipe, graph, seed, steps=minignn.adam_steps):
    """Train a model -> a dict of numbers, and the params."""
    rng = jax.random.key(seed)
    params, history = minignn.train(model, graph, rng, recipe, 0, steps)
    metrics = minignn.evaluate(model, params, graph)
    keys = "train_accuracy", "val_loss", "val_accuracy", "test_accuracy"
    numbers = {key: float(metrics[key]) for key in keys}
    return {"epochs": len(history["val_loss"]), **numbers}, params


def paper_row(args):
    """A GCN or a GAT of the paper on the graph of a file, with one change."""
    original = minignn.load_graph(args.data)
    nclass = len(original.class_names)
    paper, recipe, hidden, rate = "GCN", minignn.GCN_RECIPE, 16, args.dropout
    if "gat" in args.name:
        paper, recipe, hidden, rate = "GAT", minignn.GAT_RECIPE, 64, 0.6
    model = make_model(args.name, nclass, hidden, rate, args.number)
    recipe = RECIPES.get(args.name, recipe)
    if args.penalty == "W":
        model = by_kind(model)
        recipe = dataclasses.replace(recipe, penalise_all=False)
    if args.penalty == "none":
        recipe = dataclasses.replace(recipe, weight_decay=0.0)
    hops, is_deep = 2, args.name in ("depth", "residual")
    if is_deep:
        hops, recipe = args.number, whole(args.epochs)
    change = CHANGES.get(args.name, lambda graph, seed, number: graph)

    def run(seed):
        graph = change(original, seed, args.number)
        steps = quick_steps(graph, hops) if args.fast else minignn.adam_steps
        numbers, params = run_once(model, recipe, graph, seed, steps)
        if is_deep:
            init_rng, _ = jax.random.split(jax.random.key(seed))        # as adam_steps
            _, untrained = model[0](init_rng, graph.x.shape)
            for when, those in ("untrained", untrained), ("trained", params):
                h = last_hidden(args.name, those, graph, nclass)
                numbers[f"roughness_{when}"] = float(roughness(h, graph.adj))
        return numbers

    return f"{args.data.stem}, {paper}{', fast' * args.fast}", args.words, run


def random_graph_rows(args):
    """Several models on the same random graphs."""
    classes, number = args.classes, args.number
    if args.name == "lookup":
        draw = functools.partial(lookup, size=number)
        models = {f"{name}, heads: {heads}": [make_model(name, number, 64, 0, heads)]
                  for name in ("lookup-gat", "lookup-gatv2") for heads in (1, 8)}
    elif args.name == "noisy":              # of three dropout rates, the best one
        draw = functools.partial(random_graph, percent=80, num_classes=classes,
                                 misleading=number)
        models = {name: [make_model(name, classes, 64, rate) for rate in (0, 0.2, 0.5)]
                  for name in ("gcn", "no-graph", "gat", "gat-no-attention",
                               "gat-gcn-weights", "gatv2")}
    else:
        draw = functools.partial(random_graph, percent=number, num_classes=classes)
        models = {name: [make_model(name, classes, 16, 0.5)]
                  for name in ("gcn", "no-graph", "own-apart")}

    def run(name, seed):
        graph = no_graph(draw(seed)) if name == "no-graph" else draw(seed)
        runs = [run_once(model, RECIPES[args.name], graph, seed)
                for model in models[name]]
        return min((numbers for numbers, _ in runs), key=lambda run: run["val_loss"])

    for name in models:
        yield args.words, name, functools.partial(run, name)


# The fair table -----------------------------------------------------------------------

TUNING_SEEDS = [1000, 1001, 1002]


def grid(**values):
    """All combinations, each a dict: grid(a=[1, 2], b=[3, 4]) has four."""
    combinations = itertools.product(*values.values())
    return [dict(zip(values, combination)) for combination in combinations]


NETWORKS = grid(hidden=[16, 64], dropout_rate=[0.5, 0.6, 0.8],
                step_size=[0.005, 0.01], weight_decay=[1e-4, 5e-4, 1e-3])
SETTINGS = {
    "label-propagation": grid(keep=np.linspace(0.29, 0.99, 36).round(2).tolist()),
    "sgc": grid(hops=[2, 3, 4], step_size=[0.01, 0.05, 0.2],
                weight_decay=[1e-6, 1e-5, 1e-4, 5e-4]),
    **dict.fromkeys(["no-graph", "gcn", "gat", "gatv2"], NETWORKS),
}


def fair_run(method, setting, graph, seed):
    if method == "label-propagation":
        scores = label_propagation(graph, setting["keep"])
        val, test = [float(minignn.accuracy(scores[nodes], graph.y[nodes]))
                     for nodes in (graph.val, graph.test)]
        # It has no probabilities: the share of wrong nodes stands for the loss.
        return {"val_loss": 1 - val, "val_accuracy": val, "test_accuracy": test}
    hops = setting.get("hops", 2)
    model = make_model(method, len(graph.class_names), setting.get("hidden"),
                       setting.get("dropout_rate"), hops)
    recipe = dataclasses.replace(FAIR_RECIPE, step_size=setting["step_size"],
                                 weight_decay=setting["weight_decay"])
    numbers, _ = run_once(model, recipe, graph, seed, quick_steps(graph, hops))
    return numbers


def fair_rows(args, results):
    """Choose a setting -> its row for the public split, and for random splits."""
    graph, method = args.data.stem, args.argument
    public = minignn.load_graph(args.data)
    used = np.concatenate([public.train, public.val])
    if method == "no-graph":
        public = no_graph(public)

    def mean_loss(setting):
        run = functools.partial(fair_run, method, setting, public)
        row = f"{graph}, tuning", f"{method} {setting}", run
        return np.mean([results.get(*row, seed)["val_loss"] for seed in TUNING_SEEDS])

    setting = min(SETTINGS[method], key=mean_loss)

    def run(is_random, seed):
        split = random_split(public, seed, used=used) if is_random else public
        return fair_run(method, setting, split, seed)

    name = f"{method} {setting}"
    yield f"{graph}, public split", name, functools.partial(run, False)
    yield f"{graph}, random splits", name, functools.partial(run, True)


# The command line ---------------------------------------------------------------------

ARGUMENTS = {"fair": SETTINGS, "labels": range(1, 21), "depth": range(1, 65),
             "residual": range(1, 65), "homophily": range(101), "noisy": range(51),
             "lookup": range(2, 65)}
GCNS = {*CHANGES, "gcn", "code-rule", "depth", "residual"}
GATS = {"gat", "gat-no-attention", "gat-gcn-weights"}
NAMES = {*GCNS, *GATS, *ARGUMENTS, "gcn-as-gat", "compare"}
# Which names take a flag.
FLAGS = {"dropout": GCNS, "epochs": {"depth", "residual"}, "penalty": GATS,
         "classes": {"homophily", "noisy"}, "fast": {*GCNS, *GATS, "gcn-as-gat"},
         "data": {*GCNS, *GATS, "gcn-as-gat", "fair"}, "runs": NAMES - {"compare"}}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=NAMES, metavar="NAME", help="one of those above")
    add("argument", nargs="?", metavar="NUMBER or METHOD")
    add("--data", type=pathlib.Path, default=minignn.CORA, help="a graph's file [Cora]")
    add("--runs", type=int, default=20, help="the number of seeds [%(default)s]")
    add("--dropout", type=float, default=0.5, help="the rate of a GCN [%(default)s]")
    add("--epochs", type=int, default=200, help="of a deep GCN [%(default)s]")
    add("--penalty", choices=["all", "W", "none"], default="all", help="of a GAT")
    add("--classes", type=int, default=5, help="of a random graph [%(default)s]")
    add("--fast", action="store_true", help="as the scripts' flag; other random bits")
    add("--results", type=pathlib.Path, help="a file of runs; none is made twice")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")    # not every terminal has a ±

    arguments = ARGUMENTS.get(args.name, [None])
    if str(args.argument) not in map(str, arguments):
        parser.error(f"{args.name} does not take {args.argument}")
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    args.words = " ".join(filter(None, [args.name, args.argument]))
    args.number = int(args.argument) if isinstance(arguments, range) else None
    for flag, names in FLAGS.items():
        value = getattr(args, flag)
        if value == parser.get_default(flag):
            continue
        if args.name not in names:
            parser.error(f"{args.name} takes no --{flag}")
        if flag not in ("fast", "data", "runs"):        # these do not name a row
            args.words += f" --{flag} {value}"

    if args.name == "compare" and not (args.results and args.results.exists()):
        parser.error("compare needs a file of --results")
    results = Results(args.results)
    if args.name == "compare":
        for group, rows in results.groups.items():
            if not group.endswith("tuning"):
                compare(group, rows)
        return
    if args.name == "fair":
        rows = fair_rows(args, results)
    elif args.name in ("homophily", "noisy", "lookup"):
        rows = random_graph_rows(args)
    else:
        rows = [paper_row(args)]
    for group, name, run in rows:
        runs = [results.get(group, name, run, seed) for seed in range(args.runs)]
        print_means(group, name, runs)


if __name__ == "__main__":
    main()
