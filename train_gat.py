"""Train a GAT (Veličković et al., ICLR 2018) on Cora, or on your own graph.

    python train_gat.py [--help]
"""
import argparse
import pathlib
import sys
import time

import jax
import numpy as np

from minignn import (
    CORA,
    GAT,
    GAT_RECIPE,
    check_dropout_rate,
    check_not_negative,
    check_whole,
    evaluate,
    load_graph,
    receptive_field,
    train,
)

# Where a terminal cannot show a letter such as ±, print ? instead. (With %run in a
# notebook, stdout has no such method, and needs none.)
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="replace")

# 1. The flags. The defaults are the paper's for Cora, and where it is silent those of
#    the authors' code. Those of the training are in GAT_RECIPE.
parser = argparse.ArgumentParser(
    description="Train the GAT of Veličković et al. (ICLR 2018).",
    allow_abbrev=False)                     # --epo is an error, and not --epochs
add = parser.add_argument
add("--data", default=CORA, metavar="FILE",
    help="an .npz with x, edge_index, y, train_mask, val_mask and test_mask [Cora]")
add("--no-normalize", action="store_true",
    help="leave the rows of x as they are; by default each is divided by its sum")
add("--heads", type=int, default=8,
    help="attention heads of the first layer; the last has one [%(default)s]")
add("--hidden", type=int, default=8, help="units of each of these heads [%(default)s]")
add("--dropout", type=float, default=0.6,
    help="the fraction dropped of each layer's input, of its attention weights, and "
         "(in the authors' code only) of W h [%(default)s]")
add("--lr", type=float, default=GAT_RECIPE["step_size"],
    help="Adam's step_size [%(default)s]")
add("--weight-decay", type=float, default=GAT_RECIPE["weight_decay"],
    help="the factor of the L2 penalty on all parameters [%(default)s]")
add("--epochs", type=int, default=GAT_RECIPE["epochs"],
    help="the most epochs to train for (authors' code) [%(default)s]")
add("--patience", type=int, default=GAT_RECIPE["patience"],
    help="epochs in which neither validation loss nor accuracy is the best so far, or "
         "equals it, before it stops [%(default)s]")
add("--seed", type=int, default=0,
    help="the seed of the first run; each next run adds 1 [%(default)s]")
add("--runs", type=int, default=1,
    help="how many times to train, each with another seed; paper: 100 [%(default)s]")
add("--log-every", type=int,
    help="epochs from one printed line to the next, 0 for none [10; several runs: 0]")
add("--fast", action="store_true",
    help="less time per epoch, see scale/; its random numbers are others")
add("--devices", type=int, default=1,
    help="spread the edges over that many devices [%(default)s]")
args = parser.parse_args()
if args.log_every is None:
    args.log_every = 10 if args.runs == 1 else 0

# minignn.py checks most of these, too: here a wrong one ends the script at once.
try:
    check_whole(1, heads=args.heads, hidden=args.hidden, epochs=args.epochs,
                patience=args.patience, runs=args.runs, devices=args.devices)
    check_whole(0, log_every=args.log_every)
    check_dropout_rate(args.dropout)
    check_not_negative(lr=args.lr, weight_decay=args.weight_decay)
except ValueError as error:
    parser.error(str(error))
last_seed = args.seed + args.runs - 1
if not 0 <= args.seed <= last_seed < 2 ** 32:           # JAX would take it modulo 2^32
    parser.error(f"seed is {args.seed}: seeds {args.seed} to {last_seed} are needed, "
                 "they must be from 0 to 2^32 - 1")
if args.devices > jax.device_count():
    parser.error(f"devices is {args.devices}: JAX sees {jax.device_count()} here")
scale_folder = pathlib.Path(__file__).with_name("scale")
if (args.fast or args.devices > 1) and not scale_folder.is_dir():
    parser.error("--fast and --devices need the folder scale/ beside this script")

# 2. The graph.
try:
    graph = load_graph(args.data, normalize=not args.no_normalize)
except (OSError, ValueError) as error:
    parser.error(" ".join(str(error).split()))  # a file's name may hold line breaks
# That there are training nodes, load_graph has checked.
for split, nodes in (("val", graph.val), ("test", graph.test)):
    if len(nodes) == 0:
        parser.error(f"{args.data}: {split}_mask.sum() is 0: it must be at least 1")

num_nodes, num_features = graph.x.shape
num_classes = len(graph.class_names)
num_edges = len(graph.adj.rows) - num_nodes     # no self-loops; each direction counts
print(f"{pathlib.Path(args.data).name}: {num_nodes} nodes, {num_edges} edges, "
      f"{num_features} features, {num_classes} classes; {len(graph.train)} training, "
      f"{len(graph.val)} validation and {len(graph.test)} test nodes", flush=True)

# 3. The model.
heads = [args.heads, 1]                 # of the first and of the last layer
units = [args.hidden]                   # of each head; in the last layer num_classes
model = GAT(heads, units, num_classes, args.dropout)

# 4. Three settings that stay as they are without --fast. With it, the steps see only
#    what two layers can see from the training nodes, random numbers come from a faster
#    generator than JAX's own, and one call computes ten epochs; besides, matrices sum
#    faster.
train_graph = None              # the graph that the steps see: None means the whole one
key_impl = None                 # the random generator: None means JAX's own
train_model = train             # the loop over the epochs: minignn.py's
if args.fast:
    from scale.faster import faster, faster_bits, faster_train
    train_graph = faster(receptive_field(graph, hops=2))
    graph = faster(graph)
    key_impl = faster_bits
    train_model = faster_train
if args.devices > 1:
    from scale.devices import shard_graph
    # A mesh is a grid of devices; this one has a single axis, which needs a name.
    mesh = jax.make_mesh((args.devices,), ("edges",))
    graph = shard_graph(graph, mesh)
    if args.fast:
        train_graph = shard_graph(train_graph, mesh)

# 5. Train and test, once for each seed. The flags replace the recipe's numbers. What it
#    penalises (all parameters) and its stopping rule (by validation loss or accuracy)
#    stay.
recipe = GAT_RECIPE | dict(
    epochs=args.epochs, step_size=args.lr, weight_decay=args.weight_decay,
    patience=args.patience)
_, apply_fun = model
accuracies = []
for seed in range(args.seed, args.seed + args.runs):
    start = time.perf_counter()
    rng = jax.random.key(seed, impl=key_impl)
    params, history = train_model(
        model, graph, rng, log_every=args.log_every, train_graph=train_graph, **recipe)
    metrics = evaluate(apply_fun, params, graph)
    accuracies.append(float(metrics["test_accuracy"]))  # float waits for the result
    mean, std = np.mean(accuracies), np.std(accuracies)
    if args.runs > 1:
        seconds = time.perf_counter() - start           # the first run also compiles
        epochs = len(history["val_loss"])
        print(f"run {len(accuracies):3d} | seed {seed} | {epochs} epochs, "
              f"{seconds:.1f} s | test accuracy {accuracies[-1]:.4f} | so far "
              f"{mean:.4f} ± {std:.4f}", flush=True)

result = f"test accuracy: {mean:.4f}"
if args.runs > 1:
    result += f" ± {std:.4f} over {args.runs} runs"
print(result)
