"""Changes that are likely to matter: to trees of JSON or CBOR values, to texts, to bytes."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

SCALARS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 256, 2**31, 2**32, 2**53 - 1, 2**53, -(2**53), 2**63, 2**64, 10**30),
    *(0.0, -0.0, 0.1, 0.5, 1.0, -1.5, 1e-7, 1e-320, 180.0, 180.1, 1e308, 1.7e308, 5e-324),
    *(True, False, None, "", "*", "a", "0", "1", "true", "null", "-", "_", ".", "A" * 64, "A" * 65),
    *(
        "\n",
        "a\n",
        "\u00e9",
        "\u2028",
        "\U0001f600",
        "\x00",
        "x" * 257,
        "../x",
        "1-5",
        "07:00",
        "24:00",
    ),
    *([], {}, [[]], [{}], [0], ["a", "a"], {"a": 0}),
)
_PIECES = (b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"{", b"}", b"[", b"]", b'"')
_MORE = (b",", b":", b"\\", b"0", b"-", b"e9", b"1e999", b"NaN", b"null", b"true", b"//", b"/*")


def times(rng: Random, most: int = 6) -> int:
    """Return how many changes to make: mostly one, seldom many."""
    count = 1
    while count < most and rng.random() < 0.35:
        count += 1
    return count


def copied(value: Any) -> Any:
    """Return a copy of a tree."""
    if isinstance(value, dict):
        return {name: copied(member) for name, member in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def slots(tree: Any) -> list[tuple[Any, Any]]:
    """Return each (container, key) of a tree."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in pairs:
            found.append((node, key))
            if isinstance(child, (dict, list)):
                waiting.append(child)
    return found


def mutate_tree(
    rng: Random, tree: Any, pool: Sequence[Any] = (), names: Sequence[Any] = ()
) -> None:
    """Make one change to a tree of dicts, lists and scalars, in place.

    Args:
        rng: Decides.
        tree: A dict or list.
        pool: Values that mean something there.
        names: Names that mean something there.
    """
    places = slots(tree)
    if not places:
        return
    holder, key = rng.choice(places)
    change = rng.choices(_CHANGES, _WEIGHTS)[0]
    change(rng, (holder, key), places, (pool or SCALARS, names or ("a",)))


_Slot = tuple[Any, Any]
_Words = tuple[Sequence[Any], Sequence[Any]]


def _replace(rng: Random, slot: _Slot, _: list[_Slot], words: _Words) -> None:
    holder, key = slot
    holder[key] = copied(rng.choice(words[0] if rng.random() < 0.6 else SCALARS))


def _nudge(rng: Random, slot: _Slot, _: list[_Slot], __: _Words) -> None:
    holder, key = slot
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = rng.choice((True, False, 0, 1, None))
    elif isinstance(value, int):
        holder[key] = rng.choice(
            (value + 1, value - 1, -value, value * 10, float(value % 2**62), value * 1000)
        )
    elif isinstance(value, float):
        whole = int(max(-1e9, min(value, 1e9))) if math.isfinite(value) else 0
        holder[key] = rng.choice((-value, value / 10, value * 10, value + 1e-9, whole))
    elif isinstance(value, str):
        holder[key] = nudged_text(rng, value)
    elif isinstance(value, bytes):
        holder[key] = spoiled(rng, value)
    elif isinstance(value, list):
        rng.shuffle(value)


def _delete(_: Random, slot: _Slot, __: list[_Slot], ___: _Words) -> None:
    holder, key = slot
    del holder[key]


def _insert(rng: Random, slot: _Slot, places: list[_Slot], words: _Words) -> None:
    holder = slot[0]
    value = copied(rng.choice(words[0])) if rng.random() < 0.7 else _value(rng.choice(places))
    if isinstance(holder, dict):
        holder[rng.choice(words[1])] = value
    else:
        holder.insert(rng.randrange(len(holder) + 1), value)


def _rename(rng: Random, slot: _Slot, _: list[_Slot], words: _Words) -> None:
    holder, key = slot
    if isinstance(holder, dict):
        name = rng.choice(words[1]) if rng.random() < 0.7 else nudged_text(rng, str(key))
        holder[name] = holder.pop(key)


def _swap(rng: Random, slot: _Slot, places: list[_Slot], _: _Words) -> None:
    (holder, key), (other, place) = slot, rng.choice(places)
    mine, its = copied(holder[key]), copied(other[place])
    other[place] = mine
    if holder is not other or key != place:
        try:
            holder[key] = its
        except (KeyError, IndexError):  # It was within what was replaced.
            return


def _double(rng: Random, slot: _Slot, places: list[_Slot], _: _Words) -> None:
    holder, key = slot
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copied(holder[key]))
    else:
        holder[key] = _value(rng.choice(places))


def _wrap(rng: Random, slot: _Slot, _: list[_Slot], words: _Words) -> None:
    holder, key = slot
    holder[key] = [holder[key]] if rng.random() < 0.5 else {rng.choice(words[1]): holder[key]}


_CHANGES: tuple[Callable[..., None], ...] = (
    *(_replace, _nudge, _delete, _insert, _rename, _swap, _double, _wrap),
)
_WEIGHTS = (6, 6, 2, 3, 1, 1, 2, 1)


def _value(slot: _Slot) -> Any:
    holder, key = slot
    return copied(holder[key])


def nudged_text(rng: Random, text: str) -> str:
    """Return a text with one small change."""
    at = rng.randrange(len(text) + 1)
    what = rng.randrange(6)
    if what == 0:
        return text[:at] + text[at + 1 :]
    if what == 1:
        return text[:at] + rng.choice("aZ09-_. \n\u00e9\u200b'\"\\") + text[at:]
    if what == 2:
        return text.swapcase()
    if what == 3:
        return text[:at]
    return text * 2 if what == 4 else text[at:] + text[:at]


def spoiled(rng: Random, data: bytes, pieces: Sequence[bytes] = (*_PIECES, *_MORE)) -> bytes:
    """Return bytes with one change that knows nothing of them."""
    made = bytearray(data)
    at = rng.randrange(len(made) + 1)
    span = min(len(made) - at, rng.choice((1, 1, 2, 4, 8, 16)))
    match rng.randrange(7):
        case 0 if span:
            made[at] ^= 1 << rng.randrange(8)
        case 1:
            del made[at : at + span]
        case 2:
            made[at:at] = made[at : at + span]
        case 3:
            made[at:at] = rng.choice(pieces)
        case 4:
            made[at : at + span] = rng.randbytes(span)
        case 5:
            other = rng.randrange(len(made) + 1)
            made[at:at] = made[other : other + span * 4]
        case _:
            made[at : at + span] = rng.choice(pieces)
    return bytes(made)
