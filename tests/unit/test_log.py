from agent.log import Repeats


def test_repeats_are_held_back_and_counted() -> None:
    now = [0.0]
    repeats = Repeats(10.0, clock_s=lambda: now[0])

    told = []
    for second in (0, 1, 2, 9.9, 10, 11, 25, 40):
        now[0] = second
        told.append(repeats.due("line"))

    assert told == [0, None, None, None, 3, None, 1, 0]


def test_each_line_counts_by_itself() -> None:
    repeats = Repeats(10.0, clock_s=lambda: 0.0)

    assert [repeats.due(line) for line in ("a", "b", "a", ("a", 1))] == [0, 0, None, 0]
