# /// script
# dependencies = ["jax>=0.5", "numpy>=1.26"]
# ///
"""Train a GAT (Veličković et al., ICLR 2018) on Cora, or on a graph of your own."""
import argparse
import dataclasses
import math
import sys

import jax
import numpy as np

from minignn import CORA, GAT, GAT_RECIPE, adam_steps, evaluate, load_graph, train


def at_least(least, kind):
    def number(text):
        if not least <= kind(text) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        return kind(text)
    return number


count, not_negative = at_least(1, int), at_least(0, float)
parser = argparse.ArgumentParser(
    description=__doc__, allow_abbrev=False,
    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
add, paper = parser.add_argument, GAT_RECIPE
add("--data", default=CORA, help="an .npz file of the arrays that make_graph takes")
add("--no-normalize", action="store_true", help="leave the rows of x as they are")
add("--heads", type=count, default=8, help="heads of the first layer")
add("--out-heads", type=count, default=1, help="heads of the last layer")
add("--hidden", type=count, default=8, help="hidden units of a head")
add("--dropout", type=float, default=0.6, help="the fraction of what is dropped")
add("--lr", type=not_negative, default=paper.step_size, help="learning rate")
add("--weight-decay", type=not_negative, default=paper.weight_decay, help="L2 factor")
add("--epochs", type=count, default=paper.epochs, help="the most epochs")
add("--patience", type=count, default=paper.patience, help="epochs without progress")
add("--seed", type=at_least(0, int), default=0, help="the seed of the first run")
add("--runs", type=count, default=1, help="runs, a seed for each; the paper: 100")
add("--log-every", type=at_least(0, int), default=10, help="of a single run, 0: silent")
add("--fast", action="store_true", help="less time per epoch, see scale/faster.py")
add("--devices", type=count, default=1, help="devices to spread the edges over")
args = parser.parse_args()
seeds = range(args.seed, args.seed + args.runs)
if seeds[-1] >= 2 ** 32:
    parser.error("seeds are 0 to 2^32 - 1")
if args.fast and args.devices > 1:
    parser.error("--fast works on one device")
if hasattr(sys.stdout, "reconfigure"):          # a notebook's has none
    sys.stdout.reconfigure(errors="replace")    # not every terminal has a ±

steps = adam_steps
try:
    graph = load_graph(args.data, normalize=not args.no_normalize)
    heads = [args.heads, args.out_heads]
    model = GAT(heads, [args.hidden], len(graph.class_names), args.dropout)
    if args.fast:
        from scale.faster import faster
        steps = faster(graph, hops=2)
    mesh = jax.make_mesh((args.devices,), ("edges",))
    if args.devices > 1:
        from scale.devices import shard_graph
except (OSError, ValueError, ImportError) as error:
    parser.error(str(error))
for split in ("train", "val", "test"):
    if len(getattr(graph, split)) == 0:
        parser.error(f"{args.data}: {split}_mask selects no node")
print(graph, flush=True)
if args.devices > 1:
    graph = shard_graph(graph, mesh)

recipe = dataclasses.replace(
    paper, step_size=args.lr, weight_decay=args.weight_decay, epochs=args.epochs,
    patience=args.patience)
log_every = args.log_every if args.runs == 1 else 0
accuracies = []
for seed in seeds:
    rng = jax.random.key(seed)
    params, history = train(model, graph, rng, recipe, log_every, steps)
    accuracies.append(float(evaluate(model, params, graph)["test_accuracy"]))
    if args.runs > 1:
        print(f"seed {seed}: {len(history['val_loss'])} epochs, test accuracy "
              f"{accuracies[-1]:.4f}", flush=True)
deviation = f" ± {np.std(accuracies):.4f}" if args.runs > 1 else ""
print(f"test accuracy: {np.mean(accuracies):.4f}{deviation}")
