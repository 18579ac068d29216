"""Which identifiers must reach the process: the kernel's filters, compiled from a plan.

A filter passes a frame if `frame & mask == can_id & mask` (linux/can.h, struct can_filter), over
canid_t with its flags:

    31   30   29   28 ............................ 0
    EFF  RTR  ERR  identifier (29 bits, or 11 in 0..10)

Rules:
 * Every frame from which the plan takes something passes. Without a take there is no filter, and
   no filter means that nothing may pass: the bus is not even opened.
 * EFF and RTR are in every mask, so standard 0x100, extended 0x100 and a remote frame stay apart.
   ERR is in none: error frames have a filter of their own (CAN_RAW_ERR_FILTER).
 * A parameter group passes with any priority and source, for PDU1 with any destination too
   (SAE J1939-21 5.1.2); where a plan wants named sources only, with these.
 * The kernel takes 512 filters for a socket. Beyond that the two neighbours that let the fewest
   foreign identifiers in are merged, again and again: wider, never fewer.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_RTR_FLAG, CAN_SFF_MASK
from agent.core.plan import Plan, is_pdu1, pgn_of

MAX_FILTERS = 512  # linux/can/raw.h: CAN_RAW_FILTER_MAX
_KIND = CAN_EFF_FLAG | CAN_RTR_FLAG
_PGN = 0x3FF_FF00  # Extended data page, data page, PDU format and PDU specific.
_PGN_PDU1 = 0x3FF_0000  # Without PDU specific, which is the destination.
_SOURCE = 0xFF


@dataclass(frozen=True, slots=True, order=True)
class CanFilter:
    """One filter of a raw socket.

    Attributes:
        can_id: canid_t; bits outside the mask are zero.
        mask: The bits that count.
    """

    can_id: int
    mask: int

    def passes(self, can_id: int) -> bool:
        """Tell whether a frame with this canid_t passes."""
        return can_id & self.mask == self.can_id

    @property
    def size(self) -> int:
        """How many identifiers pass."""
        free = _bits(self.can_id) & ~self.mask
        return 1 << free.bit_count()


@dataclass(frozen=True, slots=True)
class FilterSet:
    """The filters of one bus.

    Attributes:
        filters: At most the limit; () where nothing may pass.
        beyond: At most so many identifiers pass that nobody needs; 0 unless the limit was reached.
    """

    filters: tuple[CanFilter, ...]
    beyond: int


def exact_filter(can_id: int) -> CanFilter:
    """Return the filter that passes data frames with this identifier alone."""
    return CanFilter(can_id, _KIND | _bits(can_id))


def pgn_filter(pgn: int, source: int | None = None) -> CanFilter:
    """Return the filter that passes a parameter group, of one source address or of all."""
    mask = _KIND | (_PGN_PDU1 if is_pdu1(pgn) else _PGN)
    can_id = CAN_EFF_FLAG | pgn << 8
    if source is not None:
        mask, can_id = mask | _SOURCE, can_id | source
    return CanFilter(can_id & mask, mask)


def message_filter(can_id: int, *, is_j1939: bool) -> CanFilter:
    """Return the filter for a message: its parameter group for J1939, else its identifier."""
    return pgn_filter(pgn_of(can_id)) if is_j1939 else exact_filter(can_id)


def compile_filters(
    plan: Plan, bus: str, *, extra: Iterable[CanFilter] = (), limit: int = MAX_FILTERS
) -> FilterSet:
    """Return the filters for one bus under a plan.

    Args:
        plan: What may be taken.
        bus: The bus's name.
        extra: What else must pass, such as the frames of a transport protocol. Each has EFF and RTR
            in its mask.
        limit: Most filters.
    """
    known: str | None = bus if bus in plan.exact else None
    wanted = {exact_filter(can_id) for can_id in plan.exact.get(known, {})}
    for pgn, by_source in plan.pgns.get(known, {}).items():
        wanted |= _of_group(pgn, by_source)
    kept = _without_covered(wanted | set(extra))
    filters = _merged(kept, limit)
    beyond = sum(f.size for f in filters) - sum(f.size for f in kept)
    return FilterSet(tuple(filters), max(0, beyond))


def _of_group(pgn: int, by_source: Mapping[int | None, tuple[Any, ...]]) -> set[CanFilter]:
    if by_source.get(None):
        return {pgn_filter(pgn)}
    return {pgn_filter(pgn, source) for source, taps in by_source.items() if taps}


def _bits(can_id: int) -> int:
    return CAN_EFF_MASK if can_id & CAN_EFF_FLAG else CAN_SFF_MASK


def _without_covered(filters: set[CanFilter]) -> list[CanFilter]:
    """Return the filters in order, without those of which another passes every frame."""
    by_mask: dict[int, set[int]] = {}
    for each in filters:
        by_mask.setdefault(each.mask, set()).add(each.can_id)

    def is_covered(each: CanFilter) -> bool:
        return any(
            mask != each.mask and mask & each.mask == mask and each.can_id & mask in ids
            for mask, ids in by_mask.items()
        )

    return sorted(each for each in filters if not is_covered(each))


def _merged(filters: list[CanFilter], limit: int) -> list[CanFilter]:
    """Widen neighbours until at most `limit` filters are left, the cheapest merge first."""
    left = len(filters)
    slots: list[CanFilter | None] = list(filters)
    after = [*range(1, left + 1)]
    before = [*range(-1, left - 1)]
    heap: list[tuple[int, int, int, CanFilter, CanFilter]] = []

    def offer(one: int, two: int) -> None:
        a, b = slots[one], slots[two]
        assert a is not None, "neighbours are there"
        assert b is not None, "neighbours are there"
        # Standard and extended identifiers stay apart, so there are two filters at the least.
        if a.can_id & CAN_EFF_FLAG == b.can_id & CAN_EFF_FLAG:
            wide = _union(a, b)
            heapq.heappush(heap, (wide.size - a.size - b.size, one, two, a, b))

    for index in range(left - 1):
        offer(index, index + 1)
    while left > limit and heap:
        _, one, two, a, b = heapq.heappop(heap)
        if slots[one] != a or slots[two] != b:
            continue  # One of them was merged with another neighbour meanwhile.
        slots[one], slots[two] = _union(a, b), None
        left -= 1
        after[one] = after[two]
        if after[one] < len(slots):
            before[after[one]] = one
            offer(one, after[one])
        if before[one] >= 0:
            offer(before[one], one)
    return _without_covered({each for each in slots if each is not None})


def _union(a: CanFilter, b: CanFilter) -> CanFilter:
    mask = a.mask & b.mask & ~(a.can_id ^ b.can_id)
    return CanFilter(a.can_id & mask, mask)
