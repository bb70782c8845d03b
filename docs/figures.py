"""Draw the pictures of the course from real runs.

    python docs/figures.py [NAME ...]       all of them without a name

It needs matplotlib and scikit-learn, which minignn itself does not:

    pip install matplotlib scikit-learn
"""
import argparse
import functools
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from minignn import (
    GAT,
    GAT_RECIPE,
    GCN,
    accuracy,
    adam,
    attention,
    load_graph,
    normalize_adjacency,
    train,
)

DOCS = pathlib.Path(__file__).resolve().parent

# Okabe & Ito's palette, with black in place of its yellow, which is too pale on white.
# Where a colour carries meaning, a marker or a word carries it too.
COLORS = ["#E69F00", "#56B4E9", "#009E73", "#000000", "#0072B2", "#D55E00", "#CC79A7"]
MARKERS = ["o", "s", "^", "x", "D", "v", "+"]
BLUE = "#0072B2"
ORANGE = "#E69F00"
GREY = "#8a8a8a"

plt.rcParams.update({
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "minignn",
    "legend.frameon": False,
})


def save(figure, name, dpi=110):
    # Without the date and the version, the same picture is the same file.
    metadata = {"Date": None} if name.endswith("svg") else {"Software": None}
    figure.savefig(
        DOCS / name, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    plt.close(figure)
    print(f"{name}: {(DOCS / name).stat().st_size / 1000:.0f} kB", flush=True)


# What several pictures share ----------------------------------------------------------


@functools.cache
def cora():
    return load_graph()


def rows_cols_labels():
    """Cora's adjacency and labels as NumPy arrays: [E], [E], [N]."""
    graph = cora()
    return np.asarray(graph.adj.rows), np.asarray(graph.adj.cols), np.asarray(graph.y)


def class_names():
    return [name.replace("_", " ").capitalize() for name in cora().class_names]


@functools.cache
def trained_gcn():
    """-> model, params at the start, params after training, history."""
    model = GCN(16, len(cora().class_names))
    init_fun, _ = model
    rng = jax.random.key(2)
    init_rng, _ = jax.random.split(rng)         # as train splits its key
    _, start = init_fun(init_rng, cora().x.shape)
    params, history = train(model, cora(), rng, log_every=0)
    return model, start, params, history


@functools.cache
def trained_gat(**changes):
    """-> params, history."""
    model = GAT([8, 1], [8], len(cora().class_names))
    recipe = GAT_RECIPE | changes
    return train(model, cora(), jax.random.key(0), log_every=0, **recipe)


def gcn_logits():
    (_, apply_fun), _, params, _ = trained_gcn()
    return apply_fun(params, cora().x, cora().adj)


def hidden_layer(params):
    """What the first layer of the GCN makes of each paper: ReLU(A X W0) [N, 16]."""
    (W0,), _ = params
    graph = cora()
    return np.asarray(jax.nn.relu(graph.adj @ (graph.x @ W0)))


@functools.cache
def in_two_dimensions(which):
    """The hidden layer "start" or "trained", placed by t-SNE -> [N, 2]."""
    from sklearn.manifold import TSNE
    _, start, params, _ = trained_gcn()
    h = hidden_layer({"start": start, "trained": params}[which])
    return TSNE(init="pca", random_state=0).fit_transform(h)


def first_attention(params):
    """The attention of the GAT's first layer, in evaluation -> [E, H]."""
    W, a1, a2, _ = params[0]
    graph = cora()
    h = graph.x @ W.reshape(len(W), -1)         # [N, F] -> [N, H*D]
    h = h.reshape(-1, *a1.shape)                # -> [N, H, D]
    return np.asarray(attention(a1, a2, h, graph.adj))


def scatter_classes(ax, points, size=5):
    y = np.asarray(cora().y)
    for c, name in enumerate(class_names()):
        is_line = MARKERS[c] in "x+"
        ax.scatter(
            *points[y == c].T, s=size, c=COLORS[c], marker=MARKERS[c],
            linewidths=0.9 if is_line else 0, alpha=0.8, label=name)
    ax.set_xticks([])
    ax.set_yticks([])


def show_matrix(ax, share, texts, fontsize):
    """A matrix of numbers from 0 to 1 as shades of blue, with a text in each cell."""
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(share.shape):
        color = "white" if share[i, j] > 0.5 else "black"
        ax.text(j, i, texts[i][j], ha="center", va="center", color=color,
                fontsize=fontsize)


def name_columns(ax, names):
    ax.set_xticks(
        range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")


def blank(ax, limit):
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.axis("off")


# The pictures -------------------------------------------------------------------------


def linear_fit():
    key_x, key_noise = jax.random.split(jax.random.key(1))
    xs = jax.random.uniform(key_x, (300,), minval=-3, maxval=3)
    ys = 2 * xs + 1 + jax.random.normal(key_noise, (300,))

    @jax.jit
    @jax.grad
    def gradient(params):
        w, b = params
        return jnp.mean((w * xs + b - ys) ** 2)

    start = (-1.0, 3.0)
    sgd = start
    for _ in range(200):
        sgd = jax.tree.map(lambda p, g: p - 0.05 * g, sgd, gradient(sgd))

    init, update = adam(0.05)
    params, state = start, init(start)
    for _ in range(500):
        params, state = update(gradient(params), state, params)

    figure, ax = plt.subplots(figsize=(6.4, 4))
    ax.scatter(xs, ys, s=9, color="#b5b5b5", label="300 noisy points")
    ends = np.array([-3.1, 3.1])
    lines = (
        ("start", start, GREY, "--", 1.5, 2),
        ("truth", (2, 1), "black", "-", 0.9, 4),
        ("fitted by gradient descent", sgd, ORANGE, "-", 7, 2),
        ("fitted by Adam", params, BLUE, ":", 3.6, 2))
    for name, (w, b), color, style, width, order in lines:
        ax.plot(
            ends, w * ends + b, color=color, linestyle=style, linewidth=width,
            zorder=order, label=f"{name}: y = {w:.2f} x + {b:.2f}")
    ax.set(xlabel="x", ylabel="y")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, "linear-fit.svg")


def cora_data():
    rows, cols, y = rows_cols_labels()
    names = class_names()
    num_classes = len(names)
    is_edge = rows != cols
    degree = np.bincount(rows[is_edge])

    figure = plt.figure(figsize=(11, 5.4))
    grid = figure.add_gridspec(
        2, 2, width_ratios=[2.6, 4], wspace=0.78, hspace=0.62)
    left = figure.add_subplot(grid[0, 0])
    middle = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[:, 1])

    counts = np.bincount(np.minimum(degree, 12))
    left.bar(range(1, 13), counts[1:], color=BLUE)
    left.set_xticks([1, 3, 5, 7, 9, 12], ["1", "3", "5", "7", "9", "12+"])
    left.set(xlabel="neighbours of a paper", ylabel="papers",
             title="Most papers have few neighbours")

    sizes = np.bincount(y)
    order = np.argsort(sizes)
    middle.barh(range(num_classes), sizes[order], color=[COLORS[c] for c in order])
    middle.set_yticks(range(num_classes), [names[c] for c in order])
    middle.set(xlabel="papers", title="Seven classes, unequal")

    pairs = np.zeros((num_classes, num_classes))
    np.add.at(pairs, (y[rows[is_edge]], y[cols[is_edge]]), 1)
    share = pairs / pairs.sum(1, keepdims=True)
    percent = [[f"{100 * s:.0f}" for s in row] for row in share]
    show_matrix(right, share, percent, fontsize=9)
    name_columns(right, names)
    right.set_yticks(range(num_classes), names)
    right.set(xlabel="class of its neighbours", ylabel="class of a paper",
              title="Neighbours mostly share a class (% of each row)")
    save(figure, "cora.svg")


TINY = np.array([[0, 0, 0, 1, 3],
                 [1, 2, 3, 2, 4]])


def adjacency():
    tiny = normalize_adjacency(np.hstack([TINY, TINY[::-1]]), 5)
    normalized = np.asarray(tiny @ jnp.eye(5))
    has_entry = normalized > 0
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7))

    places = np.array([[0, 0], [-0.9, 0.75], [-0.9, -0.75], [0.95, 0], [1.9, 0]])
    ax = axes[0]
    for i, j in TINY.T:
        ax.plot(*places[[i, j]].T, color=GREY, linewidth=2, zorder=1)
    for i, (a, b) in enumerate(places):
        ax.add_patch(Circle(
            (a, b), 0.26, facecolor="#dceaf5", edgecolor=BLUE, linewidth=1.5, zorder=2))
        ax.text(a, b, i, ha="center", va="center", fontsize=12)
    ax.set(xlim=(-1.35, 2.3), ylim=(-1.4, 1.4), aspect="equal",
           title="Five nodes, five edges")
    ax.axis("off")

    panels = (
        (axes[1], has_entry * 1.0, "$A + I$, and the degrees", "{:.0f}"),
        (axes[2], normalized, "$D^{-1/2} (A + I) D^{-1/2}$", "{:.2f}"))
    for ax, matrix, title, form in panels:
        ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1.6)
        for i, j in np.ndindex(matrix.shape):
            if has_entry[i, j]:
                text, color = form.format(matrix[i, j]), "black"
            else:
                text, color = "0", "#a0a0a0"
            ax.text(
                j, i, text, ha="center", va="center", color=color, fontsize=10.5)
        ax.set(title=title, xlabel="heard: node j", ylabel="hearing: node i",
               xticks=range(5), yticks=range(5))
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    for i, d in enumerate(has_entry.sum(1)):
        axes[1].text(4.75, i, f"$d_{i}$ = {d}", va="center", fontsize=10.5)
    figure.subplots_adjust(wspace=0.6)
    save(figure, "adjacency.svg")


# The nodes of the picture of hops: the angle and the distance of each from the middle.
HOPS = [
    (0, 0),
    (90, 1), (215, 1), (330, 1),
    (60, 2), (90, 2), (120, 2), (200, 2), (235, 2), (330, 2),
    (48, 3), (75, 3), (120, 3), (195, 3), (320, 3), (343, 3)]
HOPS_EDGES = [
    (0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6), (2, 7), (2, 8), (3, 9), (2, 3),
    (4, 10), (4, 11), (6, 12), (7, 13), (9, 14), (9, 15), (5, 6)]
HOPS_TEXTS = [
    (2.3, "0: the node that is classified"),
    (1.5, "1: its neighbours.\nOne layer brings their features."),
    (0.5, "2: their neighbours.\nTwo layers bring these, too."),
    (-0.5, "3: no path of two edges.\nA GCN of two layers never sees them.")]


def hops():
    figure, ax = plt.subplots(figsize=(6.4, 4.4))
    angles, distances = np.array(HOPS).T
    turn = np.deg2rad(angles)
    places = np.stack([distances * np.cos(turn), distances * np.sin(turn)], axis=1)

    for radius in (1.5, 2.5):
        ax.add_patch(Circle(
            (0, 0), radius, fill=False, linestyle=":", edgecolor="#9a9a9a"))
    for i, j in HOPS_EDGES:
        is_near = max(distances[i], distances[j]) <= 2
        ax.plot(*places[[i, j]].T, color="#555555" if is_near else "#cccccc",
                linewidth=1.6, zorder=1)

    styles = (                                          # face, edge, text
        ("#D55E00", "#444444", "white"),
        ("#E69F00", "#444444", "black"),
        ("#56B4E9", "#444444", "black"),
        ("#ececec", "#aaaaaa", "#777777"))
    for (a, b), distance in zip(places, distances):
        face, edge, text = styles[distance]
        ax.add_patch(Circle(
            (a, b), 0.22, facecolor=face, edgecolor=edge, linewidth=1, zorder=2))
        ax.text(a, b, distance, ha="center", va="center_baseline", fontsize=10,
                color=text)
    for height, text in HOPS_TEXTS:
        ax.text(3.5, height, text, va="center", fontsize=10)
    ax.set(xlim=(-3.3, 7), ylim=(-2.7, 3.3), aspect="equal")
    ax.axis("off")
    save(figure, "hops.svg")


def text_on(color):
    return "black" if color in ("#E69F00", "#56B4E9", "#CC79A7") else "white"


def weight_in_node(ax, place, weight, color):
    ax.text(*place, f"{weight:.2f}", ha="center", va="center", fontsize=9, zorder=4,
            color=text_on(color))


def neighbourhood(ax, centre, weights, title, second_hop=False):
    """Draw a paper, its neighbours around it, and the weight that it gives to each.

    weights: [E]. Its own weight stands in the middle.
    """
    rows, cols, y = rows_cols_labels()
    entries = np.flatnonzero(rows == centre)
    own, = entries[cols[entries] == centre]
    others = entries[cols[entries] != centre]
    others = others[np.lexsort((cols[others], y[cols[others]]))]    # by class

    for k, entry in enumerate(others):
        node = cols[entry]
        color = COLORS[y[node]]
        angle = np.pi / 2 + 2 * np.pi * k / len(others)
        direction = np.array([np.cos(angle), np.sin(angle)])
        arrow = dict(
            arrowstyle="-|>,head_width=0.22,head_length=0.4", color="#555555",
            linewidth=0.5 + 14 * weights[entry], shrinkA=0, shrinkB=0)
        ax.annotate("", 0.21 * direction, 0.85 * direction, arrowprops=arrow, zorder=1)
        if second_hop:
            draw_beyond(ax, centre, node, angle, 0.8 / len(others))
        ax.scatter(
            *direction, s=520, c=color, edgecolors="#333333", linewidths=0.8, zorder=3)
        weight_in_node(ax, direction, weights[entry], color)

    color = COLORS[y[centre]]
    ax.scatter(0, 0, s=620, c=color, edgecolors="black", linewidths=2.5, zorder=3)
    weight_in_node(ax, (0, 0), weights[own], color)
    ax.set_title(title)
    blank(ax, 1.75 if second_hop else 1.25)


def draw_beyond(ax, centre, node, angle, step):
    """The neighbours of a neighbour, at most six of them, and how many are left out.

    angle: the direction of the neighbour. step: the angle from one to the next.
    """
    rows, cols, y = rows_cols_labels()
    beyond = [j for j in cols[rows == node] if j not in (node, centre)]
    shown = beyond[:6]
    left_out = len(beyond) - len(shown)

    def place(i):               # of number i
        turn = angle + (i - (len(shown) - 1) / 2) * step
        return 1.62 * np.cos(turn), 1.62 * np.sin(turn)

    if left_out:
        ax.text(*place(-1.3), f"+{left_out}", va="center", fontsize=9, color="#555555")
    for i, j in enumerate(shown):
        a, b = place(i)
        ax.plot([np.cos(angle), a], [np.sin(angle), b], color="#bbbbbb", linewidth=1,
                zorder=1)
        ax.scatter(a, b, s=42, c=COLORS[y[j]], edgecolors="#777777", linewidths=0.5,
                   zorder=2)


def spread(weights, rows):
    """How far each node's smallest and largest weight are apart, a ratio -> [N]."""
    low = np.full(rows.max() + 1, np.inf)
    high = np.zeros(rows.max() + 1)
    np.minimum.at(low, rows, weights)
    np.maximum.at(high, rows, weights)
    return high / low


def candidates():
    """Papers that can be drawn: six to eight neighbours, two or three classes: [N]."""
    rows, cols, y = rows_cols_labels()
    count = np.bincount(rows) - 1
    classes = []
    for node in range(len(y)):
        classes.append(len(set(y[cols[rows == node]])))
    classes = np.array(classes)
    return (count >= 6) & (count <= 8) & (classes >= 2) & (classes <= 3)


def attention_heads():
    graph = cora()
    names = class_names()
    rows, cols, y = rows_cols_labels()
    trained, _ = trained_gat()
    unpenalised, _ = trained_gat(weight_decay=0.0, epochs=300)
    alpha = first_attention(trained)                    # [E, H]
    free = first_attention(unpenalised)                 # [E, H]

    # the paper and the head where the attention without penalty differs most
    can_be_drawn = candidates()
    uneven = []
    for head in range(8):
        uneven.append(np.where(can_be_drawn, spread(free[:, head], rows), 0))
    head, centre = np.unravel_index(np.argmax(uneven), np.shape(uneven))

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.9))
    fixed = np.asarray(graph.adj.values)
    neighbourhood(axes[0], centre, fixed, "GCN: fixed by the degrees")
    neighbourhood(axes[1], centre, alpha[:, head], "GAT: one trained head")
    neighbourhood(
        axes[2], centre, free[:, head], "The same head without weight decay")
    shown = sorted(set(y[cols[rows == centre]]))
    handles = []
    for c in shown:
        handles.append(Line2D(
            [], [], marker="o", linestyle="", markersize=11, markeredgecolor="#333333",
            color=COLORS[c]))
    figure.legend(handles, [names[c] for c in shown], loc="lower center",
                  ncols=len(shown), fontsize=10)
    figure.subplots_adjust(bottom=0.12, wspace=0.02)
    save(figure, "attention.svg")

    count = np.bincount(rows)[rows][:, None]
    for name, weights in (("trained", alpha), ("without weight decay", free)):
        low, high = np.quantile(weights * count, [0.005, 0.995])
        print(f"  {name}: 99 % of the weights lie between {low:.2f} and {high:.2f} "
              "times the plain mean's")
    print(f"  epochs: {len(trained_gat()[1]['val_loss'])}")


def history():
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex="col")
    _, _, _, gcn_history = trained_gcn()
    _, gat_history = trained_gat()
    runs = ("GCN", gcn_history), ("GAT", gat_history)
    for column, (name, run) in enumerate(runs):
        epochs = np.arange(1, len(run["val_loss"]) + 1)
        for ax, what, top in zip(axes[:, column], ("loss", "accuracy"), (2.05, 1.03)):
            ax.plot(epochs, run[f"train_{what}"], color=BLUE, linewidth=1.4,
                    label="140 training nodes")
            ax.plot(epochs, run[f"val_{what}"], color=ORANGE, linewidth=1.4,
                    linestyle="--", label="500 validation nodes")
            ax.set(ylabel=what, ylim=(0, top))
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("epoch")
    axes[0, 1].legend(loc="upper right")
    figure.subplots_adjust(wspace=0.25, hspace=0.12)
    save(figure, "history.svg")


def hidden():
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4))
    titles = "Before training: random weights", "After training"
    for ax, which, title in zip(axes, ("start", "trained"), titles):
        scatter_classes(ax, in_two_dimensions(which))
        ax.set(title=title, xlabel="t-SNE 1", ylabel="t-SNE 2")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, markerscale=2.2)
    figure.subplots_adjust(bottom=0.2, wspace=0.1)
    save(figure, "hidden.png", dpi=100)


def confusion():
    graph = cora()
    names = class_names()
    test = np.asarray(graph.test)
    guess = np.asarray(gcn_logits().argmax(-1))[test]
    right = np.asarray(graph.y)[test]
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (right, guess), 1)
    sizes = counts.sum(1)

    figure, ax = plt.subplots(figsize=(6, 4.6))
    show_matrix(ax, counts / sizes[:, None], counts, fontsize=10)
    name_columns(ax, names)
    ax.set_yticks(range(len(names)), [f"{name} ({n})" for name, n in zip(names, sizes)])
    ax.set(xlabel="predicted class", ylabel="right class (test papers)",
           title=f"GCN: {np.trace(counts)} of {counts.sum()} test papers right")
    save(figure, "confusion.svg")


def push_apart(labels):
    """Move labels up and down, a pixel at a time, until none lies on another."""
    moved = True
    while moved:
        moved = False
        for upper, lower in itertools.permutations(labels, 2):
            box = upper.get_window_extent().padded(4)
            other = lower.get_window_extent().padded(4)
            if box.overlaps(other) and box.y0 >= other.y0:
                move(upper, 1)
                move(lower, -1)
                moved = True


def move(label, pixels):
    to_pixels = label.axes.transData
    x, y = to_pixels.transform(label.get_position())
    label.set_position(to_pixels.inverted().transform((x, y + pixels)))


def overview():
    graph = cora()
    rows, _, y = rows_cols_labels()
    reached = accuracy(gcn_logits()[graph.test], graph.y[graph.test])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.8), gridspec_kw=dict(width_ratios=[1, 1.35], wspace=0.06))

    # the paper whose weights differ most
    values = np.asarray(graph.adj.values)
    centre = np.argmax(np.where(candidates(), spread(values, rows), 0))
    neighbourhood(
        left, centre, values, "A paper gathers from its neighbours", second_hop=True)
    left.set_anchor("N")

    points = in_two_dimensions("trained")
    scatter_classes(right, points, size=5)
    labels = []
    for c, name in enumerate(class_names()):
        place = np.median(points[y == c], axis=0)
        box = dict(boxstyle="round,pad=0.2", facecolor="white", edgecolor=COLORS[c],
                   alpha=0.9)
        labels.append(right.text(
            *place, name, ha="center", va="center", fontsize=9.5, bbox=box))
    right.axis("off")
    right.set_title(
        f"A GCN that saw 140 labels: {100 * reached:.1f} % of the test papers right")
    push_apart(labels)
    save(figure, "overview.png", dpi=140)


PICTURES = {
    "linear-fit": linear_fit,
    "cora": cora_data,
    "adjacency": adjacency,
    "hops": hops,
    "attention": attention_heads,
    "history": history,
    "hidden": hidden,
    "confusion": confusion,
    "overview": overview,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    for name in names:
        if name not in PICTURES:
            parser.error(f"{name} is no picture: choose from {', '.join(PICTURES)}")
    for name in names:
        PICTURES[name]()
