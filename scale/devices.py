"""One graph over many devices: GPUs, TPUs, or the processes of several machines.

    import jax
    from minignn import load_graph
    from scale.devices import shard_graph

    # With several processes, jax.distributed.initialize() comes first.
    mesh = jax.make_mesh((jax.device_count(),), ("edges",))
    graph = shard_graph(load_graph(), mesh)         # and then train as usual

A mesh is JAX's word for devices in a grid with named axes. The layers do not change:
JAX compiles one program for all devices and adds the communication that it needs.

How it works, for the five entries of a 3 by 3 matrix on two devices:

    entry      0  1  2  |  3  4  .          the dot: added, so that both have three
    row        0  0  1  |  1  2  3
    device     0  0  0  |  1  1  1

Every device holds a part of the entries, and a copy of all else: what is computed for
the nodes, every device computes in full. It makes the messages of its own entries and
adds them up by row. Then the devices add their results up, which gives the sum over all
entries:

                    row 0               row 1          row 2
    device 0        messages 0 + 1      message 2      0
    device 1        0                   message 3      message 4

A softmax over rows takes its maxima in the same way.

The added entry has row 3, one past the end. Sums and maxima leave it out; but where row
3 of an array is *read*, JAX gives the last row. Its column is the last, too: so in a
GAT, its score is that of the last node's self-loop. A softmax takes exp(score - the
largest of the row). With that self-loop in the row, the largest is at least this score,
and exp at most 1. Without it, exp could be infinite, and in the gradient 0 * inf is
nan. So an adj without it is refused, whatever the model and the number of devices.
"""
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from minignn import Sparse


def put(array, sharding):
    """Spread a NumPy array, which every process has whole -> a JAX array."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def shard_matrix(matrix, sharding):
    """A matrix as a Sparse whose entries are spread over the devices of `sharding`."""
    n, m = matrix.shape
    missing = -len(matrix.values) % sharding.mesh.size      # up to a multiple of size

    def spread(array, fill):
        padded = np.pad(np.asarray(array), (0, missing), constant_values=fill)
        return put(padded, sharding)

    return Sparse(
        rows=spread(matrix.rows, n),
        cols=spread(matrix.cols, m - 1),
        values=spread(matrix.values, 0),
        shape=(n, m))


def shard_graph(graph, mesh):
    """Spread the entries of adj, and of a Sparse x, over a mesh's devices -> Graph.

    All else is copied to every device. mesh: a jax.sharding.Mesh, with any axes.
    Raises ValueError if the last node has no self-loop.
    """
    last = graph.adj.shape[0] - 1
    rows, cols = np.asarray(graph.adj.rows), np.asarray(graph.adj.cols)
    if not np.any((rows == last) & (cols == last)):
        raise ValueError(f"adj has no entry [{last}, {last}]: the last node must have "
                         "a self-loop, whose score an added entry has")

    # The axes of jax.make_mesh may be Explicit: each layer would have to say how its
    # results are spread. A Mesh made of the same devices leaves that to JAX.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    by_entry = NamedSharding(mesh, PartitionSpec(mesh.axis_names))  # over all its axes
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf):
        if isinstance(leaf, Sparse):
            return shard_matrix(leaf, by_entry)
        return put(np.asarray(leaf), everywhere)

    return jax.tree.map(place, graph, is_leaf=lambda leaf: isinstance(leaf, Sparse))
