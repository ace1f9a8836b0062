"""Which queries compute their first layers together."""

from hypothesis import given
from hypothesis import strategies as st

from gemel_ray.policy.stems import Chain, Stem, Step, choose_stems, frames_kept

KB = 1000


def chain(identities, *, source="crossing 224 plain", multiply_adds=1000 * KB, output_bytes=10 * KB):
    """Steps named by single letters, all of one cost."""
    return Chain(source, 5 * KB, tuple(Step(each, multiply_adds, output_bytes) for each in identities))


def test_queries_of_one_feed_share_their_longest_common_prefix():
    stems = choose_stems({"cars": chain("abcd"), "people": chain("abcx"), "bikes": chain("yz")})
    assert stems == (Stem(("cars", "people"), 3, 25 * KB),)


def test_equal_layers_behind_a_different_one_are_no_stem():
    assert choose_stems({"cars": chain("abc"), "people": chain("xbc")}) == ()


def test_another_feed_size_or_way_is_another_input():
    assert choose_stems({"cars": chain("abc"), "people": chain("abc", source="corner 224 plain")}) == ()


def test_more_queries_with_less_in_common_where_that_spares_more():
    chains = {"a": chain("pqr"), "b": chain("pqr"), "c": chain("pqs"), "d": chain("pqt")}
    # Three times two steps rather than once three.
    assert choose_stems(chains) == (Stem(("a", "b", "c", "d"), 2, 25 * KB),)


def test_who_is_left_may_still_share_with_each_other():
    chains = {"a": chain("pqrs"), "b": chain("pqrs"), "c": chain("xy"), "d": chain("xz")}
    assert [stem.queries for stem in choose_stems(chains)] == [("a", "b"), ("c", "d")]


def test_a_stem_that_costs_more_to_keep_than_to_compute_is_left():
    cheap = {"multiply_adds": 99 * KB, "output_bytes": KB}
    assert choose_stems({"cars": chain("a", **cheap), "people": chain("a", **cheap)}) == ()


def test_batches_are_kept_as_far_as_memory_goes():
    stems = (Stem(("a", "b"), 1, 10 * KB), Stem(("c", "d"), 1, 20 * KB))
    assert frames_kept(stems, 95 * KB) == 3
    assert frames_kept(stems, 29 * KB) == 0
    assert frames_kept(stems, 10**9) == 8
    assert frames_kept((), 10**9) == 0


@given(st.dictionaries(st.text("mnop", min_size=1, max_size=3), st.text("abc", max_size=4), max_size=7))
def test_every_stem_is_a_common_prefix_of_its_queries_and_no_query_has_two(prefixes):
    chains = {name: chain(identities) for name, identities in prefixes.items()}
    stems = choose_stems(chains)
    named = [name for stem in stems for name in stem.queries]
    assert len(named) == len(set(named))
    for stem in stems:
        assert len(stem.queries) > 1
        assert len({prefixes[name][: stem.steps] for name in stem.queries}) == 1
    # Nobody is left alone who begins as another one left alone does.
    alone = [identities[0] for name, identities in prefixes.items() if name not in named and identities]
    assert len(alone) == len(set(alone))
