"""Train a GAT (Veličković et al., ICLR 2018) on Cora, or on your own graph: python train_gat.py [--help]"""
from minignn import GAT, loss_or_accuracy_rule
from train_gcn import parser, run

if __name__ == "__main__":
    flags = parser(__doc__, hidden=8, dropout=0.6, lr=0.005, epochs=100000, patience=100,
                   paper="as in Veličković et al. 2018", epochs_from="as in the GAT's released code")
    flags.add_argument("--heads", type=int, default=8, metavar="INT",
                       help="attention heads of the first layer, the last one has one; as in Veličković et al. 2018 "
                            "[%(default)s]")
    args = flags.parse_args()
    run(args, lambda nclass: GAT([args.heads, 1], [args.hidden], nclass, args.dropout),
        penalise_all=True, rule=loss_or_accuracy_rule)
