"""GRU4Rec: a recurrent network over the history.

"Session-based Recommendations with Recurrent Neural Networks" (Hidasi et al., ICLR 2016;
https://arxiv.org/abs/1511.06939); with the losses of "Recurrent Neural Networks with Top-k Gains for
Session-based Recommendations" (Hidasi and Karatzoglou, CIKM 2018; https://arxiv.org/abs/1706.03847) it is
GRU4Rec+. Loss and negatives are the loss group's. Shared tables are the public code's `constrained_embedding`
(https://github.com/hidasib/GRU4Rec_PyTorch_Official).

Differs from papers and public code in that a batch holds whole histories, all of which the gradient passes:
theirs walks through sessions side by side, an event a step, and takes the state before as given. What dropout
leaves out of a state is, unlike there, still in the next one.

Shapes: B rows, T positions, P scored positions, D units, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import at_least, share_of
from hydrec.layers import scoring
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What the network remembers of a history.

    Attributes:
        vectors: (B, P, 1, D) float, the last layer's state.
    """

    vectors: Tensor


class GRU4Rec(nn.Module):
    """Scores an item by its vector's match with the state after the last event, plus its own bias.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        units: width D of items and states.
        layers: of the network, one after another.
        dropout: share of each item's vector, and of what each layer puts out, that training drops.
        tied: whether items have the same vectors in histories as among the candidates.

    Raises:
        InputError: a size is not positive, or ``dropout`` not in [0, 1).
    """

    causal = True

    def __init__(self, catalog: Catalog, *, units: int, layers: int, dropout: float, tied: bool) -> None:
        super().__init__()
        at_least("model.net.units", units, 1)
        at_least("model.net.layers", layers, 1)
        share_of("model.net.dropout", dropout)
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(units, units, layers, dropout=between, batch_first=True)
        self.dropout = Dropout(dropout)
        self.item = _table(catalog.n_items, units)
        self.output = self.item if tied else _table(catalog.n_items, units)
        self.bias = nn.Parameter(torch.zeros(catalog.n_items + 1))
        for name, weight in self.gru.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(weight)
            else:
                for gate in weight.chunk(3):
                    nn.init.xavier_uniform_(gate)

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The state at each scored position; no term of a loss."""
        states, _ = self.gru(self.dropout(self.item(batch.items)))  # (B, T, D); padding comes after
        states = self.dropout(at_targets(states, batch))
        return Hidden(states[:, :, None]), states.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, 1, D), of the state."""
        return scoring.dot(state.vectors, self.output(items))[:, 0] + self.bias[items]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, Tensor]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors[:, 0], self.output(items), self.bias[items]


def _table(n_items: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(n_items + 1, dim, padding_idx=PAD)
    nn.init.xavier_uniform_(table.weight)
    with torch.no_grad():
        table.weight[PAD] = 0
    return table
