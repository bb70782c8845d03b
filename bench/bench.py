"""Measure minignn's speed, memory and scale.

    python bench/bench.py [--tables 1,2,3] [--fast] [--json FILE] [--help]

Prints three Markdown tables:

    1. Cora: time per epoch of both models, in the plain form and in the fast one
       (scale/faster.py, and training on the receptive field), beside two peers. An
       epoch is one step of training and one full evaluation. PyTorch Geometric has its
       own GCNConv (cached) and GATConv and the settings of its Cora examples, which
       evaluate accuracies alone. SciPy is the GCN in NumPy and SciPy CSR, its gradient
       by hand.
    2. Random graphs: how time and memory grow with the number of nodes.
    3. Cold start: the seconds from nothing to a trained model.

Tables 2 and 3 measure the plain form, with --fast the fast one. Whatever is measured
runs in a process of its own, a worker, so that peak memory is its alone: the largest
resident set, libraries included. Where JAX finds a GPU, minignn runs there, and PyTorch
where it finds one.
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
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = "GCN", "GAT"
TURN = 10     # table 1: epochs that a peer runs before it is the next one's turn
FEW = 5       # table 2: epochs that are timed
REPEATS = 3   # table 3: fresh processes, of which the median is reported


# 1. minignn ---------------------------------------------------------------------------
#
# Only a worker of minignn's own imports it: the peers' memory must not count JAX, and
# this process must not hold the device.


def random_graph(nodes):
    """10 edges per node between random nodes, 64 dense features, 7 classes.

    The splits are 60, 20 and 20 percent of the nodes.
    """
    import numpy as np

    import minignn
    rng = np.random.default_rng(0)
    x = rng.random((nodes, 64), dtype=np.float32)
    edge_index = rng.integers(0, nodes, (2, 10 * nodes), dtype=np.int32)
    y = rng.integers(0, 7, nodes)
    share = np.arange(nodes) / nodes
    train_mask = share < 0.6
    test_mask = share >= 0.8
    val_mask = ~train_mask & ~test_mask
    return minignn.make_graph(
        x, edge_index, y, train_mask, val_mask, test_mask, class_names=range(7))


def make_model(name):
    """-> the model, and its paper's recipe."""
    import minignn
    if name == "GCN":
        return minignn.GCN(16, 7), minignn.GCN_RECIPE
    return minignn.GAT([8, 1], [8], 7), minignn.GAT_RECIPE


def plain_or_fast(graph, fast):
    """-> the graph, the graph to train on, a key: as the scripts have them."""
    import jax

    import minignn
    if not fast:
        return graph, graph, jax.random.key(0)
    from scale.faster import faster, faster_bits
    train_graph = faster(minignn.receptive_field(graph, hops=2))
    return faster(graph), train_graph, jax.random.key(0, impl=faster_bits)


def minignn_epochs(name, nodes, fast=False):
    """Run an epoch, yield the test accuracy, run the next, and so on."""
    import jax

    import minignn
    graph = random_graph(nodes) if nodes else minignn.load_graph()
    graph, train_graph, rng = plain_or_fast(graph, fast)
    (init_fun, apply_fun), recipe = make_model(name)
    init_rng, dropout_rng = jax.random.split(rng)
    _, params = init_fun(init_rng, graph.x.shape)
    init_adam, _ = minignn.adam(recipe["step_size"])
    state = init_adam(params)

    for epoch in itertools.count(1):
        params, state = minignn.train_step(
            apply_fun, recipe["penalise_all"], params, state, train_graph, dropout_rng,
            epoch, recipe["step_size"], recipe["weight_decay"])
        metrics = jax.device_get(minignn.evaluate(apply_fun, params, graph))
        yield float(metrics["test_accuracy"])


def fast_epochs(name, nodes):
    return minignn_epochs(name, nodes, fast=True)


def cold_start(name, fast):
    """Time what a script does, part by part, in a process that has just begun."""
    clock = [time.perf_counter()]

    def tick():
        clock.append(time.perf_counter())

    import minignn
    tick()
    graph, train_graph, rng = plain_or_fast(minignn.load_graph(), fast)
    tick()
    model, recipe = make_model(name)
    recipe = recipe | dict(log_every=0, train_graph=train_graph)
    minignn.train(model, graph, rng, **(recipe | dict(epochs=1)))
    tick()
    _, history = minignn.train(model, graph, rng, **recipe)
    tick()
    seconds = [end - begin for begin, end in itertools.pairwise(clock)]
    times = dict(zip(("import s", "load s", "compile s", "train s"), seconds))
    return times | {"epochs": len(history["val_loss"])}


# 2. Peers: generators of test accuracies, like minignn_epochs -------------------------


def cora_arrays():
    """Cora for the peers -> normalised x, edge_index, y, and the splits' masks."""
    import numpy as np
    with np.load(ROOT / "data" / "cora.npz") as file:
        x = file["x"].astype(np.float32)
        x = x / np.maximum(x.sum(1, keepdims=True), 1)
        edge_index = file["edge_index"].astype(int)
        y = file["y"].astype(int)
        masks = [file[f"{split}_mask"] for split in ("train", "val", "test")]
    return x, edge_index, y, *masks


def pyg_epochs(name, nodes):
    import torch
    import torch.nn.functional as F
    from torch_geometric.nn import GATConv, GCNConv
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = [torch.as_tensor(array).to(device) for array in cora_arrays()]
    x, edge_index, y, *masks = arrays
    train, _, test = masks

    if name == "GCN":
        rate, activation, step_size, weight_decays = 0.5, F.relu, 0.01, (5e-4, 0)
        layers = [
            GCNConv(x.shape[1], 16, cached=True),
            GCNConv(16, 7, cached=True)]
    else:
        rate, activation, step_size, weight_decays = 0.6, F.elu, 0.005, (5e-4, 5e-4)
        layers = [
            GATConv(x.shape[1], 8, heads=8, dropout=rate),
            GATConv(64, 7, concat=False, dropout=rate)]
    model = torch.nn.ModuleList(layers).to(device)
    groups = []
    for layer, weight_decay in zip(model, weight_decays):
        groups.append(dict(params=layer.parameters(), weight_decay=weight_decay))
    optimizer = torch.optim.Adam(groups, lr=step_size)

    def logits():
        h = F.dropout(x, rate, model.training)
        h = activation(model[0](h, edge_index))
        h = F.dropout(h, rate, model.training)
        return model[1](h, edge_index)

    while True:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(logits()[train], y[train]).backward()
        optimizer.step()

        model.eval()
        with torch.no_grad():
            right = logits().argmax(-1) == y
            accuracies = [float(right[mask].float().mean()) for mask in masks]
        yield accuracies[-1]


def scipy_epochs(name, nodes):
    import numpy as np
    import scipy.sparse as sp
    x, edge_index, y, *masks = cora_arrays()
    num_nodes, num_features = x.shape
    splits = [np.flatnonzero(mask) for mask in masks]
    train = splits[0]
    x = sp.csr_matrix(x)

    ones = np.ones(edge_index.shape[1])
    A = sp.csr_matrix((ones, edge_index[::-1]), (num_nodes, num_nodes))
    A = A + sp.eye(num_nodes)
    D = sp.diags(np.asarray(A.sum(1)).ravel() ** -0.5)
    # its own transpose, since every edge of Cora goes both ways
    A = sp.csr_matrix(D @ A @ D, dtype=np.float32)

    rng = np.random.default_rng(0)
    params = []
    for shape in ((num_features, 16), (16, 7)):
        r = np.float32((6 / sum(shape)) ** 0.5)
        params.append(r * rng.uniform(-1, 1, shape).astype(np.float32))
    means = [np.zeros_like(p) for p in params]
    squares = [np.zeros_like(p) for p in params]

    def mask(shape):
        """What dropout multiplies by: 2 or 0, each in half of all cases."""
        return (rng.random(shape, dtype=np.float32) < 0.5) * np.float32(2)

    def log_softmax(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def gradients(W0, W1):
        dropped = sp.csr_matrix((x.data * mask(x.nnz), x.indices, x.indptr), x.shape)
        h = A @ (dropped @ W0)
        h_mask = mask(h.shape) * (h > 0)
        h = h * h_mask
        logits = A @ (h @ W1)

        g = np.zeros_like(logits)
        g[train] = np.exp(log_softmax(logits[train]))
        g[train, y[train]] -= 1
        g = A @ (g / len(train))
        by_W0 = dropped.T @ (A @ ((g @ W1.T) * h_mask)) + np.float32(5e-4) * W0
        by_W1 = h.T @ g
        return by_W0, by_W1

    for t in itertools.count(1):
        for p, mean, square, g in zip(params, means, squares, gradients(*params)):
            mean += 0.1 * (g - mean)
            square += 0.001 * (g * g - square)
            corrected = np.sqrt(square / (1 - 0.999 ** t)) + 1e-8
            p -= 0.01 * (mean / (1 - 0.9 ** t)) / corrected

        W0, W1 = params
        logits = A @ (np.maximum(A @ (x @ W0), 0) @ W1)
        losses, accuracies = [], []
        for nodes in splits:
            scores, labels = log_softmax(logits[nodes]), y[nodes]
            losses.append(-scores[np.arange(len(nodes)), labels].mean())
            accuracies.append((scores.argmax(1) == labels).mean())
        yield float(accuracies[-1])


PEERS = {       # the package that each needs
    "minignn, plain": (minignn_epochs, "jax"),
    "minignn, fast": (fast_epochs, "jax"),
    "PyTorch Geometric": (pyg_epochs, "torch_geometric"),
    "SciPy": (scipy_epochs, "scipy"),
}


# 3. Workers: a line in asks for a number of epochs, a line out is the answer in JSON --


def megabytes(usage):
    unit = 1 if sys.platform == "darwin" else 1024
    return round(usage.ru_maxrss * unit / 1e6)


def machine_use():
    """The device that this process used, and its peak memory."""
    import resource
    use = {"on": "cpu", "peak MB": megabytes(resource.getrusage(resource.RUSAGE_SELF))}
    jax = sys.modules.get("jax")
    torch = sys.modules.get("torch")
    peak = None
    if jax:
        use["on"] = jax.default_backend()
        stats = jax.devices()[0].memory_stats()
        peak = stats["peak_bytes_in_use"] if stats else None
    elif torch and torch.cuda.is_available():
        use["on"] = "gpu"
        peak = torch.cuda.max_memory_allocated()
    if peak is not None:
        use["GPU peak MB"] = round(peak / 1e6)
    return use


def time_epochs(epochs, number):
    # The first is not timed: once it compiles, and at every turn the caches are full of
    # another peer.
    next(epochs)
    clock = [time.perf_counter()]
    for _ in range(number):
        accuracy = next(epochs)
        clock.append(time.perf_counter())
    seconds = [end - begin for begin, end in itertools.pairwise(clock)]
    return {"seconds": seconds, "test accuracy %": 100 * accuracy}


NO_MEMORY = "MemoryError", "RESOURCE_EXHAUSTED", "bad_alloc", "OutOfMemory"


def work(peer, name, detail):
    """Answer the lines that come in.

    detail: for a peer the number of nodes, for a cold start whether it is fast.
    """
    epochs = None
    for line in sys.stdin:
        try:
            if peer == "cold start":
                answer = cold_start(name, fast=bool(int(detail)))
            else:
                if epochs is None:
                    make_epochs, _ = PEERS[peer]
                    epochs = make_epochs(name, int(detail))
                answer = time_epochs(epochs, int(line))
            answer.update(machine_use())
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if any(sign in text for sign in NO_MEMORY):
                answer = {"note": "out of memory"}
            else:
                answer = {"note": text.splitlines()[0][:100]}
        print(json.dumps(answer), flush=True)


def start(peer, name, detail=0):
    command = [sys.executable, __file__, "--worker", peer, name, str(int(detail))]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker, epochs, limit):
    """A worker's answer; if none comes, a note that says why."""
    timer = threading.Timer(limit, worker.kill)
    timer.start()
    print(epochs, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    is_late = not timer.is_alive()
    timer.cancel()
    if line:
        return json.loads(line)
    if is_late:
        return {"note": f"not done after {limit:g} s"}
    status = worker.wait()
    if status == -9:
        return {"note": "out of memory: the system ended it"}
    return {"note": f"exit status {status}"}


# 4. Tables: each is a title, rows {heading: value}, and what the reader needs to know -


def progress(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def cora_of(name, args):
    """The rows of one model in table 1."""
    rows = []
    workers = {}
    with contextlib.ExitStack() as stack:
        for peer, (_, package) in PEERS.items():
            if (name, peer) == ("GAT", "SciPy"):
                continue
            row = {"model": name, "by": peer, "seconds": [], "median ms": None,
                   "min ms": None, "max ms": None, "ratio": None}
            rows.append(row)
            if importlib.util.find_spec(package):
                workers[peer] = stack.enter_context(start(peer, name))
            else:
                row["note"] = f"left out: {package} is not installed"

        for done in range(0, args.epochs, TURN):
            progress(f"table 1: {name}, {done} of {args.epochs} epochs")
            number = min(TURN, args.epochs - done)
            for row in rows:
                if "note" not in row:
                    answer = ask(workers[row["by"]], number, args.limit)
                    seconds = row["seconds"] + answer.get("seconds", [])
                    row.update(answer, seconds=seconds)

    plain = rows[0]
    for row in rows:
        if row["seconds"]:
            row["median ms"] = 1000 * statistics.median(row["seconds"])
            row["min ms"] = 1000 * min(row["seconds"])
            row["max ms"] = 1000 * max(row["seconds"])
        if row["seconds"] and plain["seconds"]:
            row["ratio"] = row["median ms"] / plain["median ms"]
    return rows


def cora(args):
    rows = []
    for name in MODELS:
        rows += cora_of(name, args)
    return "Cora, time per epoch", rows, (
        f"{args.epochs} epochs each, in turns of {TURN}, every turn after an epoch "
        "that is not timed. Ratio: to the median of minignn's plain form. Test "
        "accuracy: after the last epoch.")


def random_graphs(args):
    peer = "minignn, fast" if args.fast else "minignn, plain"
    sizes = [10 ** k for k in range(3, 7) if 10 ** k <= args.max_nodes]
    rows = []
    for name in MODELS:
        last = {}
        for nodes in sizes:
            row = {"model": name, "nodes": nodes, "edges": 10 * nodes}
            if "note" in last:
                row["note"] = "not tried after that"
            else:
                progress(f"table 2: {name}, {nodes} nodes, at most {args.limit:g} s")
                begin = time.perf_counter()
                with start(peer, name, nodes) as worker:
                    answer = ask(worker, FEW, args.limit)
                    wall = time.perf_counter() - begin
                answer.pop("test accuracy %", None)     # the labels are random
                if "note" not in answer:
                    row["epoch ms"] = 1000 * statistics.median(answer["seconds"])
                    row["growth"] = None
                    if last:
                        row["growth"] = math.log10(row["epoch ms"] / last["epoch ms"])
                    row["start-up s"] = wall - sum(answer["seconds"])
                row.update(answer)
            rows.append(row)
            last = row
    title = "Random graphs: 10 edges per node, 64 dense features, 7 classes"
    return title, rows, (
        f"By {peer}. Epoch: the median of {FEW}. Growth: log10 of its ratio to the "
        "size before; 1 is linear. Start-up: imports, making the graph, compiling, the "
        "first epoch.")


def run_script(name, fast):
    """Run the model's script in a fresh process: wall time, peak memory, last line."""
    command = [sys.executable, ROOT / f"train_{name.lower()}.py"]
    if fast:
        command.append("--fast")
    begin = time.perf_counter()
    with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        lines = process.stdout.read().splitlines() or [""]
        # Nothing else tells the peak memory of one child.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    measured = {"script s": time.perf_counter() - begin,
                "script peak MB": megabytes(usage), "result": lines[-1]}
    if status:
        measured["note"] = f"the script's exit status is {process.returncode}"
    return measured


def cold_starts(args):
    rows = []
    for name in MODELS:
        answers = []
        for i in range(REPEATS):
            progress(f"table 3: {name}, {i + 1} of {REPEATS}")
            with start("cold start", name, args.fast) as worker:
                answer = {"model": name, **ask(worker, 0, args.limit)}
            answers.append(answer | run_script(name, args.fast))
        bad = [answer for answer in answers if "note" in answer]
        if bad:
            rows.append(bad[0])
            continue
        row = answers[0]
        for key, value in answers[0].items():
            if isinstance(value, float):
                row[key] = statistics.median([answer[key] for answer in answers])
        rows.append(row)
    flag = " --fast" if args.fast else ""
    return "Cold start", rows, (
        f"Medians of {REPEATS} fresh processes, seed 0. Compile: one epoch of train, "
        "its compilation included. Train: until the stopping rule ends it. Script: "
        f"python train_gcn.py{flag} or train_gat.py{flag}, from start to exit.")


# 5. The page --------------------------------------------------------------------------


def text_of(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return value


def markdown(rows):
    """A table with a column for each heading; lists of numbers go to --json alone."""
    headings = []
    for row in rows:
        for key in row:
            if key not in headings and key not in ("seconds", "note"):
                headings.append(key)
    if any("note" in row for row in rows):
        headings.append("note")

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
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    ask_jax = ("import jax; "
               "print(jax.default_backend(), '-', jax.devices()[0].device_kind)")
    device = subprocess.run(
        [sys.executable, "-c", ask_jax], stdout=subprocess.PIPE, text=True).stdout
    about = {
        "date": str(datetime.date.today()),
        "CPU": cpu,
        "cores": cores,
        "JAX device": device.strip(),
        "Python": platform.python_version(),
    }
    for package in ("jax", "numpy", "torch", "torch_geometric", "scipy"):
        about[package] = "not installed"
        if importlib.util.find_spec(package):
            about[package] = importlib.metadata.version(package)
    return about


TABLES = {"1": cora, "2": random_graphs, "3": cold_starts}


def read_flags():
    parser = argparse.ArgumentParser(
        description="Measure minignn's speed, memory and scale.")
    add = parser.add_argument
    add("--tables", default="1,2,3", metavar="LIST",
        help="which tables to make [%(default)s]")
    add("--epochs", type=int, default=100, help="table 1: epochs to time [%(default)s]")
    add("--max-nodes", type=int, default=10 ** 6,
        help="table 2: the largest graph [%(default)s]")
    add("--fast", action="store_true", help="tables 2 and 3: measure the fast form")
    add("--limit", type=float, default=600,
        help="seconds that a worker has to answer [%(default)s]")
    add("--json", metavar="FILE", help="write everything that was measured there")
    add("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.tables = args.tables.split(",")
    if not set(args.tables) <= set(TABLES):
        parser.error("the tables are 1, 2 and 3")
    if args.epochs < 1 or args.max_nodes < 1000:
        parser.error("--epochs must be at least 1, --max-nodes at least 1000")
    return args


def main():
    args = read_flags()
    sys.path.insert(0, str(ROOT))
    if args.worker:
        work(*args.worker)
        return

    results = {"header": describe()}
    header = [f"{key} {value}" for key, value in results["header"].items()]
    print("; ".join(header), flush=True)
    for number in args.tables:
        title, rows, legend = TABLES[number](args)
        print(f"\n### {number}. {title}\n\n{markdown(rows)}\n\n{legend}", flush=True)
        results[title] = rows
        if args.json:       # after every table, in case the next one is interrupted
            text = json.dumps(results, indent=1) + "\n"
            pathlib.Path(args.json).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
