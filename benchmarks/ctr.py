"""Click models at equal layer sizes on MovieLens-100K with 50 behaviours: training rows a second.

    HYDREC_DATA=FOLDER python benchmarks/ctr.py                                  # ours
    HYDREC_DATA=FOLDER python benchmarks/ctr.py --peers --seconds 30             # and the peers that have it
    HYDREC_DATA=FOLDER python benchmarks/ctr.py --models din dien --peers fuxictr

Rows are those of `click_last`: every event of a user but the last two, and as many drawn at random. Fields
are user, item, gender, age, occupation, zip, weekday and hour, each a vector of 32; DIN and DIEN have the
behaviours as well, DIEN with its auxiliary loss, but for FuxiCTR's, whose auxiliary loss fails. Batches of
2,048 rows, Adam, no regularisation where it can be left out. FuxiCTR comes twice: with its loader, a Python
call for each row, and with batches that lie ready.
"""

import tempfile
from pathlib import Path
from typing import Any

from rows import clicks
from sides import OURS, Table, chosen, drive, overrides, parser, same, where

BATCH, DIM = 2048, 32
ATTENTION, HIDDEN, CROSS, MAPS = [80, 40], [80, 40], 3, [100, 100]  # RecBole has one list for the first two
DATA = [
    "dataset=movielens_100k", "protocol=click_last", "protocol.window=50",
    "dataset.fields.user=[user_id,gender,age,occupation,zip]", "dataset.fields.context=[weekday,hour]",
    "dataset.fields.item=[]",
]  # fmt: skip
WIDE = [f"model.net.item_dim={DIM}", f"model.net.field_dim={DIM}"]
FLAT = [f"model.net.dim={DIM}", "model.net.history=false"]
OWN = {
    "DIN": ["model=din", *WIDE, f"model.net.attention_hidden={ATTENTION}"],
    "DIEN": ["model=dien", *WIDE],
    "DeepFM": ["model=deepfm", *FLAT],
    "DCN": ["model=dcn", *FLAT, f"model.net.cross={CROSS}"],
    "xDeepFM": ["model=xdeepfm", *FLAT, f"model.net.maps={MAPS}"],
}
OWN = {model: [*choice, f"model.net.hidden={HIDDEN}", "model.net.l2=0"] for model, choice in OWN.items()}
RECBOLE: dict[str, Any] = {"embedding_size": DIM, "mlp_hidden_size": HIDDEN, "dropout_prob": 0.0}
DEEPCTR: dict[str, Any] = {"dnn_hidden_units": HIDDEN, "l2_reg_embedding": 0.0}
LINEAR = {"l2_reg_linear": 0.0}
FUXICTR: dict[str, Any] = {"dnn_hidden_units": HIDDEN}
PEERS: dict[str, dict[str, dict[str, Any]]] = {
    "DIN": {
        "recbole": RECBOLE,
        "deepctr": DEEPCTR | {"att_hidden_size": ATTENTION},
        "fuxictr": FUXICTR | {"attention_hidden_units": ATTENTION, "dnn_activations": "Dice"},
    },
    "DIEN": {
        "recbole": RECBOLE,
        "deepctr": DEEPCTR | {"gru_type": "AUGRU", "use_negsampling": True, "att_hidden_units": ATTENTION},
        "fuxictr": FUXICTR | {"batch_norm": False, "dnn_activations": "Dice"},
    },
    "DeepFM": {
        "recbole": RECBOLE,
        "deepctr": DEEPCTR | LINEAR,
        "fuxictr": {"hidden_units": HIDDEN},
    },
    "DCN": {
        "recbole": RECBOLE | {"cross_layer_num": CROSS, "reg_weight": 0.0},
        "deepctr": DEEPCTR | LINEAR | {"cross_num": CROSS, "l2_reg_cross": 0.0},
        "fuxictr": FUXICTR | {"num_cross_layers": CROSS},
    },
    "xDeepFM": {
        "recbole": RECBOLE | {"cin_layer_size": MAPS, "reg_weight": 0.0, "direct": True},
        "deepctr": DEEPCTR | LINEAR | {"cin_layer_size": MAPS, "cin_split_half": False},
        "fuxictr": FUXICTR | {"cin_hidden_units": MAPS},
    },
}
COLUMNS = ("rows/s", "rows/CPU s", "s an epoch", "first step after, s", "peak MiB", "over the best peer's")


def main() -> None:
    """Prints the table."""
    options = parser(__doc__, seconds=30.0)
    options.add_argument("--models", nargs="+", choices=[name.lower() for name in OWN], help="all by default")
    args = options.parse_args()
    given = overrides(*DATA)
    print(f"{where(args)}\n")
    table = Table("ctr", ["model", "side", *COLUMNS], args.out)
    with tempfile.TemporaryDirectory() as folder:
        path = clicks([*given, *OWN["DIN"]], Path(folder, "rows.npz"), args.seed)
        for model in OWN:
            if args.models is not None and model.lower() not in args.models:
                continue
            found = {}
            for side in chosen(args, "recbole", "deepctr", "fuxictr"):
                own = {"overrides": [*given, *OWN[model]]} if side == OURS else {}
                peer = {} if side == OURS else {"options": PEERS[model][side]}
                reports = drive(side, args, data=path, model=model, batch=BATCH, dim=DIM, **own, **peer)
                if reports:
                    found[side] = reports[-1]
                if reports and side == "fuxictr":
                    settings = {"data": path, "model": model, "batch": BATCH, "dim": DIM, **peer}
                    found[f"{side}, batches ready"] = drive(side, args, ready=True, **settings)[-1]
            same(found, "rows", "positive")
            paces = {side: report["rows"] / report["epoch_s"] for side, report in found.items()}
            best = max((pace for side, pace in paces.items() if side != OURS), default=None)
            for side, report in found.items():
                cells = [report["rows"] / report["epoch_cpu_s"], report["epoch_s"], report["first_step_s"]]
                ratio = None if best is None else paces[side] / best
                table.add([model, side, paces[side], *cells, report["peak_mib"], ratio])


if __name__ == "__main__":
    main()
