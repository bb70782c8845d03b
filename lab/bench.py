"""Measure minignn's speed, memory and scale, beside its peers.

    python bench/bench.py [--tables 1,tricks,2,3] [--cores 1] [--write docs/speed.md]
                          [--help]

Prints Markdown tables; with --write they also go into a page:

    1       Cora: the time of an epoch, beside PyTorch Geometric in three forms and a
            GCN in NumPy and SciPy, with the test accuracy that each of them reaches.
    tricks  Cora: what each trick of scale/ is worth: time per epoch, time to compile.
    2       Random graphs with 10^4, 10^5 and 10^6 nodes: time and memory of a step.
    3       From the command to the prompt: both scripts, and the same with the peer.

What is measured runs in a process of its own, a worker, so that its peak memory (the
largest resident set, libraries included) is its alone. Workers never run at the same
time; all have the cores that --cores says. Where JAX finds a GPU, minignn runs there,
and PyTorch where it finds one; the line under each table says so.
"""
import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = "GCN", "GAT"
TURN = 50       # epochs that a worker runs until it is another one's turn; see Turns
STEPS = {10 ** 4: 50, 10 ** 5: 10, 10 ** 6: 3}      # table 2: nodes, steps to time
TRICKS = "receptive_field", "faster_bits", "faster", "faster_train"

# Only workers import more than the standard library: a peer's memory must not count
# JAX, and this process must not hold a GPU.


# 1. What all train on, and until when -------------------------------------------------


def arrays_of(nodes, labels):
    """-> normalised x, edge_index, y, and the masks of train, val and test.

    nodes: 0 for Cora; else the number of nodes of a random graph, with 10 edges for
    each, 64 dense features and 7 classes. The first `labels` of them are training
    nodes; the last 40 percent are validation and test nodes, one half each.
    """
    import numpy as np
    if nodes == 0:
        with np.load(ROOT / "data" / "cora.npz") as file:
            x = file["x"].astype(np.float32)
            edge_index = file["edge_index"].astype(int)
            y = file["y"].astype(int)
            masks = [file[f"{split}_mask"] for split in ("train", "val", "test")]
    else:
        rng = np.random.default_rng(0)
        x = rng.random((nodes, 64), dtype=np.float32)
        edge_index = rng.integers(0, nodes, (2, 10 * nodes))
        y = rng.integers(0, 7, nodes)
        place = np.arange(nodes) / nodes
        masks = [np.arange(nodes) < labels, (place >= 0.6) & (place < 0.8),
                 place >= 0.8]
    x /= np.maximum(x.sum(1, keepdims=True), 1)
    return x, edge_index, y, *masks


def paper_rule(model):
    """-> the paper's rule, patience and most epochs: its recipe's in minignn.py.

    Here once more, since a peer must not load JAX. A test holds them against minignn's.
    """
    def gcn_rule(history):
        loss = history["val_loss"]
        return loss[-1] < min(loss[:-1], default=math.inf), True

    def gat_rule(history):
        loss, accuracy = history["val_loss"], history["val_accuracy"]
        is_lowest = loss[-1] <= min(loss)
        is_highest = accuracy[-1] >= max(accuracy)
        return is_lowest or is_highest, is_lowest and is_highest

    return (gcn_rule, 10, 200) if model == "GCN" else (gat_rule, 100, 100_000)


# 2. The contestants -------------------------------------------------------------------
#
# Each is a class: making an object gets everything ready, and then
#
#     .train(rule, patience, most) -> (epochs, test accuracy)     training from scratch
#     .start(), then .step() as often as you like                 or its steps alone
#
# A rule is what minignn.train calls a rule. An epoch is one step of training, and one
# evaluation of the loss and the accuracy of all three splits.


class Minignn:
    """minignn, without scale/ or with some of its TRICKS; with all, it is --fast."""

    def __init__(self, model, nodes=0, labels=0, tricks=()):
        import jax

        import minignn
        if nodes == 0:
            graph = minignn.load_graph()
        else:
            graph = minignn.make_graph(*arrays_of(nodes, labels), normalize=False)
        if model == "GCN":
            self.model, self.recipe = minignn.GCN(16, 7), minignn.GCN_RECIPE
        else:
            self.model, self.recipe = minignn.GAT([8, 1], [8], 7), minignn.GAT_RECIPE

        train_graph = graph
        self.rng = jax.random.key(0)
        self.train_model = minignn.train
        if "receptive_field" in tricks:
            train_graph = minignn.receptive_field(graph, hops=2)
        if tricks:
            from scale import faster
        if "faster" in tricks:
            same = train_graph is graph
            train_graph = faster.faster(train_graph)
            graph = train_graph if same else faster.faster(graph)
        if "faster_bits" in tricks:
            self.rng = jax.random.key(0, impl=faster.faster_bits)
        if "faster_train" in tricks:
            self.train_model = faster.faster_train
        self.graph, self.train_graph = graph, train_graph

    def train(self, rule, patience, most):
        import minignn
        settings = dict(rule=rule, patience=patience, epochs=most, log_every=0)
        params, history = self.train_model(
            self.model, self.graph, self.rng, train_graph=self.train_graph,
            **(self.recipe | settings))
        _, apply_fun = self.model
        metrics = minignn.evaluate(apply_fun, params, self.graph)
        return len(history["val_loss"]), float(metrics["test_accuracy"])

    def start(self):
        import jax

        import minignn
        init_rng, self.dropout_rng = jax.random.split(self.rng)
        init_fun, _ = self.model
        _, self.params = init_fun(init_rng, self.graph.x.shape)
        self.state = minignn.adam(self.recipe["step_size"])[0](self.params)
        self.epoch = 0

    def step(self):
        import jax

        import minignn
        self.epoch += 1
        _, apply_fun = self.model
        self.params, self.state = minignn.train_step(
            apply_fun, self.recipe["penalise_all"], self.params, self.state,
            self.train_graph, self.dropout_rng, self.epoch, self.recipe["step_size"],
            self.recipe["weight_decay"])
        jax.block_until_ready(self.params)


class Peer:
    """A contestant with evaluate() -> a dict; what minignn.train is for minignn."""

    def train(self, rule, patience, most):
        self.start()
        history = {"val_loss": [], "val_accuracy": []}
        last_progress = 0
        for epoch in range(1, most + 1):
            self.step()
            metrics = self.evaluate()
            for name, values in history.items():
                values.append(metrics[name])
            progress, keep = rule(history)
            if keep or epoch == 1:
                kept = metrics["test_accuracy"]
            if progress:
                last_progress = epoch
            if epoch - last_progress >= patience:
                break
        return epoch, kept


class PyG(Peer):
    """PyTorch Geometric's GCNConv and GATConv, with the settings of its Cora examples.

    form: "dense"   as in its examples: x is an array, the adjacency is edge_index
          "sparse"  x is a coalesced COO matrix, multiplied by torch.sparse.mm
          "tuned"   the quickest that was found. The adjacency is a CSR matrix, so that
                    GCNConv sums without storing messages and GATConv over sorted rows.
                    x is a CSR matrix, see sparse_linear.
    """

    def __init__(self, model, nodes=0, labels=0, form="dense"):
        import torch
        from torch_geometric.utils import add_self_loops, to_torch_csr_tensor
        warnings.filterwarnings("ignore", "Sparse")     # that CSR is new in PyTorch
        self.model, self.form = model, form
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        arrays = [torch.as_tensor(array) for array in arrays_of(nodes, labels)]
        x, adj, self.y, *masks = [array.to(self.device) for array in arrays]
        self.splits = [mask.nonzero()[:, 0] for mask in masks]

        if form == "tuned":
            adj, _ = add_self_loops(adj, num_nodes=len(x))
            # Row i of a CSR matrix lists what node i gathers from.
            adj = to_torch_csr_tensor(adj.flip(0), size=(len(x), len(x)))
        self.is_sparse = form != "dense" and nodes == 0     # a random x has no zeros
        if self.is_sparse:
            x = x.to_sparse_csr() if form == "tuned" else x.to_sparse().coalesce()
        self.x, self.adj = x, adj

    def start(self):
        import torch
        from torch_geometric.nn import GATConv, GCNConv
        torch.manual_seed(0)
        num_features = self.x.shape[1]
        more = dict(add_self_loops=self.form != "tuned")
        if self.model == "GCN":
            self.rate, self.activation = 0.5, torch.relu
            step_size, weight_decays = 0.01, (5e-4, 0)
            more["cached"] = True
            layers = [GCNConv(num_features, 16, **more), GCNConv(16, 7, **more)]
        else:
            self.rate, self.activation = 0.6, torch.nn.functional.elu
            step_size, weight_decays = 0.005, (5e-4, 5e-4)
            more["dropout"] = self.rate
            layers = [GATConv(num_features, 8, heads=8, **more),
                      GATConv(64, 7, concat=False, **more)]
        if self.is_sparse:
            layers[0].lin = sparse_linear(layers[0].lin, self.x)
        self.net = torch.nn.ModuleList(layers).to(self.device)
        groups = []
        for layer, weight_decay in zip(self.net, weight_decays):
            groups.append(dict(params=layer.parameters(), weight_decay=weight_decay))
        self.optimizer = torch.optim.Adam(groups, lr=step_size)

    def logits(self, training):
        from torch.nn.functional import dropout
        self.net.train(training)
        x = self.x
        if not self.is_sparse:
            x = dropout(x, self.rate, training)
        elif training:
            x = with_values(x, dropout(x.values(), self.rate))
        h = self.activation(self.net[0](x, self.adj))
        h = dropout(h, self.rate, training)
        return self.net[1](h, self.adj)

    def step(self):
        import torch
        train = self.splits[0]
        self.optimizer.zero_grad()
        logits = self.logits(training=True)
        torch.nn.functional.cross_entropy(logits[train], self.y[train]).backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def evaluate(self):
        import torch
        metrics = {}
        with torch.no_grad():
            scores = self.logits(training=False)
            for name, nodes in zip(("train", "val", "test"), self.splits):
                logits, y = scores[nodes], self.y[nodes]
                right = logits.argmax(-1) == y
                loss = torch.nn.functional.cross_entropy(logits, y)
                metrics[f"{name}_loss"] = float(loss)
                metrics[f"{name}_accuracy"] = float(right.float().mean())
        return metrics


def with_values(x, values):
    """A torch matrix in COO or CSR form, with other values in the same places."""
    import torch
    if x.layout == torch.sparse_coo:
        return torch.sparse_coo_tensor(x.indices(), values, x.shape, is_coalesced=True)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape)


def sparse_linear(lin, x):
    """-> a module that multiplies a matrix like x by the weights of a torch Linear.

    For the gradient, PyTorch makes the transpose of x in each step anew. If x is a CSR
    matrix, its places are known, and the gradient is computed here, from a transpose of
    which only the values are new.
    """
    import torch
    product = torch.sparse.mm
    if x.layout == torch.sparse_csr:
        numbers = torch.arange(x.values().numel(), device=x.device)
        by_column = with_values(x, numbers).to_sparse_csc()
        starts, rows = by_column.ccol_indices(), by_column.row_indices()
        order = by_column.values()

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, W):
                ctx.values = x.values()
                return torch.sparse.mm(x, W)

            @staticmethod
            def backward(ctx, g):
                transpose = torch.sparse_csr_tensor(
                    starts, rows, ctx.values[order], x.shape[::-1])
                return None, torch.sparse.mm(transpose, g)

        product = Product.apply

    class SparseLinear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            weight = lin.weight.detach().t().contiguous()
            self.weight = torch.nn.Parameter(weight)

        def forward(self, x):
            return product(x, self.weight)

    return SparseLinear()


class SciPy(Peer):
    """The GCN in NumPy and SciPy, its gradient derived by hand."""

    def __init__(self, model, nodes=0, labels=0):
        import numpy as np
        import scipy.sparse as sp
        x, edge_index, self.y, *masks = arrays_of(nodes, labels)
        self.splits = [np.flatnonzero(mask) for mask in masks]
        self.x = sp.csr_matrix(x)
        self.dropped = self.x.copy()
        self.dropped_T = self.dropped.T             # has the same values in memory
        ones = np.ones(edge_index.shape[1])
        A = sp.csr_matrix((ones, edge_index[::-1]), (len(x), len(x))) + sp.eye(len(x))
        D = sp.diags(np.asarray(A.sum(1)).ravel() ** -0.5)
        # its own transpose, since every edge of Cora goes both ways
        self.A = sp.csr_matrix(D @ A @ D, dtype=np.float32)

    def start(self):
        import numpy as np
        self.rng = np.random.default_rng(0)
        self.params = []
        for shape in ((self.x.shape[1], 16), (16, 7)):
            r = np.float32((6 / sum(shape)) ** 0.5)
            W = r * self.rng.uniform(-1, 1, shape).astype(np.float32)
            self.params.append(W)
        self.means = [np.zeros_like(p) for p in self.params]
        self.squares = [np.zeros_like(p) for p in self.params]
        self.t = 0

    def mask(self, shape):
        """What dropout multiplies by: 2 or 0, each in half of all cases."""
        import numpy as np
        size = math.prod(shape)
        bytes_ = np.frombuffer(self.rng.bytes((size + 7) // 8), np.uint8)
        bits = np.unpackbits(bytes_, count=size).reshape(shape)
        return bits * np.float32(2)

    def log_softmax(self, z):
        import numpy as np
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def gradients(self, W0, W1):
        import numpy as np
        A, train = self.A, self.splits[0]
        np.multiply(self.x.data, self.mask(self.x.data.shape), out=self.dropped.data)
        h = A @ (self.dropped @ W0)
        h_mask = self.mask(h.shape) * (h > 0)
        h *= h_mask
        logits = A @ (h @ W1)

        g = np.zeros_like(logits)
        g[train] = np.exp(self.log_softmax(logits[train]))
        g[train, self.y[train]] -= 1
        g = A @ (g / len(train))
        by_W0 = self.dropped_T @ (A @ ((g @ W1.T) * h_mask)) + np.float32(5e-4) * W0
        return by_W0, h.T @ g

    def step(self):
        import numpy as np
        self.t += 1
        gradients = self.gradients(*self.params)
        for p, mean, square, g in zip(
                self.params, self.means, self.squares, gradients):
            mean += 0.1 * (g - mean)
            square += 0.001 * (g * g - square)
            root = np.sqrt(square / (1 - 0.999 ** self.t)) + 1e-8
            p -= 0.01 * (mean / (1 - 0.9 ** self.t)) / root

    def evaluate(self):
        import numpy as np
        A = self.A
        W0, W1 = self.params
        logits = A @ (np.maximum(A @ (self.x @ W0), 0) @ W1)
        metrics = {}
        for name, nodes in zip(("train", "val", "test"), self.splits):
            scores, y = self.log_softmax(logits[nodes]), self.y[nodes]
            metrics[f"{name}_loss"] = float(-scores[np.arange(len(nodes)), y].mean())
            metrics[f"{name}_accuracy"] = float((scores.argmax(1) == y).mean())
        return metrics


CONTESTANTS = {     # each with the package that it needs
    "minignn": (Minignn, "jax"),
    "PyG": (PyG, "torch_geometric"),
    "SciPy": (SciPy, "scipy"),
}


# 3. Workers ---------------------------------------------------------------------------
#
# A worker is made for a job, a dict: who ("by"), and what its class is to be made with.
# It reads one request a line, and answers each with one line of JSON:
#
#     ready       the seconds from its start until the class is made
#     turn        the seconds that TURN epochs took; the first turn also compiles
#     train       training by the paper's rule: epochs and test accuracy
#     steps N     the seconds of each of N steps, after a first one that also compiles


def megabytes(usage):
    unit = 1 if sys.platform == "darwin" else 1024
    return round(usage.ru_maxrss * unit / 1e6)


def machine_use():
    """The peak memory of this process."""
    import resource
    use = {"peak MB": megabytes(resource.getrusage(resource.RUSAGE_SELF))}
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    peak = None
    if jax and jax.default_backend() != "cpu":
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    elif torch and torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    if peak is not None:
        use["GPU peak MB"] = round(peak / 1e6)
    return use


class Turns:
    """A rule for train that stops nothing. It answers after each TURN of epochs, and
    then waits for the next request; training ends with the first that is no turn.

    (minignn's faster_train computes ten epochs and then asks the rule ten times. A turn
    ends at a multiple of ten, so its epochs, and no others, were computed in it.)
    """

    def __init__(self, requests, answer):
        self.requests, self.answer = requests, answer
        self.request = "turn"
        self.begin = time.perf_counter()

    def __call__(self, history):
        if len(history["val_loss"]) % TURN == 0:
            self.answer(seconds=time.perf_counter() - self.begin)
            self.request = next(self.requests, "")
            self.begin = time.perf_counter()
        return self.request == "turn", False


def time_steps(contestant, number):
    contestant.start()
    clock = [time.perf_counter()]
    for _ in range(number + 1):
        contestant.step()
        clock.append(time.perf_counter())
    first, *seconds = [end - begin for begin, end in itertools.pairwise(clock)]
    return {"first step s": first, "seconds": seconds}


NO_MEMORY = ("MemoryError", "RESOURCE_EXHAUSTED", "bad_alloc", "OutOfMemory",
             "can't allocate memory", "not enough memory")


def work(job):
    begin = time.perf_counter()
    job = json.loads(job)
    requests = (line.strip() for line in sys.stdin)

    def answer(**items):
        print(json.dumps(items | machine_use()), flush=True)

    request = next(requests, "")
    try:
        make, _ = CONTESTANTS[job.pop("by")]
        contestant = make(**job)
        while request:
            if request == "ready":
                answer(**{"ready s": time.perf_counter() - begin})
            elif request == "turn":
                turns = Turns(requests, answer)
                contestant.train(turns, patience=1, most=10 ** 9)
                request = turns.request
                continue
            elif request == "train":
                epochs, accuracy = contestant.train(*paper_rule(job["model"]))
                answer(epochs=epochs, accuracy=100 * accuracy)
            else:
                _, number = request.split()
                answer(**time_steps(contestant, int(number)))
            request = next(requests, "")
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        note = text.splitlines()[0][:100]
        if any(sign in text for sign in NO_MEMORY):
            note = "out of memory"
        print(json.dumps({"note": note}), flush=True)
        for _ in requests:                          # until nobody asks any more
            pass


def start(job):
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker, request, limit):
    """A worker's answer; if none comes, a note that says why."""
    timer = threading.Timer(limit, worker.kill)
    timer.start()
    print(request, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    is_late = not timer.is_alive()
    timer.cancel()
    if line:
        return json.loads(line)
    if is_late:
        return {"note": f"not done after {limit:g} s"}
    status = worker.wait()
    if status in (-9, -6):      # killed by the system; aborted in C++, for bad_alloc
        return {"note": "out of memory"}
    return {"note": f"exit status {status}"}


# 4. Tables: each is a title, rows {heading: value}, and what the reader needs to know -


def progress(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def in_turns(jobs, args, then_train):
    """Time the epochs of several workers, in turns.

    jobs: {who: job}. -> {who: a dict with "ready s", "compile s", the seconds of an
    epoch in each turn, and what the last answer says}
    """
    rows = {who: {"seconds": []} for who in jobs}
    workers = {}
    with contextlib.ExitStack() as stack:
        for who, job in jobs.items():
            _, package = CONTESTANTS[job["by"]]
            if importlib.util.find_spec(package):
                workers[who] = stack.enter_context(start(job))
                rows[who] |= ask(workers[who], "ready", args.limit)
            else:
                rows[who]["note"] = f"left out: {package} is not installed"

        # The first turn is no measurement; it compiles.
        requests = ["turn"] * (1 + args.turns) + ["train"] * then_train
        for number, request in enumerate(requests):
            for who, row in rows.items():
                if "note" not in row:
                    progress(f"{request} {number}: {jobs[who]['model']}, {who}")
                    answer = ask(workers[who], request, args.limit)
                    if "seconds" in answer:
                        seconds = answer.pop("seconds") / TURN
                        row["seconds"].append(seconds)
                    row |= answer
    for row in rows.values():
        first, *row["seconds"] = row["seconds"] or [math.nan]
        if row["seconds"]:
            row["compile s"] = TURN * (first - statistics.median(row["seconds"]))
    return rows


def ratio_to(row, other):
    """How many times as long an epoch, or a step, takes as in another row."""
    if row.get("seconds") and other.get("seconds"):
        return statistics.median(row["seconds"]) / statistics.median(other["seconds"])
    return None


def milliseconds(seconds):
    return {"ms": 1000 * statistics.median(seconds) if seconds else None,
            "lowest": 1000 * min(seconds) if seconds else None}


def cora(args):
    rows = []
    for model in args.models:
        jobs = {
            "minignn": dict(by="minignn"),
            "minignn --fast": dict(by="minignn", tricks=TRICKS),
            "PyTorch Geometric, dense": dict(by="PyG", form="dense"),
            "PyTorch Geometric, sparse": dict(by="PyG", form="sparse"),
            "PyTorch Geometric, tuned": dict(by="PyG", form="tuned"),
            "SciPy": dict(by="SciPy"),
        }
        if model == "GAT":
            del jobs["SciPy"]
        jobs = {who: job | dict(model=model) for who, job in jobs.items()}
        measured = in_turns(jobs, args, then_train=True)
        for who, row in measured.items():
            rows.append({
                "model": model, "by": who, **milliseconds(row["seconds"]),
                "times plain": ratio_to(row, measured["minignn"]),
                "times fast": ratio_to(row, measured["minignn --fast"]),
                "peak MB": row.get("peak MB"), "GPU peak MB": row.get("GPU peak MB"),
                "epochs": row.get("epochs"), "test accuracy %": row.get("accuracy"),
                "seconds": row["seconds"], "note": row.get("note")})
    return "Cora: an epoch", rows, (
        f"ms: the time of an epoch, the median of {args.turns} turns of {TURN} epochs; "
        "the contestants run in turns. Lowest: that of the quickest turn. Times plain, "
        "times fast: how many times as long as minignn, without and with --fast, it "
        "takes. An epoch is the same for all: one step of training, then the loss and "
        "the accuracy of all three splits. (PyTorch Geometric's examples evaluate "
        "accuracies alone.) Epochs, test accuracy: one training with the paper's "
        "settings until its rule stops it, seed 0. (README.md says how far accuracies "
        "scatter from seed to seed.) Dense: x is an array, as in PyTorch Geometric's "
        "examples. Sparse: x is a COO matrix for torch.sparse.mm. Tuned: x and the "
        "adjacency are CSR matrices, and the gradient of x @ W is derived by hand. "
        "SciPy: the whole gradient is.")


def tricks(args):
    rows = []
    for model in args.models:
        base = dict(by="minignn", model=model)
        jobs = {"all": base | dict(tricks=TRICKS)}
        for trick in TRICKS:
            others = [other for other in TRICKS if other != trick]
            jobs[f"without {trick}"] = base | dict(tricks=others)
        jobs["none"] = base
        rounds = []
        for number in range(args.repeats):
            progress(f"table of tricks: {model}, round {number + 1} of {args.repeats}")
            rounds.append(in_turns(jobs, args, then_train=False))
        for who in jobs:                                # all comes first
            of_who = [answers[who] for answers in rounds]
            seconds = [second for answer in of_who for second in answer["seconds"]]
            if who == "all":
                of_all = seconds
            row = {"model": model, "tricks": who, **milliseconds(seconds),
                   "times all": ratio_to({"seconds": seconds}, {"seconds": of_all})}
            for key in ("ready s", "compile s"):
                values = [answer[key] for answer in of_who if key in answer]
                row[key] = statistics.median(values) if values else None
            notes = [answer["note"] for answer in of_who if "note" in answer]
            rows.append(row | {"seconds": seconds, "note": notes[0] if notes else None})
    return "Cora: what each trick is worth", rows, (
        f"ms: the time of an epoch, the median of {args.repeats} times {args.turns} "
        f"turns of {TURN} epochs. Ready: imports, reading Cora, preparing the tricks. "
        f"Compile: how much longer the first turn took than the others. Both are the "
        f"median of {args.repeats} fresh processes. The tricks: train on what the loss "
        "can see (receptive_field), cheaper random bits (faster_bits), sums in groups "
        "(faster), ten epochs in one call (faster_train).")


def random_graphs(args):
    no_train = [trick for trick in TRICKS if trick != "faster_train"]
    no_field = [trick for trick in no_train if trick != "receptive_field"]
    contestants = {
        "minignn": dict(by="minignn"),
        "minignn --fast": dict(by="minignn", tricks=no_field),
        "PyTorch Geometric, dense": dict(by="PyG", form="dense"),
        "PyTorch Geometric, tuned": dict(by="PyG", form="tuned"),
        "minignn --fast, 1000 labels": dict(by="minignn", tricks=no_train, labels=1000),
    }
    rows = []
    sizes = [nodes for nodes in STEPS if nodes <= args.max_nodes]
    last = {who: {} for who in contestants}
    for model, nodes in itertools.product(args.models, sizes):
        if nodes == sizes[0]:
            last = {who: {} for who in contestants}
        measured = {}
        for who, job in contestants.items():
            job = dict(labels=6 * nodes // 10) | job | dict(model=model, nodes=nodes)
            progress(f"table 2: {model}, {nodes} nodes, {who}")
            if "note" in last[who]:
                answer = {"note": "not tried after that"}
            elif importlib.util.find_spec(CONTESTANTS[job["by"]][1]):
                with start(job) as worker:
                    answer = ask(worker, "ready", args.limit)
                    if "note" not in answer:
                        answer |= ask(worker, f"steps {STEPS[nodes]}", args.limit)
            else:
                answer = {"note": "left out: not installed"}
            measured[who] = answer
        for who, answer in measured.items():
            growth = ratio_to(answer, last[who])
            seconds = answer.get("seconds")
            if not seconds:                 # its memory is not that of a step
                answer = {"note": answer["note"]}
            rows.append({
                "model": model, "nodes": nodes, "edges": 10 * nodes, "by": who,
                "step s": statistics.median(seconds) if seconds else None,
                "growth": math.log10(growth) if growth else None,
                "times fast": ratio_to(answer, measured["minignn --fast"]),
                "peak MB": answer.get("peak MB"),
                "GPU peak MB": answer.get("GPU peak MB"),
                "ready s": answer.get("ready s"),
                "first step s": answer.get("first step s"),
                "seconds": seconds, "note": answer.get("note")})
        last = measured
    title = "Random graphs: 10 edges per node, 64 dense features, 7 classes"
    return title, rows, (
        "Step: one step of training by itself, without evaluation; the median of 50, "
        "10 and 3. 60 % of the nodes are training nodes, and the receptive field, "
        "which is nearly all of the graph, is left out; or 1000 nodes are, and it is "
        "used. Times fast: how many times as long as minignn --fast with 60 %. Growth: "
        "the power of the number of nodes with which the time has grown since the size "
        "before; 1 is linear. Peak MB: of the whole process. Ready: imports, making "
        "the graph.")


def run_command(command, limit, cache=None):
    """Run a command in a fresh process: wall time, peak memory, its last line.

    cache: a folder where JAX keeps what it has compiled, and finds it again.
    """
    environment = dict(os.environ)
    if cache:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"     # keep all
    begin = time.perf_counter()
    with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            env=environment) as process:
        timer = threading.Timer(limit, process.kill)
        timer.start()
        lines = process.stdout.read().splitlines() or [""]
        # Nothing else tells the peak memory of one child.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
    measured = {"s": time.perf_counter() - begin, "peak MB": megabytes(usage),
                "last line": lines[-1]}
    if status:
        measured["note"] = f"exit status {process.returncode}"
    return measured


def from_command_to_prompt(args):
    commands = []
    for model in args.models:
        script = f"train_{model.lower()}.py"
        for command in ([script], [script, "--fast"]):
            commands += [(command, False), (command, True)]
        if importlib.util.find_spec("torch_geometric"):
            for form in ("dense", "tuned"):
                peer = ["bench/bench.py", "--train-peer", model, form]
                commands.append((peer, False))
    answers = {}
    with tempfile.TemporaryDirectory() as cache:
        rounds = range(args.repeats)
        for number, (command, again) in itertools.product(rounds, commands):
            script, *flags = command
            name = f"`{' '.join(command)}`" + ", started again" * again
            progress(f"table 3: {name}, {number + 1} of {args.repeats}")
            command = [sys.executable, ROOT / script, *flags]
            if again and number == 0:                   # this one fills the cache
                run_command(command, args.limit, cache)
            answer = run_command(command, args.limit, cache if again else None)
            answers.setdefault(name, []).append(answer)
    rows = []
    for name, of_name in answers.items():
        seconds = [answer["s"] for answer in of_name]
        rows.append(of_name[-1] | {
            "command": name, "s": statistics.median(seconds),
            "lowest": min(seconds), "seconds": seconds})
    order = "command", "s", "lowest", "peak MB", "last line", "seconds", "note"
    rows = [{key: row.get(key) for key in order} for row in rows]
    ran = f"Each command ran {args.repeats} times, in turns; s is the median."
    if args.repeats == 1:
        ran = "Each command ran once."
    return "From the command to the prompt", rows, (
        f"{ran} Started again: with JAX_COMPILATION_CACHE_DIR set to a folder in which "
        "the same command has left what it compiled. The peer's commands train the "
        "same models with PyTorch Geometric and the papers' settings, and stop by the "
        "same rules.")


def train_peer(model, form):
    """The peer's script of table 3."""
    epochs, accuracy = PyG(model, form=form).train(*paper_rule(model))
    print(f"{epochs} epochs, test accuracy: {accuracy:.4f}")


TABLES = {"1": cora, "tricks": tricks, "2": random_graphs, "3": from_command_to_prompt}


# 5. The page --------------------------------------------------------------------------


def text_of(value):
    """A float has three digits, or all that stand before the point."""
    if value is None:
        return ""
    if isinstance(value, float):
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{min(max(digits, 0), 4)}f}"
    return f"{value:,}" if isinstance(value, int) else value


def markdown(rows):
    """A table with a column for each heading under which there is something."""
    headings = []
    for row in rows:
        for key, value in row.items():
            if key not in (*headings, "seconds") and value is not None:
                headings.append(key)
    headings = [key for key in rows[0] if key in headings]
    cells = [headings]
    for row in rows:
        cells.append([text_of(row.get(heading)) for heading in headings])
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines)


def describe():
    """Date, machine and versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("model name"))
        cpu = line.split(":", 1)[1].strip()
    about = {
        "date": str(datetime.date.today()),
        "CPU": cpu,
        "cores": f"{cores_here()} of {os.cpu_count()}",
        "Python": platform.python_version(),
    }
    for package, device in (
            ("jax", "jax.devices()[0].device_kind"),
            ("torch", "'cuda' if torch.cuda.is_available() else 'cpu'")):
        if importlib.util.find_spec(package):
            program = f"import {package}; print({device})"
            about[f"{package} on"] = subprocess.run(
                [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
            ).stdout.strip()
    for package in ("jax", "numpy", "torch", "torch_geometric", "scipy"):
        about[package] = "not installed"
        if importlib.util.find_spec(package):
            about[package] = importlib.metadata.version(package)
    return about


def write(page, name, section):
    """Put a table between the two comments in a page that are there for it."""
    begin, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
    path = pathlib.Path(page)
    text = path.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no {begin} and {end}")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    path.write_text(f"{before}{begin}\n\n{section}\n\n{end}{after}", encoding="utf-8")


# 6. The machine and the flags ---------------------------------------------------------


def cores_here():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def divide_machine(cores, memory):
    """What this process may use: all that it starts may use no more.

    memory: GB for each process, so that the one that needs too much ends with an error
    and takes nobody else's; 0 for no limit.
    """
    if hasattr(os, "sched_setaffinity"):            # Linux has it, macOS has not
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    os.environ["OMP_NUM_THREADS"] = str(cores)      # PyTorch, NumPy and SciPy
    # By default, the first JAX process takes nearly all of a GPU's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if memory and sys.platform == "linux":
        import resource
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 1e9), most))


def free_memory():
    """GB that are free, less a tenth; 0 where the system does not say.

    And where there is an NVIDIA GPU, whose driver reserves much that it does not use.
    """
    if os.path.exists("/dev/nvidiactl"):
        return 0
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/meminfo").read_text()
        kilobytes = re.search(r"MemAvailable: +(\d+)", text).group(1)
        return round(0.9 * int(kilobytes) * 1024 / 1e9, 1)
    return 0


def read_flags():
    parser = argparse.ArgumentParser(
        description="Measure minignn's speed, memory and scale, beside its peers.")
    add = parser.add_argument
    add("--tables", default=",".join(TABLES), metavar="LIST",
        help="which tables to make [%(default)s]")
    add("--models", default=",".join(MODELS), metavar="LIST",
        help="of which models [%(default)s]")
    add("--cores", type=int, default=1,
        help="the cores that each process may use [%(default)s]")
    add("--turns", type=int, default=6,
        help=f"tables 1 and tricks: turns of {TURN} epochs to time [%(default)s]")
    add("--repeats", type=int, default=3,
        help="tables tricks and 3: fresh processes [%(default)s]")
    add("--max-nodes", type=int, default=10 ** 6,
        help="table 2: the largest graph [%(default)s]")
    add("--limit", type=float, default=600,
        help="seconds that a worker has to answer [%(default)s]")
    add("--memory", type=float, default=free_memory(), metavar="GB",
        help="what a process may allocate, 0 for no limit [%(default)s, 90 %% of what "
             "is free]")
    add("--write", metavar="FILE", help="put the tables into this page, too")
    add("--json", metavar="FILE", help="write everything that was measured there")
    add("--train-peer", nargs=2, metavar=("MODEL", "FORM"),
        help="train GCN or GAT with PyTorch Geometric (dense, sparse or tuned), as "
             "table 3 does; measure nothing")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tables, args.models = args.tables.split(","), args.models.split(",")
    if not set(args.tables) <= set(TABLES):
        parser.error(f"the tables are {', '.join(TABLES)}")
    if not set(args.models) <= set(MODELS):
        parser.error(f"the models are {', '.join(MODELS)}")
    if min(args.turns, args.repeats) < 1 or args.max_nodes < 10 ** 4:
        parser.error("--turns and --repeats must be at least 1, --max-nodes 10000")
    if not 1 <= args.cores <= cores_here():
        parser.error(f"--cores must be 1 to {cores_here()}, what this process may use")
    if args.train_peer and args.train_peer[0] not in MODELS:
        parser.error("--train-peer needs GCN or GAT")
    if args.train_peer and args.train_peer[1] not in ("dense", "sparse", "tuned"):
        parser.error("--train-peer's form is dense, sparse or tuned")
    return parser, args


def command_for(name, parser, args):
    """The command that makes a table again: its name, and the flags that matter."""
    command = f"python bench/bench.py --tables {name}"
    if len(args.models) < len(MODELS):
        command += f" --models {','.join(args.models)}"
    for flag in ("cores", "turns", "repeats", "max_nodes"):
        value = getattr(args, flag)
        if value != parser.get_default(flag):
            command += f" --{flag.replace('_', '-')} {value}"
    return command


def main():
    parser, args = read_flags()
    sys.path.insert(0, str(ROOT))
    if args.worker:
        work(args.worker)
        return
    if args.train_peer:
        train_peer(*args.train_peer)
        return

    divide_machine(args.cores, args.memory)
    results = {"machine": describe()}
    machine = "; ".join(f"{key} {value}" for key, value in results["machine"].items())
    for name in args.tables:
        title, rows, legend = TABLES[name](args)
        command = command_for(name, parser, args)
        legend, made = (
            textwrap.fill(text, 120, break_on_hyphens=False)
            for text in (legend, f"`{command}`: {machine}."))
        section = f"{markdown(rows)}\n\n{legend}\n\n{made}"
        print(f"\n### {title}\n\n{section}", flush=True)
        # After every table, in case the next one is interrupted.
        if args.write:
            write(args.write, name, section)
        results[title] = rows
        if args.json:
            text = json.dumps(results, indent=1) + "\n"
            pathlib.Path(args.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
