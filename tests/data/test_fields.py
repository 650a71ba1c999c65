"""Fields are what a loop makes of features; what training never has is unknown; batches carry them."""

import hashlib

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.click_metrics import ClickMetrics
from hydrec.data.clicks import ClickLast, ClickRating
from hydrec.data.features import derive
from hydrec.data.feeds import ClickFeed
from hydrec.data.fields import Trained, declared, encode, stacked
from hydrec.data.log import InteractionLog
from hydrec.errors import InputError

NONE: dict = {"user": [], "context": [], "item": []}


def log(**more) -> InteractionLog:
    """Three users with five events; the last is the only one by u3, of i3, on a train."""
    return InteractionLog.build(
        name="toy",
        users=["u1", "u1", "u2", "u2", "u3"],
        items=["i1", "i2", "i2", "i1", "i3"],
        times=[10, 20, 30, 40, 50],
        values=[1.0, 2.0, 3.0, 4.0, 5.0],
        user_features={
            "zip": (["u1", "u2", "u3"], ["12345", "12999", "9"]),
            "age": (["u1", "u3"], ["30", "50"]),
        },
        item_features={
            "genres": (["i1", "i2", "i3"], [["War", "Drama"], ["War"], ["Western"]]),
            "price": (["i1", "i2", "i3"], ["1.5", "4.5", "100"]),
        },
        event_features={"device": ["tv", "", "tv", "phone", "train"]},
        **more,
    )


TRAINED = Trained(rows=np.array([0, 1, 1, 2, 3]), items=np.array([1, 2, 2, 2, 1]))


def one(name: str, group: str, form=None):
    fields = NONE | {group: [name], "form": {} if form is None else {name: form}}
    (found,) = encode(log(), declared(fields), TRAINED)
    weights = np.ones(found.codes.shape) if found.weights is None else found.weights
    return found.field, found.by, found.codes.tolist(), weights


def test_a_category_of_users_and_what_training_lacks():
    field, by, codes, weights = one("zip", "user")
    assert (field.name, field.group, field.size, field.width, by) == ("zip", "user", 5, 1, "user")
    assert (
        codes == [[0], [2], [3], [1]] and weights[1:].min() == 1
    )  # u3's, which training never has, is unknown


def test_a_missing_value_is_unknown():
    assert one("age", "user")[2] == [[0], [2], [1], [1]]
    assert one("device", "context")[2] == [[4], [1], [4], [2], [1]]  # phone, train, tv; "" is unknown


def test_the_user_is_a_field():
    field, by, codes, _ = one("user_id", "user")
    assert (field.size, by, codes) == (5, "user", [[0], [2], [3], [1]])


def test_first_characters():
    field, _, codes, _ = one("zip", "user", 2)
    assert (field.size, codes) == (4, [[0], [2], [2], [1]])  # 12, 9


def test_several_values_share_a_weight():
    field, by, codes, weights = one("genres", "item")
    assert (field.width, by) == (2, "item")
    assert codes == [[0, 0], [3, 2], [3, 0], [1, 0]]  # Drama 2, War 3; Western is unknown
    assert weights.tolist() == [[0, 0], [0.5, 0.5], [1, 0], [1, 0]]


def test_numbers_scale_a_vector():
    field, _, codes, weights = one("price", "item", "number")
    assert (field.size, codes) == (3, [[0], [2], [2], [2]])
    assert weights[:, 0].tolist() == pytest.approx([0, -1, 1, (100 - 3) / 1.5])  # by the training part's
    field, _, codes, weights = one("age", "user", "number")
    assert codes == [[0], [2], [1], [2]] and weights[:, 0].tolist() == [0, 0, 1, 20]  # one age: no spread


def test_numbers_in_buckets():
    n = 400
    draw = np.random.default_rng(0)
    price = draw.permutation(n) / 8 - 20
    shop = InteractionLog.build(
        name="shop",
        users=np.arange(n),
        items=np.arange(n),
        times=np.arange(n),
        event_features={"price": price.astype(str)},
    )
    rows = np.arange(300)
    fields = declared(NONE | {"context": ["price"], "form": {"price": "bucket"}})
    (found,) = encode(shop, fields, Trained(rows, rows + 1))
    assert found.field.size == 22 and found.weights is None
    codes = found.codes[:, 0].astype(int)
    assert np.bincount(codes[:300])[2:].tolist() == [15] * 20
    order = np.argsort(price, kind="stable")
    assert (np.diff(codes[order]) >= 0).all()
    assert (
        codes[order[-1]] == 21 and codes.min() == 2
    )  # those beyond the training part's are in the outermost


def test_derived_columns_are_fields():
    field, by, codes, _ = one("activity", "user")
    column = derive(log(), "activity")
    assert by == "row" and [code for (code,) in codes] == column.codes.tolist()
    assert field.size <= len(column.names)


def test_fields_stand_side_by_side():
    fields = declared(NONE | {"user": ["zip"], "context": ["device"], "item": ["genres"]})
    zips, device, genres = encode(log(), fields, TRAINED)
    codes, weights = stacked([zips, device], {"row": np.array([0, 3, 4]), "user": np.array([1, 2, 3])})
    assert codes.tolist() == [[2, 4], [3, 2], [1, 1]] and weights.tolist() == [[1, 1]] * 3
    codes, weights = stacked([genres], {"item": np.array([1, 2])})
    assert codes.tolist() == [[3, 2], [3, 0]] and weights.tolist() == [[0.5, 0.5], [1, 0]]
    codes, weights = stacked([], {"item": np.array([1, 2])})
    assert codes.shape == weights.shape == (2, 0)


def test_items_without_features_say_so():
    bare = InteractionLog.build(name="bare", users=[1, 1], items=[1, 2], times=[0, 1])
    trained = Trained(np.array([0]), np.array([1]))
    assert encode(bare, declared(NONE | {"item": ["genres*"]}), trained) == []
    with pytest.raises(InputError, match="the items of bare have no features; drop it"):
        encode(bare, declared(NONE | {"item": ["genres"]}), trained)


def test_a_star_leaves_out_what_is_not_there():
    fields = declared(NONE | {"user": ["sex*", "zip*"], "context": ["hour*"], "item": ["brand*"]})
    assert [each.field.name for each in encode(log(), fields, TRAINED)] == ["zip", "hour"]
    days = InteractionLog.build(name="days", users=[1, 1], items=[1, 2], times=[0, 86400])
    fields = declared(NONE | {"context": ["hour*", "dominant_category*", "weekday"]})
    assert [each.field.name for each in encode(days, fields, Trained(np.array([0]), np.array([1])))] == [
        "weekday"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"users": ["zip"]}, "dataset.fields=users is none of user, context, item, form; did you mean user?"),
        ({"user": ["zip"], "context": ["zip"]}, "dataset.fields: zip comes twice; it belongs into one group"),
        ({"user": ["zip"], "form": {"zap": 1}}, "dataset.fields.form=zap is none of zip"),
        ({"user": ["zip"], "form": {"zip": 0}}, "dataset.fields.form.zip=0 is none of bucket, number, "),
        (
            {"user": ["zip"], "form": {"zip": "buckets"}},
            "dataset.fields.form.zip=buckets is none of bucket, ",
        ),
        (None, "dataset.fields=null: must be a mapping of keys"),
        (["zip"], "dataset.fields=['zip']: must be a mapping of keys"),
        ({"user": "zip"}, "dataset.fields.user=zip: must be a list or null"),
        ({"user": [["zip"]]}, "dataset.fields.user[0]=['zip']: must be text ("),
        (
            {"user": ["zip"], "form": "bucket"},
            "dataset.fields.form=bucket: must be a mapping of keys or null",
        ),
        ({"user": ["zip"], "form": {"zip": True}}, "dataset.fields.form.zip=True: must be text ("),
        ({"user": ["zipp"]}, "dataset.fields.user=zipp is none of user_id, "),
        ({"context": ["devise"]}, "dataset.fields.context=devise is none of user_id, "),
        ({"item": ["genre"]}, "dataset.fields.item=genre is none of genres, price; did you mean genres?"),
        (
            {"item": ["genres"], "form": {"genres": "bucket"}},
            "dataset.fields.form.genres=bucket: rows of toy",
        ),
        (
            {"context": ["device"], "form": {"device": "number"}},
            "dataset.fields.form.device=number: could not",
        ),
    ],
)
def test_bad_fields_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as caught:
        encode(log(), declared(fields), TRAINED)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


# Batches ----------------------------------------------------------------------------------------------------

METRICS = ClickMetrics(gauc="rows", bins=20)
FIELDS = {"user": ["user_id", "zip"], "context": ["device"], "item": ["genres", "price", "brand"]}


def shop(seed: int = 0, **more) -> InteractionLog:
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(20), draw.integers(1, 9, 20))
    n = len(user)
    return InteractionLog.build(
        name="shop",
        users=user,
        items=draw.integers(0, 12, n),
        times=draw.integers(0, 100, n) + 1000,
        values=draw.integers(1, 6, n).astype(float),
        user_features={"zip": (np.arange(20), draw.integers(0, 4, 20).astype(str))},
        item_features={
            "genres": (np.arange(12), [["a", "b"][: 1 + i % 2] for i in range(12)]),
            "price": (np.arange(12), np.arange(12).astype(str)),
            "brand": (np.arange(12), ["x", "y", "z"] * 4),
        },
        event_features={"device": draw.choice(["tv", "phone"], n)},
        **more,
    )


def feed(log: InteractionLog, **changes) -> ClickFeed:
    given = {
        "window": 4,
        "shuffle_ties": None,
        "metrics": METRICS,
        "neg_ratio": 1,
        "neg": "uniform",
        "seed": 1,
    }
    return ClickFeed(log, ClickLast(**(given | changes)), declared(FIELDS | {"form": {"price": "number"}}))


def liked(log: InteractionLog) -> ClickFeed:
    protocol = ClickRating(
        window=4,
        shuffle_ties=None,
        metrics=METRICS,
        threshold=4.0,
        cut="time",
        valid=0.2,
        test=0.2,
        split_seed=1,
    )
    return ClickFeed(log, protocol, declared(FIELDS))


@pytest.mark.parametrize("make", [feed, liked])
def test_a_batch_is_what_a_loop_reads(make):
    made = make(shop())
    log, past = made.log, made.split.behaviours
    some = np.array([5, 0, 7, 2, 9])
    batch = made.evaluate("test", some)
    samples = made.split.test
    width = batch.items.shape[1]
    assert width == max(1, int((samples.last - samples.first)[some].max()))
    for b, index in enumerate(some):
        row, user = samples.row[index], log.users[samples.row[index]]
        history = range(samples.first[index], samples.last[index])
        origin = past.times[history[0]] if history else log.times[row]
        padding = [0] * (width - len(history))
        assert batch.items[b].tolist() == [past.items[i] for i in history] + padding
        assert batch.times[b].tolist() == [past.times[i] - origin for i in history] + padding
        assert batch.values[b].tolist() == [past.values[i] for i in history] + padding
        assert (batch.lengths[b], batch.target_times[b]) == (len(history), log.times[row] - origin)
        assert (batch.candidates[b], batch.labels[b]) == (samples.item[index], samples.label[index])
        assert (batch.users[b], batch.rows[b]) == (user, index)
        fields = [each for each in made.fields if each.field.group != "item"]
        owners = [{"row": row, "user": user}[each.by] for each in fields]
        assert batch.codes[b].tolist() == [
            int(each.codes[owner, 0]) for each, owner in zip(fields, owners, strict=True)
        ]
    assert batch.weights.tolist() == [[1.0] * 3] * 5
    assert all(
        column.dtype == torch.int64 for name, column in batch._asdict().items() if name in ("items", "codes")
    )


def test_negatives_share_all_but_the_item():
    made = feed(shop(), neg_ratio=2)
    batch = made.train(np.arange(len(made.split.train)))
    rows = made.split.train.row
    for row in np.unique(rows):
        same = torch.from_numpy(np.flatnonzero(rows == row))
        assert batch.labels[same].tolist() == [1, 0, 0]
        assert len(set(batch.candidates[same].tolist())) == 3
        for name in ("items", "times", "lengths", "target_times", "users", "codes", "weights"):
            column = getattr(batch, name)[same]
            assert (column == column[0]).all(), name


def test_the_catalogue_counts_the_training_part_alone():
    made = feed(shop())
    train = made.split.train
    for item in range(1, made.log.n_items + 1):
        assert made.catalog.shown[item] == (train.item == item).sum()
        assert made.catalog.clicked[item] == ((train.item == item) & (train.label == 1)).sum()
    assert [field.name for field in made.catalog.fields] == ["user_id", "zip", "device"]
    assert [(field.name, field.width) for field in made.catalog.item_fields] == [
        ("genres", 2),
        ("price", 1),
        ("brand", 1),
    ]
    assert made.catalog.item_codes.shape == made.catalog.item_weights.shape == (made.log.n_items + 1, 4)
    assert made.catalog.item_codes[PAD].tolist() == [0, 0, 0, 0]
    assert made.catalog.item_weights[PAD].tolist() == [0, 0, 0, 0]


def test_rows_without_any_history_make_a_batch():
    alone = InteractionLog.build(
        name="new",
        users=np.arange(20),
        items=[1, 2] * 10,
        times=np.arange(20),
        labels=[0, 1] * 10,
        past=([], [0] * 20),
    )
    protocol = ClickRating(
        window=4,
        shuffle_ties=None,
        metrics=METRICS,
        threshold=None,
        cut="time",
        valid=0.2,
        test=0.2,
        split_seed=1,
    )
    batch = ClickFeed(alone, protocol, declared(NONE)).train(np.arange(3))
    assert batch.items.tolist() == [[PAD]] * 3 and batch.lengths.tolist() == [0, 0, 0]
    assert batch.codes.shape == (3, 0)


@pytest.mark.parametrize(("form", "warned"), [({}, True), ({"price": "bucket"}, False)])
def test_a_category_for_each_fraction_is_worth_a_warning(form, warned, caplog):
    price = [f"{number / 8}" for number in range(40)]
    shops = InteractionLog.build(
        name="s",
        users=np.arange(40),
        items=np.arange(40),
        times=np.arange(40),
        event_features={"price": price},
    )
    rows = np.arange(40)
    encode(shops, declared(NONE | {"context": ["price"], "form": form}), Trained(rows, rows + 1))
    assert ("dataset.fields.form={price:bucket}" in caplog.text) == warned


def test_histories_that_rows_bring_have_no_times():
    events = shop()
    n = len(events)
    own = shop(labels=np.arange(n) % 2, past=(np.arange(2 * n) % 12, [2] * n))
    protocol = ClickRating(
        window=4,
        shuffle_ties=None,
        metrics=METRICS,
        threshold=None,
        cut="time",
        valid=0.2,
        test=0.2,
        split_seed=1,
    )
    batch = ClickFeed(own, protocol, declared(NONE)).train(np.arange(4))
    assert (batch.items > 0).all() and batch.lengths.tolist() == [2] * 4
    assert batch.times.tolist() == [[0, 0]] * 4 and batch.target_times.tolist() == [0] * 4
    assert batch.values.isnan().all()


def test_the_record_counts_what_is_there():
    made = feed(shop(), neg_ratio=3)
    about = made.describe()
    train, test = made.split.train, made.split.test
    known = set(made.log.users[train.row].tolist())
    shown = set(train.item.tolist())
    seen = np.concatenate([each.view(np.uint8) for each in (test.row, test.item, test.label)])
    assert about["parts"]["test"] == {
        "samples": len(test),
        "digest": hashlib.sha256(seen.tobytes()).hexdigest(),
        "base_rate": pytest.approx(0.25),
        "users": len(set(made.log.users[test.row].tolist())),
        "items": len(set(test.item.tolist())),
        "samples_of_unseen_users": sum(user not in known for user in made.log.users[test.row].tolist()),
        "cold_candidates": sum(item not in shown for item in test.item.tolist()),
        "behaviours": pytest.approx(np.mean(test.last - test.first)),
        "samples_without_behaviours": 0,
    }
    assert about["fields"]["user"].keys() == {"user_id", "zip"} and about["fields"]["item"]["price"] == 3


def test_what_a_test_leaves_has_raw_ids():
    made = feed(shop())
    rows = np.arange(len(made.split.test))
    frame = made.tested({"row": rows, "label": made.split.test.label, "logit": rows / 10})
    row = made.split.test.row
    assert frame.columns == ["sample", "user", "item", "time", "label", "logit"]
    assert frame["user"].to_list() == made.log.user_ids[made.log.users[row]].tolist()
    assert frame["item"].to_list() == made.log.item_ids[made.split.test.item].tolist()
    assert frame["time"].to_list() == made.log.times[row].tolist()
