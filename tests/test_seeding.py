import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from musketeers.seeding import Seed

names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=4
)


def first(seed):
    return seed.numpy().integers(2**62, size=4).tolist()


@given(st.integers(0, 2**63 - 1), names)
def test_a_stream_depends_on_the_seed_and_its_name_alone(entropy, path):
    step_by_step = Seed(entropy)
    for name in path:
        step_by_step.child("another").numpy().random()
        step_by_step = step_by_step.child(name)
    assert first(step_by_step) == first(Seed(entropy).child(*path))
    assert step_by_step == Seed(entropy).child(*path)


@given(names, names)
def test_two_names_are_two_streams(one, other):
    seed = Seed(1)
    assert (first(seed.child(*one)) == first(seed.child(*other))) == (one == other)


def test_asking_twice_starts_at_the_beginning():
    seed = Seed(3).child("pretrain", "books")
    assert first(seed) == first(seed)
    assert seed.integer() == seed.integer()


def test_other_seeds_give_other_streams():
    seeds = [0, 1, 2, 2**32, 2**63 - 1]
    assert len({Seed(s).integer() for s in seeds}) == len(seeds)


@given(st.integers(0, 2**63 - 1), names)
def test_integers_fit_torch_and_kernels(entropy, path):
    assert 0 <= Seed(entropy).child(*path).integer() < 2**63


def test_streams_look_independent():
    draws = np.stack([Seed(0).child("epoch", str(n)).numpy().normal(size=2000) for n in range(40)])
    across = np.corrcoef(draws)[~np.eye(40, dtype=bool)]
    assert np.abs(across).max() < 5 / np.sqrt(2000)
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size)


def test_another_process_and_hash_seed_give_the_same_stream():
    code = "from musketeers.seeding import Seed; print(Seed(5).child('a', 'b').integer())"
    for hash_seed in ("0", "1"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(out.stdout) == Seed(5).child("a", "b").integer()
