"""Train a GCN (Kipf & Welling, ICLR 2017) on Cora, or on your own graph: python train_gcn.py [--help]"""
import argparse
import pathlib
import sys
import time

import jax
import numpy as np

from minignn import CORA, GCN, check, evaluate, load_graph, require, shard_graph, train


def parser(description, hidden, dropout, lr, epochs, patience, paper, epochs_from):
    """The flags that both scripts share. paper, epochs_from: where the defaults come from."""
    sys.stdout.reconfigure(errors="replace")                                # a terminal may not know ± and č
    flags = argparse.ArgumentParser(description=description, allow_abbrev=False)
    flags.error = fail
    def add(name, kind, default, text):
        flags.add_argument(name, type=kind, default=default, metavar=kind.__name__.upper(),
                           help=f"{text} [%(default)s]")
    add("--data", str, str(CORA), "an .npz file: x, edge_index, y, train_mask, val_mask, test_mask; the bundled Cora")
    add("--seed", int, 0, "the seed of the first run; each next run adds 1")
    add("--runs", int, 1, "train that many times and print the mean accuracy; both papers: 100")
    add("--epochs", int, epochs, f"the most epochs to train for; {epochs_from}")
    add("--hidden", int, hidden, f"hidden units (of each head, for the GAT); {paper}")
    add("--dropout", float, dropout, f"the fraction that is dropped, in [0, 1); {paper}")
    add("--lr", float, lr, f"Adam's step size; {paper}")
    add("--weight-decay", float, 5e-4, f"the factor of the L2 penalty; {paper}")
    add("--patience", int, patience, f"epochs without progress on the validation nodes before it stops; {paper}")
    flags.add_argument("--log-every", type=int, metavar="INT", help="epochs from one printed line to the next, 0 for "
                       "none [10; 0 when there are several runs]")
    flags.add_argument("--no-normalize", action="store_true", help="leave the rows of x as they are; the GCN paper "
                       "(section 5.2) and the released code of both papers divide each by its sum")
    return flags


def fail(message):
    """One line on stderr, exit status 2."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def run(args, make_model, **recipe):
    """Load the graph, train make_model(number of classes) on it for each seed, print the test accuracy."""
    try:
        check(runs=args.runs, hidden=args.hidden, epochs=args.epochs, patience=args.patience, dropout=args.dropout,
              weight_decay=args.weight_decay, log_every=args.log_every or 0, heads=getattr(args, "heads", 1))
        require(0 <= args.lr < 1e30, "lr", args.lr, "it must be in [0, 1e30)")
        require(0 <= args.seed <= 2 ** 32 - args.runs, "seed", args.seed, "seeds run from 0 to 2^32 - 1")
        graph = load_graph(args.data, normalize=not args.no_normalize)
        model = make_model(len(graph.class_names))
        print(f"{pathlib.Path(args.data).name}: {len(graph.y)} nodes, {len(graph.adj.rows) - len(graph.y)} edges, "
              f"{graph.x.shape[1]} features, {len(graph.class_names)} classes; {len(graph.train)} training, "
              f"{len(graph.val)} validation and {len(graph.test)} test nodes", flush=True)
        for split, nodes in (("val", graph.val), ("test", graph.test)):
            require(len(nodes) > 0, f"{args.data}: {split}_mask.sum()", 0, "at least one node is needed")
        if jax.device_count() > 1:
            graph = shard_graph(graph, jax.sharding.Mesh(np.array(jax.devices()), ("edges",)))
        log_every = (10 if args.runs == 1 else 0) if args.log_every is None else args.log_every
        accuracies = []
        for seed in range(args.seed, args.seed + args.runs):
            start = time.perf_counter()
            params, history = train(
                model, graph, jax.random.key(seed), epochs=args.epochs, step_size=args.lr, log_every=log_every,
                weight_decay=args.weight_decay, patience=args.patience, **recipe)
            accuracies.append(float(evaluate(model[1], params, graph)[2, 1]))
            mean, std = np.mean(accuracies), np.std(accuracies)
            if args.runs > 1:
                print(f"run {len(accuracies):3d} | seed {seed} | {len(history['val_loss'])} epochs, "
                      f"{time.perf_counter() - start:.1f} s | test accuracy {accuracies[-1]:.4f} | so far {mean:.4f} "
                      f"± {std:.4f}", flush=True)
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        fail(error)
    print(f"test accuracy: {mean:.4f}" + (f" ± {std:.4f} over {args.runs} runs" if args.runs > 1 else ""))


if __name__ == "__main__":
    args = parser(__doc__, hidden=16, dropout=0.5, lr=0.01, epochs=200, patience=10,
                  paper="as in Kipf & Welling 2017", epochs_from="as in Kipf & Welling 2017").parse_args()
    run(args, lambda nclass: GCN(args.hidden, nclass, args.dropout))
