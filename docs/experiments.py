"""The experiments of the course that need more than a flag.

    python docs/experiments.py NAME [NUMBER]

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
    depth NUMBER        a GCN of NUMBER layers that always trains for 200 epochs
    gat-no-ties         the GAT, where an equal validation loss or accuracy is no
                        progress
    gat-head-masks      the GAT, where each head has a dropout mask of the input for
                        itself, as in its authors' code

Random choices use the seed of the run; the model is trained with the same seed.
"""
import argparse
import dataclasses
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
    chain,
    check_dropout_rate,
    check_whole,
    evaluate,
    load_graph,
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


def make_model(name, number, dropout_rate, nclass):
    if name == "depth":
        layers = [GraphConvolution(16)] * (number - 1) + [GraphConvolution(nclass)]
        return chain(layers, jax.nn.relu, dropout_rate)
    if name == "gat-no-ties":
        return GAT([8, 1], [8], nclass)
    if name == "gat-head-masks":
        first = head_masks(8, 8, 0.6)
        last = MultiHeadLayer(1, nclass, 0.6, last_layer=True)
        return chain([first, last], jax.nn.elu)
    return GCN(16, nclass, dropout_rate)


RECIPES = {
    # A deep GCN starts on a plateau: with a patience of 10 it would stop before it has
    # learned anything.
    "depth": GCN_RECIPE | dict(patience=200),
    "code-rule": GCN_RECIPE | dict(patience=1, rule=code_rule),
    "gat-no-ties": GAT_RECIPE | dict(rule=no_ties),
    "gat-head-masks": GAT_RECIPE,
}

# The command line ---------------------------------------------------------------------


def read_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=GRAPHS, metavar="NAME", help="one of those above")
    add("number", type=int, nargs="?", metavar="NUMBER", help="for labels and depth")
    add("--runs", type=int, default=20,
        help="train with the seeds 0 to RUNS - 1 [%(default)s]")
    add("--dropout", type=float, default=0.5,
        help="the GCN's rate; the GAT's is 0.6 [%(default)s]")
    args = parser.parse_args()

    takes_number = args.name in ("labels", "depth")
    if takes_number != (args.number is not None):
        parser.error("labels and depth take a NUMBER, the others take none")
    try:
        check_whole(1, runs=args.runs)
        if takes_number:
            check_whole(1, NUMBER=args.number)
        check_dropout_rate(args.dropout)
    except ValueError as error:
        parser.error(str(error))
    if args.name == "labels" and args.number > 20:
        parser.error(f"NUMBER is {args.number}: there are 20 labels per class")
    return args


def main():
    args = read_flags()
    cora = load_graph()
    model = make_model(args.name, args.number, args.dropout, len(cora.class_names))
    _, apply_fun = model
    recipe = RECIPES.get(args.name, GCN_RECIPE)

    accuracies = []
    for seed in range(args.runs):
        graph = GRAPHS[args.name](cora, seed, args.number)
        rng = jax.random.key(seed)
        params, history = train(model, graph, rng, log_every=0, **recipe)
        metrics = evaluate(apply_fun, params, graph)
        accuracies.append(float(metrics["test_accuracy"]))
        print(f"run {seed + 1:3d} | seed {seed} | {len(history['val_loss'])} epochs | "
              f"train accuracy {history['train_accuracy'][-1]:.4f} | "
              f"test accuracy {accuracies[-1]:.4f}", flush=True)
    print(f"test accuracy: {np.mean(accuracies):.4f} ± {np.std(accuracies):.4f} "
          f"over {args.runs} runs")


if __name__ == "__main__":
    main()
