"""How fast minignn is, beside its peers. Each command prints one table:

    python lab/bench.py epoch       Cora: the time of an epoch, and the test accuracy
    python lab/bench.py tricks      Cora: what each trick of scale/faster.py is worth
    python lab/bench.py step        random graphs: the time and the memory of a step
    python lab/bench.py prompt      from the command to the prompt

Each number is measured in a process of its own. These run one at a time, in turns, on
one core; the table has the medians of the rounds. Needs Linux, and the peers, unless
--only leaves out their rows: pip install torch torch_geometric
"""
import argparse
import dataclasses
import itertools
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace as Peer

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import minignn
from minignn import GAT, GAT_RECIPE, GCN, GCN_RECIPE
from scale import faster

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = {"GCN": (GCN(16, 7), GCN_RECIPE), "GAT": (GAT([8, 1], [8], 7), GAT_RECIPE)}
PLAIN, FAST, SCIPY, PYG = "minignn", "minignn --fast", "SciPy", "PyTorch Geometric, "

# 1. The peers -------------------------------------------------------------------------
#
# A peer has step(), a step of training, and evaluate(), which returns what that of
# minignn does; what else is in it is for the tests. Its graph has arrays of NumPy's.


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def metrics_of(logits, graph):
    metrics = {}
    for split in ("train", "val", "test"):
        nodes = getattr(graph, split)
        log_p, y = log_softmax(logits[nodes]), graph.y[nodes]
        metrics[f"{split}_loss"] = -log_p[np.arange(len(y)), y].mean()
        metrics[f"{split}_accuracy"] = (log_p.argmax(axis=1) == y).mean()
    return metrics


def pytorch_geometric(form, model, graph, seed):
    """PyTorch Geometric's GCNConv and GATConv, with the settings of its Cora examples.

    form: "dense"   as in its examples: x is an array, the adjacency is edge_index
          "sparse"  x is a coalesced COO matrix, multiplied by torch.sparse.mm
          "tuned"   the quickest that was found: both are CSR matrices
    """
    import torch
    from torch.nn.functional import cross_entropy, dropout, elu
    from torch_geometric.nn import GATConv, GCNConv
    from torch_geometric.utils import to_torch_csr_tensor

    torch.manual_seed(seed)
    has_zeros = hasattr(graph.x, "values")
    x = torch.tensor(np.asarray(graph.x.todense() if has_zeros else graph.x))
    train, y = torch.tensor(graph.train), torch.tensor(graph.y).long()
    # Sources and targets. Self-loops are there: no layer has to add them in each step.
    adj = torch.tensor(np.array([graph.adj.cols, graph.adj.rows], int))
    if form == "tuned":
        adj = to_torch_csr_tensor(adj.flip(0), size=graph.adj.shape)
    graph = dataclasses.replace(graph, x=None, adj=None)        # PyTorch has them now

    if model == "GCN":
        rate, activation = 0.5, torch.relu
        options = {"cached": True, "add_self_loops": False}
        layers = [GCNConv(x.shape[1], 16, **options), GCNConv(16, 7, **options)]
    else:
        rate, activation = 0.6, elu
        options = {"dropout": rate, "add_self_loops": False}
        layers = [GATConv(x.shape[1], 8, heads=8, **options),
                  GATConv(64, 7, concat=False, **options)]
    skip_zeros = has_zeros and form != "dense"
    if skip_zeros:
        read_sparse(form, x, layers[0].lin, rate)
    net = torch.nn.ModuleList(layers)
    _, recipe = MODELS[model]
    decays = recipe.weight_decay, recipe.weight_decay * recipe.penalise_all
    optimizer = torch.optim.Adam([
        {"params": layer.parameters(), "weight_decay": decay}
        for layer, decay in zip(layers, decays)], lr=recipe.step_size)

    def logits(training):
        net.train(training)
        h = x if skip_zeros else dropout(x, rate, training)
        h = activation(net[0](h, adj))
        return net[1](dropout(h, rate, training), adj)

    def step():
        optimizer.zero_grad()
        cross_entropy(logits(training=True)[train], y[train]).backward()
        optimizer.step()

    def evaluate():
        with torch.no_grad():
            return metrics_of(logits(training=False).numpy(), graph)

    return Peer(step=step, evaluate=evaluate, net=net, logits=logits)


def read_sparse(form, x, linear, rate):
    """Make a linear layer ignore its input: dropout of x's entries, then x @ weight.

    The entries are those that are not 0; the weight is transposed, once. For the
    gradient, PyTorch makes the transpose of x anew in each step. Its places stay the
    same, though. The tuned form finds them once, and then moves the values.
    """
    import torch
    coo, csr, csr_T = x.to_sparse().coalesce(), x.to_sparse_csr(), x.T.to_sparse_csr()
    places = csr.crow_indices(), csr.col_indices()
    places_T = csr_T.crow_indices(), csr_T.col_indices()
    order = torch.argsort(csr.col_indices(), stable=True)       # of x's values in x.T

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values, W):
            ctx.values = values
            return torch.sparse.mm(torch.sparse_csr_tensor(*places, values, x.shape), W)

        @staticmethod
        def backward(ctx, g):
            x_T = torch.sparse_csr_tensor(*places_T, ctx.values[order], x.T.shape)
            return None, torch.sparse.mm(x_T, g)

    def forward(_):
        values = torch.nn.functional.dropout(coo.values(), rate, linear.training)
        if form == "tuned":                             # coo and csr have one order
            return Product.apply(values, linear.weight)
        dropped = torch.sparse_coo_tensor(
            coo.indices(), values, x.shape, is_coalesced=True)
        return torch.sparse.mm(dropped, linear.weight)

    linear.weight.data = linear.weight.data.T.contiguous()
    linear.forward = forward


def two_or_zero(rng, size):
    """What dropout multiplies by: 2 or 0, each in half of all cases."""
    bits = np.frombuffer(rng.bytes((size + 7) // 8), np.uint8)
    return np.unpackbits(bits, count=size) * np.float32(2)


def scipy_by_hand(graph, seed, mask=two_or_zero):
    """The GCN in NumPy and SciPy, its gradient by hand. Edges must go both ways."""
    from scipy.sparse import csr_matrix

    A, x = (csr_matrix((sparse.values, (sparse.rows, sparse.cols)), sparse.shape)
            for sparse in (graph.adj, graph.x))
    dropped = x.copy()
    dropped_T = dropped.T                               # shares the values of dropped
    (init_fun, _), recipe = MODELS["GCN"]
    _, ((W0,), (W1,)) = init_fun(jax.random.key(seed), x.shape)
    params = [np.array(W0), np.array(W1)]
    means = [np.zeros_like(W) for W in params]
    squares = [np.zeros_like(W) for W in params]
    rng, steps = np.random.default_rng(seed), itertools.count(1)

    def step():
        W0, W1 = params
        np.multiply(x.data, mask(rng, x.nnz), out=dropped.data)
        h = A @ (dropped @ W0)
        h_mask = mask(rng, h.size).reshape(h.shape) * (h > 0)       # dropout and ReLU
        h *= h_mask
        logits = A @ (h @ W1)

        nodes = graph.train
        g = np.zeros_like(logits)
        g[nodes] = np.exp(log_softmax(logits[nodes]))
        g[nodes, graph.y[nodes]] -= 1
        g = A @ (g / len(nodes))                        # A is its own transpose
        by_W0 = dropped_T @ (A @ ((g @ W1.T) * h_mask))
        grads = by_W0 + np.float32(recipe.weight_decay) * W0, h.T @ g

        t = next(steps)
        for W, mean, square, grad in zip(params, means, squares, grads):
            mean += 0.1 * (grad - mean)
            square += 0.001 * (grad * grad - square)
            root = np.sqrt(square / (1 - 0.999 ** t)) + 1e-8
            W -= recipe.step_size * (mean / (1 - 0.9 ** t)) / root

    def evaluate():
        h = np.maximum(A @ (x @ params[0]), 0)
        return metrics_of(A @ (h @ params[1]), graph)

    return Peer(step=step, evaluate=evaluate, params=params, means=means)


def make_peer(by, model, graph, seed):
    graph = jax.tree.map(np.asarray, graph)
    if by == SCIPY:
        return scipy_by_hand(graph, seed)
    return pytorch_geometric(by.removeprefix(PYG), model, graph, seed)


# 2. What a process measures -----------------------------------------------------------

# Each trick of scale/faster.py hangs on one name in it. With this value, it is off.
TRICKS = {
    "receptive field": ("receptive_field", lambda graph, hops, splits=(): graph),
    "sums in groups": ("grouped_graph", lambda graph: graph),
    "random bits": ("faster_bits", "threefry2x32"),     # JAX's own
    "ten epochs a call": ("BLOCK", 1),
}
WITHOUT = FAST + " without "


def steps_of(by, model, graph, seed):
    """Steps for minignn.train. A peer's yield its metrics in place of its params."""
    if by == PLAIN:
        return minignn.adam_steps
    if by.startswith(WITHOUT):
        setattr(faster, *TRICKS[by.removeprefix(WITHOUT)])
    if by.startswith(FAST):
        return faster.faster(graph, hops=2)
    peer = make_peer(by, model, graph, seed)

    def steps(_model, _graph, _rng, recipe):
        for epoch in range(1, recipe.epochs + 1):
            peer.step()
            metrics = peer.evaluate()
            yield epoch, metrics, metrics

    return steps


def measure_training(model, by, seed):
    """Train on Cora until the paper's rule stops it."""
    graph = minignn.load_graph()
    layers, recipe = MODELS[model]
    steps = steps_of(by, model, graph, seed)
    clock = [time.perf_counter()]

    def rule(history):
        clock.append(time.perf_counter())
        return recipe.rule(history)

    key, timed = jax.random.key(seed), dataclasses.replace(recipe, rule=rule)
    result, _ = minignn.train(layers, graph, key, timed, log_every=0, steps=steps)
    if by.startswith(PLAIN):
        result = minignn.evaluate(layers, result, graph)
    tens = np.diff(clock[10::10])           # --fast computes ten, and then yields them
    return {"time, ms": 100 * np.median(tens), "first epoch, s": clock[1] - clock[0],
            "epochs": len(clock) - 1, "test accuracy": float(result["test_accuracy"])}


def measure_step(model, by, seed, nodes):
    """Steps on a random graph: ten edges a node, 64 dense features, 7 classes."""
    rng, node = np.random.default_rng(0), np.arange(nodes)
    num_labels = 1000 if by.endswith("1000 labels") else 0.6 * nodes
    graph = minignn.make_graph(
        x=rng.random((nodes, 64), np.float32), y=rng.integers(0, 7, nodes),
        edge_index=rng.integers(0, nodes, (2, 10 * nodes)),
        train_mask=node < num_labels, val_mask=node < 0, test_mask=node < 0)
    if by.startswith(PLAIN):
        layers, recipe = MODELS[model]
        key = jax.random.key(seed)
        if by.startswith(FAST):
            graph = faster.grouped_graph(faster.receptive_field(graph, hops=2))
            key = jax.random.key(seed, impl=faster.faster_bits)
        minignn.evaluate = lambda *_: {}                # an epoch without evaluation
        epochs = minignn.adam_steps(layers, graph, key, recipe)

        def step():
            jax.block_until_ready(next(epochs))
    else:
        step = make_peer(by, model, graph, seed).step
        del graph

    clock = []
    for _ in range(1 + min(50, max(3, 10 ** 6 // nodes))):
        step()                                          # the first also compiles
        clock.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {f"time, {nodes:,} nodes, s": np.median(np.diff(clock)),
            f"GB, {nodes:,} nodes": peak * 1024 / 1e9}          # Linux counts in KiB


def measure_command(model, by, _):
    """From the command to the prompt; JAX can keep in a folder what it compiled."""
    command = [f"train_{model.lower()}.py"] + ["--fast"] * (by == FAST)
    if by.startswith(PYG):
        job = f"bench.measure_training({model!r}, {by!r}, seed=0)"
        command = ["-c", f"from lab import bench; print({job})"]
    answer = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder,
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        runs = {"time, s": {}, "fill a cache, s": cache, "use it, s": cache}
        for name, environment in runs.items():
            start = time.perf_counter()
            out = subprocess.check_output([sys.executable, *command], text=True,
                                          cwd=ROOT, env=os.environ | environment)
            answer[name] = time.perf_counter() - start
    accuracy = re.search(r"test accuracy\W+([\d.]+)", out)
    return answer | {"test accuracy": float(accuracy[1])}


# 3. Tables ----------------------------------------------------------------------------

TABLES = {      # what measures, and the rows for each model
    "epoch": (measure_training, [
        FAST, PLAIN, SCIPY, PYG + "dense", PYG + "sparse", PYG + "tuned"]),
    "tricks": (measure_training, [FAST, *(WITHOUT + name for name in TRICKS), PLAIN]),
    "step": (measure_step, [FAST, PLAIN, FAST + ", 1000 labels", PYG + "tuned"]),
    "prompt": (measure_command, [FAST, PLAIN, PYG + "tuned"]),
}


def make_rows(table, sizes, rounds, only):
    """-> {(model, by): a dict of medians}."""
    measure, names = TABLES[table]
    answers = {}
    for seed, *row, size in itertools.product(range(rounds), MODELS, names, sizes):
        if re.search(only, " ".join(row)) and row != ["GAT", SCIPY]:
            print(f"round {seed + 1}:", *row, *size, file=sys.stderr)
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                answer = pool.submit(measure, *row, seed, *size).result()
            found = answers.setdefault(tuple(row), {})
            for name, value in answer.items():
                found.setdefault(name, []).append(value)
    return {row: {name: statistics.median_low(found[name]) for name in found}
            for row, found in answers.items()}


def print_table(rows):
    """In brackets: how many times as long as --fast."""
    names, *_ = rows.values()                           # every row has the same
    print("| model | by |", " | ".join(names), "|")
    print("|" + " --- |" * (2 + len(names)))
    for (model, by), row in rows.items():
        cells = [model, by]
        for name, value in row.items():
            cell = f"{value:.3g}" if isinstance(value, float) else str(value)
            if name.startswith("time") and (model, FAST) in rows:
                cell += f" ({value / rows[model, FAST][name]:.3g})"
            cells.append(cell)
        print("|", " | ".join(cells), "|")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--rounds", type=int, default=3, help="how often each number is measured")
    add("--only", default="", metavar="REGEX", help="some rows: GCN, or 'minignn$'")
    add("--nodes", type=int, nargs="+", default=[10 ** 4, 10 ** 5, 10 ** 6])
    args = parser.parse_args()

    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.environ |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    sizes = [[nodes] for nodes in args.nodes] if args.table == "step" else [[]]
    print_table(make_rows(args.table, sizes, args.rounds, args.only))


if __name__ == "__main__":
    main()
