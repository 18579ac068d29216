"""What a path's values are made of: a mapping cannot give a strict signal a lax name.

Rules:
 * A value is made of the bits of its signal, and of the bits that decide whether it is there: those
   of its multiplexers and of the entry's conditions.
 * A path that is made of bits which also stand for a path of a stricter class is not taken: its own
   class would give out under laxer rules what the stricter one protects. So a value, also one that
   the mapping derives by `math`, is never given out under a laxer class than what it is made of.
 * A message that ISO 15765-2 carries and the frames that carry it are one: bits are compared where
   a single frame has them, and a signal of frames that may be parts of a longer message is made of
   all that the message holds. So is one of J1939's transport packets.
 * How strict a class is follows from the catalogue: not grantable, once, a grid, a longer interval
   at least, in this order. Classes that limit alike do not forbid each other anything.
"""

from collections.abc import Iterable, Mapping, Sequence

from agent.core.bound import Bound
from agent.core.catalogue import Catalogue, ScopeClass
from agent.core.decode import Field, Mux
from agent.core.j1939tp import PGN_DT
from agent.core.pgn import pgn_of

_Strictness = tuple[bool, bool, bool, float]
_Layout = tuple[int, int, str, bool]  # Same bits read in the same way: the same raw value.
_HIGH_NIBBLE = frozenset(range(4, 8))


def laxer(bounds: Sequence[Bound], catalogue: Catalogue) -> Mapping[str, str]:
    """Return the paths of one bus that must not be taken, each with the reason.

    Args:
        bounds: What the entries of one mapping are bound to on the bus.
        catalogue: Which class each path belongs to.
    """
    by_message: dict[tuple[bool, int], list[Bound]] = {}
    for bound in bounds:
        by_message.setdefault(_message(bound), []).append(bound)
    packets = by_message.get((True, PGN_DT), [])
    found: dict[str, str] = {}
    for key, sharing in by_message.items():
        for strict in sharing:
            carriers = packets if strict.is_j1939 and strict.is_transported else []
            for lax in sharing if key == (True, PGN_DT) else [*sharing, *carriers]:
                strict_class = catalogue.classes[strict.scope.scope_class]
                is_stricter = strictness(strict_class) > strictness(
                    catalogue.classes[lax.scope.scope_class]
                )
                if is_stricter and (lax in carriers or _is_made_of(lax, strict)):
                    found.setdefault(
                        lax.vss.path,
                        f"it is made of {strict.entry.signal}, which also stands for "
                        f"{strict.vss.path} of the stricter class {strict_class.name}",
                    )
    return found


def strictness(scope_class: ScopeClass) -> _Strictness:
    """Return what orders classes from the laxest to the strictest."""
    return (
        not scope_class.grantable,
        bool(scope_class.ceilings.get("once", False)),
        "grid_deg" in scope_class.defaults,
        float(scope_class.ceilings.get("min_interval_s", 0)),
    )


def _message(bound: Bound) -> tuple[bool, int]:
    return bound.is_j1939, pgn_of(bound.can_id) if bound.is_j1939 else bound.can_id


def _is_made_of(lax: Bound, strict: Bound) -> bool:
    sources = lax.entry.source, strict.entry.source
    if None not in sources and sources[0] != sources[1]:
        return False  # Two J1939 devices' messages.
    if not (_is_single_frame(lax, strict) and _is_single_frame(strict, lax)):
        return True
    shift, strict_shift = _shift(lax), _shift(strict)
    protected = _bits(strict.field, strict_shift)
    deciding = [*_selectors(lax.field), *(field for field, _ in lax.conditions)]
    deciding += [selector for field, _ in lax.conditions for selector in _selectors(field)]
    if any(not protected.isdisjoint(_bits(field, shift)) for field in deciding):
        return True
    lies_in = not protected.isdisjoint(_bits(lax.field, shift))
    return lies_in and _may_meet(lax.field, shift, strict.field, strict_shift)


def _shift(bound: Bound) -> int:
    """Return how many bits of a single frame stand before the DBC's first one."""
    isotp = bound.entry.isotp
    if isotp is None:
        return 0
    return 8 * ((not isotp.with_length) + (isotp.address is not None))


def _is_single_frame(bound: Bound, other: Bound) -> bool:
    """Tell whether a signal of frames is in none that is a part of the other's longer message."""
    isotp = other.entry.isotp
    if isotp is None or bound.entry.isotp is not None:
        return True
    # ISO 15765-2 table 9: the high half of the first byte, behind the address, is the kind; 0 is
    # a single frame.
    place = 8 * (isotp.address is not None)
    kind = {place + bit for bit in _HIGH_NIBBLE}
    for mux in _muxes(bound.field):
        first, length = mux.selector.first_bit, mux.selector.length
        if kind == _bits(mux.selector):
            return all(high == 0 for _, high in mux.ids)
        if (first, length) == (place, 8):
            return all(high <= 0xF for _, high in mux.ids)
    return False


def _bits(field: Field, shift: int = 0) -> frozenset[int]:
    """Return the numbers of a signal's bits, 8 * byte + bit, bit 0 the least significant."""
    places = range(shift + field.first_bit, shift + field.first_bit + field.length)
    if field.order == "little":
        return frozenset(places)
    return frozenset(8 * (place // 8) + 7 - place % 8 for place in places)


def _selectors(field: Field) -> Iterable[Field]:
    for mux in _muxes(field):
        yield mux.selector


def _may_meet(one: Field, shift: int, other: Field, other_shift: int) -> bool:
    """Tell whether a payload can carry both signals: not under different multiplexer values."""
    ids = {_layout(mux.selector, shift): mux.ids for mux in _muxes(one)}
    return all(
        layout not in ids or _overlap(ids[layout], mux.ids)
        for mux in _muxes(other)
        for layout in (_layout(mux.selector, other_shift),)
    )


def _layout(field: Field, shift: int) -> _Layout:
    order = "" if field.is_whole and field.length == 8 else field.order
    return shift + field.first_bit, field.length, order, field.is_signed


def _muxes(field: Field) -> Iterable[Mux]:
    mux = field.mux
    while mux is not None:
        yield mux
        mux = mux.selector.mux


def _overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    return any(low <= high_ and low_ <= high for low, high in one for low_, high_ in other)
