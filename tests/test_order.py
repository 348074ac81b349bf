"""Orders: every video as often as it should be, whatever the order, and a pure function of the position."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v.pipelines.options import OrderOptions
from i2v.pipelines.order import BLOCK, Mixture, Order, balancing_weights
from i2v.pipelines.philox import uniforms

SHARDS = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(lambda sizes: np.repeat(np.arange(len(sizes)), sizes))


def clips(order, first, last):
    return [order[p].clip for p in range(first, last)]


@given(shards=SHARDS, window=st.integers(1, 5), epoch=st.integers(0, 50), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_window_shuffle_shows_every_video_once_and_stays_in_its_windows(shards, window, epoch, seed):
    n = len(shards)
    order = Order(shards, OrderOptions(shuffle="window", window_shards=window), seed)
    seen = clips(order, epoch * n, (epoch + 1) * n)
    assert sorted(seen) == list(range(n))
    # Once the stream has left a window it does not come back to its shards.
    first, last = {}, {}
    for place, clip in enumerate(seen):
        first.setdefault(shards[clip], place)
        last[shards[clip]] = place
    for place in range(n):
        assert sum(first[s] <= place <= last[s] for s in first) <= window


def test_window_shuffle_mixes_within_windows_and_orders_shards_anew_each_epoch():
    shards = np.repeat(np.arange(8), 50)
    order = Order(shards, OrderOptions(shuffle="window", window_shards=2), 0)
    epochs = [shards[clips(order, e * 400, e * 400 + 400)] for e in range(2)]
    assert next(set(e[:100]) for e in epochs) != set(epochs[1][:100])
    for seen in epochs:
        assert np.count_nonzero(np.diff(seen[:100])) > 20 and len(set(seen[:100])) == 2


@given(weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=40), epoch=st.integers(0, 9), window=st.booleans())
@settings(deadline=None)
def test_weighted_rounds_hold_floor_or_ceil_of_what_is_expected(weights, epoch, window):
    n, weights = len(weights), np.array(weights)
    options = OrderOptions(shuffle="window" if window else "global", window_shards=1)
    order = Order(np.arange(n) // 4, options, 3, weights)
    counts = Counter(clips(order, epoch * n, (epoch + 1) * n))
    for clip, expected in enumerate(weights / weights.sum() * n):
        assert np.floor(expected - 1e-9) <= counts[clip] <= np.ceil(expected + 1e-9)
    draws = [(order[p].epoch, order[p].draw) for p in range(3 * n)]
    assert len(set(draws)) == 3 * n  # a video that comes twice is not cut the same way twice


def test_a_weight_of_zero_never_comes_and_the_average_is_the_weight():
    weights = np.array([0, 1, 2, 3, 0, 0.5])
    seen = Counter(clips(Order(np.zeros(6, int), OrderOptions(), 0, weights), 0, 6000))
    assert np.allclose([seen[i] / 6000 for i in range(6)], weights / weights.sum(), atol=0.01)


@pytest.mark.parametrize("balance, expected", [(1.0, [1 / 3] * 3), (0.5, np.sqrt([80, 15, 5]) / np.sqrt([80, 15, 5]).sum())])
def test_balance(balance, expected):
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    order = Order(np.zeros(100, int), OrderOptions(), 0, balancing_weights(labels, balance))
    found = np.bincount(labels[clips(order, 0, 2000)]) / 2000
    assert np.allclose(found, expected, atol=0.01)
    assert balancing_weights(labels, 0.0) is None


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4), repeats=st.integers(1, 3), seed=st.integers(0, 99))
@settings(deadline=None)
def test_repeats_come_in_a_row_with_draws_of_their_own(sizes, repeats, seed):
    n = sum(sizes)
    order = Order(np.repeat(np.arange(len(sizes)), sizes), OrderOptions(repeats=repeats), seed)
    places = [order[p] for p in range(2 * n * repeats)]
    assert all(len({place.clip for place in places[i : i + repeats]}) == 1 for i in range(0, len(places), repeats))
    assert Counter(place.clip for place in places[: n * repeats]) == dict.fromkeys(range(n), repeats)
    assert len({(place.epoch, place.draw) for place in places}) == len(places)


def mixture(sizes, shares, seed=0, **options):
    firsts = np.cumsum([0, *sizes]).tolist()
    orders = [
        Order((first + np.arange(n)) // 3, OrderOptions(**options), seed, number=k)
        for k, (n, first) in enumerate(zip(sizes, firsts))
    ]
    return Mixture(orders, firsts, shares, seed)


@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), data=st.data())
@settings(deadline=None, max_examples=20)
def test_a_mixture_is_the_streams_of_its_data_sets_by_their_shares(sizes, data):
    """Without gaps or repetitions in any of them, also across the borders of blocks."""
    shares = data.draw(st.lists(st.floats(0.05, 1), min_size=len(sizes), max_size=len(sizes)))
    mixed, firsts = mixture(sizes, shares), np.cumsum([0, *sizes])
    begin, count = BLOCK - 300, 600
    places = [mixed[p] for p in range(begin, begin + count)]
    before = np.bincount([np.searchsorted(firsts, mixed[p].clip, side="right") - 1 for p in range(begin)], minlength=len(sizes))
    for k in range(len(sizes)):
        mine = [place.clip - firsts[k] for place in places if firsts[k] <= place.clip < firsts[k + 1]]
        assert mine == [mixed.orders[k][int(before[k]) + i].clip for i in range(len(mine))]
    whole = np.bincount([np.searchsorted(firsts, mixed[p].clip, side="right") - 1 for p in range(BLOCK)], minlength=len(sizes))
    assert np.abs(whole - np.array(shares) / sum(shares) * BLOCK).max() < 1


def test_a_share_that_cannot_be_honoured_is_refused():
    with pytest.raises(ValueError, match="less than 1 in 10000"):
        mixture([5, 5], [1, 1e-6])


@pytest.mark.parametrize(
    "make", [lambda o: Order(np.arange(40) // 5, OrderOptions(**o), 0), lambda o: mixture([30, 20], [1, 2], **o)]
)
@pytest.mark.parametrize(
    "options", [{}, {"shuffle": "window", "window_shards": 2}, {"shuffle": "window", "window_shards": 2, "repeats": 3}]
)
def test_what_is_ahead_is_what_comes(make, options):
    order = make(options)
    of = lambda clip: clip // 5 if isinstance(order, Order) else clip // 3  # noqa: E731
    for position, count in itertools.product((0, 7, 33, 38, BLOCK - 5, BLOCK + 7), (1, 2, 12, 50)):
        needed = list(dict.fromkeys(of(order[p].clip) for p in range(position, position + count)))
        ahead = order.shards_ahead(position, count)
        assert ahead == needed if isinstance(order, Order) else set(ahead) >= set(needed)


@pytest.mark.parametrize(
    "options",
    [{"shuffle": "none"}, {"window_shards": 0}, {"balance": 2}, {"balance": "yes"}, {"repeats": 0}, {"epoch_clips": 0}],
)
def test_a_wrong_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OrderOptions(**options)


@pytest.mark.process
def test_random_numbers_are_those_of_a_new_philox_whoever_draws_them():
    from concurrent.futures import ThreadPoolExecutor

    keys = [
        (seed, stream, epoch, sample)
        for seed in (0, 2**63 - 1)
        for stream in (0, 7)
        for epoch in (0, 9)
        for sample in (0, 5, 2**39)
    ]
    expected = []
    for seed, stream, epoch, sample in keys:
        key = np.array([seed, stream << 60 | epoch << 40 | sample], dtype=np.uint64)
        expected.append((np.random.Philox(key=key).random_raw(13) >> np.uint64(11)) * 2.0**-53)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda key: uniforms(*key, 13), keys * 5))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 5))
