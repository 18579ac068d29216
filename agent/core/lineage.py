"""What a path's values are made of: a mapping cannot give a strict signal a lax name.

Rules:
 * A value is made of the bits of its signal, and of the bits that decide whether it is there: those
   of its multiplexers and of the entry's conditions.
 * A path that is made of bits which also stand for a path of a stricter class is not taken: its own
   class would give out under laxer rules what the stricter one protects. So a value, also one that
   the mapping derives by `math`, is never given out under a laxer class than what it is made of.
 * How strict a class is follows from the catalogue: not grantable, once, a grid, a longer interval
   at least, in this order. Classes that limit alike do not forbid each other anything.
"""

from collections.abc import Iterable, Mapping, Sequence

from agent.core.bound import Bound
from agent.core.catalogue import Catalogue, ScopeClass
from agent.core.decode import Field, Mux
from agent.core.pgn import pgn_of

_Strictness = tuple[bool, bool, bool, float]


def laxer(bounds: Sequence[Bound], catalogue: Catalogue) -> Mapping[str, str]:
    """Return the paths of one bus that must not be taken, each with the reason.

    Args:
        bounds: What the entries of one mapping are bound to on the bus.
        catalogue: Which class each path belongs to.
    """
    by_message: dict[tuple[bool, int], list[Bound]] = {}
    for bound in bounds:
        key = bound.is_j1939, pgn_of(bound.can_id) if bound.is_j1939 else bound.can_id
        by_message.setdefault(key, []).append(bound)
    found: dict[str, str] = {}
    for sharing in by_message.values():
        for lax in sharing:
            for strict in sharing:
                strict_class = catalogue.classes[strict.scope.scope_class]
                is_stricter = strictness(strict_class) > strictness(
                    catalogue.classes[lax.scope.scope_class]
                )
                if is_stricter and _is_made_of(lax, strict):
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


def _is_made_of(lax: Bound, strict: Bound) -> bool:
    sources = lax.entry.source, strict.entry.source
    if None not in sources and sources[0] != sources[1]:
        return False  # Two J1939 devices' messages.
    protected = _bits(strict.field)
    deciding = [*_selectors(lax.field), *(field for field, _ in lax.conditions)]
    deciding += [selector for field, _ in lax.conditions for selector in _selectors(field)]
    if any(not protected.isdisjoint(_bits(field)) for field in deciding):
        return True
    return _may_meet(lax.field, strict.field) and not protected.isdisjoint(_bits(lax.field))


def _bits(field: Field) -> frozenset[int]:
    """Return the numbers of a signal's bits, 8 * byte + bit, bit 0 the least significant."""
    places = range(field.first_bit, field.first_bit + field.length)
    if field.order == "little":
        return frozenset(places)
    return frozenset(8 * (place // 8) + 7 - place % 8 for place in places)


def _selectors(field: Field) -> Iterable[Field]:
    mux = field.mux
    while mux is not None:
        yield mux.selector
        mux = mux.selector.mux


def _may_meet(one: Field, other: Field) -> bool:
    """Tell whether a payload can carry both signals: not under different multiplexer values."""
    ids = {mux.selector: mux.ids for mux in _muxes(one)}
    return all(
        mux.selector not in ids or _overlap(ids[mux.selector], mux.ids) for mux in _muxes(other)
    )


def _muxes(field: Field) -> Iterable[Mux]:
    mux = field.mux
    while mux is not None:
        yield mux
        mux = mux.selector.mux


def _overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    return any(low <= high_ and low_ <= high for low, high in one for low_, high_ in other)
