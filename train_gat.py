# /// script
# dependencies = ["jax>=0.5", "numpy>=1.26"]
# ///
"""Train a GAT (Veličković et al., ICLR 2018) on Cora, or on a graph of your own."""
import argparse
import dataclasses
import sys

import jax
import numpy as np

from minignn import CORA, GAT, GAT_RECIPE, adam_steps, evaluate, load_graph, train

parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
add = parser.add_argument
add("--data", default=CORA, help="an .npz file of the arrays that make_graph takes")
add("--no-normalize", action="store_true", help="leave the rows of x as they are")
add("--heads", type=int, default=8, help="heads of the first layer")
add("--out-heads", type=int, default=1, help="heads of the last layer")
add("--hidden", type=int, default=8, help="hidden units of a head")
add("--dropout", type=float, default=0.6, help="the fraction of what is dropped")
add("--lr", type=float, default=GAT_RECIPE.step_size, help="learning rate")
add("--weight-decay", type=float, default=GAT_RECIPE.weight_decay, help="L2 factor")
add("--epochs", type=int, default=GAT_RECIPE.epochs, help="the most epochs")
add("--patience", type=int, default=GAT_RECIPE.patience, help="epochs without progress")
add("--seed", type=int, default=0, help="the seed of the first run")
add("--runs", type=int, default=1, help="runs, a seed for each; the paper: 100")
add("--log-every", type=int, default=10, help="of a single run: epochs a line, 0: none")
either = parser.add_mutually_exclusive_group().add_argument
either("--fast", action="store_true", help="less time an epoch, see scale/faster.py")
either("--devices", type=int, default=1, help="devices to spread the edges over")
if hasattr(sys.stdout, "reconfigure"):          # a notebook's has none
    sys.stdout.reconfigure(errors="replace")    # not every terminal has č and ±
args = parser.parse_args()

big = 2 ** 31
bounds = {"heads": (1, big), "out-heads": (1, big), "hidden": (1, big),
          "epochs": (1, big), "patience": (1, big), "runs": (1, big), "lr": (0, big),
          "weight-decay": (0, big), "log-every": (0, big), "dropout": (0, 1),
          "devices": (1, jax.device_count() + 1), "seed": (0, 2 ** 32 + 1 - args.runs)}
for flag, (least, end) in bounds.items():
    value = getattr(args, flag.replace("-", "_"))
    if not least <= value < end:
        parser.error(f"--{flag} is {value}: it must be from {least} to below {end}")

try:
    graph = load_graph(args.data, normalize=not args.no_normalize)
except (OSError, ValueError) as error:
    parser.error(str(error))
for split in ("train", "val", "test"):
    if len(getattr(graph, split)) == 0:
        parser.error(f"{args.data}: {split}_mask selects no node")
print(graph, flush=True)

heads = [args.heads, args.out_heads]
model = GAT(heads, [args.hidden], len(graph.class_names), args.dropout)
steps = adam_steps
if args.fast:
    from scale.faster import faster
    steps = faster(graph, hops=2)               # as many as layers
if args.devices > 1:
    from scale.devices import shard_graph
    graph = shard_graph(graph, jax.make_mesh((args.devices,), ("edges",)))
recipe = dataclasses.replace(GAT_RECIPE, step_size=args.lr, epochs=args.epochs,
                             weight_decay=args.weight_decay, patience=args.patience)
log_every = args.log_every if args.runs == 1 else 0
accuracies = []
for seed in range(args.seed, args.seed + args.runs):
    rng = jax.random.key(seed)
    params, history = train(model, graph, rng, recipe, log_every, steps)
    accuracies.append(float(evaluate(model, params, graph)["test_accuracy"]))
    if args.runs > 1:
        print(f"seed {seed}: {len(history['val_loss'])} epochs, test accuracy "
              f"{accuracies[-1]:.4f}", flush=True)
deviation = f" ± {np.std(accuracies):.4f}" if args.runs > 1 else ""
print(f"test accuracy: {np.mean(accuracies):.4f}{deviation}")
