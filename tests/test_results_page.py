"""docs/results.md against what it is made from."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    """benchmarks/results.py as a module."""
    folder = str(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("results_page", f"{folder}/results.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [folder, *sys.path])
        spec.loader.exec_module(module)
    return module


def test_the_page_says_what_was_measured(script):
    kept = script.kept()
    assert kept
    written = script.PAGE.read_text(encoding="utf-8").partition(script.MARKER)[2]
    assert written.strip() == "\n".join(script.page(kept)).strip()


def test_a_claim_is_marked_after_correction_for_all_domains_of_all_sets(script):
    def found(p, difference):
        return {"p": p, "difference": difference, "relative": 10 * difference}

    cells = {"a": found(0.001, 0.01), "b": found(0.03, -0.02)}
    one = {"pairs": {"smf_ae smf": cells}}
    other = {"pairs": {"smf_ae smf": {"c": found(0.04, 0.03)}}}
    rows = [("It helps", "smf_ae", "smf")]
    alone = list(script.asked_and_answered({"one": one}, rows))[-1]
    assert alone.endswith("| 1 | 1 | 0 | a +10.0 %▲, b -20.0 %▼ |")
    both = list(script.asked_and_answered({"one": one, "other": other}, rows))[-1]
    assert both.endswith("| 1 | 0 | 2 | a +10.0 %▲, b -20.0 %, c +30.0 % |")


def test_a_pair_of_two_comparisons_of_a_set_counts_once(script):
    cell = {"p": 0.001, "difference": 0.01, "relative": 0.1}
    sets = {
        "one": {"pairs": {"smf_ae smf": {"a": cell}}},
        "one-more": {"pairs": {"smf_ae smf": {"a": {**cell, "relative": 0.2}}}},
        "other": {"pairs": {"smf_ae smf": {"a": cell}}},
    }
    row = list(script.asked_and_answered(sets, [("It helps", "smf_ae", "smf")]))[-1]
    assert row.endswith("| 2 | 0 | 0 | a +10.0 %▲, a +10.0 %▲ |")


TRIES = {"anime4": 5, "anime6": 5, "journey6": 5, "amazon4": 3, "epinions5": 2}
"""The larger sets take hours even so."""

MISSING = {
    "anime4": set(),
    # the case of small domains: what a fit serves and what it is held against
    "anime6": {
        "pop",
        "light_gcn",
        "cmf",
        "mpf",
        "herograph",
        "herograph_l",
        "ga_mtcdr",
        "ga_mtcdr_p",
        "smf_ae",
        "smf_cat",
        "cat_art_mean",
        "cat_art_linear",
        "cat_art_no_global",
        "linear",
        "ials_head",
        "items_control",
        "cat_art_shuffled",
        "cat_art_noise",
        "pooled_smf",
    },
    "journey6": {"linear", "ials_head"},
    "amazon4": {"ials_head"},
    "epinions5": set(),
}
"""Models that are not measured on a set yet, as the page's first part says."""


def test_what_is_kept_names_its_commit_and_settings(script):
    models = {name: set() for name in TRIES}
    for part, found in script.kept().items():
        name = part.partition("-")[0]
        assert found["seeds"] >= 5, part
        assert found["tries"] >= TRIES[name], part
        assert len(found["commit"]) >= 7
        models[name] |= set(found["models"])
    assert models == {name: set(script.MODELS) - MISSING[name] for name in TRIES}


def test_what_is_served_is_marked_after_correction_for_both_metrics_and_all_domains(script):
    def cell(p, difference):
        return {"p": p, "difference": difference, "relative": 10 * difference}

    served = {
        "a": {
            "ndcg@10": {"best": cell(0.001, 0.01), "pooled_ease": cell(0.01, -0.01)},
            "recall@20": {"best": cell(0.03, 0.02), "pooled_ease": cell(0.5, 0.0)},
        }
    }
    sets = {"one": {"served": served, "best_alone": {"a": "ease"}}, "other": {}}
    *_, row = script.what_is_served(sets)
    assert row == "| one | a | EASE | +10.0 % ▲ | +20.0 % ▲ | -10.0 % ▼ | +0.0 % |"
    more = {"b": {metric: {"best": cell(0.9, 0.0)} for metric in script.SERVED}}
    sets["one"] = {"served": {**served, **more}, "best_alone": {"a": "ease", "b": "smf"}}
    *_, row, last = script.what_is_served(sets)
    assert row == "| one | a | EASE | +10.0 % ▲ | +20.0 % | -10.0 % ▼ | +0.0 % |"
    assert last == "| one | b | SMF | +0.0 % | +0.0 % |  |  |"
    assert list(script.what_is_served({"other": {}})) == []
