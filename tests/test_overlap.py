import json

import polars as pl

from musketeers.config import DataConfig
from musketeers.data.overlap import overlap_report
from musketeers.data.readers import from_frames


def report(*, k=1, **frames):
    """Each frame as a list of (user_id, item_id)."""
    tables = {
        name: pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
        for name, rows in frames.items()
    }
    config = DataConfig(domains=dict.fromkeys(frames, ""), min_user=k, min_item=k)
    return overlap_report(from_frames(tables, config))


def grid(users, items):
    return [(u, i) for u in users for i in items]


def numbered(prefix, *span):
    return [f"{prefix}{n:03}" for n in range(*span)]


CLEAN = {
    "a": grid(numbered("u", 6), numbered("a", 3)),
    "b": grid(numbered("u", 2, 8), numbered("b", 3)),
    "c": grid(numbered("u", 4, 8), numbered("c", 2)),
}


def test_numbers_by_hand():
    found = report(a=[*CLEAN["a"], ("u000", "a000"), ("u009", "a000")], b=CLEAN["b"], k=2)
    a = found.domains["a"]
    assert (a.users, a.items, a.interactions) == (6, 3, 18)
    assert (a.rows_read, a.repeats, a.dropped) == (20, 1, 1)
    assert (a.density, a.mean_per_user) == (1.0, 3.0)
    assert found.known_in == (4, 4)
    assert found.common == ((6, 4), (4, 6))


def test_three_clean_domains_have_no_warning_and_go_through_json():
    found = report(**CLEAN)
    assert found.warnings == ()
    assert found.known_in == (2, 4, 2)
    assert found.common == ((6, 4, 2), (4, 6, 4), (2, 4, 4))
    back = json.loads(json.dumps(found.to_dict()))
    assert back["domains"]["c"]["interactions"] == 8
    assert back["common"][0] == [6, 4, 2]
    assert back["warnings"] == []


def only_warning(found):
    (text,) = found.warnings
    assert "\n" not in text
    return text


def test_one_domain_is_fitted_alone():
    assert "a is the only domain: it learns alone" in only_warning(report(a=CLEAN["a"]))


def test_swapped_columns_are_found_and_the_others_not_accused():
    swapped = [(i, u) for u, i in CLEAN["c"]]
    found = report(a=CLEAN["a"], b=CLEAN["b"], c=swapped)
    (text,) = [w for w in found.warnings if "swapped" in w]
    assert text.startswith("100% of c's item ids are user ids of other domains, but only 0% of")


def test_of_two_domains_either_may_be_the_swapped_one():
    swapped = [(i, u) for u, i in CLEAN["c"]]
    found = report(a=CLEAN["a"], c=swapped)
    first, second = [w for w in found.warnings if "swapped" in w]
    assert first.startswith("33% of a's user ids are item ids")
    assert second.startswith("50% of c's item ids are user ids")


def test_swapped_columns_are_found_by_a_shared_catalogue_alone():
    swapped = [(i, f"v{u}") for u, i in CLEAN["a"]]
    found = report(a=CLEAN["a"], c=swapped)
    assert any("100% of c's user ids are item ids of other domains" in w for w in found.warnings)


def test_numbered_users_and_items_that_overlap_are_not_called_swapped():
    found = report(a=grid(range(50), range(100, 110)), b=grid(range(10, 60), range(20)))
    assert found.warnings == ()


def test_no_overlap_and_little_overlap():
    lonely = grid(numbered("x", 5), numbered("d", 3))
    found = report(a=CLEAN["a"], b=CLEAN["b"], d=lonely)
    assert "d shares no user with any other domain" in only_warning(found)
    big = {"a": grid(numbered("u", 200), ["a1", "a2"])}
    big["b"] = grid(numbered("u", 199, 399), ["b1", "b2"])
    text = only_warning(report(**big))
    assert "a and b share 1 users, under 1% of the 200 in the smaller" in text


def test_ids_of_different_type_between_domains():
    found = report(a=grid([1, 2], ["x", "z"]), b=grid(["1", "2"], ["p", "q"]))
    assert "user ids are integers in a, text in b: all were compared as text" in only_warning(found)
    assert found.common[0][1] == 2


def test_an_item_id_in_two_domains():
    found = report(a=CLEAN["a"], b=grid(numbered("u", 6), ["a000", "b1"]))
    assert "item ids occur in two domains (a and b 1): they count as different" in only_warning(
        found
    )


def test_users_with_one_interaction():
    found = report(a=[*CLEAN["a"], ("u006", "a000")], b=CLEAN["b"])
    assert "1 users of a have one interaction: nothing of theirs can be held out" in only_warning(
        found
    )


def test_words_for_missing_values_are_kept_and_told():
    found = report(a=[*CLEAN["a"], *grid(["NaN", "None"], ["a000", "NA"])], b=CLEAN["b"])
    users, items = found.warnings
    assert users.startswith("user ids include 'NaN', 'None': kept as ids")
    assert items.startswith("item ids of a include 'NA': kept as ids")
    assert found.domains["a"].users == 8


def test_ids_that_differ_by_case_or_blanks_even_in_different_domains():
    found = report(
        a=[*CLEAN["a"], *grid(["Ann"], ["a000", "a001 "])], b=grid(["ann", "u000"], "xy")
    )
    users, items = found.warnings
    assert "1 user ids differ from another only by case or blanks, such as 'Ann' and 'ann'" in users
    assert "1 item ids of a differ" in items
    assert "'a001' and 'a001 '" in items


def test_ids_in_bytes_are_compared_too():
    found = report(a=grid([b"\xff", b"a"], [b"x", b"y"]), b=grid([b"\xff", b"a"], [b"x", b"z"]))
    assert "(a and b 1)" in only_warning(found)
