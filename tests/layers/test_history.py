import torch

from hydrec.layers.history import at_targets


def test_the_last_real_position_or_all(random_batch):
    one, every = random_batch(), random_batch(every=True)
    last = at_targets(one.items, one)
    assert last[:, 0].tolist() == [row[n - 1] for row, n in zip(one.items.tolist(), one.lengths, strict=True)]
    assert torch.equal(at_targets(every.items, every), every.items)


def test_entries_keep_their_shape(random_batch):
    batch = random_batch()
    x = torch.arange(6 * 12 * 4.0).reshape(6, 12, 4)
    assert torch.equal(at_targets(x, batch)[3, 0], x[3, batch.lengths[3] - 1])


def test_one_position_is_the_first_and_the_last(random_batch):
    batch = random_batch(window=1, every=True)
    assert torch.equal(at_targets(batch.items, batch), batch.items)
