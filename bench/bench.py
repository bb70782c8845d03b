"""Measure minignn's speed, memory and scale: python bench/bench.py [--tables 1,2,3] [--json FILE] [--help]

Prints three Markdown tables:

    1. Cora: time per epoch of both models, beside two peers. An epoch is one update and one full evaluation.
       PyTorch Geometric has its own GCNConv (cached) and GATConv and the settings of its Cora examples, which
       evaluate accuracies alone. SciPy is the GCN in NumPy and SciPy CSR, its gradient by hand.
    2. Random graphs: how time and memory grow with the number of nodes.
    3. Cold start: the seconds from nothing to a trained model.

Whatever is measured runs in a process of its own, a worker, so that peak memory is its alone: the largest
resident set, libraries included. Where JAX finds a GPU, minignn runs there, and PyTorch where it finds one.
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
TURN = 10     # table 1: epochs that a peer runs before it is the next one's turn
FEW = 5       # table 2: epochs that are timed
REPEATS = 3   # table 3: fresh processes, of which the median is reported
RECIPES = {"GCN": dict(epochs=200, step_size=0.01, weight_decay=5e-4, patience=10),
           "GAT": dict(epochs=100000, step_size=0.005, weight_decay=5e-4, patience=100, penalise_all=True)}


# 1. Peers: a peer is a generator that runs an epoch, yields the test accuracy, runs the next, and so on ---------

def random_graph(nodes):
    """10 edges per node between random nodes, 64 dense features, 7 classes, splits of 60, 20 and 20 percent."""
    import minignn
    import numpy as np
    rng = np.random.default_rng(0)
    x = rng.random((nodes, 64), dtype=np.float32)
    edge_index = rng.integers(0, nodes, (2, 10 * nodes), dtype=np.int32)
    share = np.arange(nodes) / nodes
    masks = share < 0.6, (0.6 <= share) & (share < 0.8), 0.8 <= share
    return minignn.make_graph(x, edge_index, rng.integers(0, 7, nodes), *masks, class_names=range(7))


def make_model(name):
    import minignn
    return minignn.GCN(16, 7) if name == "GCN" else minignn.GAT([8, 1], [8], 7)


def minignn_epochs(name, nodes):
    import jax
    import minignn
    import numpy as np
    graph = random_graph(nodes) if nodes else minignn.load_graph()
    (init_fun, apply_fun), step_size, weight_decay = make_model(name), RECIPES[name]["step_size"], 5e-4
    init_rng, rng = jax.random.split(jax.random.key(0))
    _, params = jax.jit(init_fun, static_argnums=1)(init_rng, graph.x.shape)
    state = minignn.adam(step_size)[0](params)
    for epoch in itertools.count(1):
        params, state = minignn.update(
            apply_fun, name == "GAT", params, state, graph, rng, epoch, step_size, weight_decay)
        yield float(np.asarray(minignn.evaluate(apply_fun, params, graph))[2, 1])


def cora_arrays():
    """Cora for the peers, whose memory must not count JAX: normalised x, edge_index, y, the splits' masks."""
    import numpy as np
    with np.load(ROOT / "data" / "cora.npz") as file:
        x = file["x"].astype(np.float32)
        masks = [file[f"{split}_mask"] for split in ("train", "val", "test")]
        return [x / np.maximum(x.sum(1, keepdims=True), 1), *(file[k].astype(int) for k in ("edge_index", "y")), *masks]


def pyg_epochs(name, nodes):
    import torch
    import torch.nn.functional as F
    from torch_geometric.nn import GATConv, GCNConv
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, edge_index, y, *masks = (torch.as_tensor(array).to(device) for array in cora_arrays())
    if name == "GCN":
        rate, activation, weight_decays = 0.5, F.relu, (5e-4, 0)
        layers = GCNConv(x.shape[1], 16, cached=True), GCNConv(16, 7, cached=True)
    else:
        rate, activation, weight_decays = 0.6, F.elu, (5e-4, 5e-4)
        layers = GATConv(x.shape[1], 8, heads=8, dropout=rate), GATConv(64, 7, concat=False, dropout=rate)
    model = torch.nn.ModuleList(layers).to(device)
    groups = [dict(params=layer.parameters(), weight_decay=decay) for layer, decay in zip(model, weight_decays)]
    optimizer = torch.optim.Adam(groups, lr=RECIPES[name]["step_size"])

    def logits():
        h = activation(model[0](F.dropout(x, rate, model.training), edge_index))
        return model[1](F.dropout(h, rate, model.training), edge_index)

    while True:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(logits()[masks[0]], y[masks[0]]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            right = logits().argmax(-1) == y
            yield [float(right[mask].float().mean()) for mask in masks][2]


def scipy_epochs(name, nodes):
    import numpy as np
    import scipy.sparse as sp
    x, edge_index, y, *masks = cora_arrays()
    x, N, splits = sp.csr_matrix(x), len(x), [np.flatnonzero(mask) for mask in masks]
    A = sp.csr_matrix((np.ones(edge_index.shape[1]), edge_index[::-1]), (N, N)) + sp.eye(N)
    D = sp.diags(np.asarray(A.sum(1)).ravel() ** -0.5)
    A = sp.csr_matrix(D @ A @ D, dtype=np.float32)  # its own transpose: every edge of Cora goes both ways
    rng = np.random.default_rng(0)
    params = [rng.uniform(-1, 1, shape).astype(np.float32) * np.float32((6 / sum(shape)) ** 0.5)
              for shape in ((x.shape[1], 16), (16, 7))]
    ms, vs = ([np.zeros_like(p) for p in params] for _ in range(2))
    twice_or_not_at_all = lambda shape: (rng.random(shape, dtype=np.float32) < 0.5) * np.float32(2)

    def log_softmax(z):
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    def gradients(W0, W1):
        dropped = sp.csr_matrix((x.data * twice_or_not_at_all(x.nnz), x.indices, x.indptr), x.shape)
        h = A @ (dropped @ W0)
        mask = twice_or_not_at_all(h.shape) * (h > 0)
        train, logits = splits[0], A @ ((h * mask) @ W1)
        g = np.zeros_like(logits)
        g[train] = np.exp(log_softmax(logits[train]))
        g[train, y[train]] -= 1
        g = A @ (g / len(train))
        return dropped.T @ (A @ ((g @ W1.T) * mask)) + np.float32(5e-4) * W0, (h * mask).T @ g

    for t in itertools.count(1):
        for p, m, v, g in zip(params, ms, vs, gradients(*params)):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= 0.01 * (m / (1 - 0.9 ** t)) / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
        logits, numbers = A @ (np.maximum(A @ (x @ params[0]), 0) @ params[1]), []
        for split in splits:
            scores, labels = log_softmax(logits[split]), y[split]
            numbers += [-scores[np.arange(len(split)), labels].mean(), (scores.argmax(1) == labels).mean()]
        yield float(numbers[5])


PEERS = {"minignn": (minignn_epochs, "jax"), "PyTorch Geometric": (pyg_epochs, "torch_geometric"),
         "SciPy": (scipy_epochs, "scipy")}


def cold_start(name):
    clock = [time.perf_counter()]
    tick = lambda: clock.append(time.perf_counter())
    import jax
    import minignn
    tick()
    graph = minignn.load_graph()
    tick()
    rule = minignn.loss_rule if name == "GCN" else minignn.loss_or_accuracy_rule
    arguments, recipe = (make_model(name), graph, jax.random.key(0)), dict(RECIPES[name], rule=rule, log_every=0)
    minignn.train(*arguments, **{**recipe, "epochs": 1})
    tick()
    _, history = minignn.train(*arguments, **recipe)
    tick()
    parts = zip(("import s", "load s", "compile s", "train s"), (b - a for a, b in itertools.pairwise(clock)))
    return {**dict(parts), "epochs": len(history["val_loss"])}


# 2. Workers: a line in asks for a number of epochs, a line out is the JSON of what was measured ------------------

def megabytes(usage):
    return round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)


def machine_use():
    """The device that this process used, and its peak memory."""
    import resource
    use = {"on": "cpu", "peak MB": megabytes(resource.getrusage(resource.RUSAGE_SELF))}
    if jax := sys.modules.get("jax"):
        use["on"], stats = jax.default_backend(), jax.devices()[0].memory_stats()
        return {**use, "GPU peak MB": round(stats["peak_bytes_in_use"] / 1e6)} if stats else use
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        return {**use, "on": "gpu", "GPU peak MB": round(torch.cuda.max_memory_allocated() / 1e6)}
    return use


def work(peer, name, nodes):
    epochs = None if peer == "cold start" else PEERS[peer][0](name, int(nodes))
    for line in sys.stdin:
        try:
            if peer == "cold start":
                answer = cold_start(name)
            else:
                next(epochs)  # untimed: the first compiles, and at every turn the caches are full of another peer
                clock = [time.perf_counter()]
                for _ in range(int(line)):
                    accuracy = next(epochs)
                    clock.append(time.perf_counter())
                answer = {"seconds": [b - a for a, b in itertools.pairwise(clock)], "test accuracy %": 100 * accuracy}
            answer.update(machine_use())
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            no_memory = any(sign in text for sign in ("MemoryError", "RESOURCE_EXHAUSTED", "bad_alloc", "OutOfMemory"))
            answer = {"note": "out of memory" if no_memory else text.splitlines()[0][:100]}
        print(json.dumps(answer), flush=True)


def start(peer, name, nodes=0):
    command = [sys.executable, __file__, "--worker", peer, name, str(nodes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker, epochs, limit):
    """A worker's answer; if none comes, a note that says why."""
    timer = threading.Timer(limit, worker.kill)
    timer.start()
    print(epochs, file=worker.stdin, flush=True)
    line, late = worker.stdout.readline(), not timer.is_alive()
    timer.cancel()
    if line:
        return json.loads(line)
    if late:
        return {"note": f"not done after {limit:g} s"}
    return {"note": "out of memory: the system ended it" if worker.wait() == -9 else f"exit status {worker.wait()}"}


# 3. Tables: each is a title, rows {heading: value}, and what the reader needs to know -----------------------------

def progress(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def cora(args):
    rows, columns = [], ("median ms", "min ms", "max ms", "ratio")
    for name in RECIPES:
        group, workers = [], {}
        with contextlib.ExitStack() as stack:
            for peer, (_, package) in PEERS.items():
                if (name, peer) != ("GAT", "SciPy"):
                    group.append({"model": name, "by": peer, "seconds": [], **dict.fromkeys(columns)})
                    if importlib.util.find_spec(package):
                        workers[peer] = stack.enter_context(start(peer, name))
                    else:
                        group[-1]["note"] = f"left out: {package} is not installed"
            for done in range(0, args.epochs, TURN):
                progress(f"table 1: {name}, {done} of {args.epochs} epochs")
                for row in group:
                    if "note" not in row:
                        answer = ask(workers[row["by"]], min(TURN, args.epochs - done), args.limit)
                        row.update({**answer, "seconds": row["seconds"] + answer.get("seconds", [])})
        for row in group:
            if row["seconds"]:
                row.update({f"{f.__name__} ms": 1e3 * f(row["seconds"]) for f in (statistics.median, min, max)})
            if row["seconds"] and group[0]["seconds"]:
                row["ratio"] = row["median ms"] / group[0]["median ms"]
        rows += group
    return "Cora, time per epoch", rows, (
        f"{args.epochs} epochs each, in turns of {TURN}, every turn after an epoch that is not timed. Ratio: to "
        "minignn's median. Test accuracy: after the last epoch.")


def random_graphs(args):
    rows = []
    for name in RECIPES:
        last = {}
        for nodes in (10 ** k for k in range(3, 7) if 10 ** k <= args.max_nodes):
            row = {"model": name, "nodes": nodes, "edges": 10 * nodes}
            if "note" in last:
                row["note"] = "not tried after that"
            else:
                progress(f"table 2: {name}, {nodes} nodes, at most {args.limit:g} s")
                begin = time.perf_counter()
                with start("minignn", name, nodes) as worker:
                    answer, wall = ask(worker, FEW, args.limit), time.perf_counter() - begin
                answer.pop("test accuracy %", None)  # the labels are random
                if "note" not in answer:
                    row["epoch ms"] = 1e3 * statistics.median(answer["seconds"])
                    row["growth"] = math.log10(row["epoch ms"] / last["epoch ms"]) if last else None
                    row["start-up s"] = wall - sum(answer["seconds"])
                row.update(answer)
            rows.append(row)
            last = row
    return "Random graphs: 10 edges per node, 64 dense features, 7 classes", rows, (
        f"Epoch: the median of {FEW}. Growth: log10 of its ratio to the size before; 1 is linear. Start-up: imports, "
        "making the graph, compiling, the first epoch.")


def run_script(name):
    """Run the model's script in a fresh process: wall time, peak memory, last line."""
    begin = time.perf_counter()
    command = [sys.executable, ROOT / f"train_{name.lower()}.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        lines = process.stdout.read().splitlines() or [""]
        _, status, usage = os.wait4(process.pid, 0)  # nothing else tells the peak memory of one child
        process.returncode = os.waitstatus_to_exitcode(status)
    note = {"note": f"the script's exit status is {process.returncode}"} if status else {}
    return {"script s": time.perf_counter() - begin, "script peak MB": megabytes(usage), "result": lines[-1], **note}


def cold_starts(args):
    rows = []
    for name in RECIPES:
        answers = []
        for i in range(REPEATS):
            progress(f"table 3: {name}, {i + 1} of {REPEATS}")
            with start("cold start", name) as worker:
                answers.append({"model": name, **ask(worker, 0, args.limit), **run_script(name)})
        bad = [answer for answer in answers if "note" in answer]
        times = {} if bad else {key: statistics.median(answer[key] for answer in answers)
                                for key, value in answers[0].items() if isinstance(value, float)}
        rows.append({**(bad or answers)[0], **times})
    return "Cold start", rows, (
        f"Medians of {REPEATS} fresh processes, seed 0. Compile: one epoch of train, its compilation included. Train: "
        "until the stopping rule ends it. Script: python train_gcn.py or train_gat.py, from start to exit.")


def markdown(rows):
    """A heading's column holds what the rows have under it; a list of numbers goes to the JSON file alone."""
    headings = list(dict.fromkeys(key for row in rows for key in row if key not in ("seconds", "note")))
    headings += ["note"] if any("note" in row for row in rows) else []
    text = lambda v: "" if v is None else f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
    cells = [headings, *([text(row.get(heading)) for heading in headings] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells)


def describe():
    """Date, machine and versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ask_jax = "import jax; print(jax.default_backend(), '-', jax.devices()[0].device_kind)"
    device = subprocess.run([sys.executable, "-c", ask_jax], stdout=subprocess.PIPE, text=True).stdout.strip()
    about = {"date": str(datetime.date.today()), "CPU": cpu, "cores": cores, "JAX device": device,
             "Python": platform.python_version()}
    for package in ("jax", "numpy", "torch", "torch_geometric", "scipy"):
        about[package] = importlib.metadata.version(package) if importlib.util.find_spec(package) else "not installed"
    return about


def main():
    parser = argparse.ArgumentParser(description="Measure minignn's speed, memory and scale.")
    tables = {"1": cora, "2": random_graphs, "3": cold_starts}
    parser.add_argument("--tables", default="1,2,3", metavar="LIST", help="which tables to make [%(default)s]")
    parser.add_argument("--epochs", type=int, default=100, help="table 1: epochs to time [%(default)s]")
    parser.add_argument("--max-nodes", type=int, default=10 ** 6, help="table 2: the largest graph [%(default)s]")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a worker has to answer [%(default)s]")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.worker:
        return work(*args.worker)
    if args.epochs < 1 or args.max_nodes < 1000 or not set(args.tables.split(",")) <= set(tables):
        parser.error("the tables are 1, 2 and 3, --epochs at least 1, --max-nodes at least 1000")
    results = {"header": describe()}
    print("; ".join(f"{key} {value}" for key, value in results["header"].items()), flush=True)
    for number in args.tables.split(","):
        title, rows, legend = tables[number](args)
        print(f"\n### {number}. {title}\n\n{markdown(rows)}\n\n{legend}", flush=True)
        results[title] = rows
        if args.json:  # after every table, in case the next one is interrupted
            pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
