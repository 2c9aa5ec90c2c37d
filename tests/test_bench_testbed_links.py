"""The bench of a testbed's links: its patterns and its table."""

from __future__ import annotations

from bench.testbed_links import Pattern, Row, patterns, table


def test_every_pattern_knows_how_many_messages_share_a_cable() -> None:
    assert patterns(2) == (Pattern("one message", ((0, 1),), 1),)
    for pattern in patterns(5):
        senders = [source for source, _ in pattern.routes]
        receivers = [dest for _, dest in pattern.routes]
        busiest = max(max(map(ends.count, ends)) for ends in (senders, receivers))
        assert busiest == pattern.share
        assert all(source != dest for source, dest in pattern.routes)


def test_the_table_says_by_how_much_messages_are_late() -> None:
    assert Row("one message", 1000, 2.0, 3.0).excess == 0.5
    *_, last = table([Row("one message", 64_000, 5.66, 5.77)])
    assert last == "| one message | 64,000 | 5.66 | 5.77 | +1.9% |"
