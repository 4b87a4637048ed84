"""What a run whose users are spread over members costs: memory, operations, bytes sent, seconds.

Functions of a `Workload`, a `Machine` and the `Rates` that scale.py measured; docs/scale.md has the
formulas in words.  Nothing here measures or reads anything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from musketeers.evaluation.validation import MOST_USERS
from musketeers.pretrain.lanes import (
    BLOCK,
    BLOCK_PER_ITEM,
    FEW_LANES,
    MEMBERS_BLOCK,
    held_down,
)
from musketeers.pretrain.tables import FIRST_MERGES, FIRST_MET, MEMBERS_MERGES, MERGES

TRAIN = 0.64
"""Share of pairs that train, with the default split."""
FLOAT = 4
"""Bytes of a number in a table."""
NUMBER = 8
"""Bytes of one that is summed or gathered by itself."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain's size."""

    users: int
    """Whom it knows."""
    items: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be trained, and how often."""

    users: int
    """Known to any domain."""
    domains: tuple[Domain, ...]
    dim: int = 64
    epochs: tuple[int, int, int] = (12, 4, 6)
    """Of stages 1, 2 and 3; as benchmarks/whole.py trains once."""
    looks: tuple[int, int, int] = (5, 5, 7)
    """Validations of each stage, the one before the first epoch included."""
    cat_batch: int = 1024
    """Users of a step of all members together."""
    art_batch: int = 2048
    gathered: bool = True
    """Whether stage 2 tells a user apart from those of all members (`cat.contrast_users`)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one member has."""

    name: str
    threads: int
    memory: float
    """Bytes."""
    link: float
    """Bytes a second that it can send while it receives as many."""
    latency: float
    """Seconds that a message takes from one machine to another, one way."""
    storage: float
    """Bytes a second that it writes to what all members share."""
    dollars: float
    """An hour."""
    share: float = 1.0
    """Processors for each thread, less than 1 where several members share a machine."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds and bytes, of one thread while all processors of the machine are busy."""

    start: float
    """Seconds before and after the stages: imports, compiled loops, the report."""
    read_row: float
    """Of a row that is read, made distinct, split and put into shards."""
    pair: float
    """Of a training pair in an epoch of stage 1, with a table of items of 1 MB."""
    pair_growth: float
    """What is added for each doubling of that table."""
    user: float
    """Of a user in an epoch of stage 1, however many pairs."""
    merge_byte: float
    """Of a byte of the table of items in a merge of lanes and members, whatever the lanes."""
    merge_lane_byte: float
    """The same for each lane."""
    cat_step: float
    """Of a step of stage 2, however few users."""
    cat_step_thread: float
    """What is added for each thread."""
    cat_flop: float
    """Of an operation of its network."""
    cat_other: float
    """Of a user for each other user that it is told apart from."""
    art_step: float
    """Of a step of stage 3, however few users."""
    art_step_thread: float
    art_flop: float
    art_pair: float
    """Of a training pair in an epoch of stage 3."""
    list_user: float
    """Of a user who is measured, whatever the items."""
    list_item: float
    """Of each item that is ranked for a user."""
    save_user: float
    """Of a user and domain: what is written at the end."""
    hop: float
    """Of a step of a collective, from one process to the next, on a network without latency."""
    sent_byte: float
    """Of a byte that gloo sends and adds up, on a link that is not the limit."""
    base: float
    """Bytes of a process that holds no data."""
    user_tables: float
    """Tables of all users' vectors that are held at the most, for each domain."""
    item_tables: float
    """Tables of all domains' items that are held at the most, beside the lanes' copies."""
    pair_bytes: float
    """For each pair of all domains."""

    @classmethod
    def of(cls, found: Mapping[str, float]) -> "Rates":
        """As the committed JSON has them."""
        return cls(**{field.name: found[field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part of a run takes of each member."""

    work: float = 0.0
    """Seconds of computing, its threads sharing it."""
    network: float = 0.0
    """Seconds of waiting for what members send each other."""
    storage: float = 0.0
    """Seconds of writing to what all members share."""
    sent: float = 0.0
    """Bytes that it sends to other members."""
    flops: float = 0.0
    """Operations on floating-point numbers in products, of all members together."""

    @property
    def seconds(self) -> float:
        """All of it: nothing here overlaps."""
        return self.work + self.network + self.storage

    def __add__(self, other: "Cost") -> "Cost":
        names = [field.name for field in fields(Cost)]
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __mul__(self, times: float) -> "Cost":
        return Cost(**{field.name: times * getattr(self, field.name) for field in fields(Cost)})


NOTHING = Cost()


def costs(load: Workload, machine: Machine, n: int, rates: Rates) -> dict[str, Cost]:
    """By step of a run on `n` members."""
    of = _Run(load, machine, n, rates)
    domains = load.domains
    return {
        "start": Cost(work=rates.start),
        "read": sum(map(of.read, domains), NOTHING),
        "stage 1": sum((of.stage_1(domain) for domain in domains), NOTHING),
        "stage 2": of.stage_2(),
        "stage 3": sum((of.stage_3(domain) for domain in domains), NOTHING),
        "evaluate": sum(map(of.evaluate, domains), NOTHING),
        "save": sum(map(of.save, domains), NOTHING),
    }


def total(parts: Mapping[str, Cost]) -> Cost:
    """All steps together."""
    return sum(parts.values(), NOTHING)


def dollars(parts: Mapping[str, Cost], machine: Machine, n: int) -> float:
    """Of all members until the last step is over."""
    return n * machine.dollars * total(parts).seconds / 3600


def memory(load: Workload, threads: int, n: int, rates: Rates) -> float:
    """Bytes that a member holds at the most."""
    users = load.users / n * len(load.domains)
    items = sum(domain.items for domain in load.domains)
    pairs = sum(domain.pairs for domain in load.domains) / n
    return (
        rates.base
        + rates.user_tables * users * load.dim * FLOAT
        + rates.item_tables * items * load.dim * FLOAT
        + lanes_held(load, threads, n)
        + rates.pair_bytes * pairs
    )


def lanes_held(load: Workload, threads: int, n: int) -> int:
    """Bytes of the largest table of items as each lane has it, and as members merged it last."""
    copies = (threads if threads > 1 else 0) + (1 if n > 1 else 0)
    return copies * max(domain.items for domain in load.domains) * load.dim * FLOAT


def members_needed(load: Workload, machine: Machine, rates: Rates) -> int | None:
    """The fewest whose memory holds the run, a tenth left free; None if no number does."""
    most = 0.9 * machine.memory
    if memory(load, machine.threads, 10**9, rates) > most:
        return None
    n = 1
    while memory(load, machine.threads, n, rates) > most:
        n += max(1, n // 64)
    return n


def best(
    load: Workload, machine: Machine, rates: Rates, *, least: int = 1
) -> tuple[int, dict[str, int]]:
    """The number of members, `least` times a power of two, of the fastest whole and of each step's
    fastest."""
    sizes = [least * 2**power for power in range(15)]
    found = {n: costs(load, machine, n, rates) for n in sizes}
    steps = {step: min(sizes, key=lambda n: found[n][step].seconds) for step in found[least]}
    return min(sizes, key=lambda n: total(found[n]).seconds), steps


def careful(load: Workload) -> Workload:
    """As many members would have to run it: in larger steps.

    A thousand steps an epoch, or as many as documented if these are fewer, and users told apart
    from those on their own member.
    """
    step = load.users // 1000
    return replace(
        load, cat_batch=max(load.cat_batch, step), art_batch=max(load.art_batch, step),
        gathered=False,
    )  # fmt: skip


def all_reduce(size: float, machine: Machine, n: int, rates: Rates) -> Cost:
    """Around a ring, twice: first sums are made, each of a part, then they are told.

    In gloo who receives says so first, so a step takes a message there and one back; one number
    alone has no parts, and its steps do not wait for each other so.
    """
    if n == 1:
        return NOTHING
    sent, messages = 2 * (n - 1) / n * size, 1 if size <= NUMBER else 2
    wait = 2 * (n - 1) * (rates.hop + messages * machine.latency) + sent * _byte(machine, rates)
    return Cost(network=wait, sent=sent)


def all_gather(size: float, machine: Machine, n: int, rates: Rates) -> Cost:
    """Around a ring, once, `size` bytes of each member; their lengths go before, likewise."""
    if n == 1:
        return NOTHING
    sent = (n - 1) * (size + NUMBER)
    wait = 2 * (n - 1) * (rates.hop + 2 * machine.latency) + sent * _byte(machine, rates)
    return Cost(network=wait, sent=sent)


def cat_parameters(n_domains: int, dim: int) -> int:
    """Of the network of stage 2."""
    wide = n_domains * dim
    maps = wide * wide + wide * 3 * dim + 3 * dim * dim
    return 2 * maps + (wide + 3 * dim + dim) + (3 * dim + 2 * wide) + dim + 4


def cat_flops(n_domains: int, dim: int) -> int:
    """Of a user in a step of stage 2, there and back, both views, contrast apart."""
    wide = n_domains * dim
    there = 2 * (wide * wide + wide * 3 * dim + 3 * dim * dim)
    # the inputs have no slopes
    return 2 * 2 * (3 * there - wide * wide)


def art_parameters(n_domains: int, dim: int) -> int:
    """Of the network of stage 3 of one domain."""
    return (n_domains - 1) * (dim * dim + dim) + 5 * dim * dim + 3 * dim


def art_flops(n_domains: int, dim: int) -> int:
    """Of a user in a step of stage 3: a map for each source and three more there, and back those
    by each map and one by what was attended."""
    return 2 * (2 * (n_domains - 1) + 7) * dim * dim


@dataclass(frozen=True, slots=True)
class _Run:
    """The arguments that every step depends on."""

    load: Workload
    machine: Machine
    n: int
    rates: Rates

    def read(self, domain: Domain) -> Cost:
        """From files to shards; each row goes to the member whose user it is of."""
        rows = domain.pairs / self.n
        sent = rows * (self.n - 1) / self.n * 16
        return self._shared(rows * self.rates.read_row) + Cost(
            network=sent / self.machine.link, sent=sent, storage=13 * rows / self.machine.storage
        )

    def stage_1(self, domain: Domain) -> Cost:
        """All epochs of one training of one domain."""
        rates, n, n_pairs = self.rates, self.n, TRAIN * domain.pairs
        each = domain.users / n * rates.user + n_pairs / n * self._pair(domain)
        learned = self._shared(each) + Cost(flops=n_pairs * 2 * self.load.dim * 8)
        n_epochs = self.load.epochs[0]
        n_merges = self._first_merges(domain) if n_epochs else 0
        n_merges += self._merges(domain) * max(n_epochs - 1, 0)
        state = (domain.users / n + domain.items) * (self.load.dim + 1) * FLOAT
        looks = self._look(domain, state) * self.load.looks[0]
        return learned * n_epochs + self._merge(domain) * n_merges + looks

    def stage_2(self) -> Cost:
        """All epochs of all domains together."""
        load = self.load
        epoch = self._cat(0.9 * load.users, learns=True)
        return epoch * load.epochs[1] + self._cat(0.1 * load.users, learns=False) * load.looks[1]

    def stage_3(self, domain: Domain) -> Cost:
        """All epochs of one domain."""
        load, rates, n, n_pairs = self.load, self.rates, self.n, TRAIN * domain.pairs
        n_domains = len(load.domains)
        flops = domain.users * art_flops(n_domains, load.dim)
        work = self._shared(flops / n * rates.art_flop + n_pairs / n * rates.art_pair)
        n_steps = math.ceil(domain.users / load.art_batch)
        slopes = FLOAT * art_parameters(n_domains, load.dim)
        step = Cost(work=self._step(rates.art_step, rates.art_step_thread))
        step += self._sum(NUMBER) + self._sum(slopes)
        # after whole steps, and once at the end
        steps_between = math.ceil(self._block(domain) / max(n_pairs / n_steps, 1))
        n_merges = n_steps // steps_between + 1
        epoch = work + step * n_steps + self._merge(domain) * n_merges
        epoch += Cost(flops=flops + n_pairs * 2 * load.dim * 8)
        state = domain.items * (load.dim + 1) * FLOAT
        return epoch * load.epochs[2] + self._look(domain, state) * load.looks[2]

    def evaluate(self, domain: Domain) -> Cost:
        """The domain's users measured once, and some with each other domain hidden."""
        rates, n_domains = self.rates, len(self.load.domains)
        lists = domain.users + min(domain.users, MOST_USERS) * (n_domains - 1)
        each = rates.list_user + rates.list_item * domain.items
        flops = 2 * lists * domain.items * self.load.dim
        return self._shared(lists / self.n * each) + Cost(flops=flops)

    def save(self, domain: Domain) -> Cost:
        """The run's folder: five tables of users and items, and the pairs."""
        rates, n = self.rates, self.n
        tables = 5 * (domain.users / n + domain.items) * self.load.dim * FLOAT
        return Cost(
            work=domain.users / n * rates.save_user / self.machine.share,
            storage=(tables + 6 * domain.pairs / n) / self.machine.storage,
        )

    def _cat(self, n_users: float, *, learns: bool) -> Cost:
        """One pass of stage 2; without slopes a third of the operations."""
        load, rates, n = self.load, self.rates, self.n
        n_domains, dim = len(load.domains), load.dim
        among = load.cat_batch if load.gathered else load.cat_batch / n
        products = n_users * cat_flops(n_domains, dim)
        part = 1.0 if learns else 1 / 3
        each = products * rates.cat_flop + n_users * among * rates.cat_other
        flops = part * (products + n_users * among * 10 * dim)
        step = Cost(work=self._step(rates.cat_step, rates.cat_step_thread))
        step += self._sum(NUMBER) * 3
        if load.gathered:
            own = load.cat_batch / n
            for size in (dim * FLOAT, dim * FLOAT, dim * FLOAT, 1):
                step += all_gather(own * size, self.machine, n, rates)
        if learns:
            if load.gathered:
                for size in (FLOAT, FLOAT):
                    step += all_gather(own * size, self.machine, n, rates)
                step += self._sum(load.cat_batch * dim * FLOAT)
            step += self._sum(FLOAT * cat_parameters(n_domains, dim))
        n_steps = math.ceil(n_users / load.cat_batch)
        return self._shared(part * each / n) + step * n_steps + Cost(flops=flops)

    def _pair(self, domain: Domain) -> float:
        table = domain.items * self.load.dim * FLOAT / 1e6
        return max(0.0, self.rates.pair + self.rates.pair_growth * math.log2(max(table, 1e-3)))

    @property
    def _n_lanes(self) -> int:
        """Threads of all members."""
        return self.n * self.machine.threads

    def _block(self, domain: Domain) -> int:
        """Pairs of all members between two merges, at least."""
        lane = max(BLOCK if self.n == 1 else MEMBERS_BLOCK, BLOCK_PER_ITEM * domain.items)
        return held_down(self._n_lanes * lane, self._n_lanes, domain.items)

    def _merges(self, domain: Domain) -> int:
        """In an epoch of stage 1, but for the first."""
        least = MERGES if self.n == 1 else MEMBERS_MERGES
        return max(least, int(TRAIN * domain.pairs // self._block(domain)))

    def _first_merges(self, domain: Domain) -> int:
        """In the first epoch of stage 1."""
        often = int(TRAIN * domain.pairs // (FIRST_MET * domain.items))
        least = min(FIRST_MERGES, often) if self._n_lanes > FEW_LANES else 0
        return max(least, self._merges(domain))

    def _merge(self, domain: Domain) -> Cost:
        """One merge: lanes into a table, tables into one, and back to all lanes."""
        threads = self.machine.threads
        if threads * self.n == 1:
            return NOTHING
        size = domain.items * (self.load.dim + 1) * FLOAT
        each = self.rates.merge_byte + self.rates.merge_lane_byte * threads
        return Cost(work=size * each / self.machine.share) + self._sum(size)

    def _look(self, domain: Domain, state: float) -> Cost:
        """A validation and what is kept of the progress."""
        rates, looked_at = self.rates, min(domain.users, MOST_USERS)
        each = rates.list_user + rates.list_item * domain.items
        ranked = self._shared(looked_at / self.n * each)
        told = all_gather(8 * looked_at / self.n, self.machine, self.n, rates)
        kept = Cost(storage=state / self.machine.storage)
        return ranked + told + kept + self._sum(NUMBER)

    def _sum(self, size: float) -> Cost:
        return all_reduce(size, self.machine, self.n, self.rates)

    def _step(self, alone: float, thread: float) -> float:
        return (alone + thread * self.machine.threads) / self.machine.share

    def _shared(self, seconds: float) -> Cost:
        """Work that a member's threads share."""
        return Cost(work=seconds / self.machine.threads / self.machine.share)


def _byte(machine: Machine, rates: Rates) -> float:
    return max(rates.sent_byte, 1 / machine.link)
